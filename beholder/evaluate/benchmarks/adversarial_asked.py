"""The adversarial section's questions to the model: attacks on images that it answers rightly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from beholder.core.files import digest
from beholder.core.sections import Spent
from beholder.evaluate.subject import Deployed, Subject, TooLittleTimeError, sampled
from beholder.trust.attacks.base import Goal, frozen
from beholder.trust.attacks.ladder import Ladder

from .adversarial import CONTROL_STEPS, DECISIVE, MAGNIFIED, SIZES, name_of
from .base import Records

WANTED, FLOOR, BATCH = 64, 16, 4
STEPS, QUERIES = (20, 10), (500, 100)
"""Wanted, and the least that is worth trying; queries are those of a black box."""
MANY_RESTARTS, LONG_BUDGET = 3, 20
CONTROL_IMAGES = 16
PICTURES = 3
TRIED = {
    "id": pl.String,
    "eps": pl.Int64,
    "success": pl.Boolean,
    "noise_success": pl.Boolean,
    "fgsm_success": pl.Boolean,
}
CONTROL = {"id": pl.String, "eps": pl.Int64, "success": pl.Boolean, "success_longer": pl.Boolean}
SHOWN = {"id": pl.String, "eps": pl.Int64, "answer": pl.String}


class Asked(nn.Module):
    """A black box as a module: pictures of whole 1/255, float [B, 3, H, W], to logits [B, C]."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        pixels = (255 * images).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        logits = self.model.ask(list(pixels), np.full(len(pixels), -1)).logits
        return torch.from_numpy(logits).to(images)


class TooSlow(Exception):
    """The time for these images is over."""


@contextmanager
def until(model: nn.Module, end: float) -> Iterator[None]:
    """No pass begins after `end` (of `time.monotonic`): `TooSlow` then."""

    def check(*_: object) -> None:
        if time.monotonic() > end:
            raise TooSlow

    handle = model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Found:
    """What became of images: the smallest size that fooled, 0 = none, [N] each.

    Attributes:
        fgsm: None without gradients.
        longer: 1 / 0 = fooled or not at the decisive size, by the longer control too; -1 = not
            in the control.
        images, pictures: [N, 3, H, W], before and after. answers: [N] to the latter.
    """

    rows: np.ndarray
    smallest: Tensor
    noise: Tensor
    fgsm: Tensor | None
    longer: Tensor
    images: Tensor
    pictures: Tensor
    answers: Tensor


@dataclass
class Strength:
    """What every image is given.

    Attributes:
        effort: steps, or queries of a black box. restarts: at each size.
        control: images that are still to get the longer control.
        end: no pass of a model begins after it.
    """

    effort: int
    restarts: int
    control: int = CONTROL_IMAGES
    end: float = float("inf")


def attacked(subject: Subject, rows: np.ndarray, strength: Strength) -> list[Found]:
    """All attacks on these images, without those that are not answered rightly after all."""
    assert subject.model is not None
    gradients, found = subject.model.differentiable, []
    for module, own, images, labels in opened(subject, rows):
        with frozen(module), until(module, strength.end):
            right, gradient = _unattacked(module, images, labels, gradients)
            if not right.any():
                continue
            own = own[right.cpu().numpy()]
            ids = [subject.images.table["id"][int(row)] for row in own]

            def seed(place: int, use: str, ids: list[str] = ids) -> int:
                return int(digest(str(subject.seed), ids[place], use)[:12], 16)

            images, labels = images[right], labels[right]
            ladder = Ladder(module, images, labels, SIZES, seed, strength.restarts)
            noise = ladder.noise()
            fgsm = None if gradient is None else ladder.fgsm(gradient[right])
            climb = ladder.pgd if gradients else ladder.square
            smallest, pictures, answers = climb(strength.effort)
            longer = torch.full_like(smallest, -1)
            if gradients:
                longer[: strength.control] = _by(smallest, DECISIVE)[: strength.control].long()
                waiting = (longer == 0).nonzero()[:, 0]
                longer[waiting] = ladder.at(waiting, DECISIVE, CONTROL_STEPS).long()
                strength.control = max(0, strength.control - len(own))
        found.append(Found(own, smallest, noise, fgsm, longer, images, pictures, answers))
    return found


def opened(
    subject: Subject, rows: np.ndarray
) -> Iterator[tuple[nn.Module, np.ndarray, Tensor, Tensor]]:
    """The models that answer these rows, each with its rows, images and labels."""
    model = subject.model
    assert model is not None
    pixels, rows = subject.prepared(rows)
    if not len(rows):
        return
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(subject.device).float() / 255
    labels = torch.from_numpy(subject.evidence.frame["label"].to_numpy()[rows]).to(images).long()
    if not model.differentiable:
        yield Asked(model), rows, images, labels
        return
    for module, places in model.modules(rows):
        yield module.to(subject.device), rows[places], images[places], labels[places]


def _by(smallest: Tensor, size: int) -> Tensor:
    """Whether a change of at most `size` fooled: bool [N]."""
    return (smallest > 0) & (smallest <= size)


def _unattacked(
    model: nn.Module, images: Tensor, labels: Tensor, gradients: bool
) -> tuple[Tensor, Tensor | None]:
    """Which images are answered rightly, and the gradient of the margin where there is one."""
    goal = Goal(labels=labels)
    with torch.set_grad_enabled(gradients):
        shown = images.clone().requires_grad_(gradients)
        logits = model(shown)
        gradient = None
        if gradients:
            (gradient,) = torch.autograd.grad(goal.margin(logits).sum(), shown)
    return ~goal.reached(logits.detach(), images), gradient


def portions(rows: np.ndarray, labels: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """The sample of `count` rows a few at a time, so that each beginning is a sample as well."""
    taken, parts = np.zeros(0, int), []
    for size in [*range(BATCH, count, BATCH), count]:
        larger = sampled(rows, labels, size, seed)
        parts.append(np.setdiff1d(larger, taken))
        taken = larger
    return parts


def price(subject: Subject, rows: np.ndarray) -> float:
    """Seconds of one step, or of one answer of a black box, for one image."""
    assert subject.model is not None
    if not subject.model.differentiable:
        return subject.price()
    for module, _, images, labels in opened(subject, rows[:1]):
        with frozen(module):
            _unattacked(module, images, labels, True)
            begun = time.perf_counter()
            _unattacked(module, images, labels, True)
            return time.perf_counter() - begun
    return 0.0


def measure(subject: Subject) -> Records:
    """Attack as many images as there is time for.

    Fewer steps are made where the time for the floor would not last if nothing could be fooled.

    Raises:
        TooLittleTimeError: the floor is out of reach.
    """
    model, budget = subject.model, subject.options.budget
    assert model is not None
    rows = subject.judged_rows()
    judged = subject.evidence.frame[rows]
    right = judged["correct"].to_numpy().astype(bool)
    rows, labels = rows[right], judged["label"].to_numpy()[right]
    count = min(WANTED, len(rows))
    parts = portions(rows, labels, count, subject.seed)
    subject.expect(count)
    restarts = 1 if 0 < budget < LONG_BUDGET else MANY_RESTARTS
    most, least = STEPS if model.differentiable else QUERIES
    passes = min(FLOOR, count) * len(SIZES) * restarts
    each, left = price(subject, parts[0]), subject.allowance.left
    effort = most if each * passes * most <= left else least
    found, seen = _within_time(subject, parts, Strength(effort, restarts), each * passes * effort)
    setting = {
        "attack": "pgd" if model.differentiable else "square",
        "effort": effort,
        "restarts": restarts,
    }
    records = recorded(found, setting, subject.images.table["id"], model.classes)
    used = sum(len(some.rows) for some in found)
    records.spent = Spent(wanted=count - seen + used, used=used)
    return records


def _within_time(
    subject: Subject, parts: list[np.ndarray], strength: Strength, needs: float
) -> tuple[list[Found], int]:
    """What there is time for, and how many images were looked at.

    Args:
        needs: seconds of the floor at worst.
    """
    allowance, begun = subject.allowance, time.monotonic()
    total, seen, floor = allowance.left, 0, min(FLOOR, sum(map(len, parts)))
    strength.end = begun + total
    found: list[Found] = []
    for part in parts:
        try:
            found += attacked(subject, part, strength)
        except TooSlow:
            if seen < floor:
                raise TooLittleTimeError(max(needs, total), total) from None
            break
        seen += len(part)
        subject.progress(len(part))
        pace = (time.monotonic() - begun) / seen
        if seen < floor and pace * floor > total:
            raise TooLittleTimeError(pace * floor, total)
        if seen >= floor and pace * len(part) > allowance.left:
            break
    return found, seen


def recorded(
    found: list[Found], setting: dict[str, object], ids: pl.Series, classes: tuple[str, ...]
) -> Records:
    """One row per image and size, the control, and the first that were fooled as pictures."""
    tried, control, shown, pictures = [], [], [], {}
    for some in found:
        for k, row in enumerate(some.rows):
            id, least = ids[int(row)], int(some.smallest[k])
            for size in SIZES:
                marks = (some.smallest, some.noise, some.fgsm)
                by = (None if mark is None else bool(_by(mark[k], size)) for mark in marks)
                tried.append((id, size, *by))
            if some.longer[k] >= 0:
                control.append((id, DECISIVE, 0 < least <= DECISIVE, bool(some.longer[k])))
            if least and len(shown) < PICTURES:
                shown.append((id, least, classes[int(some.answers[k])]))
                pictures |= triple(id, some.images[k], some.pictures[k])
    frames = {
        "tried": pl.DataFrame(tried, TRIED, orient="row"),
        "control": pl.DataFrame(control, CONTROL, orient="row"),
        "shown": pl.DataFrame(shown, SHOWN, orient="row"),
        "setting": pl.DataFrame([setting]),
    }
    return Records(frames, pictures=pictures)


def triple(id: str, image: Tensor, picture: Tensor) -> dict[str, np.ndarray]:
    """The image, the difference (around grey, ten times as strong), and the attacked one."""
    before, after = ((255 * x).round().cpu().numpy().transpose(1, 2, 0) for x in (image, picture))
    change = 128 + MAGNIFIED * (after - before)
    parts = {"image": before, "change": change, "attacked": after}
    return {name_of(id, part): x.clip(0, 255).astype(np.uint8) for part, x in parts.items()}

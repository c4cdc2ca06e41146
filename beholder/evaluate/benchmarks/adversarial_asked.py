"""The adversarial section's questions to the model: attacks on images that it answers rightly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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


@dataclass
class Clock:
    """Ends an attack in its midst, and tells what a pass costs.

    Attributes:
        end: of `time.monotonic`; no pass begins later.
        passes: images that went through a model.
    """

    end: float = float("inf")
    passes: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def price(self) -> float:
        """Seconds per pass of one image, backward included."""
        return (time.monotonic() - self.begun) / max(self.passes, 1)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        def check(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if time.monotonic() > self.end:
                raise TooSlow
            self.passes += len(inputs[0])

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
        images, pictures: [N, 3, H, W], before and after. answer: [N] that the latter get.
    """

    rows: np.ndarray
    smallest: Tensor
    noise: Tensor
    fgsm: Tensor | None
    longer: Tensor
    images: Tensor
    pictures: Tensor
    answer: Tensor


def attacked(
    subject: Subject, rows: np.ndarray, effort: int, restarts: int, control: int, clock: Clock
) -> list[Found]:
    """All attacks on these images, without those that are not answered rightly after all.

    Args:
        effort: steps, or queries of a black box.
        control: how many of the images get the longer control.
    """
    model, device = subject.model, subject.device
    assert model is not None
    pixels, rows = subject.prepared(rows)
    if not len(rows):
        return []
    whole = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device).float() / 255
    labels = torch.from_numpy(subject.evidence.frame["label"].to_numpy()[rows]).to(device).long()
    gradients = model.differentiable
    found = []
    for module, places in model.modules(rows) if gradients else [(Asked(model), slice(None))]:
        module = module.to(device) if gradients else module
        with frozen(module), clock.watching(module):
            right, gradient = _unattacked(module, whole[places], labels[places], gradients)
            own = rows[places][right.cpu().numpy()]
            if not len(own):
                continue
            ids = [subject.images.table["id"][int(row)] for row in own]

            def seed(place: int, use: str, ids: list[str] = ids) -> int:
                return int(digest(str(subject.seed), ids[place], use)[:12], 16)

            images, y = whole[places][right], labels[places][right]
            ladder = Ladder(module, images, y, SIZES, seed, restarts)
            noise = ladder.noise()
            fgsm = None if gradient is None else ladder.fgsm(gradient[right])
            smallest, pictures = ladder.pgd(effort) if gradients else ladder.square(effort)
            longer = torch.full_like(smallest, -1)
            if gradients:
                longer[:control] = _by(smallest[:control], DECISIVE).long()
                waiting = (longer == 0).nonzero()[:, 0]
                longer[waiting] = ladder.at(waiting, DECISIVE, CONTROL_STEPS).long()
                control = max(0, control - len(own))
            with torch.no_grad():
                answer = module(pictures).argmax(1)
        found.append(Found(own, smallest, noise, fgsm, longer, images, pictures, answer))
    return found


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


def measure(subject: Subject) -> Records:
    """Attack as many images as there is time for; with fewer steps before fewer than the floor.

    Raises:
        TooLittleTimeError: not even the floor can be reached with the fewest steps.
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
    efforts = STEPS if model.differentiable else QUERIES
    effort = efforts[0]
    try:
        found, seen = _within_time(subject, parts, effort, restarts, lesser=True)
    except TooLittleTimeError:
        effort = efforts[1]
        found, seen = _within_time(subject, parts, effort, restarts, lesser=False)
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
    subject: Subject, parts: list[np.ndarray], effort: int, restarts: int, lesser: bool
) -> tuple[list[Found], int]:
    """What there is time for, and how many images were looked at.

    Args:
        lesser: there is a lesser effort; then the first images may only take their share of the
            time for the floor.
    """
    allowance, clock = subject.allowance, Clock()
    total, seen, control = allowance.left, 0, CONTROL_IMAGES
    floor = min(FLOOR, sum(map(len, parts)))
    found: list[Found] = []
    for part in parts:
        share = min(0.5, len(part) / floor) if lesser and not seen else 1.0
        clock.end = clock.begun + share * total
        try:
            more = attacked(subject, part, effort, restarts, control, clock)
        except TooSlow:
            if seen >= floor:
                break
            needs = floor * len(SIZES) * effort * clock.price
            raise TooLittleTimeError(needs, allowance.left) from None
        found += more
        control = max(0, control - sum(len(some.rows) for some in more))
        seen += len(part)
        pace = (time.monotonic() - clock.begun) / seen
        if seen < floor and pace * floor > total:
            raise TooLittleTimeError(pace * floor, allowance.left)
        subject.progress(len(part))
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
                shown.append((id, least, classes[int(some.answer[k])]))
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

"""The verb: explain a model's answers on images, by several methods, and measure their worth."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from beholder.core.decode import Unreadable, decode
from beholder.core.errors import ArgumentError, DataError
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.predictions import Explanation
from beholder.core.registry import make
from beholder.data.sources import open_images
from beholder.data.sources.walk import IMAGE_SUFFIXES
from beholder.metrics.explanation import shuffled, spearman
from beholder.models.open import Spec, open_vision
from beholder.train.made import pick_device

from .base import Explainer
from .explained import MEASURES, Explained, faithfulness
from .targets import Targets

Given = str | Path | Images | Tensor | Sequence[np.ndarray]
Method = str | Explainer

SYNSET = re.compile(r"n\d{8}")
LIMIT = 8
STEPS = 16
TEXTS: tuple[str, ...] = ("image", "label", "method", "predicted", "target")
NUMBERS: tuple[str, ...] = ("probability", "score", *MEASURES, "survives")
TYPES: dict[str, type[pl.DataType]] = dict.fromkeys(TEXTS, pl.String)
TYPES |= dict.fromkeys(NUMBERS, pl.Float64)


@dataclass(frozen=True)
class Sample:
    """An image to be explained: RGB uint8 [h, w, 3], and the class that it is labelled with."""

    name: str
    pixels: np.ndarray
    label: str | None = None


def explain(
    model: Spec | VisionModel,
    images: Given,
    method: Method | Sequence[Method] = "gradcam",
    target: str | Targets = None,
    *,
    out: str | Path | None = None,
    limit: int = LIMIT,
    steps: int = STEPS,
    seed: int = 0,
    device: str = "auto",
) -> Explained:
    """Where a model's answers come from.

    Args:
        model: what `open_vision` takes: a run, a timm name, `untrained:NAME`, None.
        images: DATA, one image file, `Images`, pixels [h, w, 3] each, or a tensor [B, 3, h, w].
        method: names of explainers, or explainers.
        target: a class by name; or as of `Explainer.explain`. None = each image's own answer.
        out: directory for overlays, table and page.
        limit: of more images, so many are taken, evenly through the data.
        steps: of the deletion and insertion curves; 0 = not measured.
        seed: of what the maps are compared with: moved maps, shuffled weights.

    Raises:
        ArgumentError: an unknown method, class or option.
        DataError: no image to be read.
        ModelError: the method cannot explain this model.
    """
    place = pick_device(device)
    opened = open_vision(model, seed=seed).to(place)
    methods = _methods(method)
    samples, notes = _samples(images, limit)
    pixels = np.stack([opened.prepare(sample.pixels) for sample in samples])
    shown = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    batch = shown.to(place).float() / 255
    spoken = _spoken(opened.classes)
    wanted = _target(target, opened.classes, spoken)
    forgetful = cast(VisionModel, shuffled(opened, seed)) if steps else None
    answers = _answers(opened, batch)
    explanations, frames = {}, []
    for name, explainer in methods.items():
        found = explainer.explain(opened, batch, wanted)
        explanations[name] = found
        measured: dict[str, Sequence[float | None]] = {
            measure: [None] * len(samples) for measure in (*MEASURES, "survives")
        }
        if forgetful is not None:
            same = wanted if found.target[0] < 0 else found.target
            other = explainer.explain(forgetful, batch, same)
            measured["survives"] = spearman(found.heatmap.abs(), other.heatmap.abs()).tolist()
            if found.target[0] >= 0:
                measured.update(faithfulness(opened, batch, found, steps, seed))
        frames.append(_frame(name, samples, spoken, answers, found, measured))
    if opened.head is not None and opened.taps.indices:
        notes.append("The head reads earlier maps too; a CAM shows what passes through its layer.")
    result = Explained(
        opened.name,
        shown,
        tuple(sample.name for sample in samples),
        explanations,
        pl.concat(frames),
        tuple(notes),
    )
    if out is not None:
        result.save(Path(out))
    return result


def _methods(method: Method | Sequence[Method]) -> dict[str, Explainer]:
    several = [method] if isinstance(method, str | Explainer) else list(method)
    made = [make("explainer", one) if isinstance(one, str) else one for one in several]
    names = [one.name for one in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ArgumentError(f"{twice} is named twice.")
    return dict(zip(names, made, strict=True))


def _spoken(classes: Sequence[str]) -> list[str]:
    """Names for people: the first word for each of ImageNet's synsets, others as they are."""
    if not classes or not all(SYNSET.fullmatch(name) for name in classes):
        return list(classes)
    words = ImageNetInfo("imagenet-22k").label_name_to_description
    return [words(name, detailed=False).partition(",")[0] for name in classes]


def _target(target: str | Targets, classes: Sequence[str], spoken: Sequence[str]) -> Targets:
    """A class by name (or number, as text) to its index; anything else as it is."""
    if not isinstance(target, str):
        return target
    for names in (classes, spoken):
        found = [index for index, name in enumerate(names) if name == target]
        if len(found) > 1:
            numbers = ", ".join(map(str, found))
            raise ArgumentError(f"{target!r} are several classes.", f"Give a number: {numbers}.")
        if found:
            return found[0]
    if target.isdecimal():
        return int(target)
    near = difflib.get_close_matches(target, spoken, n=3, cutoff=0.4) or spoken[:5]
    raise ArgumentError(f"There is no class {target!r}.", f"Near: {', '.join(near)}.")


def _samples(images: Given, limit: int) -> tuple[list[Sample], list[str]]:
    """At most `limit` images that can be read, and what has to be said about the others."""
    if limit < 1:
        raise ArgumentError(f"--limit {limit}: at least one image has to be explained.")
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            try:
                return [Sample(path.name, decode(path.read_bytes())[0])], []
            except Unreadable as error:
                raise DataError(f"{path.name} cannot be read: {error.reason}.") from error
        images = open_images(images)
    if isinstance(images, Images):
        return _of_data(images, limit)
    given = list(images.permute(0, 2, 3, 1).cpu().numpy() if isinstance(images, Tensor) else images)
    if not given:
        raise DataError("There are no images.")
    rows = _evenly(len(given), limit)
    return [Sample(str(row), _bytes(given[row])) for row in rows], _left_out(len(given), len(rows))


def _of_data(images: Images, limit: int) -> tuple[list[Sample], list[str]]:
    samples, lost = [], []
    rows = _evenly(len(images), limit)
    for row in rows:
        label = images.table["label"][row]
        try:
            pixels = images.read(row)
        except Unreadable:
            lost.append(images.table["path"][row])
            continue
        name = None if label is None else images.classes[label]
        samples.append(Sample(images.table["path"][row], pixels, name))
    if not samples:
        raise DataError(f"No image of {images.name} could be read.")
    notes = [f"{len(lost)} could not be read: {', '.join(lost[:3])}"] if lost else []
    return samples, _left_out(len(images), len(rows)) + notes


def _evenly(count: int, limit: int) -> list[int]:
    return [int(row) for row in np.linspace(0, count - 1, min(count, limit)).round()]


def _left_out(count: int, taken: int) -> list[str]:
    return [f"{taken:,} of {count:,} images, evenly through the data"] if taken < count else []


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8, from uint8 or [0, 1]."""
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ArgumentError(f"{pixels.shape} is no image.", "Give RGB: [h, w, 3] each.")
    return pixels if pixels.dtype == np.uint8 else (255 * pixels).round().clip(0, 255).astype("u1")


@torch.no_grad()
def _answers(model: VisionModel, batch: Tensor) -> Tensor:
    """Probabilities [B, C]; [B, 0] of a model without classes."""
    if not model.classes:
        return torch.zeros(len(batch), 0)
    return torch.cat([model.logits(part).softmax(1) for part in batch.split(16)]).cpu()


def _frame(
    method: str,
    samples: Sequence[Sample],
    classes: Sequence[str],
    answers: Tensor,
    found: Explanation,
    measured: Mapping[str, Sequence[float | None]],
) -> pl.DataFrame:
    """The rows of `Explained.table` of one method."""
    named = [classes[index] if index >= 0 else None for index in found.target.tolist()]
    predicted = answers.argmax(1).tolist() if classes else []
    given = zip(answers.tolist(), found.target.tolist(), strict=True)
    columns = {
        "image": [sample.name for sample in samples],
        "label": [sample.label for sample in samples],
        "method": [method] * len(samples),
        "predicted": [classes[index] for index in predicted] or [None] * len(samples),
        "target": named,
        "probability": [row[index] if index >= 0 else None for row, index in given],
        "score": found.score.tolist(),
        **measured,
        "empty": [row in found.meta["empty"] for row in range(len(samples))],
    }
    return pl.DataFrame(columns, schema_overrides=TYPES)

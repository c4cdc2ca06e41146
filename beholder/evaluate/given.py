"""A model that the user brought: asked about every image once, never trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from beholder.core.decode import Unreadable
from beholder.core.engines import Eager, Engine, FromBytes
from beholder.core.errors import DataError, ModelError
from beholder.core.features import View, extract
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.split import folds
from beholder.metrics.calibration import fit_temperature, softmax
from beholder.models.classifier_heads import UnitHead
from beholder.models.classmatch import Match, apply, match_classes, numbered
from beholder.models.given_model import GivenModel

PROBE = 64
CALIBRATION_FOLDS = 5

Kind = Literal["holdout", "given", "cross_fit"]


@dataclass
class Answered:
    """A model's answers to every image, in the order of the data.

    Attributes:
        classes: of the answers; the classes of the data come first.
        logits, probability: [N, C]; NaN rows where there is no answer.
        roles: train, val or test per image; fold: of a cross-fit, else -1.
    """

    classes: tuple[str, ...]
    logits: np.ndarray
    probability: np.ndarray
    roles: np.ndarray
    fold: np.ndarray
    kind: Kind
    seeds: list[int]
    embeddings: np.ndarray | None = None
    repeats: pl.DataFrame | None = None
    baselines: pl.DataFrame | None = None
    learning: pl.DataFrame | None = None


class AsGiven:
    """The model's own forward pass as an engine: logits [M], then features [D] if it has some."""

    name = "as given"
    batch = PROBE

    def __init__(self, model: GivenModel) -> None:
        self.model = model

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            images = torch.from_numpy(batch).permute(0, 3, 1, 2)
            logits, features = asked(self.model, images)
            parts = [logits] if features is None else [logits, features.flatten(1)]
            yield torch.cat([part.float().cpu() for part in parts], 1).numpy()


def readable(images: Images, rows: Iterable[int]) -> Iterator[np.ndarray]:
    """RGB of those of the rows that are still there. Raises `DataError` if none is."""
    found = False
    for row in rows:
        try:
            image = images.read(int(row))
        except Unreadable:
            continue
        found = True
        yield image
    if not found:
        raise DataError("The images cannot be read any more.")


def asked(model: GivenModel, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """`model.answer`. Raises `ModelError` where the model itself breaks."""
    try:
        with torch.inference_mode():
            return model.answer(images.to(model._mean.device))
    except (
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{model.name} broke on images of the shape {list(images.shape)}: {reason[:200]}"
        ) from error


@dataclass
class Judged:
    """Answers, how the classes were matched, and the images that vanished meanwhile."""

    answered: Answered
    class_match: str
    notes: list[str]
    gone: dict[str, str]
    match: Match
    kept: np.ndarray


def judge_given(
    model: GivenModel,
    images: Images,
    hashes: list[str],
    *,
    class_map: Path | None,
    by_position: bool,
    workers: int,
    directory: Path | None,
    seed: int,
    progress: Callable[[int], None],
    trained_on: set[str] | None = None,
    exact: Sequence[str] = (),
) -> Judged:
    """Answers of a model as it came, calibrated by a temperature that no judged image sets itself.

    Args:
        trained_on: pixel hashes of the images that a run of `train` learned from: not judged.
        exact: pixel hash per image, where `trained_on` is given.

    Raises:
        ModelError: its classes are not those of the data.
    """
    rows = np.linspace(0, len(images) - 1, min(PROBE, len(images))).astype(int)
    sample = np.stack([model.prepare(image) for image in readable(images, rows)])
    engine = AsGiven(model)
    logits, features = asked(model, torch.from_numpy(sample).permute(0, 3, 1, 2))
    outputs = logits.shape[1]
    layout = {"logits": slice(0, outputs)}
    if features is not None:
        layout["pooled"] = slice(outputs, outputs + features.flatten(1).shape[1])
    names = model.classes or numbered(outputs)
    wanted = images.classes or names  # without labels every class of the model may be answered
    match = match_classes(wanted, names, class_map=class_map, by_position=by_position)
    found = extract(
        lambda: engine,
        images,
        hashes,
        describe=model.describe(),
        prepare=model.prepare,
        size=model.input_size,
        layout=layout,
        views=("image",),
        workers=workers,
        directory=directory,
        dtype=np.dtype(np.float32),
        progress=progress,
    )
    whole = apply(torch.from_numpy(found.take(columns=layout["logits"])), match).double().numpy()
    seen = np.zeros(len(images), bool)
    if trained_on:
        seen = np.array([pixels in trained_on for pixels in exact])
    roles = np.where(seen, "train", given_roles(images))
    label = images.table["label"].fill_null(-1).to_numpy()
    probability = softmax(tempered(whole, np.where(seen, -1, label), roles, seed))
    log_probability = np.log(np.maximum(softmax(whole), 1e-12))
    missing = np.array([name in match.missing for name in wanted] + [False] * len(match.extra))
    kept = np.arange(whole.shape[1]) < len(wanted)
    kept[np.unique(probability.argmax(1))] = True
    unknown = (label >= 0) & missing[np.maximum(label, 0)]
    roles = np.where(unknown & (roles == "test"), "val", roles)
    notes = [*model.assumptions]
    if seen.any():
        notes.append(f"{int(seen.sum()):,} images that the model was trained on are not judged.")
    if match.missing:
        notes.append(
            f"The model does not know {', '.join(match.missing)}: their {int(unknown.sum()):,} "
            "images are not judged."
        )
    absent = [name for name, used in zip(match.extra, kept[len(wanted) :], strict=True) if used]
    if absent:
        notes.append(f"Predicted though absent from the data: {', '.join(absent)}.")
    answered = Answered(
        classes=tuple(name for name, keep in zip(match.names, kept, strict=True) if keep),
        logits=log_probability[:, kept],
        probability=probability[:, kept],
        roles=roles,
        fold=np.full(len(images), -1),
        kind="given",
        seeds=[],
        embeddings=found.take(columns=layout["pooled"]) if "pooled" in layout else None,
    )
    return Judged(answered, match.how, notes, found.gone, match, kept)


def judge_run(
    model: VisionModel,
    engine: Callable[[], Engine],
    images: Images,
    hashes: list[str],
    *,
    trained_on: set[str],
    exact: list[str],
    workers: int,
    directory: Path | None,
    progress: Callable[[int], None],
) -> Judged:
    """Answers of a run of beholder; images that it was trained on are not judged.

    Args:
        trained_on: pixel hashes of its training images.
        exact: pixel hash per image.
    """
    head = model.head
    if head is None:
        raise ModelError(f"{model.name} has no head.", "Train one: beholder study DATA.")
    match = match_classes(images.classes or model.classes, model.classes)
    several = isinstance(head, UnitHead) and head.jitter > 1
    ask = _ask_whole if several else _ask_head
    whole, embeddings, gone = ask(
        model, engine, images, hashes, workers=workers, directory=directory, progress=progress
    )
    logits = apply(whole, match).double().numpy()
    seen = np.array([pixels in trained_on for pixels in exact])
    roles = np.where(seen, "train", given_roles(images))
    notes = [f"{int(seen.sum()):,} images that the model was trained on are not judged."]
    answered = Answered(
        classes=match.names,
        logits=logits,
        probability=softmax(logits),
        roles=roles,
        fold=np.full(len(images), -1),
        kind="given",
        seeds=[],
        embeddings=embeddings,
    )
    kept = np.ones(len(match.names), bool)
    return Judged(answered, match.how, notes if seen.any() else [], gone, match, kept)


Asked = tuple[Tensor, np.ndarray | None, dict[str, str]]
"""Logits [N, C], embeddings [N, D] where there are some, images that vanished."""


def _ask_head(
    model: VisionModel,
    engine: Callable[[], Engine],
    images: Images,
    hashes: list[str],
    *,
    workers: int,
    directory: Path | None,
    progress: Callable[[int], None],
) -> Asked:
    """The head's answers to cached descriptors of the image and its mirror image."""
    head = model.head
    assert head is not None
    views: list[View] = ["image", "mirror"] if model.mirror else ["image"]
    found = extract(
        engine,
        images,
        hashes,
        describe=model.describe(),
        prepare=model.prepare,
        size=model.input_size,
        layout=model.layout,
        views=views,
        workers=workers,
        directory=directory,
        progress=progress,
    )
    logits, device = [], model._mean.device
    with torch.inference_mode():
        for start in range(0, len(images), 2048):
            rows = np.arange(start, min(start + 2048, len(images)))
            shown = [torch.from_numpy(found.take(rows, view)).to(device) for view in views]
            decisions = torch.stack([head(descriptor) for descriptor in shown]).mean(0)
            logits.append(head.logits(decisions).cpu())
    return torch.cat(logits), found.take(columns=model.layout["pooled"]), found.gone


def _ask_whole(
    model: VisionModel,
    engine: Callable[[], Engine],
    images: Images,
    hashes: list[str],
    *,
    workers: int,
    directory: Path | None,
    progress: Callable[[int], None],
) -> Asked:
    """The answers of a model that looks at versions of each image of its own making."""
    found = extract(
        lambda: Eager(FromBytes(model, "logits"), device=str(model._mean.device)),
        images,
        hashes,
        describe={**model.describe(), "head": model.head_hash, "output": "logits"},
        prepare=model.prepare,
        size=model.input_size,
        layout={"logits": slice(0, len(model.classes))},
        views=("image",),
        workers=workers,
        directory=directory,
        dtype=np.dtype(np.float32),
        progress=progress,
    )
    return torch.from_numpy(found.take()), None, found.gone


def given_roles(images: Images) -> np.ndarray:
    """The given split; without one every image is judged."""
    split = images.table["split"]
    if split.null_count() == len(split):
        return np.full(len(images), "test", dtype="<U5")
    return np.array(split.fill_null("train").to_list(), dtype="<U5")


def tempered(logits: np.ndarray, label: np.ndarray, roles: np.ndarray, seed: int) -> np.ndarray:
    """Logits over a temperature: fitted on the given val part, else on the other folds."""
    usable = (label >= 0) & np.isfinite(logits[np.arange(len(label)), np.maximum(label, 0)])
    val = usable & (roles == "val")
    if len(np.unique(label[val])) > 1 and val.sum() >= 30:
        return logits / fit_temperature(logits[val], label[val])
    rows = np.flatnonzero(usable)
    out = logits.copy()
    if len(rows) < 2 * CALIBRATION_FOLDS:
        return out
    fold = folds(rows, label[rows], CALIBRATION_FOLDS, seed)
    for k in range(CALIBRATION_FOLDS):
        rest, here = rows[fold != k], rows[fold == k]
        out[here] = logits[here] / fit_temperature(logits[rest], label[rest])
    return out


def training_hashes(run: Path) -> set[str]:
    """Pixel hashes of the images that a run learned from; empty where it does not say."""
    file = run / "predictions.parquet"
    if not file.exists():
        return set()
    frame = pl.read_parquet(file, columns=["split", "exact_hash", "fold"])
    learned = frame.filter((pl.col("split") != "test") | pl.col("fold").is_not_null())
    return set(learned["exact_hash"])

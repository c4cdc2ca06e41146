"""The role of a detector: scores of untrustworthiness, and a threshold with a guarantee.

A detector is fitted on trusted images. Part of them is kept aside, never learned from, and gives
the threshold by split-conformal prediction: of new images like the trusted ones at most the share
`fpr` is refused, whatever the score means (Vovk, Gammerman, Shafer: "Algorithmic Learning in a
Random World", 2005; specs/detectors.md, 'Shared').

A system on features is one class:

    @system(name="distance_to_mean")
    class DistanceToMean(FeatureDetector):
        def fit_features(self, levels, y=None):
            self.mean_ = levels["pooled"].mean(0)

        def score_features(self, levels):
            return (levels["pooled"] - self.mean_).norm(dim=1)

What it learned stands in attributes that end in `_` (tensors, or dicts of tensors), which are what
is saved. Its options are the arguments of `__init__`, kept under their own names.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from beholder.core.errors import ArgumentError
from beholder.core.files import digest
from beholder.core.model import VisionModel
from beholder.core.registry import arguments
from beholder.metrics.detection import conformal_p, conformal_threshold, references_needed
from beholder.models.open import Spec, open_vision

from . import files
from .levels import BATCH, Encoder, Levels
from .pictures import DetectorError, Given, Pictures, varied

__all__ = [
    "CalibrationError",
    "Decision",
    "Detector",
    "DetectorError",
    "FeatureDetector",
    "Given",
    "Levels",
    "NotFittedError",
    "Pictures",
    "Progress",
    "Scores",
    "fit_all",
    "score_all",
]

Kind = Literal["ood", "anomaly", "generated", "backdoor"]
Supervision = Literal["none", "one-class", "labels", "pairs"]
Level = Literal["image", "pixel"]
Progress = Callable[[int], None]
"""Told how many more images are done."""

CHUNK = 1024  # images whose features are held at once while scoring; whole shards of the cache


class NotFittedError(DetectorError):
    """The detector has not seen trusted images yet."""


class CalibrationError(DetectorError):
    """Too few trusted images were kept aside for the false-refusal rate that is asked for."""


@dataclass
class Scores:
    """Higher = less trustworthy.

    Attributes:
        image: float32 [N].
        pixel: one map [H, W] per image, at the image's own size; None where there is none.
        extra: parts of the score by name, each [N].
    """

    image: Tensor
    pixel: list[Tensor] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """One after the other."""
        pixel = None
        if parts[0].pixel is not None:
            pixel = [each for part in parts for each in part.pixel or ()]
        extra = {key: torch.cat([part.extra[key] for part in parts]) for key in parts[0].extra}
        return cls(torch.cat([part.image for part in parts]), pixel, extra)

    def take(self, rows: Tensor) -> Scores:
        """Only these rows, in this order."""
        pixel = None if self.pixel is None else [self.pixel[int(row)] for row in rows]
        return Scores(self.image[rows], pixel, {k: v[rows] for k, v in self.extra.items()})


@dataclass
class Decision:
    """Scores and what follows from them.

    Attributes:
        p_value: [N] share of trusted images at least as odd, counting the image itself.
        refused: [N] bool.
        threshold: scores above it are refused.
        reason: one sentence for people.
    """

    scores: Scores
    p_value: Tensor
    refused: Tensor
    threshold: float
    reason: str


class Detector(abc.ABC):
    """Base of every detector.

    Attributes:
        kind: what is refused: unknown classes, anomalies, generated images, backdoor inputs.
        supervision: what fit needs beside trusted images: nothing more ('none', 'one-class'),
            their labels, or untrustworthy images (`against`).
        native_threshold: of scores that are probabilities; None elsewhere.
        model: the network that features are taken from, or that is guarded; None without one.
    """

    role: ClassVar[str] = "detector"
    kind: ClassVar[Kind] = "ood"
    supervision: ClassVar[Supervision] = "none"
    native_threshold: ClassVar[float | None] = None
    needs_model: ClassVar[bool] = False

    model: VisionModel | None = None
    device: str = "cpu"
    seed: int = 0
    references: dict[str, Any] | None = None
    spec: Spec = None
    _calibration: Tensor | None = None
    _pixel_calibration: Tensor | None = None

    @abc.abstractmethod
    def learn(self, images: Pictures, against: Pictures | None, progress: Progress) -> None:
        """Fit on trusted images (calibration images are not among them)."""

    @abc.abstractmethod
    def score_batch(self, images: Tensor) -> Scores:
        """Scores of float [0, 1] [b, 3, H, W] of one size, as the files have it: not resized."""

    def state(self) -> dict[str, Tensor]:
        """What was learned, by name: every tensor (or dict of tensors) in an attribute NAME_."""
        found: dict[str, Tensor] = {}
        for name, value in vars(self).items():
            if not name.startswith("_") and name.endswith("_"):
                parts = {name: value} if isinstance(value, Tensor) else value
                prefix = "" if isinstance(value, Tensor) else f"{name}."
                found |= {f"{prefix}{key}": tensor for key, tensor in parts.items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        for name, value in state.items():
            attribute, dot, key = name.partition(".")
            if dot:
                vars(self).setdefault(attribute, {})[key] = value
            else:
                setattr(self, attribute, value)

    def fit(
        self,
        images: Given,
        *,
        against: Given | None = None,
        model: Spec = None,
        calibration: float = 0.2,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress = lambda done: None,
    ) -> Self:
        """Learn from trusted images, and calibrate on those that are kept aside.

        Args:
            images: trusted ones; a data set may bring labels.
            against: untrustworthy ones, for detectors of `supervision = 'pairs'`.
            model: MODEL to take features from; None = the embedded encoder.
            calibration: share kept aside; 0 = none, then call `calibrate`.
        """
        fit_all(
            [self],
            images,
            against=against,
            model=model,
            calibration=calibration,
            seed=seed,
            device=device,
            progress=progress,
        )
        return self

    def score(
        self,
        images: Given,
        *,
        batch_size: int = BATCH,
        progress: Progress = lambda done: None,
    ) -> Scores:
        """Scores of images, in their order.

        Raises:
            NotFittedError: before `fit`.
        """
        return score_all([self], images, batch_size=batch_size, progress=progress)[0]

    def calibrate(self, images: Given, *, progress: Progress = lambda done: None) -> Self:
        """Take thresholds from these trusted images, which `fit` must not have seen."""
        return self.calibrate_scores(self.score(images, progress=progress))

    def calibrate_scores(self, scores: Scores | Tensor) -> Self:
        """`calibrate` on scores that are already there."""
        scores = Scores(scores) if isinstance(scores, Tensor) else scores
        self._calibration = scores.image.float().sort().values
        if scores.pixel is not None:
            self._pixel_calibration = torch.stack([m.max() for m in scores.pixel]).sort().values
        return self

    def threshold(self, fpr: float | None = 0.05, level: Level = "image") -> float:
        """The score above which the share `fpr` of trusted images, at most, is refused.

        Args:
            fpr: None = the threshold that belongs to the score itself (0.5 of a probability).
            level: 'pixel' = of the largest score in an image's map, so `fpr` counts images.

        Raises:
            CalibrationError: not calibrated, or on too few images.
        """
        if fpr is None:
            if self.native_threshold is None:
                raise DetectorError(
                    f"The scores of {self.called} are no probabilities.", "Give an fpr."
                )
            return self.native_threshold
        known = self._calibrated(level)
        try:
            return conformal_threshold(known.numpy(), fpr)
        except ValueError as error:
            if not 0 < fpr < 1:
                raise ArgumentError(f"fpr = {fpr} does not lie between 0 and 1.") from error
            raise CalibrationError(
                f"{len(known)} images were kept aside for the threshold; a false-refusal rate of "
                f"{fpr:g} needs {references_needed(fpr)}.",
                "Give more trusted images, keep more of them aside, or allow more refusals.",
            ) from error

    def p_values(self, scores: Scores | Tensor) -> Tensor:
        """(1 + trusted images at least as odd) / (1 + trusted images): float64 [N]."""
        image = scores if isinstance(scores, Tensor) else scores.image
        return torch.from_numpy(conformal_p(self._calibrated("image").numpy(), image.numpy()))

    def decide(
        self,
        images: Given,
        fpr: float | None = 0.05,
        *,
        batch_size: int = BATCH,
        progress: Progress = lambda done: None,
    ) -> Decision:
        """Which images to refuse."""
        threshold = self.threshold(fpr)
        scores = self.score(images, batch_size=batch_size, progress=progress)
        refused = scores.image > threshold
        promise = (
            f"scores above {threshold:g}"
            if fpr is None
            else f"at most {100 * fpr:g} % of images like the references would be"
        )
        reason = f"{int(refused.sum())} of {len(refused)} images refused; {promise}."
        return Decision(scores, self.p_values(scores), refused, threshold, reason)

    @property
    def called(self) -> str:
        entry = getattr(type(self), "entry", None)
        return entry.name if entry else type(self).__name__

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that it was made with."""
        return {name: getattr(self, name) for name in arguments(type(self))}

    def save(self, directory: Path | str) -> Path:
        """`detector.safetensors` + `detector.json` (+ `model/` where MODEL is no plain name).

        Written beside and renamed: there is a whole detector, or what was there before.

        Raises:
            NotFittedError: before `fit`.
            DetectorError: the directory holds other things.
        """
        self._fitted()
        return files.save(self, Path(directory))

    @classmethod
    def load(cls, directory: Path | str, *, device: str = "cpu") -> Self:
        """A detector that `save` wrote, giving the same scores.

        Raises:
            DetectorError: there is none, it is damaged, or its model has changed since.
        """
        detector = files.load(Path(directory), device)
        if not isinstance(detector, cls):
            raise DetectorError(f"{directory} holds {detector.called}, no {cls.__name__}.")
        return detector

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that is saved as tensors."""
        found = {f"state.{name}": tensor for name, tensor in self.state().items()}
        aside = {"calibration": self._calibration, "pixel_calibration": self._pixel_calibration}
        return found | {name: tensor for name, tensor in aside.items() if tensor is not None}

    def _take_up(self, tensors: Mapping[str, Tensor]) -> None:
        """What `_tensors` gave."""
        mark = "state."
        self.restore({k.removeprefix(mark): v for k, v in tensors.items() if k.startswith(mark)})
        self._calibration = tensors.get("calibration")
        self._pixel_calibration = tensors.get("pixel_calibration")

    def use(self, model: VisionModel, spec: Spec, device: str = "cpu") -> None:
        """Set the model, and how it is to be named when the detector is saved."""
        self.model, self.spec, self.device = model, spec, device

    def _fitted(self) -> None:
        if self.references is None:
            raise NotFittedError(f"{self.called} is not fitted.", "Call fit(trusted images) first.")

    def _calibrated(self, level: Level) -> Tensor:
        known = self._calibration if level == "image" else self._pixel_calibration
        if known is None:
            what = "" if level == "image" else " for pixels: it makes no maps"
            raise CalibrationError(
                f"{self.called} is not calibrated{what}.",
                "Fit it with calibration > 0, or call calibrate(other trusted images).",
            )
        return known


class FeatureDetector(Detector):
    """A detector that needs nothing but the levels of a frozen model.

    Attributes:
        needs_logits: `logits` is wanted among the levels; the model must then have classes.
        augment: further passes over the trusted images for fit, each in mild augmentation.
        per_location: maps are wanted, of `locate`.
    """

    needs_model: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    augment: int = 0
    per_location: bool = False
    encoder: Encoder

    @abc.abstractmethod
    def fit_features(self, levels: Levels, y: np.ndarray | None = None) -> None:
        """Learn from trusted images. `levels`: name -> [N, D]; `y`: class index [N], or None."""

    @abc.abstractmethod
    def score_features(self, levels: Levels) -> Tensor | Scores:
        """[N], higher = less trustworthy; or scores with their parts in `extra`."""

    def locate(self, maps: dict[str, Tensor]) -> Tensor:
        """Scores of places, [B, h, w], from the stages [B, C, h, w]."""
        raise NotImplementedError

    def wanted(self, levels: Levels) -> Levels:
        """Those of a shared pass that this detector reads: the logits only where it needs them."""
        return {name: x for name, x in levels.items() if self.needs_logits or name != "logits"}

    def fit_levels(self, levels: Levels, y: np.ndarray | None = None) -> Self:
        """`fit` on levels that are already there (float32 [N, D] each)."""
        for name, value in levels.items():
            if not value.isfinite().all():
                raise DetectorError(f"The features of level {name} are not finite (NaN, infinity).")
        if self.supervision == "labels" and y is None:
            raise DetectorError(f"{self.called} needs the classes of the trusted images.")
        self.fit_features(levels, y)
        count = len(next(iter(levels.values())))
        self.references = self.references or {"count": count, "fingerprint": None}
        return self

    def score_levels(self, levels: Levels) -> Scores:
        """`score` of levels that are already there."""
        self._fitted()
        found = self.score_features(levels)
        scores = found if isinstance(found, Scores) else Scores(found)
        scores.image = scores.image.float()
        return _finite(scores, self.called)

    def use(self, model: VisionModel, spec: Spec, device: str = "cpu") -> None:
        super().use(model, spec, device)
        if self.needs_logits and model.head is None and not model.classes:
            raise DetectorError(
                f"{model.name} has no classes, and {self.called} reads its answers.",
                "Give a model that classifies: --model RUN.",
            )
        self.encoder = Encoder(model, device, logits=self.needs_logits)

    def learn(self, images: Pictures, against: Pictures | None, progress: Progress) -> None:
        seeds = range(self.seed, self.seed + self.augment)
        passes = [images, *(varied(images, seed) for seed in seeds)]
        read = [self.encoder.read(each, progress=progress) for each in passes]
        levels = {name: torch.cat([part[name] for part in read]) for name in read[0]}
        labels = None if images.labels is None else np.tile(images.labels, len(passes))
        self.fit_levels(levels, labels)

    def score_batch(self, images: Tensor) -> Scores:
        prepared = torch.stack([self.encoder.prepared(image) for image in images]).to(self.device)
        levels, maps = self.encoder.levels_and_maps(prepared)
        scores = self.score_levels({name: x.float().cpu() for name, x in levels.items()})
        if self.per_location:
            places = self.locate({name: x.float().cpu() for name, x in maps.items()})
            scores.pixel = list(resized(places, images.shape[2:]))
        return scores


def resized(places: Tensor, size: Sequence[int]) -> Tensor:
    """[B, h, w] to [B, *size], bilinearly."""
    return F.interpolate(places[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def apart(pictures: Pictures, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and rows kept aside: seeded, by id, in equal parts of every class.

    What must not be parted (`units`) stays together. Which side an image comes to does not depend
    on the order of the images.
    """
    labels = np.zeros(len(pictures), int) if pictures.labels is None else pictures.labels
    first: dict[str, int] = {}
    for row in sorted(range(len(pictures)), key=lambda row: pictures.ids[row]):
        first.setdefault(pictures.units[row], int(labels[row]))
    order = sorted(first, key=lambda unit: (first[unit], digest(str(seed), unit)))
    steps = np.floor(np.arange(len(order) + 1) * share + 1e-9)
    chosen = {unit for unit, step in zip(order, np.diff(steps), strict=True) if step}
    aside = np.array([unit in chosen for unit in pictures.units])
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def fit_all(
    detectors: Sequence[Detector],
    images: Given,
    *,
    against: Given | None = None,
    model: Spec = None,
    calibration: float = 0.2,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = lambda done: None,
) -> None:
    """`fit` of several detectors; those on features share one pass of the model.

    Raises:
        DetectorError: images or options that one of them cannot use.
    """
    if not 0 <= calibration < 1:
        raise ArgumentError(f"calibration = {calibration} is no share from 0 to below 1.")
    for detector in detectors:
        if (detector.supervision == "pairs") != (against is not None):
            wants = "needs images to learn against" if against is None else "learns from none"
            raise DetectorError(f"{detector.called} {wants}.", "See --against.")
    pictures = Pictures.of(images)
    learned, aside = apart(pictures, calibration, seed)
    if not len(learned):
        raise DetectorError(f"{len(pictures)} images are too few to keep {calibration:g} aside.")
    references = {
        "count": len(learned),
        "aside": len(aside),
        "fingerprint": pictures.fingerprint,
        "name": getattr(pictures.images, "name", None),
    }
    vision = open_vision(model) if model or any(d.needs_model for d in detectors) else None
    for detector in detectors:
        detector.seed, detector.references = seed, None
        detector._calibration = detector._pixel_calibration = None
        if vision is not None:
            detector.use(vision, model, device)
        if not _shares(detector):
            others = None if against is None else Pictures.of(against)
            detector.learn(pictures.take(learned), others, progress)
            detector.references = references
            if len(aside):
                detector.calibrate_scores(_scores(detector, pictures.take(aside), BATCH, progress))
    shared = [d for d in detectors if isinstance(d, FeatureDetector) and _shares(d)]
    if shared:
        encoder = Encoder(shared[0].encoder.model, device, logits=_logits(shared))
        levels = encoder.read(pictures, progress=progress)
        labels = None if pictures.labels is None else pictures.labels[learned]
        for detector in shared:
            wanted = detector.wanted(levels)
            detector.fit_levels({name: x[learned] for name, x in wanted.items()}, labels)
            detector.references = references
            if len(aside):
                kept = {name: x[aside] for name, x in wanted.items()}
                detector.calibrate_scores(detector.score_levels(kept))


def score_all(
    detectors: Sequence[Detector],
    images: Given,
    *,
    batch_size: int = BATCH,
    progress: Progress = lambda done: None,
) -> list[Scores]:
    """`score` of several detectors; those on features of one model share its pass."""
    for detector in detectors:
        detector._fitted()
    pictures = Pictures.of(images)
    found: dict[int, Scores] = {}
    shared = [d for d in detectors if isinstance(d, FeatureDetector) and _shares(d)]
    for model in {id(d.encoder.model): d.encoder.model for d in shared}.values():
        group = [d for d in shared if d.encoder.model is model]
        encoder = Encoder(model, group[0].device, logits=_logits(group))
        parts: dict[int, list[Scores]] = {id(d): [] for d in group}
        for start in range(0, len(pictures), CHUNK):
            chunk = pictures.take(range(start, min(start + CHUNK, len(pictures))))
            levels = encoder.read(chunk, batch_size, progress)
            for detector in group:
                parts[id(detector)].append(detector.score_levels(detector.wanted(levels)))
        found |= {key: Scores.joined(part) for key, part in parts.items()}
    for detector in detectors:
        if id(detector) not in found:
            found[id(detector)] = _scores(detector, pictures, batch_size, progress)
    return [found[id(detector)] for detector in detectors]


def _shares(detector: Detector) -> bool:
    """Whether features pooled once are all it needs."""
    return isinstance(detector, FeatureDetector) and not (detector.per_location or detector.augment)


def _logits(detectors: Sequence[FeatureDetector]) -> bool:
    return any(detector.needs_logits for detector in detectors)


def _scores(detector: Detector, pictures: Pictures, size: int, progress: Progress) -> Scores:
    """Batch by batch, each of images of one size; in the order of the pictures."""
    rows: list[int] = []
    parts: list[Scores] = []
    for batch_rows, batch in pictures.batches(size):
        with torch.inference_mode():
            parts.append(_finite(detector.score_batch(batch), detector.called))
        rows += batch_rows
        progress(len(batch_rows))
    return Scores.joined(parts).take(torch.tensor(rows).argsort())


def _finite(scores: Scores, who: str) -> Scores:
    if not scores.image.isfinite().all():
        raise DetectorError(f"{who} gave a score that is not finite (NaN, infinity).")
    return scores

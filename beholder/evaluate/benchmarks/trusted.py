"""What may be trusted of the data, and detectors that never score an image they learned from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from beholder.core.features import View
from beholder.core.files import digest
from beholder.core.model import VisionModel
from beholder.core.split import folds
from beholder.evaluate.subject import Deployed, DeployedGiven, DeployedRun, Subject, sampled
from beholder.metrics.detection import conformal_p, conformal_threshold, references_needed
from beholder.train.heads import decide
from beholder.trust.detectors.base import FeatureDetector, Levels
from beholder.trust.detectors.gaussian_ad import GaussianAD
from beholder.trust.detectors.knn import KNN

FOLDS = 4
MOST = 4_000
"""Images that detectors learn from; more cost time and change little."""

FEWEST = 20
"""Trusted images below which no detector is fitted."""

BLOCK = 4_096
Make = Callable[[], FeatureDetector]


@dataclass(frozen=True)
class Trusted:
    """Rows of the data whose refusal is a false one.

    Attributes:
        learned: detectors are fitted on these, in folds; judged: these are told of. Both are the
            same where nothing was kept aside: each is then scored by a detector of other folds.
        fold: [N] fold that an image was learned in, -1 = in none.
        how: one sentence.
    """

    learned: np.ndarray
    judged: np.ndarray
    fold: np.ndarray
    how: str

    @property
    def crossed(self) -> bool:
        """Whether there is nothing but folds to judge by."""
        return np.array_equal(self.learned, self.judged)


def trusted(subject: Subject) -> Trusted:
    """Training images to learn from, judged ones to be judged (of one-class data the nominal ones);
    half by half where a given model came without training images."""
    frame, table = subject.evidence.frame, subject.images.table
    split = np.array(frame["split"].fill_null("train").to_list(), dtype=object)
    usable = np.ones(len(frame), bool)
    if subject.evidence.kind == "one_class":
        usable = (table["label"].fill_null(-1) == 0).to_numpy()
        split = np.array(table["split"].fill_null("train").to_list(), dtype=object)
    usable[missing_rows(subject)] = False
    learned, judged = (np.flatnonzero(usable & part) for part in (split != "test", split == "test"))
    how = "Detectors learn from the training images and are judged on the others."
    if not len(judged):
        judged = learned
    elif not len(learned) and subject.fitted is None:
        half = halves(frame["id"].gather(judged).to_list())
        learned, judged = judged[half == 0], judged[half == 1]
        how = "Detectors learn from one half of the images, by chance, and are judged on the other."
    elif not len(learned):
        learned = judged
    if judged is learned:
        how = (
            "No image is kept aside, so each is judged by a detector that learned from the other "
            "folds (approximate)."
        )
    labels = frame["label"].fill_null(-1).to_numpy()
    if len(learned) > MOST:
        few = sampled(learned, labels[learned], MOST, subject.seed)
        judged = few if judged is learned else judged
        learned = few
    units = frame["unit"].to_numpy()[learned]
    if len(np.unique(units)) < FOLDS:
        units = np.arange(len(learned))
    fold = np.full(len(frame), -1)
    if len(learned) >= FOLDS:
        fold[learned] = folds(units, labels[learned], FOLDS, subject.seed)
    return Trusted(learned, judged, fold, how)


def enough(trust: Trusted, fpr: float) -> bool:
    """Whether detectors can be fitted, and any three of the four folds give a threshold."""
    sizes = np.bincount(trust.fold[trust.learned] + 1, minlength=1)
    rest = len(trust.learned) - sizes.max(initial=0)
    return bool(len(trust.learned) >= FEWEST and rest >= references_needed(fpr))


def too_few(learned: int, fpr: float) -> str:
    """The sentence for data of which not `enough` may be trusted."""
    needed = max(FEWEST, math.ceil(references_needed(fpr) * FOLDS / (FOLDS - 1)) + 1)
    return (
        f"{learned:,} trusted images are too few for a threshold: about {needed:,} are needed to "
        f"refuse {100 * fpr:g} % of images like them."
    )


def missing_rows(subject: Subject) -> np.ndarray:
    """Rows of classes that the given model does not have."""
    match = getattr(subject.model, "match", None)
    names = subject.images.classes
    lacking = [names.index(name) for name in (match.missing if match else ()) if name in names]
    return np.flatnonzero(np.isin(subject.evidence.frame["label"].fill_null(-1), lacking))


def halves(ids: list[str]) -> np.ndarray:
    """0 or 1 for each: two halves by the hash of the id, as equal as can be."""
    half = np.empty(len(ids), int)
    half[np.argsort([digest(id) for id in ids], kind="stable")] = np.arange(len(ids)) % 2
    return half


def level_columns(model: Deployed, layout: dict[str, slice]) -> dict[str, slice]:
    """Level, as a guard calls it (`trust.detectors.levels`) -> columns of features of the layout
    (of a given run fewer are kept than the model gives)."""
    vision = model.vision
    taps = vision.taps.indices if vision is not None else ()
    found = {
        f"stage{index}": layout[f"tap{number}_mean"]
        for number, index in enumerate(taps)
        if f"tap{number}_mean" in layout
    }
    return found | ({"pooled": layout["pooled"]} if "pooled" in layout else {})


def data_levels(subject: Subject, rows: np.ndarray) -> Levels:
    """Levels of images of the data, from the cached features."""
    assert subject.model is not None
    features = subject.features
    if features is None:
        return {}
    return {
        name: torch.from_numpy(features.take(rows, columns=columns))
        for name, columns in level_columns(subject.model, features.layout).items()
    }


def data_logits(subject: Subject) -> np.ndarray | None:
    """Logits [N, C] of every image of the data by a head that did not see it, on the scale of
    `Deployed.ask`; NaN where there is none; None without classes."""
    model, frame, fitted = subject.model, subject.evidence.frame, subject.fitted
    if model is None or not model.classes or "logits" not in frame.columns:
        return None
    if fitted is None or subject.features is None or not isinstance(model, DeployedRun):
        logits = np.full((len(frame), len(subject.evidence.classes)), np.nan)
        there = frame["logits"].is_not_null().to_numpy()
        logits[there] = subject.evidence.matrix("logits", frame.filter(there))
        return logits
    logits = np.full((len(frame), len(model.classes)), np.nan)
    views: list[View] = ["image", "mirror"] if model.views == 2 else ["image"]
    rest = np.setdiff1d(np.arange(len(frame)), fitted.rows)
    with torch.inference_mode():
        logits[fitted.rows] = fitted.head.logits(torch.from_numpy(fitted.decisions)).numpy()
        for start in range(0, len(rest), BLOCK):
            rows = rest[start : start + BLOCK]
            for head, places in model._groups(rows):
                shown = [decide(head, subject.features, rows[places], view) for view in views]  # type: ignore[arg-type]
                decisions = torch.from_numpy(np.mean(shown, 0))
                logits[rows[places]] = head.logits(decisions).numpy()
    return logits


@dataclass
class CrossFitted:
    """A detector on all that may be learned from, and one per fold that was left out.

    Attributes:
        calibration: scores [n] of the learned images, each by the detector that did not see it.
        fold: [n] theirs.
    """

    whole: FeatureDetector
    parts: list[FeatureDetector]
    calibration: np.ndarray = field(default_factory=lambda: np.zeros(0))
    fold: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    @classmethod
    def fit(cls, make: Make, levels: Levels, fold: np.ndarray) -> CrossFitted:
        """`levels` [n, D] each of the learned images, `fold` [n] theirs."""
        whole = make()
        whole.fit_levels(whole.wanted(levels))
        parts = []
        if not whole.needs_logits:  # the others learn nothing
            for k in range(FOLDS):
                keep = torch.from_numpy(fold != k)
                part = make()
                parts.append(part.fit_levels({n: x[keep] for n, x in part.wanted(levels).items()}))
        found = cls(whole, parts)
        found.calibration, found.fold = found.score(levels, fold), fold
        return found

    def score(self, levels: Levels, fold: np.ndarray) -> np.ndarray:
        """[b]; each image by the detector that left its fold out, by the whole where it is -1."""
        out = np.empty(len(fold))
        if not self.parts:
            fold = np.full(len(fold), -1)
        for k in np.unique(fold):
            here = torch.from_numpy(fold == k)
            detector = self.parts[k] if k >= 0 else self.whole
            given = {name: x[here] for name, x in detector.wanted(levels).items()}
            out[here.numpy()] = detector.score_levels(given).image.double().numpy()
        return out

    def threshold(self, fpr: float) -> float:
        """Split-conformal, on the scores of all folds."""
        return conformal_threshold(self.calibration, fpr)

    def p_values(self, scores: np.ndarray, learned: np.ndarray) -> np.ndarray:
        """Conformal p [b]; `learned` [b]: the image is one of those calibrated on, and is then
        compared with the others."""
        p, count = conformal_p(self.calibration, scores), len(self.calibration)
        return np.where(learned, p * (count + 1) / count - 1 / count, p)

    def refused(self, scores: np.ndarray, fpr: float, fold: np.ndarray) -> np.ndarray:
        """[b] bool; an image that was learned from is held against the threshold of other folds."""
        out = scores > self.threshold(fpr)
        for k in np.unique(fold[fold >= 0]):
            here = fold == k
            out[here] = scores[here] > conformal_threshold(self.calibration[self.fold != k], fpr)
        return out


def feature_detectors(subject: Subject) -> dict[str, Make]:
    """By name, for the levels that are kept of the data; {} of a black box."""
    if subject.model is None or subject.features is None:
        return {}
    names = ",".join(level_columns(subject.model, subject.features.layout))
    return {"gaussian_ad": lambda: GaussianAD(names), "knn": KNN}


def asked_levels(model: Deployed, features: np.ndarray | None, logits: np.ndarray) -> Levels:
    """Levels of what `Deployed.ask` gave."""
    found: Levels = {}
    if features is not None:
        found = {
            name: torch.from_numpy(np.ascontiguousarray(features[:, columns], np.float32))
            for name, columns in level_columns(model, model.layout).items()
        }
    if model.classes:
        found["logits"] = as_logits(logits)
    return found


def as_logits(logits: np.ndarray) -> Tensor:
    """float32 [n, C]; -10,000 where a class is impossible (-inf), 0 where there is no answer."""
    return torch.from_numpy(np.nan_to_num(logits, neginf=-1e4).astype(np.float32))


def guarded(model: Deployed) -> VisionModel | None:
    """The network that a saved feature detector takes with it: without the head."""
    vision = model.vision
    if vision is None:
        return None
    return VisionModel(vision.backbone, vision.name, input_size=vision.input_size, crop=vision.crop)


def has_energy(model: Deployed, logits: np.ndarray) -> bool:
    """Whether log-sum-exp of the logits [n, C] varies: of log-probabilities it is always 0."""
    if isinstance(model, DeployedGiven) or len(logits) < 2:
        return False
    return float(torch.from_numpy(logits).logsumexp(1).std()) > 1e-3

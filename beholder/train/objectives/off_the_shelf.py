"""CNN features off the shelf: a linear SVM on frozen features, the first thing to try.

Razavian, Azizpour, Sullivan, Carlsson: "CNN Features off-the-shelf: an Astounding Baseline for
Recognition", CVPR workshops 2014. The authors released no code.

Where we differ: any timm backbone for OverFeat; the crops are three quarters of the side and the
rotations 10 degrees, fixed (the paper draws both from a range), all cut from the image at the
model's input size, so that training and use see the same versions.

Example:
    >>> from beholder.data.sources import open_images
    >>> from beholder.models.open import open_vision
    >>> digits = open_images("digits")
    >>> few = digits.where(digits.table["label"] < 2)
    >>> encoder = open_vision("untrained:test_resnet", input_size=(32, 32))
    >>> model = OffTheShelf(jitter=1, power=1).fit(encoder, few)
    >>> model.predict([few.read(0), few.read(1)]).labels
    ['0', '1']
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import LinearSVC

from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.registry import system
from beholder.core.sections import Section, Table
from beholder.metrics.intervals import share
from beholder.models.classifier_heads import UnitHead, powered_unit
from beholder.models.jitter import versions

from .base import Objective

Samples = Sequence[Mapping[str, Any]] | Images
Linear = LinearSVC | LogisticRegression

CLASSIFIERS = {
    "svm": lambda strength: LinearSVC(C=strength, dual=False),  # type: ignore[arg-type]
    "logistic": lambda strength: LogisticRegression(C=strength, max_iter=1000),
}
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
FOLDS = 5
BATCH = 8


@dataclass(frozen=True)
class Shelf:
    """Frozen features of labelled images.

    Attributes:
        features: [N, J, D], J versions of each image, each of length 1.
        labels: [N] in 0..C-1. groups: [N]; images of one group belong together.
        classes: names of the C classes that have images.
    """

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """The strength that answers best on images that were left out.

    Attributes:
        decisions: [N, K] of every image by a classifier that had not seen it; None where the
            classes are too small for that, which `note` then says.
        accuracy: strength -> share of right answers.
    """

    strength: float
    decisions: np.ndarray | None
    accuracy: dict[float, float]
    note: str = ""


def fit_linear(kind: str, strength: float, features: np.ndarray, labels: np.ndarray) -> Linear:
    """One linear classifier per class against the rest. [N, D] and [N]."""
    return CLASSIFIERS[kind](strength).fit(features, labels)


def decisions(classifier: Linear, features: np.ndarray) -> np.ndarray:
    """Mean over versions of the decision values: [N, J, D] -> [N, K], K = 1 for two classes."""
    flat = classifier.decision_function(features.reshape(-1, features.shape[-1]))
    return flat.reshape(*features.shape[:2], -1).mean(1)


def answers(found: np.ndarray) -> np.ndarray:
    """Class of decisions [N, K]: [N]."""
    return (found[:, 0] > 0).astype(int) if found.shape[1] == 1 else found.argmax(1)


def search(kind: str, shelf: Shelf) -> Search:
    """The strength by cross-validation; versions of an image and images of a group stay together.

    With a class of fewer than two groups it is 1, unsearched.
    """
    pairs = np.unique(np.stack([shelf.labels, shelf.groups]), axis=1)
    smallest = int(np.bincount(pairs[0]).min())
    if smallest < 2:
        name = shelf.classes[int(np.bincount(pairs[0]).argmin())]
        note = f"C = 1, not chosen by cross-validation: {name} has a single independent image."
        return Search(1.0, None, {}, note)
    splitter = StratifiedGroupKFold(min(FOLDS, smallest), shuffle=True, random_state=0)
    folds = list(splitter.split(shelf.labels, shelf.labels, shelf.groups))
    found = {
        strength: np.concatenate([_held_out(kind, strength, shelf, *fold) for fold in folds])
        for strength in STRENGTHS
    }
    order = np.argsort(np.concatenate([test for _, test in folds]))
    accuracy = {
        strength: float((answers(x[order]) == shelf.labels).mean()) for strength, x in found.items()
    }
    best = max(accuracy, key=lambda strength: (accuracy[strength], -strength))
    return Search(best, found[best][order], accuracy)


def _held_out(
    kind: str, strength: float, shelf: Shelf, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Decisions of the test rows by a classifier of the training rows."""
    x, y = flat(shelf, train)
    classifier = fit_linear(kind, strength, x, y)
    found = decisions(classifier, shelf.features[test])
    if len(classifier.classes_) == len(shelf.classes):
        return found
    whole = np.full((len(test), len(shelf.classes)), found.min() - 1)
    known = np.stack([-found[:, 0], found[:, 0]], 1) if found.shape[1] == 1 else found
    whole[:, classifier.classes_] = known
    return whole


def flat(shelf: Shelf, rows: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Every version as a sample of its own: [n * J, D] and [n * J]."""
    x = shelf.features[rows]
    return x.reshape(-1, x.shape[-1]), np.repeat(shelf.labels[rows], x.shape[1])


@system(24)
class OffTheShelf(Objective):
    """Frozen features brought to length 1, and one linear classifier per class. Nothing is trained
    by steps: `fit` gives the finished model.

    Args:
        layer: 'pre_logits', or another part of the model's descriptor, such as 'tap0_mean'.
        jitter: 16 = the classifier learns from, and averages over, 16 versions of each image
            (CNNaug-SVM); 1 = the image alone (CNN-SVM).
        power: p of sign(v)|v|^p before the features are brought to length 1; 1 = as they are.
        classifier: 'svm' (squared hinge) or 'logistic'.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    trains: ClassVar[bool] = False

    def __init__(
        self,
        layer: str = "pre_logits",
        jitter: Literal[1, 16] = 16,
        power: float = 0.5,
        classifier: Literal["svm", "logistic"] = "svm",
    ) -> None:
        super().__init__()
        if power <= 0:
            raise ArgumentError(f"--power = {power} must be above 0.", "1 changes nothing.")
        self.layer, self.jitter, self.power, self.classifier = layer, jitter, power, classifier

    def fit(self, model: VisionModel, samples: Samples) -> VisionModel:
        """`model` with a linear head on its frozen features; its strength is cross-validated.

        Args:
            samples: with image uint8 [H, W, 3], label, and source where images belong together;
                those without a label are left out.

        Raises:
            DataError: fewer than two classes.
            ArgumentError: a layer that the model does not have.
            ModelError: features that are not numbers.
        """
        shelf = self.shelf(model, samples)
        found = search(self.classifier, shelf)
        classifier = fit_linear(self.classifier, found.strength, *flat(shelf))
        columns = self._columns(model)
        head = UnitHead(
            torch.from_numpy(classifier.coef_).float(),
            torch.from_numpy(classifier.intercept_).float(),
            columns=torch.tensor([columns.start, columns.stop]),
            power=torch.tensor(float(self.power)),
            jitter=torch.tensor(self.jitter),
            classes=len(shelf.classes),
        )
        if found.decisions is not None:
            head.fit_calibration(found.decisions, shelf.labels)
        backbone = copy.deepcopy(model.backbone)
        backbone.reset_classifier(0)
        fitted = VisionModel(
            backbone,
            model.name,
            classes=shelf.classes,
            input_size=model.input_size,
            head=head.eval(),
            crop=model.crop,
        )
        fitted.assumptions += [found.note] if found.note else []
        return fitted.to(model._mean.device)

    def cross_validate(self, model: VisionModel, samples: Samples) -> Section:
        """How well `fit` would do on images like these, by every strength."""
        shelf = self.shelf(model, samples)
        found = search(self.classifier, shelf)
        section = Section(id=self.name, title="Features off the shelf", finding=found.note)
        section.n, section.assumptions = len(shelf.labels), [found.note] if found.note else []
        if found.decisions is None:
            section.status = "not_applicable"
            return section
        value = share(answers(found.decisions) == shelf.labels, shelf.groups)
        section.values["accuracy"] = value
        section.tables["strengths"] = Table(
            frame=pl.DataFrame(
                {"C": list(found.accuracy), "accuracy": list(found.accuracy.values())}
            ),
            units={"accuracy": "share"},
        )
        section.finding = (
            f"A linear classifier on frozen features of {model.name} is right on {value.text()} of "
            f"{section.n:,} images that were left out in turn."
        )
        return section

    def shelf(self, model: VisionModel, samples: Samples) -> Shelf:
        """Features of every labelled sample. Raises as `fit`."""
        label, source = _labels(samples)
        rows = np.flatnonzero(label >= 0)
        present, labels = np.unique(label[rows], return_inverse=True)
        if len(present) < 2:
            raise DataError(
                f"{len(present)} class has images: there is nothing to tell apart.",
                "Give images of two classes or more.",
            )
        names = samples.classes if isinstance(samples, Images) else ()
        groups = np.unique(source[rows], return_inverse=True)[1]
        features = self._features(model, samples, rows)
        if not np.isfinite(features).all():
            raise ModelError(f"Features of {model.name} are not numbers (NaN).")
        classes = tuple(names[i] if names else str(i) for i in present)
        return Shelf(features, labels, groups, classes)

    def _columns(self, model: VisionModel) -> slice:
        """Where the layer stands in the descriptor."""
        known = {"pre_logits": model.layout["pooled"], **model.layout}
        if self.layer not in known:
            raise ArgumentError(
                f"{model.name} has no layer {self.layer!r}.", f"It has {', '.join(known)}."
            )
        return known[self.layer]

    @torch.inference_mode()
    def _features(self, model: VisionModel, samples: Samples, rows: np.ndarray) -> np.ndarray:
        """[N, J, D] of those rows; every image is read once for all its versions."""
        columns, device = self._columns(model), model._mean.device
        model.backbone.eval()
        found: list[np.ndarray] = []
        with ThreadPoolExecutor(2) as pool:

            def load(start: int) -> list[Future[np.ndarray]]:
                return [pool.submit(read, row) for row in rows[start : start + BATCH]]

            def read(row: int) -> np.ndarray:
                return model.prepare(samples[int(row)]["image"])

            ahead = load(0)
            for start in range(0, len(rows), BATCH):
                batch, ahead = ahead, load(start + BATCH)
                pixels = np.stack([image.result() for image in batch])
                images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 255
                shown = versions(images) if self.jitter > 1 else [images]
                taken = [model.descriptor(view)[:, columns].float() for view in shown]
                units = torch.stack([powered_unit(x, self.power) for x in taken], 1)
                found.append(units.cpu().numpy())
        return np.concatenate(found)


def _labels(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Class index (-1 = none) and source of every sample, [N]; no image is read for it."""
    if isinstance(samples, Images):
        table = samples.table.select(pl.col("label").fill_null(-1), "source", "id")
        label, source = table["label"].to_list(), table["source"].to_list()
        ids = table["id"].to_list()
    else:
        label = [-1 if sample["label"] is None else int(sample["label"]) for sample in samples]
        source = [sample.get("source") for sample in samples]
        ids = [str(sample.get("id", row)) for row, sample in enumerate(samples)]
    named = [
        f"image {id}" if s is None else f"source {s}" for id, s in zip(ids, source, strict=True)
    ]
    return np.array(label, int), np.array(named)

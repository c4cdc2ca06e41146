"""Heads on frozen features: candidates, selection by cross-validation, calibration
(specs/study.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from beholder.core.features import Features, View
from beholder.core.split import folds as make_folds
from beholder.models.classifier_heads import (
    LARGEST_MIB,
    BlendHead,
    Calibration,
    Head,
    KernelHead,
    Kind,
    LinearHead,
)

from .solvers import (
    linear,
    logistic_loss,
    nystroem_map,
    rbf,
    shrunk_lda,
    softmax_loss,
    squared_hinge_loss,
)

BLOCK = 8_000
LOGISTIC_ONLY = 50_000
LANDMARKS = 2_000
CONSTANT = 1e-6  # deviation up to which a feature is taken to be the same everywhere
MOST_LOST = 0.01
ABSENT = -20.0  # the decision for a class that the training part does not have


@dataclass(frozen=True)
class Candidate:
    """One row of the grid; `strength` is scikit-learn's C, `gamma` counts in 1 / F."""

    kind: Kind
    strength: float = 1.0
    gamma: float = 1.0
    parts: tuple[Candidate, ...] = ()

    def __str__(self) -> str:
        if self.parts:
            return " + ".join(str(part) for part in self.parts)
        if self.kind == "nearest_mean":
            return "nearest mean"
        extra = "" if self.gamma == 1 else f" gamma={self.gamma:g}/D"
        return f"{self.kind} C={self.strength:g}{extra if self.kind == 'kernel' else ''}"


def grid(images: int, smallest_class: int) -> list[Candidate]:
    """The candidates for so many training images, cheapest kind first."""
    if smallest_class < 5:
        return [Candidate("nearest_mean")]
    candidates = [Candidate("logistic", c) for c in (1e-4, 1e-3, 1e-2)]
    if images <= LOGISTIC_ONLY:
        gammas = (1.0, 0.5) if images < 1_000 else (1.0,)
        candidates += [Candidate("kernel", c, g) for g in gammas for c in (1.0, 3.0, 10.0)]
    return candidates


@dataclass
class Fitted:
    """A head, and what its selection measured.

    Attributes:
        decisions: cross-fitted [n, K] of the training images, in the order of `rows`.
        scores: candidate -> cross-validated score.
        without_mirror: the chosen candidate's score on single views, or None.
        with_copies: its score when it learns from changed copies too, or None without such.
        hardened: it did learn from them.
    """

    head: Head
    candidate: Candidate
    mirror: bool
    rows: np.ndarray
    decisions: np.ndarray
    scores: dict[str, float]
    metric: str
    without_mirror: float | None = None
    with_copies: float | None = None
    hardened: bool = False

    @property
    def copies(self) -> list[View]:
        """Views that it learned from and does not decide by."""
        return ["copy"] if self.hardened else []

    def decide(self, features: Features, rows: np.ndarray) -> np.ndarray:
        """Decisions [len(rows), K], averaged over the views in use."""
        views: list[View] = ["image", "mirror"] if self.mirror else ["image"]
        return np.mean([decide(self.head, features, rows, view) for view in views], 0)

    def probability(self, decisions: np.ndarray) -> np.ndarray:
        """Calibrated [n, C]."""
        return probability(self.head, decisions)


def probability(head: Head, decisions: np.ndarray) -> np.ndarray:
    """Calibrated [n, C] of decisions [n, K]."""
    return head.logits(torch.from_numpy(decisions)).softmax(1).numpy()


def calibrated(
    candidate: Candidate, classes: int, decisions: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Probabilities [n, C] of decisions [n, K] of this kind of head, calibrated on themselves.

    Args:
        labels: [n] class indices.
    """
    head = _unfitted(candidate, classes)
    head.fit_calibration(decisions, labels)
    return probability(head, decisions)


def _unfitted(candidate: Candidate, classes: int) -> Head:
    """Calibration alone: such a head decides nothing."""
    if candidate.kind == "blend":
        return BlendHead([_unfitted(part, classes) for part in candidate.parts])
    nothing = torch.zeros(0)
    return LinearHead(
        *(nothing, nothing, nothing, nothing, classes), joint=candidate.kind == "logistic"
    )


def raw_logits(head: Head, decisions: np.ndarray) -> np.ndarray:
    """[n, C] before calibration."""
    return head.raw_logits(torch.from_numpy(decisions)).numpy()


def decide(
    head: Head,
    features: Features,
    rows: np.ndarray,
    view: View = "image",
    columns: slice | None = None,
) -> np.ndarray:
    """Decisions of one view (on some columns), in blocks: float64 [len(rows), K]."""
    parts = []
    with torch.inference_mode():
        for start in range(0, max(len(rows), 1), 2_048):
            block = features.take(rows[start : start + 2_048], view, columns)
            parts.append(head(torch.from_numpy(block)).double().numpy())
    return np.concatenate(parts)


class Design:
    """Training rows, each feature centred and divided by its `scale`: the images, then those of
    the other views.

    Held in memory up to 8,000 rows, read again block by block above.
    """

    def __init__(
        self,
        features: Features,
        rows: np.ndarray,
        views: list[View],
        columns: slice | None = None,
    ) -> None:
        self.features, self.rows, self.views, self.columns = features, rows, views, columns
        self.count = len(rows) * len(views)
        self.held: np.ndarray | None = None
        if self.count <= BLOCK:
            self.held = np.concatenate([block for _, block in self._raw()])
        total = sum(block.sum(0, dtype=np.float64) for block in self._stored())
        self.mean: np.ndarray = np.asarray(total / self.count, np.float32)
        squares = sum(
            np.square(block - self.mean).sum(0, dtype=np.float64) for block in self._stored()
        )
        self.scale = self._floored(np.sqrt(squares / self.count)).astype(np.float32)
        if self.held is not None:
            self.held -= self.mean
            self.held /= self.scale

    def _floored(self, deviation: np.ndarray) -> np.ndarray:
        """The scale of every feature: its deviation, but no less than the upper quartile of those
        of its part.

        What is almost constant in training would otherwise be blown up: JPEG 75 moves some features
        by hundreds of their deviations. Measured without and with it (3 splits): `solar` 86.7 and
        87.9 %, as JPEG 75 59.6 and 86.1 %; `digits` 97.5 and 98.8 %.
        """
        scale, first = deviation.copy(), (self.columns.start or 0) if self.columns else 0
        for part in self.features.layout.values():
            own = slice(max(part.start - first, 0), max(part.stop - first, 0))
            varied = deviation[own][deviation[own] > CONSTANT]
            if len(varied):
                scale[own] = np.maximum(deviation[own], np.quantile(varied, 0.75))
        return np.where(scale > CONSTANT, scale, 1.0)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of the training part, [F] each."""
        return torch.from_numpy(self.mean), torch.from_numpy(self.scale)

    def _stored(self) -> Iterator[np.ndarray]:
        """Blocks that are not standardised yet."""
        return iter([self.held]) if self.held is not None else (block for _, block in self._raw())

    def _raw(self) -> Iterator[tuple[slice, np.ndarray]]:
        position = 0
        for view in self.views:
            for start in range(0, len(self.rows), BLOCK):
                part = self.rows[start : start + BLOCK]
                yield (
                    slice(position, position + len(part)),
                    self.features.take(part, view, self.columns),
                )
                position += len(part)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Standardised float32 blocks and the rows they stand for."""
        if self.held is not None:
            yield slice(0, self.count), self.held
            return
        for rows, block in self._raw():
            block -= self.mean
            block /= self.scale
            yield rows, block

    def take(self, index: np.ndarray) -> np.ndarray:
        """Standardised float32 rows."""
        if self.held is not None:
            return self.held[index]
        out = np.empty((len(index), self.dim), np.float32)
        for number, view in enumerate(self.views):
            here = index // len(self.rows) == number
            raw = self.features.take(self.rows[index[here] % len(self.rows)], view, self.columns)
            out[here] = (raw - self.mean) / self.scale
        return out

    def tile(self, values: np.ndarray) -> np.ndarray:
        """Values per image, repeated for every view."""
        return np.concatenate([values] * len(self.views))

    def per_view(self, values: np.ndarray) -> np.ndarray:
        """Values per row as [views, images, ...]."""
        return values.reshape(len(self.views), len(self.rows), *values.shape[1:])


class Fit(NamedTuple):
    """One fitted candidate: decisions of rows of the design, and the deployable head."""

    decide: Callable[[np.ndarray], np.ndarray]
    head: Callable[[], Head]


class Problem:
    """The training part of one split: design, labels, folds; fits every candidate on any folds.

    Above 8,000 rows the heads learn from the images alone; decisions are still averaged over all
    `views`.

    Args:
        copies: views that are learned from as well, and never decided by.
        labels: [n] class indices of `rows`.
        soft: [n, C] label distributions (one-hot where certain).
        fold: [n] fold of each row, 0 .. folds - 1.
    """

    def __init__(
        self,
        features: Features,
        rows: np.ndarray,
        labels: np.ndarray,
        soft: np.ndarray,
        fold: np.ndarray,
        views: list[View],
        columns: slice | None = None,
        seed: int = 0,
        copies: Sequence[View] = (),
    ) -> None:
        crowded = len(rows) * len(views) > BLOCK
        self.learned: list[View] = ["image"] if crowded else views
        self.more_views: list[View] = [view for view in views if view not in self.learned]
        self.design = Design(features, rows, [*self.learned, *copies], columns)
        self.labels, self.soft, self.fold, self.seed = labels, soft, fold, seed
        self.classes = soft.shape[1]
        self.outputs = 1 if self.classes == 2 else self.classes
        hard = np.eye(self.classes)[labels]
        self.targets_hard = self.design.tile(hard[:, 1:] if self.outputs == 1 else hard)
        self.targets_soft = self.design.tile(soft[:, 1:] if self.outputs == 1 else soft)
        self.fold_of_row = self.design.tile(fold)
        self.folds = int(fold.max()) + 1
        self.kernels: dict[float, np.ndarray] = {}
        self.maps: dict[float, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.solved: dict[float, np.ndarray] = {}

    def cross_fit(self, candidate: Candidate) -> np.ndarray:
        """Decisions of every training image by heads that did not see it: [n, K]."""
        if candidate.kind == "blend":
            return np.concatenate([self.cross_fit(part) for part in candidate.parts], 1)
        design = self.design
        masks = [self.fold_of_row != k for k in range(self.folds)]
        decisions = np.empty((design.count, self.outputs))
        more = np.empty((len(self.more_views), len(design.rows), self.outputs))
        for k, fit in enumerate(self._fit(candidate, masks)):
            held = np.flatnonzero(self.fold_of_row == k)
            decisions[held] = fit.decide(held)
            for number, view in enumerate(self.more_views):
                images = np.flatnonzero(self.fold == k)
                more[number, images] = decide(
                    fit.head(), design.features, design.rows[images], view, design.columns
                )
        return np.concatenate([design.per_view(decisions)[: len(self.learned)], more]).mean(0)

    def predict(self, candidate: Candidate, decisions: np.ndarray) -> np.ndarray:
        """Classes [n] of cross-fitted decisions, calibrated on themselves."""
        if candidate.kind == "blend":
            parts = np.split(decisions, len(candidate.parts), axis=1)
            logits = sum(
                self._logits(part, own) for part, own in zip(candidate.parts, parts, strict=True)
            )
        else:
            logits = self._logits(candidate, decisions)
        return np.asarray(logits).argmax(1)

    def _logits(self, candidate: Candidate, decisions: np.ndarray) -> np.ndarray:
        calibration = Calibration(self.classes, joint=candidate.kind == "logistic")
        return calibration.fit(decisions, self.labels)(torch.from_numpy(decisions)).numpy()

    def fit(self, candidate: Candidate, keep: np.ndarray | None = None) -> Head:
        """The deployable head, trained on all (or on the kept) images, not yet calibrated."""
        if candidate.kind == "blend":
            return BlendHead([self.fit(part, keep) for part in candidate.parts])
        mask = np.ones(self.design.count, bool) if keep is None else self.design.tile(keep)
        return self._fit(candidate, [mask])[0].head()

    def _fit(self, candidate: Candidate, masks: list[np.ndarray]) -> list[Fit]:
        if candidate.kind == "logistic":
            return self._logistic(candidate, masks)
        if candidate.kind == "nearest_mean":
            return [self._nearest_mean(mask) for mask in masks]
        if self.design.held is not None and self.design.count <= self._most_points:
            return [self._support_vectors(candidate, mask) for mask in masks]
        return self._nystroem(candidate, masks)

    def _logistic(self, candidate: Candidate, masks: list[np.ndarray]) -> list[Fit]:
        loss = logistic_loss if self.outputs == 1 else softmax_loss
        weights = np.stack(masks, 1).astype(np.float64)
        start = self.solved.get(candidate.strength)
        if start is None:
            start = next(reversed(self.solved.values()), None)
        if start is not None and len(start) != len(masks):
            start = np.repeat(start.mean(0, keepdims=True), len(masks), 0)
        solution = linear(
            self.design.blocks,
            self.design.dim,
            self.targets_soft,
            weights,
            candidate.strength,
            loss,
            start=start,
        )
        if len(masks) > 1:
            self.solved[candidate.strength] = solution
        return [self._linear_fit(w[:-1], w[-1], joint=True) for w in solution]

    def _nearest_mean(self, mask: np.ndarray) -> Fit:
        labels = self.design.tile(self.labels)
        present = np.unique(labels[mask])
        weight = np.zeros((self.design.dim, self.classes))
        bias = np.full(self.classes, ABSENT)
        bias[present] = 0
        if len(present) > 1:
            targets = (labels[:, None] == present).astype(np.float32)
            weight[:, present], bias[present] = shrunk_lda(
                self.design.blocks, self.design.dim, targets, mask.astype(np.float32)
            )
        if self.outputs == 1:
            weight, bias = weight[:, 1:] - weight[:, :1], bias[1:] - bias[:1]
        return self._linear_fit(weight, bias, joint=False)

    def _linear_fit(self, weight: np.ndarray, bias: np.ndarray, joint: bool) -> Fit:
        weight = weight.astype(np.float32)

        def head() -> Head:
            parts = torch.from_numpy(weight.T.copy()), torch.from_numpy(bias).float()
            return LinearHead(*self.design.statistics, *parts, self.classes, joint)

        return Fit(lambda index: self.design.take(index) @ weight + bias, head)

    def _support_vectors(self, candidate: Candidate, mask: np.ndarray) -> Fit:
        kernel = self._kernel(candidate.gamma)
        index = np.flatnonzero(mask)
        square = kernel[np.ix_(index, index)].astype(np.float64)
        alpha = np.zeros((self.design.count, self.outputs), np.float32)
        bias = np.full(self.outputs, ABSENT)
        for k in range(self.outputs):
            positive = self.targets_hard[index, k] > 0.5
            if positive.all() or not positive.any():
                bias[k] = -ABSENT if positive.all() else ABSENT
                continue
            machine = SVC(
                C=candidate.strength, kernel="precomputed", cache_size=400, random_state=0
            )
            machine.fit(square, positive)
            alpha[index[machine.support_], k] = machine.dual_coef_[0]
            bias[k] = machine.intercept_[0]

        def head() -> Head:
            support = np.flatnonzero(np.abs(alpha).sum(1))
            return self._kernel_head(
                self.design.take(support), alpha[support], bias, candidate.gamma
            )

        return Fit(lambda index: kernel[index] @ alpha + bias, head)

    @property
    def _most_points(self) -> int:
        """Points that a kernel head may hold, in float16 with float32 weights, to stay small."""
        return int(0.9 * LARGEST_MIB * 2**20 / (2 * self.design.dim + 4 * self.outputs))

    def _kernel_head(
        self, points: np.ndarray, alpha: np.ndarray, bias: np.ndarray, gamma: float
    ) -> KernelHead:
        return KernelHead(
            *self.design.statistics,
            torch.from_numpy(points),
            torch.from_numpy(alpha),
            torch.from_numpy(bias).float(),
            torch.tensor(gamma / self.design.dim),
            self.classes,
        )

    def _kernel(self, gamma: float) -> np.ndarray:
        if gamma not in self.kernels:
            rows = self.design.take(np.arange(self.design.count))
            self.kernels[gamma] = rbf(rows, rows, gamma / self.design.dim)
        return self.kernels[gamma]

    def _nystroem(self, candidate: Candidate, masks: list[np.ndarray]) -> list[Fit]:
        points, root, mapped = self._landmarks(candidate.gamma)
        weights = np.stack(masks, 1).astype(np.float64)

        def blocks() -> Iterator[tuple[slice, np.ndarray]]:
            for start in range(0, len(mapped), BLOCK):
                rows = slice(start, min(start + BLOCK, len(mapped)))
                yield rows, mapped[rows].astype(np.float32)

        solution = linear(
            blocks,
            mapped.shape[1],
            self.targets_hard,
            weights,
            candidate.strength,
            squared_hinge_loss,
        )
        fits = []
        for whole in solution:
            weight, bias = whole[:-1].astype(np.float32), whole[-1]
            alpha = root @ weight
            fits.append(
                Fit(
                    lambda index, w=weight, b=bias: mapped[index].astype(np.float32) @ w + b,
                    lambda a=alpha, b=bias: self._kernel_head(points, a, b, candidate.gamma),
                )
            )
        return fits

    def _landmarks(self, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Standardised landmarks, their map, and the mapped rows (float16)."""
        if gamma not in self.maps:
            order = np.random.default_rng(self.seed).permutation(self.design.count)
            by_class = np.argsort(self.design.tile(self.labels)[order], kind="stable")
            count = min(LANDMARKS, self.design.count, self._most_points)
            picks = np.linspace(0, self.design.count - 1, count).round().astype(int)
            points = self.design.take(np.sort(order[by_class[picks]]))
            root = nystroem_map(points, gamma / self.design.dim)
            mapped = np.empty((self.design.count, len(points)), np.float16)
            for rows, block in self.design.blocks():
                mapped[rows] = rbf(block, points, gamma / self.design.dim) @ root
            self.maps[gamma] = points, root, mapped
        return self.maps[gamma]


def training_folds(units: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Four folds of a training part (fewer where there are fewer units), units whole: int [n].

    A single unit is taken apart: there is nothing independent in it to judge by.
    """
    if len(np.unique(units)) < 2:
        units = np.arange(len(units))
    return make_folds(units, labels, min(4, max(2, len(np.unique(units)))), seed)


def select(
    features: Features,
    rows: np.ndarray,
    labels: np.ndarray,
    soft: np.ndarray,
    units: np.ndarray,
    *,
    seed: int = 0,
    candidates: Sequence[Candidate] | None = None,
    harden: bool = False,
) -> Fitted:
    """The head for these training images, chosen by 4-fold cross-validation and calibrated on it.

    The best score wins: accuracy, or balanced accuracy where the rarest class is below 20 %. The
    best logistic and the best kernel head also compete as their mean: which of them is ahead is
    mostly chance of the folds, their mean is not. The mirror image is used only if it does not
    cost cross-validated accuracy (letters and left/right classes lose by it).

    Args:
        rows: rows of `features` to train on; none of them may be judged later.
        labels, soft, units: of these rows: [n], [n, C], [n].
        harden: learn from the view `copy` too, unless that costs `MOST_LOST` of the score.
    """
    counts = np.bincount(labels, minlength=soft.shape[1])
    rarest = int(counts[counts > 0].min())
    fold = training_folds(units, labels, seed)
    candidates = list(candidates or grid(len(rows), rarest))
    balanced = rarest < 0.2 * len(rows)

    def score(predicted: np.ndarray) -> float:
        hit = predicted == labels
        if not balanced:
            return float(hit.mean())
        return float(np.mean([hit[labels == k].mean() for k in np.flatnonzero(counts)]))

    views: list[View] = ["image", "mirror"] if features.has("mirror") else ["image"]
    problem = Problem(features, rows, labels, soft, fold, views, seed=seed)
    decisions = {candidate: problem.cross_fit(candidate) for candidate in candidates}
    scores = {c: score(problem.predict(c, decisions[c])) for c in candidates}
    kinds = [[c for c in candidates if c.kind == kind] for kind in ("logistic", "kernel")]
    if all(kinds):
        parts = tuple(max(kind, key=lambda c: scores[c]) for kind in kinds)
        blend = Candidate("blend", parts=parts)
        decisions[blend] = np.concatenate([decisions[part] for part in parts], 1)
        scores[blend] = score(problem.predict(blend, decisions[blend]))
    chosen = max(scores, key=lambda c: scores[c])
    mirror, without = features.has("mirror"), None
    if mirror:
        single = Problem(features, rows, labels, soft, fold, ["image"], seed=seed)
        single.solved = dict(problem.solved)
        plain = single.cross_fit(chosen)
        without = score(single.predict(chosen, plain))
        if without > scores[chosen]:
            problem, decisions[chosen], mirror = single, plain, False
    with_copies, hardened = None, False
    if harden:
        looked: list[View] = ["image", "mirror"] if mirror else ["image"]
        taught = Problem(features, rows, labels, soft, fold, looked, seed=seed, copies=["copy"])
        found = taught.cross_fit(chosen)
        with_copies = score(taught.predict(chosen, found))
        lost = (scores[chosen] if mirror or without is None else without) - with_copies
        hardened = lost < MOST_LOST
        if hardened:
            problem, decisions[chosen] = taught, found
    head = problem.fit(chosen)
    head.fit_calibration(decisions[chosen], labels)
    return Fitted(
        head,
        chosen,
        mirror=mirror,
        rows=rows,
        decisions=decisions[chosen],
        scores={str(candidate): found for candidate, found in scores.items()},
        metric="balanced accuracy" if balanced else "accuracy",
        without_mirror=without,
        with_copies=with_copies,
        hardened=hardened,
    )

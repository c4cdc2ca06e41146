"""Out-of-sample probabilities of every labelled image, by heads on frozen features."""

from __future__ import annotations

import numpy as np

from beholder.core.features import Features, View

from .heads import Candidate, Problem, calibrated, select, training_folds


class CrossFit:
    """Calibrated answers of heads that have not seen the image, whatever the labels are.

    The head is chosen by cross-validation (`heads.select`) when it is first asked; later calls fit
    the same kind of head to other labels.

    Args:
        soft: [N, C] label distributions, used where the label asked for is the given one.
        label: [N] given labels, -1 = none.
        unit: [N]; images of one unit are never in two folds.
    """

    def __init__(
        self, features: Features, label: np.ndarray, soft: np.ndarray, unit: np.ndarray, seed: int
    ) -> None:
        self.features, self.label, self.soft = features, label, soft
        self.unit, self.seed = unit, seed
        self.chosen: Candidate | None = None
        self.mirror = features.has("mirror")

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """`label` [N] (-1 = none) -> [N, C]; NaN without a label."""
        rows = np.flatnonzero(label >= 0)
        own = label[rows]
        soft = np.where(
            (own == self.label[rows])[:, None], self.soft[rows], np.eye(self.soft.shape[1])[own]
        )
        found = np.full(self.soft.shape, np.nan)
        found[rows] = (
            self._choose(rows, own, soft)
            if self.chosen is None
            else self._again(self.chosen, rows, own, soft)
        )
        return found

    def _choose(self, rows: np.ndarray, label: np.ndarray, soft: np.ndarray) -> np.ndarray:
        fitted = select(self.features, rows, label, soft, self.unit[rows], seed=self.seed)
        self.chosen, self.mirror = fitted.candidate, fitted.mirror
        return fitted.probability(fitted.decisions)

    def _again(
        self, chosen: Candidate, rows: np.ndarray, label: np.ndarray, soft: np.ndarray
    ) -> np.ndarray:
        fold = training_folds(self.unit[rows], label, self.seed)
        views: list[View] = ["image", "mirror"] if self.mirror else ["image"]
        problem = Problem(self.features, rows, label, soft, fold, views, seed=self.seed)
        return calibrated(chosen, self.soft.shape[1], problem.cross_fit(chosen), label)

"""The distance to the k-th nearest trusted image: a baseline that any detector should beat.

Sun, Ming, Zhu, Li: "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.
Authors' code: deeplearning-wisc/knn-ood. As there: Euclidean, on features of unit length.

Example:
    >>> generator = torch.Generator().manual_seed(0)
    >>> trusted = 5 + torch.randn(100, 8, generator=generator)
    >>> detector = KNN(k=3).fit_levels({"pooled": trusted})
    >>> near, far = detector.score_levels({"pooled": torch.stack([trusted[0], -trusted[0]])}).image
    >>> bool(near < far)
    True
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from beholder.core.errors import ArgumentError
from beholder.core.registry import system
from beholder.metrics.neighbours import nearest, unit_rows

from .base import DetectorError, FeatureDetector, Levels, Supervision


@system(name="knn")
class KNN(FeatureDetector):
    """Distance to the `k`-th nearest of the trusted images."""

    supervision: ClassVar[Supervision] = "one-class"
    bank_: Tensor

    def __init__(self, k: int = 10) -> None:
        if k < 1:
            raise ArgumentError(f"k = {k} is no neighbour.", "The nearest is k = 1.")
        self.k = k

    def fit_features(self, levels: Levels, y: np.ndarray | None = None) -> None:
        if len(levels["pooled"]) < self.k:
            raise DetectorError(
                f"{len(levels['pooled'])} images are fewer than k = {self.k}.",
                "Give more images, or a smaller k.",
            )
        self.bank_ = torch.from_numpy(unit_rows(levels["pooled"].numpy()))

    def score_features(self, levels: Levels) -> Tensor:
        queries = unit_rows(levels["pooled"].numpy())
        distance, _ = nearest(queries, self.bank_.numpy(), self.k, "euclidean")
        return torch.from_numpy(distance[:, -1])

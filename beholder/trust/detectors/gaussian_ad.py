"""The first anomaly detector to try: a few dozen good images, no training, one Gaussian per level.

Rippel, Mertens, Merhof: "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for
Anomaly Detection", ICPR 2020. Authors' code: ORippler/gaussian-ad-mvtec.

Differs from it: the mean over levels instead of their sum (the same order); distances by a root of
the precision in float64, so that no square is ever negative; conformal thresholds beside those of
chi-square; `robust` and `per_location`; the levels are those of the encoder at hand.

Example:
    >>> generator = torch.Generator().manual_seed(0)
    >>> normal = torch.randn(500, 8, generator=generator)
    >>> detector = GaussianAD().fit_levels({"pooled": normal})
    >>> odd = detector.score_levels({"pooled": normal[:3] + 4}).image
    >>> bool(odd.min() > chi2_threshold(0.001, 8))
    True
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from torch import Tensor

from beholder.core.errors import ArgumentError
from beholder.core.registry import system

from .base import (
    DetectorError,
    FeatureDetector,
    Kind,
    Level,
    Levels,
    Scores,
    Supervision,
    resized,
)

Distance = Literal["mahalanobis", "l2", "sed"]
Reduce = Literal["pca", "npca"]

FEW = 10  # images below which a Gaussian is a guess
FLOOR = 1e-12  # of the largest variance: what float32 features can resolve
ROUNDING = 1e-6  # of the largest feature: deviations that are no variance
OUTLIERS = 0.05  # share that `robust` leaves out


@dataclass(frozen=True)
class Gaussian:
    """Normal data on one level; its distance is ||(z - mean) @ root||.

    Attributes:
        mean: float64 [D].
        root: float64 [D, K], `root @ root.T` is the precision; or [D], its diagonal's root.
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def fit(
        cls, z: np.ndarray, distance: Distance = "mahalanobis", rows: np.ndarray | None = None
    ) -> Gaussian:
        """To `z` float64 [N, D], or to its projections on `rows` [K, D]."""
        if rows is None:
            root = ROOTS[distance](z)
        else:
            root = ROOTS[distance](z @ rows.T)
            root = rows.T * root if root.ndim == 1 else rows.T @ root
        return cls(torch.from_numpy(z.mean(0)), torch.from_numpy(np.ascontiguousarray(root)))

    @property
    def precision(self) -> Tensor:
        """[D, D]."""
        return torch.diag(self.root**2) if self.root.ndim == 1 else self.root @ self.root.T

    def distance(self, z: Tensor) -> Tensor:
        """[..., D] -> float64 [...]."""
        centred = z.double() - self.mean
        return (centred * self.root if self.root.ndim == 1 else centred @ self.root).norm(dim=-1)


def whitening(covariance: np.ndarray) -> np.ndarray:
    """A root of the precision: `root @ root.T` is the inverse of `covariance` [K, K]."""
    variance, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(np.maximum(variance, FLOOR * variance[-1]))


def mahalanobis(z: np.ndarray) -> np.ndarray:
    """`whitening` of the covariance of `z` [N, K], shrunk as Ledoit and Wolf do."""
    return whitening(LedoitWolf(store_precision=False).fit(z).covariance_)


def sed(z: np.ndarray) -> np.ndarray:
    """Standardised Euclidean distance, sqrt(mean(((z - mean) / std)^2)): [K]."""
    variance = z.var(0, ddof=1)
    return (z.shape[1] * np.maximum(variance, FLOOR * variance.max())) ** -0.5


def l2(z: np.ndarray) -> np.ndarray:
    """||z - mean|| / sqrt(K): [K]."""
    return np.full(z.shape[1], z.shape[1] ** -0.5)


ROOTS: dict[Distance, Callable[[np.ndarray], np.ndarray]] = {
    "mahalanobis": mahalanobis,
    "sed": sed,
    "l2": l2,
}


def principal(z: np.ndarray, share: float, keep: Reduce) -> np.ndarray:
    """Principal directions of `z` [N, D] as rows [K, D].

    With j the first of them up to which more than `share` of the variance is explained, PCA keeps
    0..j; NPCA (where normal data hardly varies, anomalies show) keeps j-1 and all that follow.
    """
    found = PCA(svd_solver="full").fit(z)
    rows = np.asarray(found.components_)
    above = np.cumsum(found.explained_variance_ratio_) > share
    j = int(above.argmax()) if above.any() else len(rows) - 1
    return rows[: j + 1] if keep == "pca" else rows[max(j - 1, 0) :]


def chi2_threshold(fpr: float, dimensions: int) -> float:
    """The distance that a Gaussian of so many dimensions exceeds with a chance of `fpr`."""
    return float(np.sqrt(stats.chi2.isf(fpr, dimensions)))


@system(14)
class GaussianAD(FeatureDetector):
    """Mean over levels of the Mahalanobis distance to the Gaussian of the normal images.

    Args:
        levels: 'all', or names parted by commas: `stage3,stage4`.
        reduce: directions kept before the Gaussian: of most variance ('pca') or of least ('npca').
        variance: share of the variance at which `reduce` cuts.
        distance: 'sed' takes features as independent, 'l2' as of equal variance too.
        robust: leave out the farthest 5 % once and fit again, for references that are not clean.
        augment: further passes over the normal images, each in mild augmentation.
        per_location: a map too, the pooled Gaussian's distance at every place of the stages.
    """

    kind: ClassVar[Kind] = "anomaly"
    supervision: ClassVar[Supervision] = "one-class"

    def __init__(
        self,
        levels: str = "all",
        reduce: Reduce | None = None,
        variance: float = 0.99,
        distance: Distance = "mahalanobis",
        robust: bool = False,
        augment: int = 0,
        per_location: bool = False,
    ) -> None:
        if not 0 < variance < 1:
            raise ArgumentError(f"variance = {variance} does not lie between 0 and 1.")
        if augment < 0:
            raise ArgumentError(f"augment = {augment} is no number of passes.")
        self.levels = levels
        self.reduce: Reduce | None = reduce
        self.variance = variance
        self.distance: Distance = distance
        self.robust = robust
        self.augment = augment
        self.per_location = per_location
        self.means_: dict[str, Tensor] = {}
        self.roots_: dict[str, Tensor] = {}

    @property
    def gaussians(self) -> dict[str, Gaussian]:
        """By level."""
        return {name: Gaussian(mean, self.roots_[name]) for name, mean in self.means_.items()}

    def fit_features(self, levels: Levels, y: np.ndarray | None = None) -> None:
        arrays = {name: levels[name].double().numpy() for name in self._chosen(levels)}
        for name, z in arrays.items():
            _refuse(name, z)
        self._fit(arrays)
        if self.robust:
            score = np.mean([g.distance(levels[n]).numpy() for n, g in self.gaussians.items()], 0)
            near = np.argsort(score, kind="stable")[: len(score) - int(OUTLIERS * len(score))]
            self._fit({name: z[near] for name, z in arrays.items()})

    def _fit(self, arrays: dict[str, np.ndarray]) -> None:
        self.means_, self.roots_ = {}, {}
        for name, z in arrays.items():
            rows = principal(z, self.variance, self.reduce) if self.reduce else None
            found = Gaussian.fit(z, self.distance, rows)
            self.means_[name], self.roots_[name] = found.mean, found.root

    def score_features(self, levels: Levels) -> Scores:
        """`extra` has the distance of each level."""
        parts = {name: g.distance(levels[name]) for name, g in self.gaussians.items()}
        return Scores(torch.stack(list(parts.values())).mean(0), extra=parts)

    def locate(self, maps: dict[str, Tensor]) -> Tensor:
        largest = next(iter(maps.values())).shape[2:] if maps else ()
        places = [
            resized(g.distance(maps[name].movedim(1, -1)), largest)
            for name, g in self.gaussians.items()
            if name in maps
        ]
        if not places:
            raise DetectorError("Of these levels there is no map.", "Add a stage: --levels all.")
        return torch.stack(places).mean(0).float()

    def threshold(
        self,
        fpr: float | None = 0.05,
        level: Level = "image",
        method: Literal["conformal", "chi2"] = "conformal",
    ) -> float:
        """As of every detector, or by the Gaussian itself ('chi2', of a single level): for few
        images that promises far too little."""
        if method == "conformal" or fpr is None:
            return super().threshold(fpr, level)
        self._fitted()
        if len(self.roots_) != 1 or self.distance != "mahalanobis":
            raise ArgumentError(
                f"chi2 holds for the Mahalanobis distance of one level; here are "
                f"{len(self.roots_)}, by {self.distance}.",
                "Name one, as in levels='stage4', or take the conformal threshold.",
            )
        return chi2_threshold(fpr, next(iter(self.roots_.values())).shape[-1])

    def _chosen(self, levels: Levels) -> list[str]:
        if self.levels == "all":
            return list(levels)
        chosen = [name.strip() for name in self.levels.split(",")]
        for name in chosen:
            if name not in levels:
                raise ArgumentError(
                    f"There is no level {name!r}.", f"There is {', '.join(levels)}."
                )
        return chosen


def _refuse(name: str, z: np.ndarray) -> None:
    """`z`: [N, D] of a level."""
    if len(z) < 2:
        raise DetectorError("One image has no variance.", "Give at least two, better a few dozen.")
    if len(z) < FEW:
        warnings.warn(f"{len(z)} images are few for a Gaussian; give 30 or more.", stacklevel=4)
    if np.sqrt(z.var(0).mean()) <= ROUNDING * np.abs(z).max():
        raise DetectorError(
            f"All images give the same features ({name}).", "Are they blank, or copies of one?"
        )

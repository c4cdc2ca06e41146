"""Statistics of features: have they collapsed? (specs/objectives.md, 'Collapse check')

Three numbers, because each is blind to a collapse that another sees: all images in one point
(`std`), on one ray (`cos`), or in few directions (`rank`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beholder.core.errors import ArgumentError

MIN_ROWS = 64


class Collapse(NamedTuple):
    """`std`: 1 = spread as an isotropic Gaussian, 0 = one direction. `rank`: effective number of
    directions, 1 to min(N - 1, D). `cos`: mean cosine of two different images."""

    std: float
    rank: float
    cos: float

    @property
    def alarming(self) -> bool:
        """Whether a run that stays there has collapsed."""
        return self.std < 0.05 or self.cos > 0.99 or self.rank < 2


def collapse(features: np.ndarray) -> Collapse:
    """How far features [N, D] have collapsed; at least 64 rows.

    `std` = sqrt(D) times the mean over columns of the standard deviation of the L2-normalised rows;
    `rank` = exp of the entropy of the singular values of the centred features (1 where all are 0).

    Example:
        >>> std, rank, cos = collapse(np.eye(64))
        >>> f"{std:.3f} {rank:.3f} {cos:.3f}"
        '1.000 63.000 0.000'
    """
    rows, columns = features.shape
    if rows < MIN_ROWS:
        raise ArgumentError(
            f"{rows} rows are too few to see a collapse.", f"Give at least {MIN_ROWS} images."
        )
    if not np.isfinite(features).all():
        raise ArgumentError("The features hold NaN or infinity.", "The model has diverged.")
    values = features.astype(float)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit = np.where(length > 0, values / np.where(length > 0, length, 1), columns**-0.5)
    std = float(np.sqrt(columns) * unit.std(axis=0, ddof=1).mean())
    pairs = (np.square(unit.sum(axis=0)).sum() - rows) / (rows * (rows - 1))
    return Collapse(std, effective_rank(values), float(pairs))


def effective_rank(features: np.ndarray) -> float:
    """exp(H(p)), p the singular values of the centred features [N, D] over their sum."""
    centred = features - features.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)
    noise = np.finfo(float).eps * max(features.shape) * np.abs(features).max(initial=0.0)
    shares = values[values > noise] / max(values.sum(), np.finfo(float).tiny)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 1.0

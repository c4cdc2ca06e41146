"""Shares with the interval that fits them, corrections for many tests, and sample sizes.

The rule of specs/study.md, section 4: one row per unit and no weights -> Wilson; else the cluster
bootstrap over units; fewer than 20 units -> Wilson on their number.
"""

from __future__ import annotations

import math

import numpy as np

from beholder.core.sections import Value

from .binomial import (
    binomial_greater,
    clopper_pearson,
    clopper_upper,
    clopper_upper_bounds,
    fisher_less,
    mcnemar,
    normal_quantile,
    wilson,
)
from .bootstrap import CHUNK_BYTES, bootstrap_shares

__all__ = [
    "binomial_greater",
    "clopper_pearson",
    "clopper_upper",
    "clopper_upper_bounds",
    "fisher_less",
    "holm",
    "images_needed",
    "mcnemar",
    "share",
    "sign_flip",
    "smallest_gap",
    "wilson",
]

SMALLEST_DIFFERENCE = 0.001  # reports show tenths of a point


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values in the order given: monotone, >= p, <= 1. `p`: [G]."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def share(
    hits: np.ndarray,
    units: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    higher_is_better: bool | None = True,
) -> Value:
    """The (weighted) share of hits with the interval that section 4 prescribes.

    Args:
        hits: [N] bool, or float in 0..1 (fractions are bootstrapped).
        units: [N] labels of what was drawn independently; None = each row by itself.
        weights: [N] >= 0.
    """
    rows = len(hits)
    if rows == 0:
        return Value.undefined("nothing to judge")
    hits = np.asarray(hits)
    alone = units is None or len(np.unique(units)) == rows
    if alone and weights is None and np.isin(hits, (0, 1)).all():
        low, high = wilson(hits.sum(), rows, level)
        return Value(
            estimate=float(hits.mean()),
            low=low,
            high=high,
            level=level,
            n=rows,
            higher_is_better=higher_is_better,
            method="wilson",
        )
    return bootstrap_shares(
        np.zeros(rows, dtype=int),
        hits,
        weights,
        units,
        macro=False,
        resamples=resamples,
        level=level,
        seed=seed,
        higher_is_better=higher_is_better,
    )


def sign_flip(
    difference: np.ndarray, units: np.ndarray, draws: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p that paired differences [N] have mean 0: the signs of unit totals are flipped."""
    codes = np.unique(units, return_inverse=True)[1].reshape(-1)
    totals = np.bincount(codes, np.asarray(difference, dtype=float))
    totals = totals[totals != 0]
    least = abs(totals.sum()) - 1e-9
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_BYTES // (8 * max(1, len(totals))))
    reached = 0
    for start in range(0, draws, step):
        heads = rng.integers(2, size=(min(step, draws - start), len(totals)))
        reached += int((np.abs((2.0 * heads - 1) @ totals) >= least).sum())
    return (1 + reached) / (1 + draws)


def images_needed(accuracy: float, target: float) -> int:
    """Images at which an interval around `accuracy` would leave `target` outside (section 4.3).

    z^2 a (1 - a) / (a - T)^2; a difference below 0.1 points counts as 0.1, and at an accuracy of
    0 or 1 the variance is that of the target.
    """
    variance = accuracy * (1 - accuracy) or target * (1 - target)
    difference = max(abs(accuracy - target), SMALLEST_DIFFERENCE)
    return math.ceil(normal_quantile(0.95) ** 2 * variance / difference**2)


def smallest_gap(P: float, n_in: int, n_out: int) -> float:
    """The gap of a slice to the rest that would be seen four times in five (section 4.4)."""
    return 2.8 * math.sqrt(P * (1 - P) * (1 / n_in + 1 / n_out))

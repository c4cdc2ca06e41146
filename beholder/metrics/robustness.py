"""What is left of a model's skill on changed images (specs/study.md, 4.9)."""

from __future__ import annotations

import numpy as np

from .bootstrap import Statistic, divided


def retained(cells: np.ndarray, clean: float, majority: float) -> float:
    """Mean over severities of (a - m) / (a0 - m), each at least 0; NaN without skill to lose.

    Args:
        cells: [S] accuracy at each severity; of several corruptions as many each: their mean.
        clean: accuracy on unchanged images, a0. majority: that of one answer to all, m.
    """
    if clean <= majority:
        return float("nan")
    return float(np.maximum((np.asarray(cells) - majority) / (clean - majority), 0).mean())


def retained_of(hits: np.ndarray, clean: np.ndarray, majority: np.ndarray) -> Statistic:
    """Statistic: `retained` over all cells.

    Args:
        hits: [N, cells] bool. clean: [N] bool. majority: [N] whether one answer to all is right.
    """
    columns = np.column_stack([hits, clean, majority]).astype(float)

    def kept(counts: np.ndarray) -> np.ndarray:
        shares = divided(counts @ columns, counts.sum(axis=1, keepdims=True).astype(float))
        skill = shares[:, -2] - shares[:, -1]
        over = np.maximum(shares[:, :-2] - shares[:, -1:], 0).mean(axis=1)
        return divided(over, skill)

    return kept


def mean_corruption_error(errors: np.ndarray, reference: np.ndarray) -> float:
    """mCE: 100 x mean over corruptions of sum_s e / sum_s e_ref; NaN where a reference has none.

    Hendrycks and Dietterich 2019, Eq. 1, there with AlexNet as the reference.

    Args:
        errors, reference: [corruptions, severities] shares of wrong answers.
    """
    own, other = np.atleast_2d(errors).sum(axis=1), np.atleast_2d(reference).sum(axis=1)
    return 100 * float(divided(own, other).mean())

"""Exact intervals and tests of counts: Wilson, Clopper-Pearson, binomial, McNemar, Fisher.

Formulas: specs/study.md, section 4; Wilson 1927, Clopper and Pearson 1934, McNemar 1947, mid-p
after Fagerland, Lydersen, Laake 2013.
"""

from __future__ import annotations

import math
from typing import overload

import numpy as np
from scipy import special, stats


def normal_quantile(level: float) -> float:
    """z of a two-sided interval: 1.959964 at .95."""
    return float(special.ndtri(0.5 + level / 2))


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the share k / n; (0, 1) of no trials. `k` may be a fraction."""
    if n <= 0:
        return 0.0, 1.0
    z, share = normal_quantile(level), k / n
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(max(share * (1 - share) / n + z * z / (4 * n * n), 0.0)) / shrink
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of k / n; (0, 1) of no trials."""
    tail = (1 - level) / 2
    low = float(special.betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(special.betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return low, high


def clopper_upper(k: int, n: int, level: float = 0.95) -> float:
    """The exact one-sided upper bound of k / n."""
    return float(clopper_upper_bounds(np.array([k]), np.array([n]), level)[0])


def clopper_upper_bounds(k: np.ndarray, n: np.ndarray, level: float = 0.95) -> np.ndarray:
    """`clopper_upper` of many counts at once. `k`, `n`: [G]."""
    inside = k < n
    bounds = special.betaincinv(k + 1, np.where(inside, n - k, 1), level)
    return np.where(inside, bounds, 1.0)


def binomial_greater(k: int, n: int, p: float) -> float:
    """P[X >= k] of X ~ Binomial(n, p): the one-sided test against a share p."""
    return 1.0 if k <= 0 else float(special.bdtrc(k - 1, n, p))


def mcnemar(b: int, c: int, mid: bool = False) -> float:
    """Exact two-sided p of `b` against `c` discordant pairs; `mid` takes half of the observed."""
    n, least = b + c, min(b, c)
    if n == 0:
        return 1.0
    tail = float(special.bdtr(least, n, 0.5))
    if mid:
        tail -= 0.5 * float(stats.binom.pmf(least, n, 0.5))
    return min(1.0, 2 * tail)


@overload
def fisher_less(k_in: int, n_in: int, k_out: int, n_out: int) -> float: ...
@overload
def fisher_less(
    k_in: np.ndarray, n_in: np.ndarray, k_out: np.ndarray, n_out: np.ndarray
) -> np.ndarray: ...
def fisher_less(
    k_in: int | np.ndarray,
    n_in: int | np.ndarray,
    k_out: int | np.ndarray,
    n_out: int | np.ndarray,
) -> float | np.ndarray:
    """Fisher's one-sided p that the share k_in / n_in is smaller than k_out / n_out.

    Arrays [G] are tested one by one. For 'larger' pass the misses `n - k` in place of `k`.
    """
    p = np.clip(stats.hypergeom.cdf(k_in, n_in + n_out, k_in + k_out, n_in), 0.0, 1.0)
    p = np.where(np.isnan(p), 1.0, p)  # no images at all
    return float(p) if np.ndim(p) == 0 else p

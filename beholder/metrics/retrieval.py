"""How well a search ranks: recall, median rank, average precision, R-precision, NDCG.

Scores are those of Q queries against N items. Equal scores are counted against the search: an item
that is wanted stands behind all unwanted ones of its score, so that a constant score finds nothing.
`ties="mean"` puts it into their middle, which is what a random order gives on average.

Each measure is one figure per query, NaN where nothing is wanted: intervals come from resampling
queries, `bootstrap(mean_of(figures), np.arange(Q))`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from .bootstrap import Statistic

Ties = Literal["last", "mean"]


def wanted_ranks(scores: np.ndarray, wanted: np.ndarray, ties: Ties = "last") -> np.ndarray:
    """Rank (1 = first) of every wanted item; NaN elsewhere.

    Args:
        scores: [Q, N], higher is nearer; NaN counts as the lowest.
        wanted: [Q, N], bool, or a gain >= 0; items of a smaller gain stand first among equals.

    Raises:
        ValueError: other shapes.
    """
    scores, gain = np.asarray(scores, float), np.asarray(wanted, float)
    if scores.ndim != 2 or scores.shape != gain.shape:
        raise ValueError(f"Scores {scores.shape} and what is wanted {gain.shape} must be [Q, N].")
    falling = np.where(np.isnan(scores), np.inf, -scores)
    order = np.lexsort((gain, falling), axis=1)
    rank = np.empty(scores.shape)
    np.put_along_axis(rank, order, np.arange(1.0, scores.shape[1] + 1)[None], axis=1)
    if ties == "mean":
        rank -= _unwanted_equals(falling, gain, order) / 2
    return np.where(gain > 0, rank, np.nan)


def _unwanted_equals(falling: np.ndarray, gain: np.ndarray, order: np.ndarray) -> np.ndarray:
    """How many unwanted items have the score of each item, [Q, N]."""
    sorted_ = np.take_along_axis(falling, order, 1)
    new = np.diff(sorted_, axis=1, prepend=-np.inf) != 0
    new[:, 0] = True
    group = np.cumsum(new, axis=1) - 1 + np.arange(len(order))[:, None] * order.shape[1]
    unwanted = np.take_along_axis(gain <= 0, order, 1)
    counts = np.bincount(group.ravel(), unwanted.ravel(), order.size)
    out = np.empty(falling.shape)
    np.put_along_axis(out, order, counts[group], axis=1)
    return out


def first_ranks(scores: np.ndarray, wanted: np.ndarray, ties: Ties = "last") -> np.ndarray:
    """Rank of the best wanted item of each query, [Q]."""
    ranks = wanted_ranks(scores, wanted, ties)
    return np.where(np.isnan(ranks), np.inf, ranks).min(1) + _nothing(wanted)


def recall_at(scores: np.ndarray, wanted: np.ndarray, k: int, ties: Ties = "last") -> np.ndarray:
    """Whether a wanted item is among the first k, [Q] (R@k: of several wanted, one counts)."""
    return (first_ranks(scores, wanted, ties) <= k) + _nothing(wanted)


def precision_at(scores: np.ndarray, wanted: np.ndarray, k: int, ties: Ties = "last") -> np.ndarray:
    """Share of wanted items among the first k, [Q]."""
    return (wanted_ranks(scores, wanted, ties) <= k).sum(1) / k + _nothing(wanted)


def median_rank(scores: np.ndarray, wanted: np.ndarray, ties: Ties = "last") -> float:
    """Median over queries of the rank of the best wanted item."""
    return float(np.nanmedian(first_ranks(scores, wanted, ties)))


def map_at(
    scores: np.ndarray, wanted: np.ndarray, k: int | None = None, ties: Ties = "last"
) -> np.ndarray:
    """Average precision over the first k (None = all), [Q].

    The sum of precisions at the wanted items is divided by min(k, number wanted): an item that was
    not found counts as 0. (torchmetrics divides by those found.)
    """
    ranks = np.sort(wanted_ranks(scores, wanted, ties), axis=1)
    most = ranks.shape[1] if k is None else k
    found = np.arange(1, ranks.shape[1] + 1)
    precision = np.where(ranks <= most, found / ranks, 0.0)
    number = np.minimum((~np.isnan(ranks)).sum(1), most)
    return precision.sum(1) / np.maximum(number, 1) + _nothing(wanted)


def r_precision(scores: np.ndarray, wanted: np.ndarray, ties: Ties = "last") -> np.ndarray:
    """Share of wanted items among the first R, R their number, [Q]."""
    ranks = wanted_ranks(scores, wanted, ties)
    number = (~np.isnan(ranks)).sum(1)
    return (ranks <= number[:, None]).sum(1) / np.maximum(number, 1) + _nothing(wanted)


def ndcg(
    scores: np.ndarray, gain: np.ndarray, k: int | None = None, ties: Ties = "last"
) -> np.ndarray:
    """Sum of gain / log2(1 + rank) over the first k (None = all), by the best possible: [Q]."""
    gain = np.asarray(gain, float)
    ranks = wanted_ranks(scores, gain, ties)
    k = ranks.shape[1] if k is None else k
    won = np.where(ranks <= k, gain / np.log2(1 + ranks), 0.0).sum(1)
    best = -np.sort(-gain, axis=1)[:, :k]
    ideal = (best / np.log2(np.arange(2, best.shape[1] + 2))).sum(1)
    return won / np.where(ideal > 0, ideal, 1) + _nothing(gain)


def median_of(figures: np.ndarray) -> Statistic:
    """Statistic for `bootstrap`: the median of one figure per query [Q], without NaN ones."""
    order = np.argsort(figures, kind="stable")
    sorted_ = np.asarray(figures, float)[order]
    there = ~np.isnan(sorted_)

    def median(counts: np.ndarray) -> np.ndarray:
        upto = np.cumsum(counts[:, order] * there, axis=1, dtype=float)
        total = upto[:, -1:]
        low = (upto >= total / 2).argmax(1)
        high = (upto > total / 2).argmax(1)
        return (sorted_[low] + sorted_[high]) / 2

    return median


def _nothing(wanted: np.ndarray) -> np.ndarray:
    """NaN for queries without a wanted item, else 0: [Q]."""
    return np.where((np.asarray(wanted) > 0).any(1), 0.0, np.nan)

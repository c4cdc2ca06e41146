"""Several labels per image: average precision, F1 over classes, thresholds, what comes together.

Statistics are those of `bootstrap`: multiplicities of rows [r, N] to r numbers.
"""

from __future__ import annotations

import numpy as np

from .bootstrap import Statistic, divided, mean_present


def average_precision_of(score: np.ndarray, positive: np.ndarray) -> Statistic:
    """Statistic: area under precision against recall as steps, equal scores taken together; NaN
    without a positive.

    Args:
        score: [N]. positive: [N] bool.
    """
    order = np.argsort(-score, kind="stable")
    truth = np.asarray(positive, bool)[order]
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])

    def area(counts: np.ndarray) -> np.ndarray:
        counts = counts[:, order].astype(float)
        found = np.add.reduceat(counts * truth, starts, axis=1)
        shown = np.cumsum(np.add.reduceat(counts, starts, axis=1), axis=1)
        precision = divided(np.cumsum(found, axis=1), shown)
        total = found.sum(axis=1)
        return divided((found * np.nan_to_num(precision)).sum(axis=1), total)

    return area


def mean_average_precision_of(scores: np.ndarray, truth: np.ndarray) -> Statistic:
    """Statistic: mean over the classes that are present. `scores`, `truth` (bool): [N, C]."""
    parts = [average_precision_of(scores[:, c], truth[:, c]) for c in range(truth.shape[1])]
    return lambda counts: mean_present(np.stack([part(counts) for part in parts], axis=1))


def f1_of(answers: np.ndarray, truth: np.ndarray, macro: bool) -> Statistic:
    """Statistic: F1 averaged over the classes that are true or answered (macro), or of all
    decisions together (micro). `answers`, `truth`: bool [N, C]."""
    both, either = (answers & truth).astype(float), answers.astype(float) + truth

    def f1(counts: np.ndarray) -> np.ndarray:
        right, all_of = 2 * (counts @ both), counts @ either
        if macro:
            return mean_present(divided(right, all_of))
        return divided(right.sum(axis=1), all_of.sum(axis=1))

    return f1


def best_threshold(score: np.ndarray, positive: np.ndarray) -> float:
    """The score from which on answering yes gives the best F1; infinite without a positive.

    Halfway to the next score below, so that it holds for scores that fall between.
    """
    if not positive.any():
        return float("inf")
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    found = np.cumsum(positive[order])
    f1 = 2 * found / (np.arange(1, len(score) + 1) + positive.sum())
    last = np.r_[np.diff(ranked) != 0, True]  # equal scores are answered alike
    best = int(np.argmax(np.where(last, f1, -1)))
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 1
    return float((ranked[best] + below) / 2)


def lift(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often two classes come together, [C, C], and how many times more often than if they had
    nothing to do with each other (NaN for a class without images). `labels`: bool [N, C]."""
    together = labels.T.astype(float) @ labels
    counts = labels.sum(0).astype(float)
    return together, divided(together * len(labels), np.outer(counts, counts))

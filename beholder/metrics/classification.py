"""How often answers are right: accuracy and its relatives, per class, ranking and probability.

Definitions as in scikit-learn; specs/study.md, sections 3 ('Given') and 4.3.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from beholder.core.sections import Value

from .bootstrap import auroc_macro_of, auroc_of, bootstrap, divided, f1_of, mean_present
from .intervals import share

SMALLEST_PROBABILITY = 1e-7
LARGEST_JOB = 100_000_000  # rows x classes x resamples of sorted scores


def confusion(
    true: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Counts [C, C]: rows true, columns predicted; sums of `weights` [N] where given."""
    pairs = np.asarray(true) * classes + np.asarray(predicted)
    return np.bincount(pairs, weights, classes * classes).reshape(classes, classes)


def accuracy(true: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Share of right answers; NaN of no images. `true`, `predicted`, `weights`: [N]."""
    if len(true) == 0:
        return float("nan")
    return float(np.average(np.asarray(true) == np.asarray(predicted), weights=weights))


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray, classes: int | None = None) -> float:
    """Mean recall over the classes that occur in `true`. `classes`: found from the labels if None.

    `true`, `predicted`: [N] in 0..classes-1.
    """
    table = confusion(true, predicted, classes or _number(true, predicted))
    return float(mean_present(divided(table.diagonal(), table.sum(axis=1))))


def macro_f1(true: np.ndarray, predicted: np.ndarray, classes: int | None = None) -> float:
    """Mean F1 over the classes that occur in `true` or `predicted`."""
    table = confusion(true, predicted, classes or _number(true, predicted))
    f1 = divided(2 * table.diagonal(), table.sum(axis=0) + table.sum(axis=1))
    return float(mean_present(f1))


def auroc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve, ties count half; NaN if one kind is missing.

    `score`: [N], higher = more positive. `positive`: [N] bool. `weights`: [N] >= 0.
    """
    if len(score) == 0:
        return float("nan")
    weights = np.ones(len(score)) if weights is None else np.asarray(weights, dtype=float)
    return float(auroc_of(score, positive)(weights[None])[0])


def auroc_macro(probability: np.ndarray, true: np.ndarray) -> float:
    """One-vs-rest AUROC averaged over the classes present; of two classes: the second's.

    `probability`: [N, C]. `true`: [N] in 0..C-1.
    """
    if len(true) == 0:
        return float("nan")
    return float(auroc_macro_of(probability, true)(np.ones((1, len(true))))[0])


def top_k(probability: np.ndarray, true: np.ndarray, k: int) -> float:
    """Share of images whose true class is among the k most probable (ties: lower index first)."""
    if len(true) == 0:
        return float("nan")
    own = np.take_along_axis(probability, np.asarray(true)[:, None], axis=1)
    earlier = np.arange(probability.shape[1]) < np.asarray(true)[:, None]
    rank = ((probability > own) | ((probability == own) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def brier(probability: np.ndarray, true: np.ndarray) -> float:
    """Mean squared distance of the probabilities [N, C] to the truth, summed over classes.

    Halved for two classes, so that it is the usual (p - y)^2.
    """
    if len(true) == 0:
        return float("nan")
    classes = probability.shape[1]
    distance = np.square(probability - np.eye(classes)[true]).sum(axis=1).mean()
    return float(distance / 2 if classes == 2 else distance)


def nll(probability: np.ndarray, true: np.ndarray) -> float:
    """Mean negative log of the true class's probability [N, C], cut at 1e-7."""
    if len(true) == 0:
        return float("nan")
    own = np.take_along_axis(probability, np.asarray(true)[:, None], axis=1)
    return float(-np.log(np.maximum(own.astype(float), SMALLEST_PROBABILITY)).mean())


def best_assignment(confusion: np.ndarray) -> np.ndarray:
    """The renaming of answers that makes most of them right: `[predicted] -> true`, [C].

    Hungarian method on the confusion table [C, C] (rows true, columns predicted).
    """
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    assignment = np.empty(len(confusion), dtype=int)
    assignment[columns] = rows
    return assignment


def affordable_resamples(rows: int, classes: int, resamples: int = 2000) -> int:
    """Resamples of `classes` AUROCs that stay within seconds; at least 200."""
    return min(resamples, max(200, LARGEST_JOB // max(1, rows * classes)))


def per_class(
    true: np.ndarray,
    predicted: np.ndarray,
    probability: np.ndarray | None,
    classes: int,
    *,
    units: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> pl.DataFrame:
    """One row per class: class (index), n, then recall, precision, f1, auroc, each _low, _high.

    Recall and precision by `share` (Wilson, or the bootstrap where units have several rows), F1
    and AUROC by the bootstrap. What is undefined (class absent, never answered) is null.

    Args:
        true, predicted: [N] in 0..classes-1. probability: [N, C], None = no AUROC.
        units: [N] labels of what was drawn independently; None = each row by itself.
    """
    units = np.arange(len(true)) if units is None else units
    sorted_draws = affordable_resamples(len(true), classes, resamples)
    rows: list[dict[str, float | int | None]] = []
    for label in range(classes):
        positive, answered = true == label, predicted == label
        values = {
            "recall": share(answered[positive], units[positive], resamples=resamples, seed=seed),
            "precision": share(positive[answered], units[answered], resamples=resamples, seed=seed),
            "f1": bootstrap(f1_of(positive, answered), units, resamples=resamples, seed=seed),
            "auroc": Value.undefined("no scores")
            if probability is None
            else bootstrap(
                auroc_of(probability[:, label], positive), units, resamples=sorted_draws, seed=seed
            ),
        }
        row: dict[str, float | int | None] = {"class": label, "n": int(positive.sum())}
        for name, value in values.items():
            row |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(row)
    shares = [
        n + end for n in ("recall", "precision", "f1", "auroc") for end in ("", "_low", "_high")
    ]
    schema = {"class": pl.Int64, "n": pl.Int64} | dict.fromkeys(shares, pl.Float64)
    return pl.DataFrame(rows, schema=schema)


def _number(true: np.ndarray, predicted: np.ndarray) -> int:
    return 1 + max(int(np.max(labels, initial=0)) for labels in (true, predicted))

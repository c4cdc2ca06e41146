"""Rates of detection: how well scores part trustworthy from untrustworthy inputs.

Scores are higher where an input is less trustworthy; `trusted` [n] and `bad` [m] are those of the
two kinds. Everything follows from one table: at each distinct score, how many of either kind lie
at or above it (`Counts`); equal scores are never parted. The same functions take multiplicities of
many resamples at once, so every figure has a bootstrap interval (`value`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import ndimage

from beholder.core.sections import Value

from .bootstrap import bootstrap, divided
from .intervals import share

RESAMPLES = 1000
SLACK = 1e-9  # 0.95 n is no whole number of inputs where rounding makes it one
EIGHT = np.ones((3, 3), int)  # neighbours of a pixel, with the diagonal ones


@dataclass(frozen=True)
class Counts:
    """Inputs at or above each distinct score, highest first; 0 stands first.

    Attributes:
        trusted, bad: [r, K + 1], of r resamples; the last column is the number of all.
    """

    trusted: np.ndarray
    bad: np.ndarray

    @property
    def swapped(self) -> Counts:
        """The same with both kinds, and the direction of the score, exchanged."""
        trusted, bad = (x[:, -1:] - x[:, ::-1] for x in (self.trusted, self.bad))
        return Counts(bad, trusted)


Rate = Callable[[Counts], np.ndarray]


def counting(trusted: np.ndarray, bad: np.ndarray) -> Callable[[np.ndarray], Counts]:
    """Multiplicities of inputs [r, n + m] (trusted ones first) -> `Counts`."""
    trusted, bad = (np.asarray(scores, dtype=float).ravel() for scores in (trusted, bad))
    if not len(trusted) or not len(bad):
        raise ValueError("Scores of both trusted and bad inputs are needed.")
    scores = np.concatenate([trusted, bad])
    if not np.isfinite(scores).all():
        raise ValueError("There are scores that are not finite.")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.inf))
    is_bad = order >= len(trusted)

    def counts(multiplicities: np.ndarray) -> Counts:
        drawn = multiplicities[:, order].astype(float)
        parts = []
        for kind in (~is_bad, is_bad):
            upto = np.cumsum(drawn * kind, axis=1)[:, ends]
            parts.append(np.concatenate([np.zeros((len(drawn), 1)), upto], axis=1))
        return Counts(*parts)

    return counts


def _auroc(counts: Counts) -> np.ndarray:
    x, y = counts.trusted, counts.bad
    area = (np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1]) / 2).sum(axis=1)
    return divided(area, x[:, -1] * y[:, -1])


def _fpr95(counts: Counts) -> np.ndarray:
    """The lowest threshold at which 95 % of the trusted pass; of the bad those that pass it."""
    n = counts.trusted[:, -1:]
    last = (counts.trusted <= 0.05 * n + SLACK).sum(axis=1, keepdims=True) - 1
    refused = np.take_along_axis(counts.bad, last, axis=1)[:, 0]
    return divided(counts.bad[:, -1] - refused, counts.bad[:, -1])


def _fpr95_interpolated(counts: Counts) -> np.ndarray:
    refused = divided(counts.trusted, counts.trusted[:, -1:])
    caught = divided(counts.bad, counts.bad[:, -1:])
    last = (refused <= 0.05 + SLACK).sum(axis=1) - 1
    rows, after = np.arange(len(last)), np.minimum(last + 1, refused.shape[1] - 1)
    step = divided(0.05 - refused[rows, last], refused[rows, after] - refused[rows, last])
    gain = caught[rows, after] - caught[rows, last]
    return 1 - caught[rows, last] - np.where(np.isnan(step), 0, step).clip(0) * gain


def _fpr95_ood(counts: Counts) -> np.ndarray:
    """The highest threshold at which 95 % of the bad are caught; of the trusted those refused."""
    m = counts.bad[:, -1:]
    first = (counts.bad < 0.95 * m - SLACK).sum(axis=1, keepdims=True)
    refused = np.take_along_axis(counts.trusted, first, axis=1)[:, 0]
    return divided(refused, counts.trusted[:, -1])


def _precision_recall(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Of the bad, as positives: [r, K + 1] each; precision 1 where nothing is refused."""
    refused = counts.trusted + counts.bad
    precision = np.where(refused > 0, divided(counts.bad, refused), 1.0)
    return precision, divided(counts.bad, counts.bad[:, -1:])


def _aupr_out(counts: Counts) -> np.ndarray:
    precision, recall = _precision_recall(counts)
    return (np.diff(recall, axis=1) * (precision[:, 1:] + precision[:, :-1]) / 2).sum(axis=1)


def _aupr_in(counts: Counts) -> np.ndarray:
    return _aupr_out(counts.swapped)


def _ap(counts: Counts) -> np.ndarray:
    precision, recall = _precision_recall(counts)
    return (np.diff(recall, axis=1) * precision[:, 1:]).sum(axis=1)


RATES: dict[str, Rate] = {
    "auroc": _auroc,
    "fpr95": _fpr95,
    "fpr95_interpolated": _fpr95_interpolated,
    "fpr95_ood": _fpr95_ood,
    "aupr_in": _aupr_in,
    "aupr_out": _aupr_out,
    "ap": _ap,
}
LOWER_IS_BETTER = {"fpr95", "fpr95_interpolated", "fpr95_ood"}


def _of_all(rate: Rate, trusted: np.ndarray, bad: np.ndarray) -> float:
    every = np.ones((1, np.size(trusted) + np.size(bad)))
    return float(rate(counting(trusted, bad)(every))[0])


def auroc(trusted: np.ndarray, bad: np.ndarray) -> float:
    """Chance that a bad input scores above a trusted one; ties count half."""
    return _of_all(_auroc, trusted, bad)


def fpr95(trusted: np.ndarray, bad: np.ndarray, *, interpolate: bool = False) -> float:
    """Share of bad inputs that pass when 95 % of the trusted pass.

    The first ROC point at which they do (as MCM); `interpolate` takes the ROC as linear between
    its points (as the script of CLIPN).
    """
    return _of_all(_fpr95_interpolated if interpolate else _fpr95, trusted, bad)


def fpr95_ood(trusted: np.ndarray, bad: np.ndarray) -> float:
    """Share of trusted inputs refused when 95 % of the bad are caught (as OpenOOD 1.5)."""
    return _of_all(_fpr95_ood, trusted, bad)


def aupr_out(trusted: np.ndarray, bad: np.ndarray) -> float:
    """Area under precision and recall of the bad, by trapezoids (as OpenOOD, pytorch-ood)."""
    return _of_all(_aupr_out, trusted, bad)


def aupr_in(trusted: np.ndarray, bad: np.ndarray) -> float:
    """`aupr_out` of the trusted: positives are those of low scores."""
    return _of_all(_aupr_in, trusted, bad)


def ap(trusted: np.ndarray, bad: np.ndarray) -> float:
    """Average precision of the bad, by steps (as scikit-learn and the generated-image papers)."""
    return _of_all(_ap, trusted, bad)


def value(
    name: str,
    trusted: np.ndarray,
    bad: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Value:
    """One of `RATES` with the interval of the bootstrap, both kinds resampled by themselves."""
    count, rate = counting(trusted, bad), RATES[name]
    sizes = np.size(trusted), np.size(bad)

    def statistic(multiplicities: np.ndarray) -> np.ndarray:
        return rate(count(multiplicities))

    return bootstrap(
        statistic,
        np.arange(sum(sizes)),
        strata=np.repeat([0, 1], sizes),
        resamples=resamples,
        seed=seed,
        higher_is_better=name not in LOWER_IS_BETTER,
    )


def balanced_accuracy(trusted: np.ndarray, bad: np.ndarray, threshold: float) -> float:
    """Mean of `accuracy_real` and `accuracy_fake`; scores above the threshold are refused."""
    return (accuracy_real(trusted, threshold) + accuracy_fake(bad, threshold)) / 2


def accuracy_real(trusted: np.ndarray, threshold: float) -> float:
    """Share of trusted inputs at or below the threshold."""
    return float(np.mean(np.asarray(trusted) <= threshold))


def accuracy_fake(bad: np.ndarray, threshold: float) -> float:
    """Share of bad inputs above the threshold."""
    return float(np.mean(np.asarray(bad) > threshold))


def error_at(trusted: np.ndarray, bad: np.ndarray, threshold: float) -> dict[str, Value]:
    """What a user gets at a threshold that was set before: `refused` (share of bad inputs) and
    `false_refusals` (share of trusted ones), with Wilson's intervals."""
    return {
        "refused": share(np.asarray(bad) > threshold),
        "false_refusals": share(np.asarray(trusted) > threshold, higher_is_better=False),
    }


def f1_max(trusted: np.ndarray, bad: np.ndarray) -> float:
    """The best F1 of any threshold: it is picked on the inputs that it is judged on."""
    counts = counting(trusted, bad)(np.ones((1, np.size(trusted) + np.size(bad))))
    refused, caught = (counts.trusted + counts.bad)[0], counts.bad[0]
    return float((2 * caught / (refused + counts.bad[0, -1])).max())


def conformal_threshold(calibration: np.ndarray, fpr: float) -> float:
    """The k-th smallest of n calibration scores, k = ceil((n + 1)(1 - fpr)).

    An exchangeable new score lies above it with a chance of at most `fpr`.

    Raises:
        ValueError: n is below `references_needed(fpr)`, or `fpr` outside 0..1.
    """
    n = len(calibration)
    if not 0 < fpr < 1 or n < references_needed(fpr):
        raise ValueError(f"{n} calibration scores give no threshold for a rate of {fpr}.")
    k = math.ceil(round((n + 1) * (1 - fpr), 9))
    return float(np.partition(calibration, k - 1)[k - 1])


def conformal_p(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + calibration scores at least as high) / (n + 1) for each of `scores` [N]."""
    ordered = np.sort(calibration)
    return (1 + len(ordered) - np.searchsorted(ordered, scores, side="left")) / (len(ordered) + 1)


def references_needed(fpr: float) -> int:
    """Calibration scores without which no threshold promises `fpr`: 19 for 5 %, 99 for 1 %."""
    return math.ceil(round(1 / fpr - 1, 9)) if 0 < fpr < 1 else 0


def pixel_auroc(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """AUROC over all pixels. `maps`: scores [H, W] each; `masks`: bool [H, W], True = anomalous."""
    scores, bad = _flat(maps), _flat(masks).astype(bool)
    return auroc(scores[~bad], scores[bad])


def iou_at(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], threshold: float) -> float:
    """Intersection over union of all pixels above the threshold with all anomalous ones."""
    found, bad = _flat(maps) > threshold, _flat(masks).astype(bool)
    either = (found | bad).sum()
    return float((found & bad).sum() / either) if either else math.nan


def pro(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rate on normal pixels, and per-region overlap: mean over the anomalous
    regions (8-connected, of all images) of the share that is covered. [K + 1] each, from (0, 0),
    one point per distinct score (the script of MVTec goes by rank, so equal scores part there).

    Raises:
        ValueError: no anomalous region, no normal pixel, or shapes that differ.
    """
    scores = _flat(maps)
    parts, regions = [], 0
    for map_, mask in zip(maps, masks, strict=True):
        labels, count = _regions(mask)
        if labels.shape != np.shape(map_):
            raise ValueError(f"A map of shape {np.shape(map_)} has a mask of {labels.shape}.")
        sizes = np.bincount(labels.ravel(), minlength=count + 1).astype(float)
        weights = 1 / np.maximum(sizes, 1)
        weights[0] = 0
        parts.append(weights[labels.ravel()])
        regions += count
    covered = np.concatenate(parts)
    normal = covered == 0
    if not regions or not normal.any():
        raise ValueError("Regions are needed, and normal pixels around them.")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.inf))
    fpr = np.append(0, np.cumsum(normal[order])[ends]) / normal.sum()
    overlap = np.append(0, np.cumsum(covered[order])[ends]) / regions
    return fpr, overlap


def aupro(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], limit: float = 0.3) -> float:
    """Area under `pro` up to a false-positive rate of `limit`, divided by it."""
    fpr, overlap = pro(maps, masks)
    last = np.flatnonzero(fpr < limit)[-1]
    rise = (overlap[last + 1] - overlap[last]) / (fpr[last + 1] - fpr[last])
    x = np.append(fpr[: last + 1], limit)
    y = np.append(overlap[: last + 1], overlap[last] + rise * (limit - fpr[last]))
    return float(np.trapezoid(y, x) / limit)


def _regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """8-connected regions as numbers from 1 on, [H, W], and how many."""
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(np.asarray(mask, bool), EIGHT))
    return labels, count


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(array).ravel() for array in arrays])

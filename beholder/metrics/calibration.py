"""Do confidences mean what they say, and which answers can be left to the model?

Specs/study.md, section 4.7. Temperature: Guo, Pleiss, Sun, Weinberger, ICML 2017. Platt scaling:
Platt 1999 with the targets and the Newton steps of Lin, Lin, Weng, Machine Learning 68, 2007.
AURC: Geifman, Uziel, El-Yaniv, ICLR 2019, ties averaged. Fixed-sequence testing: Angelopoulos et
al., 'Learn then Test', 2021.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from scipy import special
from scipy.optimize import minimize_scalar

from .bootstrap import CHUNK_BYTES
from .intervals import clopper_upper_bounds, wilson

LOG_TEMPERATURE = (-3.0, 3.0)
NEWTON_STEPS = 100
ERRORS_AT_START = 2


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in float64."""
    return special.softmax(np.asarray(logits, dtype=float), axis=-1)


def mass_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each row, 0..bins-1, of equal numbers up to ties: equal confidences stay together."""
    below = np.searchsorted(np.sort(confidence), confidence, side="left")
    return below * bins // len(confidence)


def width_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each row, 0..bins-1, of equal width: [i / bins, (i + 1) / bins); 1 is in the last."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)


def reliability(confidence: np.ndarray, hit: np.ndarray, bins: int = 15) -> pl.DataFrame:
    """bin, n, confidence, accuracy, low, high (Wilson) of equal-mass bins; empty ones left out.

    `confidence`: [N] in 0..1. `hit`: [N] bool.
    """
    which = mass_bins(confidence, bins)
    rows = []
    for index in np.unique(which):
        inside = which == index
        n, k = int(inside.sum()), int(hit[inside].sum())
        low, high = wilson(k, n)
        rows.append((int(index), n, float(confidence[inside].mean()), k / n, low, high))
    names = ["confidence", "accuracy", "low", "high"]
    schema = {"bin": pl.Int64, "n": pl.Int64} | dict.fromkeys(names, pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def ece(
    confidence: np.ndarray,
    hit: np.ndarray,
    bins: int = 15,
    mode: Literal["mass", "width"] = "mass",
) -> float:
    """Expected calibration error: mean over rows of |accuracy - confidence| of their bin."""
    if len(hit) == 0:
        return float("nan")
    which = (mass_bins if mode == "mass" else width_bins)(confidence, bins)
    excess = np.bincount(which, np.asarray(hit, dtype=float) - confidence)
    return float(np.abs(excess).sum() / len(hit))


def ece_expected(
    confidence: np.ndarray,
    observed_ece: float,
    bins: int = 15,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """What `ece` (equal mass) of a perfectly calibrated model would be, and a p-value.

    Hits are drawn from Bernoulli(confidence): e0 = mean ECE of the draws,
    p = (1 + #{draw >= observed}) / (draws + 1).
    """
    which = mass_bins(confidence, bins)
    order = np.argsort(which, kind="stable")
    chance = confidence[order].astype(np.float32)
    starts = np.unique(which[order], return_index=True)[1]
    expected = np.add.reduceat(confidence[order].astype(float), starts)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_BYTES // (8 * len(chance)))
    drawn = []
    for start in range(0, draws, step):
        size = (min(step, draws - start), len(chance))
        hits = rng.random(size, dtype=np.float32) < chance
        excess = np.add.reduceat(hits, starts, axis=1, dtype=np.float64) - expected
        drawn.append(np.abs(excess).sum(axis=1) / len(chance))
    errors = np.concatenate(drawn)
    return float(errors.mean()), float((1 + (errors >= observed_ece).sum()) / (draws + 1))


def _by_confidence(
    confidence: np.ndarray, hit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct confidences from high to low; rows and errors at or above each. All [G]."""
    thresholds, group = np.unique(-np.asarray(confidence, dtype=float), return_inverse=True)
    group = group.reshape(-1)
    accepted = np.cumsum(np.bincount(group))
    errors = np.cumsum(np.bincount(group, 1.0 - np.asarray(hit, dtype=float)))
    return -thresholds, accepted, np.rint(errors).astype(int)


def aurc(confidence: np.ndarray, hit: np.ndarray) -> float:
    """Area under the risk-coverage curve: mean over k of the error among the k most confident.

    Among equal confidences the expected error of a random order counts.
    """
    if len(hit) == 0:
        return float("nan")
    _, accepted, errors = _by_confidence(confidence, hit)
    k = np.arange(1, len(hit) + 1)
    expected = np.interp(k, np.r_[0, accepted], np.r_[0, errors])
    return float((expected / k).mean())


def risk_coverage(confidence: np.ndarray, hit: np.ndarray) -> pl.DataFrame:
    """coverage, risk (error among the accepted), threshold; at most 200 rows, coverage rising."""
    thresholds, accepted, errors = _by_confidence(confidence, hit)
    rows = np.unique(np.linspace(0, len(thresholds) - 1, 200).round().astype(int))
    rows = rows if len(thresholds) else rows[:0]
    return pl.DataFrame(
        {
            "coverage": accepted[rows] / max(1, len(hit)),
            "risk": errors[rows] / accepted[rows],
            "threshold": thresholds[rows],
        }
    )


def operating_point(
    confidence: np.ndarray, hit: np.ndarray, risk: float, level: float = 0.95
) -> float | None:
    """The lowest threshold whose error is at most `risk` with probability `level`; None if none.

    Coverages of 1, 2, ... 100 % are tested from high to low threshold, each by the upper
    Clopper-Pearson bound; the first failure ends the search, so no correction is needed. The
    search starts at the first coverage that could pass with two errors (with one or none where
    images are too few), which depends on no hit. A start that allows no error ended at once in 19 %
    of simulated calibrated sets (n = 656, error 15 %, risk 7 %), this one in 6 %. Answers with
    confidence >= threshold are accepted.
    """
    thresholds, accepted, errors = _by_confidence(confidence, hit)
    if len(thresholds) == 0:
        return None
    wanted = np.arange(1, 101) / 100 * accepted[-1]
    steps = np.unique(np.searchsorted(accepted, wanted - 1e-9))
    n = accepted[steps]
    for allowed in range(ERRORS_AT_START, -1, -1):
        bounds = clopper_upper_bounds(np.minimum(allowed, n), n, level)
        possible = np.flatnonzero(bounds <= risk)
        if len(possible):
            break
    else:
        return None
    steps = steps[possible[0] :]
    passed = clopper_upper_bounds(errors[steps], accepted[steps], level) <= risk
    length = len(passed) if passed.all() else int(np.argmin(passed))
    return float(thresholds[steps[length - 1]]) if length else None


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """T that minimises the NLL of softmax(logits / T), log T in [-3, 3] (Brent).

    `logits`: [N, C]. `labels`: [N] in 0..C-1. `weights`: [N] >= 0.
    """
    logits = np.asarray(logits, dtype=float)
    own = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=1)[:, 0]

    def loss(log_temperature: float) -> float:
        beta = np.exp(-log_temperature)
        each = special.logsumexp(beta * logits, axis=1) - beta * own
        return float(np.average(each, weights=weights))

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def fit_platt(
    decision: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """(a, b) of P(positive) = 1 / (1 + exp(-(a f + b))), with smoothed targets.

    Targets are (N+ + 1) / (N+ + 2) and 1 / (N- + 2), N the (weighted) counts; Newton's method with
    step halving. `decision`: [N]. `positive`: [N] bool. `weights`: [N] >= 0.
    """
    f = np.asarray(decision, dtype=float)
    truth = np.asarray(positive, dtype=bool)
    weights = np.ones(len(f)) if weights is None else np.asarray(weights, dtype=float)
    many, few = weights[truth].sum(), weights[~truth].sum()
    target = np.where(truth, (many + 1) / (many + 2), 1 / (few + 2))

    def loss(a: float, b: float) -> float:
        z = a * f + b
        return float(weights @ (np.logaddexp(0, z) - target * z))

    a, b = 0.0, float(np.log((many + 1) / (few + 1)))
    current = loss(a, b)
    for _ in range(NEWTON_STEPS):
        p = special.expit(a * f + b)
        slope = weights * (p - target)
        gradient = np.array([slope @ f, slope.sum()])
        if np.abs(gradient).max() < 1e-9 * max(1.0, weights.sum()):
            break
        curve = weights * p * (1 - p)
        cross = curve @ f
        hessian = np.array([[curve @ (f * f), cross], [cross, curve.sum()]]) + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-10:
            trial = loss(a - size * step[0], b - size * step[1])
            if trial < current - 1e-4 * size * (gradient @ step):
                break
            size /= 2
        else:
            break
        a, b, current = float(a - size * step[0]), float(b - size * step[1]), trial
    return a, b

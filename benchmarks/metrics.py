"""Intervals and groups of 50,000 answers; the bootstrap against torchmetrics' on the same accuracy.

Two bootstraps: of rows drawn one by one, and of units of four rows that are drawn together (which
torchmetrics does not offer).
"""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.classification import BinaryAccuracy
from torchmetrics.wrappers import BootStrapper

from beholder.metrics.bootstrap import bootstrap, mean_of
from beholder.metrics.groups import compare_slices, shrink

from .base import ROUNDS, Measured, at_least, at_most, measured, median_ratio, timed

RESAMPLES = 2000
RESAMPLES_OF_PEER = 500  # of both, where they are compared: the peer takes half a minute for them
SLICES = 50
ACCURACY = 0.85


def torchmetrics_interval(answers: torch.Tensor, truth: torch.Tensor, resamples: int) -> np.ndarray:
    """Low and high, 95 %."""
    torch.manual_seed(0)
    metric = BootStrapper(
        BinaryAccuracy(validate_args=False),
        num_bootstraps=resamples,
        mean=False,
        std=False,
        quantile=torch.tensor([0.025, 0.975]),
        sampling_strategy="multinomial",
    )
    metric.update(answers, truth)
    return metric.compute()["quantile"].numpy()


def measure(quick: bool = False) -> Measured:
    rows, compared = (5_000, 100) if quick else (50_000, RESAMPLES_OF_PEER)
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, rows)
    hits = rng.random(rows) < ACCURACY
    answers = np.where(hits, truth, 1 - truth)
    alone, fours = np.arange(rows), np.arange(rows) // 4
    names = rng.integers(0, SLICES, rows)
    slices = [("name", str(name), names == name) for name in range(SLICES)]
    tensors = torch.from_numpy(answers), torch.from_numpy(truth)

    ours, theirs, intervals, peer_intervals = [], [], [], []
    for _ in range(1 if quick else ROUNDS):
        seconds, value = timed(lambda: bootstrap(mean_of(hits), alone, resamples=compared))
        ours.append(seconds)
        intervals.append((value.low, value.high))
        seconds, interval = timed(lambda: torchmetrics_interval(*tensors, compared))
        theirs.append(seconds)
        peer_intervals.append(interval)
    single, _ = timed(lambda: bootstrap(mean_of(hits), alone, resamples=RESAMPLES))
    clustered, _ = timed(lambda: bootstrap(mean_of(hits), fours, resamples=RESAMPLES))
    groups, _ = timed(lambda: compare_slices(slices, hits, truth, None))
    k, n = np.bincount(names, hits), np.bincount(names)
    shrunken, _ = timed(lambda: shrink(k, n))
    figures = {
        "rows": rows,
        "resamples": RESAMPLES,
        "resamples_compared": compared,
        "bootstrap_s": ours,
        "torchmetrics_s": theirs,
        "interval": intervals[0],
        "torchmetrics_interval": peer_intervals[0].tolist(),
        "slices": SLICES,
        "shrinkage_s": shrunken,
    }
    gap = float(np.abs(np.subtract(intervals[0], peer_intervals[0])).max())
    return measured(
        figures,
        at_least("bootstrap, faster than torchmetrics'", median_ratio(theirs, ours), 20),
        at_most("largest difference of the two intervals", 100 * gap, 0.1, "points"),
        at_most("bootstrap of single rows", single, 2, "s"),
        at_most("bootstrap of units of four rows", clustered, 2, "s"),
        at_most(f"{SLICES} groups: shrinkage, tests, intervals", groups, 2, "s"),
    )

"""A training in a process of its own, that ends badly."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

from train.loop.small import model, settings, squares

from beholder.data.augment.mixup import Mixup
from beholder.train.loop import TrainRun, fit
from beholder.train.objectives.classification import Classification


def run(directory: Path, workers: int, ends: tuple[int, int] = (0, 0)) -> TrainRun:
    """Mixup, averaged weights, accumulation, drop path, dropout and random crops, all at once: nine
    steps, three of them an epoch.

    Args:
        ends: the process gets that signal at the end of that step, before its checkpoint.
    """
    return fit(
        Classification(view="supervised"),
        model(drop_path_rate=0.3, drop_rate=0.2),
        squares(),
        settings(
            **{"epochs": 3, "batch_size": 4, "accumulate": 2, "ema": 0.9, "workers": workers},
            **{"mixing": Mixup(alpha=1.0), "checkpoint_every": 0, "log_every": 2},
        ),
        out=directory,
        validation=squares(9, first=100),
        on_progress=partial(_end, *ends),
    )


def _end(number: int, step: int, done: int, total: int, figures: Mapping[str, float]) -> None:
    if done == step:
        os.kill(os.getpid(), number)


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["beholder.train.loop", "beholder.data.augment.mixup"])
    return context


def ended(directory: Path, workers: int, number: signal.Signals, step: int) -> int | None:
    """The exit code of a process that runs until it gets a signal at the end of a step."""
    process = _server().Process(target=_apart, args=(directory, workers, (int(number), step)))
    process.start()
    process.join(120)
    return process.exitcode


def _apart(directory: Path, workers: int, ends: tuple[int, int]) -> None:
    try:
        run(directory, workers, ends)
    except KeyboardInterrupt:
        os._exit(130)

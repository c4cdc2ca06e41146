"""Schedules: pure functions of the step, so that a resumed run needs no state of theirs.

Exact values: a warm-up is at start + (peak - start) s/w in step s (start at s = 0, as in Barlow's
and MAE's codes); what follows runs over the remaining T - w steps, a cosine from `start` to `end`
as end + (start - end) (1 + cos(pi s/T)) / 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from beholder.core.errors import ArgumentError

from .objectives.base import Schedule, Step


def constant(value: float) -> Schedule:
    """The same value in every step."""
    return partial(_linear, value, value)


def linear(start: float, end: float) -> Schedule:
    """A straight line from `start` in step 0 to `end` in step T."""
    return partial(_linear, start, end)


def cosine(start: float, end: float) -> Schedule:
    """Half a cosine from `start` in step 0 to `end` in step T."""
    return partial(_cosine, start, end)


def milestones(values: Mapping[int, float]) -> Schedule:
    """The value of the last milestone that is not after the step.

    Args:
        values: first step -> value; step 0 must be there.
    """
    if 0 not in values:
        raise ArgumentError(
            f"Milestones {sorted(values)} say nothing about step 0.", "Add 0: the first value."
        )
    return partial(_milestones, tuple(sorted(values.items())))


def warmup(steps: int, then: Schedule, start: float = 0.0) -> Schedule:
    """A straight line from `start` to the first value of `then`, which runs over the rest.

    Args:
        steps: w; step w is the first of `then`, which sees s - w of T - w.
    """
    return partial(_warmup, steps, then, start)


def at(value: float | Schedule, step: Step) -> float:
    """The value in that step of what may be a schedule."""
    return value(step) if callable(value) else value


def _share(step: Step) -> float:
    """Of the steps gone, 0 to 1."""
    return min(step.number / step.total, 1.0) if step.total > 0 else 1.0


def _linear(start: float, end: float, step: Step) -> float:
    return start + (end - start) * _share(step)


def _cosine(start: float, end: float, step: Step) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * _share(step))) / 2


def _milestones(values: tuple[tuple[int, float], ...], step: Step) -> float:
    return [value for first, value in values if first <= step.number][-1]


def _warmup(steps: int, then: Schedule, start: float, step: Step) -> float:
    rest = max(step.total - steps, 0)
    if step.number >= steps:
        return then(replace(step, number=step.number - steps, total=rest))
    peak = then(replace(step, number=0, total=max(rest, 1)))
    return start + (peak - start) * step.number / steps

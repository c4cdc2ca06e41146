"""Schedules at their ends and in the middle, by hand."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beholder.core.errors import ArgumentError
from beholder.train.objectives.base import Schedule, Step
from beholder.train.schedules import at, constant, cosine, linear, milestones, warmup

T = 100


def value(schedule: Schedule, number: int, total: int = T) -> float:
    return schedule(Step(number, total))


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [
        (constant(0.3), 0.3, 0.3, 0.3),
        (linear(1.0, 3.0), 1.0, 2.0, 3.0),
        (cosine(1.0, 0.2), 1.0, 0.6, 0.2),
        (cosine(0.996, 1.0), 0.996, 0.998, 1.0),
        (milestones({0: 1.0, 50: 0.1, 100: 0.01}), 1.0, 0.1, 0.01),
    ],
)
def test_values_at_the_start_in_the_middle_and_at_the_end(
    schedule: Schedule, first: float, middle: float, last: float
) -> None:
    found = [value(schedule, number) for number in (0, T // 2, T)]
    assert found == pytest.approx([first, middle, last])


def test_cosine_after_warmup_is_the_formula_of_barlow_twins() -> None:
    w, schedule = 10, warmup(10, cosine(0.2, 0.0002))
    assert [value(schedule, s) for s in (0, 5)] == pytest.approx([0, 0.1])
    for s in range(w, T + 1):
        q = 0.5 * (1 + math.cos(math.pi * (s - w) / (T - w)))
        assert value(schedule, s) == pytest.approx(0.2 * q + 0.0002 * (1 - q))


def test_warmup_reaches_its_peak_in_step_w_and_the_end_in_step_t() -> None:
    schedule = warmup(20, linear(2.0, 1.0), start=1.0)
    assert [value(schedule, s) for s in (0, 10, 20, T)] == pytest.approx([1.0, 1.5, 2.0, 1.0])


def test_no_warmup_is_what_follows() -> None:
    assert value(warmup(0, linear(1, 2)), 30) == value(linear(1, 2), 30)


def test_warmup_of_a_whole_run_ends_below_its_peak() -> None:
    schedule = warmup(T, cosine(1.0, 0.0))
    assert value(schedule, T - 1) == pytest.approx((T - 1) / T)


def test_milestones_change_in_their_own_step() -> None:
    schedule = milestones({30: 0.1, 0: 1.0})
    assert [value(schedule, s) for s in (29, 30, 31)] == [1.0, 0.1, 0.1]


def test_milestones_without_a_first_value_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"\[30\]"):
        milestones({30: 0.1})


def test_a_number_and_a_schedule_are_read_alike() -> None:
    assert at(0.5, Step(3, 9)) == 0.5
    assert at(linear(0, 9), Step(3, 9)) == 3


@given(st.integers(0, 50), st.integers(0, T), st.floats(-2, 2), st.floats(-2, 2))
def test_a_schedule_stays_between_its_ends_and_can_be_sent_to_a_worker(
    w: int, number: int, start: float, end: float
) -> None:
    schedule = warmup(w, cosine(start, end))
    low, high = min(0, start, end), max(0, start, end)
    found = value(schedule, number)
    assert low - 1e-9 <= found <= high + 1e-9
    assert value(pickle.loads(pickle.dumps(schedule)), number) == found

"""Retained skill and mCE: the hand values of specs/study.md, section 10."""

from __future__ import annotations

import math

import numpy as np
import pytest

from beholder.metrics.robustness import mean_corruption_error, retained, retained_of


def test_retained_by_hand() -> None:
    cells = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert retained(cells, 0.9, 0.5) == pytest.approx(0.5)
    assert retained(np.array([0.4]), 0.9, 0.5) == 0
    assert retained(np.array([0.4, 0.9]), 0.9, 0.5) == pytest.approx(0.5)
    assert retained(np.array([1.0]), 0.9, 0.5) == pytest.approx(1.25)


@pytest.mark.parametrize("clean", [0.5, 0.4])
def test_without_skill_there_is_none_to_retain(clean: float) -> None:
    assert math.isnan(retained(np.array([0.5]), clean, 0.5))


def test_the_statistic_is_the_same_on_all_rows_and_follows_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    hits, clean, majority = rng.random((50, 6)) < 0.6, rng.random(50) < 0.9, rng.random(50) < 0.4
    statistic = retained_of(hits, clean, majority)
    whole = retained(hits.mean(0), clean.mean(), majority.mean())
    assert statistic(np.ones((2, 50))) == pytest.approx([whole, whole])
    counts = np.zeros((1, 50))
    counts[0, :20] = 3
    part = retained(hits[:20].mean(0), clean[:20].mean(), majority[:20].mean())
    assert statistic(counts) == pytest.approx([part])
    counts[:] = majority
    assert np.isnan(statistic(counts)).all()


def test_mce_by_hand() -> None:
    errors = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    reference = np.array([[0.2, 0.3, 0.4, 0.5, 0.6]])
    assert mean_corruption_error(errors, reference) == pytest.approx(75)
    assert mean_corruption_error(reference, reference) == 100


def test_mce_is_a_mean_over_corruptions_and_undefined_without_errors_of_the_reference() -> None:
    errors, reference = np.array([[0.2, 0.2], [0.3, 0.5]]), np.array([[0.4, 0.4], [0.4, 0.4]])
    assert mean_corruption_error(errors, reference) == pytest.approx(75)
    assert math.isnan(mean_corruption_error(errors, np.array([[0.4, 0.4], [0, 0]])))

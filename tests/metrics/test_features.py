"""The collapse check on features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from beholder.core.errors import ArgumentError
from beholder.metrics.features import collapse, effective_rank


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-3])
def test_one_and_the_same_feature_is_a_collapse(value: float) -> None:
    found = collapse(np.full((64, 8), value))
    np.testing.assert_allclose(found, (0, 1, 1), atol=1e-9)
    assert found.alarming


def test_an_identity_has_no_common_direction() -> None:
    std, rank, cos = collapse(np.eye(64))
    assert std == pytest.approx(1)
    assert rank == pytest.approx(63, abs=1e-3)
    assert cos == pytest.approx(0, abs=1e-12)


def test_a_gaussian_is_spread_and_of_full_rank() -> None:
    found = collapse(np.random.default_rng(0).standard_normal((1000, 16)))
    np.testing.assert_allclose(found, (1, 16, 0), rtol=0.02, atol=0.01)
    assert not found.alarming


def test_one_direction_with_both_signs_is_seen_by_the_rank_alone() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 1)) @ np.ones((1, 8))
    std, rank, cos = collapse(rows)
    assert std > 0.5
    assert cos < 0.5
    assert rank == pytest.approx(1, abs=1e-6)
    assert collapse(rows).alarming


def test_scale_of_the_features_changes_nothing() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 8)) + 0.5
    np.testing.assert_allclose(collapse(rows), collapse(1e6 * rows), rtol=1e-9)


def test_std_is_lightlys() -> None:
    import torch

    rows = np.random.default_rng(0).standard_normal((100, 8)) + 1
    unit = torch.nn.functional.normalize(torch.tensor(rows), dim=1)
    assert collapse(rows).std == pytest.approx(float(unit.std(0).mean()) * 8**0.5)


def test_cos_is_the_mean_over_pairs() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 5)) + 1
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(64) for j in range(64) if i != j]
    assert collapse(rows).cos == pytest.approx(np.mean(pairs))


def test_effective_rank_of_two_unequal_directions_by_hand() -> None:
    rows = np.zeros((4, 3))
    rows[:2, 0], rows[2:, 1] = (3, -3), (1, -1)
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(rows) == pytest.approx(expected)


def test_too_few_rows_and_nan_are_refused() -> None:
    with pytest.raises(ArgumentError, match="63 rows"):
        collapse(np.eye(63))
    broken = np.eye(64)
    broken[3, 3] = np.nan
    with pytest.raises(ArgumentError, match="NaN"):
        collapse(broken)

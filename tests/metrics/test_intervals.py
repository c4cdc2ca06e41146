"""Intervals and tests of counts against numbers by hand or by scipy (study.md, section 10)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from beholder.metrics.intervals import (
    binomial_greater,
    clopper_pearson,
    clopper_upper,
    fisher_less,
    holm,
    images_needed,
    mcnemar,
    share,
    sign_flip,
    smallest_gap,
    wilson,
)

cases = settings(deadline=None, derandomize=True, max_examples=200)
counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 10, 0, 0.277533),
        (10, 10, 0.722467, 1),
        (8, 10, 0.490162, 0.943318),
        (45, 50, 0.786398, 0.956524),
        (560, 656, 0.824553, 0.878646),
        (1, 3, 0.061492, 0.792340),
        (656, 656, 0.994178, 1),
    ],
)
def test_wilson_equals_the_reference_table(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-7)


def test_wilson_of_no_trials_says_nothing():
    assert wilson(0, 0) == (0, 1)


@cases
@given(counts)
def test_wilson_lies_in_the_unit_interval_and_contains_the_share(case):
    k, n = case
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1


@cases
@given(counts, st.integers(2, 50))
def test_wilson_narrows_with_the_number_of_trials(case, times):
    k, n = case
    (low, high), (lower, higher) = wilson(k * times, n * times), wilson(k, n)
    assert high - low < higher - lower


def test_clopper_pearson_equals_the_reference_numbers():
    assert clopper_pearson(8, 10) == pytest.approx((0.443905, 0.974789), abs=5e-7)
    assert clopper_pearson(0, 10)[0] == 0
    assert clopper_pearson(10, 10)[1] == 1


@pytest.mark.parametrize(
    ("k", "n", "upper"), [(0, 59, 0.049508), (0, 58, 0.050339), (2, 100, 0.061619), (7, 7, 1)]
)
def test_one_sided_upper_bound_equals_the_reference_numbers(k, n, upper):
    assert clopper_upper(k, n) == pytest.approx(upper, abs=5e-7)


def test_sixty_of_a_hundred_against_a_half():
    assert binomial_greater(60, 100, 0.5) == pytest.approx(0.028444, abs=5e-7)
    assert binomial_greater(0, 100, 0.5) == 1


@pytest.mark.parametrize(
    ("b", "c", "mid", "p"),
    [(5, 15, False, 0.04139), (5, 15, True, 0.02660), (2, 8, False, 0.10938), (0, 0, False, 1)],
)
def test_mcnemar_equals_the_hand_numbers(b, c, mid, p):
    assert mcnemar(b, c, mid) == pytest.approx(p, abs=5e-6)
    assert mcnemar(c, b, mid) == mcnemar(b, c, mid)


@cases
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_scipy(b, c):
    peer = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1
    assert mcnemar(b, c) == pytest.approx(peer, abs=1e-10)


def test_fisher_of_the_small_group_in_section_4_4():
    assert fisher_less(1, 3, 478, 540) == pytest.approx(0.038, abs=5e-5)


@cases
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_fisher_is_the_exact_test_of_scipy(a, b, c, d):
    peer = stats.fisher_exact([[a, b], [c, d]], alternative="less").pvalue
    assert fisher_less(a, a + b, c, c + d) == pytest.approx(peer, abs=1e-9)


def test_fisher_tests_arrays_one_by_one():
    k, n = np.array([18, 1]), np.array([40, 3])
    p = fisher_less(k, n, 479 - k, 543 - n)
    assert p.tolist() == [fisher_less(18, 40, 461, 503), fisher_less(1, 3, 478, 540)]


def test_holm_multiplies_by_the_number_of_tests_left():
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])


@cases
@given(p_values)
def test_holm_is_never_below_the_raw_value_and_keeps_the_order(p):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_images_needed_to_tell_861_from_900():
    assert images_needed(0.861, 0.9) == 303


def test_images_needed_stays_finite_where_accuracy_equals_the_target():
    assert images_needed(0.9, 0.9) == images_needed(0.9, 0.9005) < 400_000
    assert images_needed(1.0, 0.9) == 35


def test_smallest_visible_gap_of_two_halves():
    assert smallest_gap(0.861, 328, 328) == pytest.approx(0.076, abs=5e-4)


def test_share_of_single_rows_is_wilson():
    value = share(np.arange(10) < 8)
    assert (value.method, value.n, value.estimate) == ("wilson", 10, 0.8)
    assert (value.low, value.high) == wilson(8, 10)


def test_share_with_weights_is_a_ratio_of_sums_with_a_bootstrap_interval():
    hits, weights = np.arange(40) % 2 == 0, np.where(np.arange(40) % 2 == 0, 3.0, 1.0)
    value = share(hits, weights=weights)
    assert value.estimate == 0.75
    assert value.method == "bootstrap"
    assert value.low < 0.75 < value.high


def test_share_of_few_units_is_wilson_on_their_number():
    hits, units = np.arange(100) < 80, np.arange(100) // 10
    value = share(hits, units)
    assert (value.method, value.n, value.resamples) == ("wilson", 100, None)
    assert (value.low, value.high) == wilson(8, 10)


def test_share_of_one_in_clusters_does_not_claim_certainty():
    value = share(np.ones(100, bool), np.arange(100) // 2)
    assert (value.method, value.low) == ("wilson", wilson(50, 50)[0])


def test_share_of_nothing_is_undefined():
    value = share(np.zeros(0, bool))
    assert value.estimate is None
    assert value.why


def test_sources_widen_the_interval_at_least_twofold():
    """40 patients x 10 images, all right or all wrong by patient (study.md, 'sources')."""
    hits = np.repeat(np.random.default_rng(0).random(40) < 0.8, 10)
    assert share(hits, np.repeat(np.arange(40), 10)).width >= 2 * share(hits).width


def test_sign_flip_of_equal_single_differences_is_the_exact_p():
    """Five units that all gain: p = 2 / 2^5."""
    assert sign_flip(np.ones(5), np.arange(5)) == pytest.approx(2 / 32, abs=0.006)
    assert sign_flip(np.zeros(5), np.arange(5)) == 1


def test_sign_flip_moves_the_rows_of_a_unit_together():
    difference = np.ones(100)
    assert sign_flip(difference, np.arange(100)) < 0.001
    assert sign_flip(difference, np.arange(100) // 50) == pytest.approx(0.5, abs=0.02)

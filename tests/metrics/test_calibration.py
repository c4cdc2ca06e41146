"""Calibration, abstention and the fits of temperature and Platt scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression

from beholder.metrics.calibration import (
    aurc,
    ece,
    ece_expected,
    fit_platt,
    fit_temperature,
    mass_bins,
    operating_point,
    reliability,
    risk_coverage,
    softmax,
)
from beholder.metrics.intervals import clopper_upper, wilson

CONFIDENCE = np.array([0.95, 0.95, 0.85, 0.85, 0.65, 0.65, 0.55, 0.55])
HITS = np.array([1, 1, 1, 0, 1, 0, 1, 0], bool)

cases = settings(deadline=None, derandomize=True, max_examples=200)
confidences = arrays.arrays(float, st.integers(1, 60), elements=st.sampled_from(np.arange(11) / 10))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def alarm(confidence: np.ndarray, hits: np.ndarray) -> bool:
    """The rule of section 4.7: anything but good."""
    observed = ece(confidence, hits)
    expected, p = ece_expected(confidence, observed)
    return p < 0.01 and observed - expected > 0.02


def test_hand_example_of_section_4_7():
    assert aurc(CONFIDENCE, HITS) == pytest.approx(0.222768, abs=5e-7)
    assert ece(CONFIDENCE, HITS, 10, mode="width") == pytest.approx(0.15)


def test_aurc_does_not_depend_on_the_order_of_ties():
    backwards = np.array([7, 6, 5, 4, 3, 2, 1, 0])
    assert aurc(CONFIDENCE[backwards], HITS[backwards]) == pytest.approx(aurc(CONFIDENCE, HITS))


def test_aurc_of_the_perfect_model_is_zero():
    assert aurc(CONFIDENCE, np.ones(8, bool)) == 0


def test_reliability_bins_are_equal_in_mass_and_carry_wilsons_intervals():
    table = reliability(CONFIDENCE, HITS, bins=4)
    assert table["n"].to_list() == [2, 2, 2, 2]
    assert table["confidence"].to_list() == pytest.approx([0.55, 0.65, 0.85, 0.95])
    assert table["accuracy"].to_list() == [0.5, 0.5, 0.5, 1]
    assert table.row(3)[4:] == wilson(2, 2)


@cases
@given(confidences, st.integers(1, 20))
def test_equal_confidences_share_a_bin_and_bins_follow_confidence(confidence, bins):
    which = mass_bins(confidence, bins)
    assert 0 <= which.min() <= which.max() < bins
    order = np.argsort(confidence)
    rises = np.diff(confidence[order]) > 0
    assert (np.diff(which[order])[~rises] == 0).all()
    assert (np.diff(which[order])[rises] >= 0).all()


def test_distinct_confidences_fill_bins_evenly(rng):
    sizes = np.bincount(mass_bins(rng.random(656), 15))
    assert set(sizes) == {43, 44}


def test_widths_and_masses_agree_on_a_uniform_grid():
    confidence = (np.arange(100) + 0.5) / 100
    hits = np.arange(100) % 3 == 0
    assert ece(confidence, hits, 10) == pytest.approx(ece(confidence, hits, 10, mode="width"))


def test_expected_ece_is_that_of_drawn_hits(rng):
    confidence = rng.uniform(0.5, 1, 300)
    drawn = [ece(confidence, rng.random(300) < confidence) for _ in range(400)]
    expected, p = ece_expected(confidence, float(np.median(drawn)))
    assert expected == pytest.approx(np.mean(drawn), rel=0.05)
    assert p == pytest.approx(0.5, abs=0.1)


def test_calibrated_models_are_good_in_at_least_97_of_100_sets(rng):
    alarms = 0
    for _ in range(100):
        confidence = rng.uniform(0.5, 1, 656)
        alarms += alarm(confidence, rng.random(656) < confidence)
    assert alarms <= 3


def test_ten_points_of_overconfidence_are_found_every_time(rng):
    for _ in range(20):
        confidence = rng.uniform(0.6, 1, 656)
        assert alarm(confidence, rng.random(656) < confidence - 0.1)


def test_risk_coverage_has_one_row_per_confidence():
    table = risk_coverage(CONFIDENCE, HITS)
    assert table["threshold"].to_list() == [0.95, 0.85, 0.65, 0.55]
    assert table["coverage"].to_list() == [0.25, 0.5, 0.75, 1]
    assert table["risk"].to_list() == pytest.approx([0, 1 / 4, 2 / 6, 3 / 8])


def test_risk_coverage_keeps_at_most_200_rows_with_both_ends(rng):
    confidence, hits = rng.random(5000), rng.random(5000) < 0.8
    table = risk_coverage(confidence, hits)
    assert len(table) <= 200
    assert table["threshold"][0] == confidence.max()
    assert table.row(-1) == pytest.approx((1, 1 - hits.mean(), confidence.min()))


@cases
@given(confidences, st.integers(0, 2**32 - 1))
def test_coverage_falls_as_the_threshold_rises(confidence, seed):
    table = risk_coverage(confidence, np.random.default_rng(seed).random(len(confidence)) < 0.7)
    assert (np.diff(table["coverage"]) > 0).all()
    assert (np.diff(table["threshold"]) < 0).all()


def test_operating_point_accepts_all_when_the_bound_of_all_is_low_enough(rng):
    confidence = np.linspace(0.5, 1, 100)
    hits = np.arange(100) >= 2
    assert clopper_upper(2, 100) < 0.07
    assert operating_point(confidence, hits, 0.07) == 0.5


def test_operating_point_stops_at_the_first_failure():
    """The upper 200 of 400 are right, of the lower 200 one in two."""
    confidence = np.linspace(0, 1, 400)
    hits = (np.arange(400) >= 200) | (np.arange(400) % 2 == 0)
    threshold = operating_point(confidence, hits, 0.05)
    accepted = confidence >= threshold
    assert clopper_upper(int((~hits & accepted).sum()), int(accepted.sum())) <= 0.05
    lower = confidence >= np.sort(confidence)[-(accepted.sum() + 4)]
    assert clopper_upper(int((~hits & lower).sum()), int(lower.sum())) > 0.05


def test_no_operating_point_where_too_few_images_could_show_it():
    assert clopper_upper(0, 58) > 0.05 > clopper_upper(0, 59)
    confidence = np.linspace(0, 1, 58)
    assert operating_point(confidence, np.ones(58, bool), 0.05) is None
    assert operating_point(np.linspace(0, 1, 59), np.ones(59, bool), 0.05) == 0
    assert operating_point(confidence[:0], HITS[:0], 0.05) is None


def test_more_risk_never_means_less_coverage_on_a_model_of_growing_error(rng):
    confidence = np.linspace(0.5, 1, 2000)
    hits = rng.random(2000) < confidence
    found = [operating_point(confidence, hits, risk) for risk in (0.1, 0.15, 0.2, 0.3)]
    assert found[-1] == 0.5
    assert found == sorted(found, reverse=True)


def test_the_risk_is_kept_in_95_of_100_sets(rng):
    """Hits follow the confidence, which is uniform on (0.5, 1): error above t is (1 - t) / 2."""
    broken = found = 0
    for _ in range(300):
        confidence = rng.uniform(0.5, 1, 800)
        threshold = operating_point(confidence, rng.random(800) < confidence, 0.1)
        found += threshold is not None
        broken += threshold is not None and (1 - threshold) / 2 > 0.1
    assert found > 200
    assert broken <= 0.05 * 300 + 2 * np.sqrt(300 * 0.05 * 0.95)


def test_temperature_of_three_times_too_large_logits_is_three(rng):
    logits = rng.normal(size=(2000, 4)) * 2
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    temperature = fit_temperature(3 * logits, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    sharp, mended = softmax(3 * logits), softmax(3 * logits / temperature)
    assert alarm(sharp.max(axis=1), sharp.argmax(axis=1) == labels)
    assert not alarm(mended.max(axis=1), mended.argmax(axis=1) == labels)


def test_temperature_counts_weights_as_repeated_rows(rng):
    logits, labels, weights = (
        rng.normal(size=(60, 3)),
        rng.integers(0, 3, 60),
        rng.integers(0, 3, 60),
    )
    repeated = np.repeat(np.arange(60), weights)
    assert fit_temperature(logits, labels, weights) == pytest.approx(
        fit_temperature(logits[repeated], labels[repeated]), rel=1e-4
    )


def test_temperature_of_the_perfect_model_stays_in_its_range():
    assert fit_temperature(20 * np.eye(3), np.arange(3)) >= np.exp(-3)


def test_platt_equals_logistic_regression_on_smoothed_targets(rng):
    decision = rng.normal(size=400)
    positive = rng.random(400) < 1 / (1 + np.exp(-(2 * decision - 0.5)))
    many, few = positive.sum(), (~positive).sum()
    target = np.where(positive, (many + 1) / (many + 2), 1 / (few + 2))
    peer = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.tile(decision, 2)[:, None],
        np.repeat([True, False], 400),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    a, b = fit_platt(decision, positive)
    assert (a, b) == pytest.approx((peer.coef_[0, 0], peer.intercept_[0]), rel=1e-4)


def test_platt_of_separated_classes_is_finite_and_of_equal_weights_unchanged():
    decision, positive = np.array([-2.0, -1, 1, 2]), np.array([0, 0, 1, 1], bool)
    a, b = fit_platt(decision, positive)
    assert 0 < a < 10
    assert b == pytest.approx(0, abs=1e-6)
    assert fit_platt(decision, positive, np.ones(4)) == (a, b)


def test_platt_with_one_class_or_a_constant_decision_stays_finite():
    for decision, positive in [
        (np.arange(5.0), np.ones(5, bool)),
        (np.zeros(6), np.arange(6) < 2),
    ]:
        assert np.isfinite(fit_platt(decision, positive)).all()


def test_nothing_judged_is_nan():
    assert np.isnan(ece(CONFIDENCE[:0], HITS[:0]))
    assert np.isnan(aurc(CONFIDENCE[:0], HITS[:0]))
    assert len(risk_coverage(CONFIDENCE[:0], HITS[:0])) == 0

"""The bootstrap covers, respects units, and agrees with a plain loop."""

from __future__ import annotations

import time

import numpy as np
import pytest
import sklearn.metrics

from beholder.metrics import classification
from beholder.metrics.bootstrap import (
    CHUNK_BYTES,
    auroc_macro_of,
    auroc_of,
    balanced_accuracy_of,
    bootstrap,
    bootstrap_shares,
    effective_units,
    f1_of,
    macro_f1_of,
    mean_of,
    over_seeds,
    paired,
    resample_counts,
)
from beholder.metrics.intervals import share, wilson


@pytest.fixture
def answers(rng):
    """True class, answer, probability of 120 images, 4 classes, ties in the scores."""
    true = rng.integers(0, 4, 120)
    probability = np.round(rng.random((120, 4)) + 0.8 * np.eye(4)[true], 1)
    return true, probability.argmax(axis=1), probability


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_rows_of_a_unit_are_drawn_together():
    units = np.array(["b", "a", "b", "c", "a"])
    counts = np.concatenate(list(resample_counts(units, 50, 0)))
    assert counts.shape == (50, 5)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_strata_keep_their_number_of_units():
    strata = np.array([0, 0, 0, 1, 1])
    counts = np.concatenate(list(resample_counts(np.arange(5), 50, 0, strata)))
    assert (counts[:, :3].sum(axis=1) == 3).all()
    assert (counts[:, 3:].sum(axis=1) == 2).all()


def test_a_unit_in_two_strata_is_refused():
    with pytest.raises(ValueError, match="two strata"):
        next(resample_counts(np.zeros(2, int), 10, 0, np.arange(2)))


def test_chunks_stay_within_their_size():
    chunks = list(resample_counts(np.arange(20_000), 900, 0))
    assert sum(map(len, chunks)) == 900
    assert all(8 * chunk.size <= CHUNK_BYTES for chunk in chunks)


def test_every_ready_statistic_equals_the_metric_on_rows_repeated_by_their_counts(answers):
    true, predicted, probability = answers
    positive = true == 1
    counts = next(resample_counts(np.arange(120) // 2, 20, 0))
    for statistic, metric in [
        (mean_of(probability[:, 0]), lambda i: probability[i, 0].mean()),
        (mean_of(true == predicted), lambda i: classification.accuracy(true[i], predicted[i])),
        (
            balanced_accuracy_of(true, predicted, 4),
            lambda i: classification.balanced_accuracy(true[i], predicted[i], 4),
        ),
        (
            macro_f1_of(true, predicted, 4),
            lambda i: classification.macro_f1(true[i], predicted[i], 4),
        ),
        (
            f1_of(positive, predicted == 1),
            lambda i: sklearn.metrics.f1_score(positive[i], predicted[i] == 1),
        ),
        (
            auroc_of(probability[:, 1], positive),
            lambda i: classification.auroc(probability[i, 1], positive[i]),
        ),
        (
            auroc_macro_of(probability, true),
            lambda i: classification.auroc_macro(probability[i], true[i]),
        ),
    ]:
        expected = [metric(np.repeat(np.arange(120), row.astype(int))) for row in counts]
        assert statistic(counts) == pytest.approx(np.array(expected), abs=1e-6)


def test_weighted_auroc_equals_rows_repeated_by_their_weights(answers, rng):
    true, _, probability = answers
    weights = rng.integers(0, 4, 120)
    repeated = np.repeat(np.arange(120), weights)
    assert classification.auroc(probability[:, 1], true == 1, weights) == pytest.approx(
        classification.auroc(probability[repeated, 1], true[repeated] == 1)
    )


def test_interval_holds_the_truth_in_95_of_100_sets(rng):
    """400 Bernoulli sets, n = 200, p = .7; units of one row (Wilson) and, forced, the bootstrap."""
    sets = rng.random((400, 200)) < 0.7
    for interval in (
        lambda hits: share(hits),
        lambda hits: bootstrap(mean_of(hits), np.arange(200), resamples=1000),
    ):
        inside = [value.low <= 0.7 <= value.high for value in map(interval, sets)]
        assert 0.92 <= np.mean(inside) <= 0.98


def test_four_copies_of_each_unit_do_not_narrow_the_interval(rng):
    hits = rng.random(200) < 0.7
    single = bootstrap(mean_of(hits), np.arange(200))
    copied = bootstrap(mean_of(np.tile(hits, 4)), np.tile(np.arange(200), 4))
    assert copied.estimate == single.estimate
    assert copied.width == pytest.approx(single.width, rel=0.05)
    assert bootstrap(mean_of(np.tile(hits, 4)), np.arange(800)).width < 0.6 * single.width


def test_collapsed_cells_give_the_interval_of_drawn_rows(rng):
    true = rng.integers(0, 3, 600)
    predicted = np.where(rng.random(600) < 0.8, true, rng.integers(0, 3, 600))
    cells = balanced_accuracy_of(true, predicted, 3)
    assert cells.collapses
    collapsed = bootstrap(cells, np.arange(600), resamples=4000)
    drawn = bootstrap(lambda counts: cells(counts), np.arange(600), resamples=4000)
    assert collapsed.estimate == drawn.estimate
    assert (collapsed.low, collapsed.high) == pytest.approx((drawn.low, drawn.high), abs=0.004)


def test_same_seed_same_interval_and_other_seed_another(rng):
    statistic, units = auroc_of(rng.random(80), rng.random(80) < 0.5), np.arange(80)
    assert bootstrap(statistic, units) == bootstrap(statistic, units)
    assert bootstrap(statistic, units).low != bootstrap(statistic, units, seed=1).low


def test_resamples_without_a_class_are_dropped_and_counted():
    """One positive among 40: it is missing in (39/40)^40 = 36 % of the resamples."""
    value = bootstrap(auroc_of(np.arange(40.0), np.arange(40) == 20), np.arange(40))
    assert value.why == "interval unreliable"
    assert 1 - value.resamples / 2000 == pytest.approx(0.363, abs=0.04)


def test_statistic_without_a_class_is_undefined():
    value = bootstrap(auroc_of(np.arange(40.0), np.zeros(40, bool)), np.arange(40))
    assert value.estimate is None
    assert "class is missing" in value.why


def test_fewer_than_twenty_units_give_no_bootstrap_interval():
    value = bootstrap(mean_of(np.arange(190) % 3), np.arange(190) // 10)
    assert (value.low, value.method) == (None, "none")
    assert "19 < 20" in value.why


def test_nothing_to_judge_is_undefined():
    assert bootstrap_shares(np.zeros(0, int), np.zeros(0, bool)).estimate is None
    assert over_seeds([np.zeros(0, int)], [np.zeros(0, bool)]).estimate is None


def test_auroc_of_one_has_no_interval_rather_than_one_of_width_zero():
    value = bootstrap(auroc_of(np.arange(40.0), np.arange(40) >= 20), np.arange(40))
    assert (value.estimate, value.low, value.high) == (1, None, None)


def test_macro_average_of_the_perfect_model_has_wilsons_interval():
    groups = np.repeat([0, 1], [90, 10])
    value = bootstrap_shares(groups, np.ones(100, bool))
    trials = effective_units(groups, np.arange(100))
    assert trials == pytest.approx(4 / (1 / 90 + 1 / 10))
    assert (value.estimate, value.low, value.method) == (1, wilson(trials, trials)[0], "wilson")


def test_macro_average_weighs_classes_and_micro_average_rows():
    groups, hits = np.repeat([0, 1], [90, 10]), np.repeat([True, False], [90, 10])
    assert bootstrap_shares(groups, hits).estimate == 0.5
    assert bootstrap_shares(groups, hits, macro=False).estimate == 0.9


def test_labels_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.1; these lie in 0\.\.2"):
        macro_f1_of(np.array([0, 2]), np.array([0, 1]), 2)


def test_paired_difference_is_narrower_than_two_separate_ones(rng):
    shared = rng.random(300)
    a, b = shared < 0.85, shared < 0.80
    value = paired(a, b, np.arange(300))
    assert value.estimate == pytest.approx(a.mean() - b.mean())
    assert value.low > 0
    assert value.width < 0.7 * bootstrap(mean_of(a), np.arange(300)).width


def test_paired_statistics_of_the_same_answers_differ_by_nothing(answers):
    true, predicted, _ = answers
    statistic = macro_f1_of(true, predicted, 4)
    value = paired(statistic, statistic, np.arange(120))
    assert (value.estimate, value.low, value.high) == (0, 0, 0)


def test_paired_refuses_an_array_against_a_statistic():
    with pytest.raises(ValueError, match="two arrays"):
        paired(np.ones(3), mean_of(np.ones(3)), np.arange(3))


def test_mean_over_seeds_is_the_mean_of_their_accuracies():
    units = [np.arange(40), np.arange(20, 50)]
    hits = [np.arange(40) < 30, np.arange(30) < 27]
    value = over_seeds(units, hits)
    assert value.estimate == pytest.approx((0.75 + 0.9) / 2)
    assert value.n == 50
    assert value.low < value.estimate < value.high


def test_three_seeds_on_the_same_images_count_those_images_once(rng):
    hits, units = rng.random(300) < 0.8, np.arange(300)
    once, thrice = over_seeds([units], [hits]), over_seeds([units] * 3, [hits] * 3)
    assert thrice.width == pytest.approx(once.width, rel=0.05)


def test_seeds_where_all_is_right_have_wilsons_interval_of_the_units():
    value = over_seeds([np.arange(30), np.arange(30)], [np.ones(30, bool)] * 2)
    assert (value.low, value.high) == wilson(30, 30)


def test_weights_multiply_inside_each_seed():
    value = over_seeds([np.arange(30)], [np.arange(30) < 15], [np.where(np.arange(30) < 15, 3, 1)])
    assert value.estimate == pytest.approx(0.75)


def test_macro_average_of_50_000_rows_and_2_000_resamples_takes_seconds(rng):
    """0.6 s alone on one core; the limit leaves room for a busy machine."""
    true = rng.integers(0, 1000, 50_000)
    start = time.process_time()
    bootstrap_shares(true, rng.random(50_000) < 0.8)
    assert time.process_time() - start < 2

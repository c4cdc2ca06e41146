"""Detection rates against hand-worked numbers, scikit-learn, torchmetrics and MVTec's script."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from goldens import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from beholder.metrics import detection as d

TRUSTED = np.array([0.1, 0.2, 0.3, 0.4])
BAD = np.array([0.35, 0.8, 0.9, 0.7])

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(np.array)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (d.auroc, 0.9375),
        (d.fpr95, 0.25),
        (d.fpr95_ood, 0.25),
        (d.ap, 0.95),
        (d.aupr_out, 0.94375),
        (d.aupr_in, 0.94375),
        (d.f1_max, 8 / 9),
    ],
)
def test_rates_worked_by_hand(rate, expected):
    assert rate(TRUSTED, BAD) == pytest.approx(expected)


@given(SCORES, SCORES)
@settings(deadline=None)
def test_areas_are_those_of_scikit_learn_with_ties(trusted, bad):
    truth = np.repeat([0, 1], [len(trusted), len(bad)])
    scores = np.concatenate([trusted, bad])
    precision, recall, _ = sklearn.precision_recall_curve(truth, scores)
    swapped, recalled, _ = sklearn.precision_recall_curve(1 - truth, -scores)
    assert d.auroc(trusted, bad) == pytest.approx(sklearn.roc_auc_score(truth, scores))
    assert d.ap(trusted, bad) == pytest.approx(sklearn.average_precision_score(truth, scores))
    assert d.aupr_out(trusted, bad) == pytest.approx(sklearn.auc(recall, precision))
    assert d.aupr_in(trusted, bad) == pytest.approx(sklearn.auc(recalled, swapped))


@given(SCORES, SCORES)
@settings(deadline=None)
def test_fpr95_is_the_first_roc_point_at_which_the_trusted_pass(trusted, bad):
    truth = np.repeat([1, 0], [len(trusted), len(bad)])
    passing = -np.concatenate([trusted, bad])
    fpr, tpr, _ = sklearn.roc_curve(truth, passing, drop_intermediate=False)
    assert d.fpr95(trusted, bad) == pytest.approx(fpr[tpr >= 0.95 - 1e-9][0])
    at = np.interp(0.95, tpr, fpr) if 0.95 not in tpr else fpr[tpr >= 0.95][0]
    assert d.fpr95(trusted, bad, interpolate=True) == pytest.approx(at)


@given(SCORES, SCORES)
@settings(deadline=None)
def test_fpr95_ood_takes_the_bad_as_positive(trusted, bad):
    truth = np.repeat([0, 1], [len(trusted), len(bad)])
    fpr, tpr, _ = sklearn.roc_curve(truth, np.concatenate([trusted, bad]), drop_intermediate=False)
    assert d.fpr95_ood(trusted, bad) == pytest.approx(fpr[tpr >= 0.95 - 1e-9][0])


@given(SCORES, SCORES)
@settings(deadline=None)
def test_exchanging_the_kinds_and_the_sign_exchanges_in_and_out(trusted, bad):
    assert d.aupr_in(trusted, bad) == pytest.approx(d.aupr_out(-bad, -trusted))
    assert d.fpr95_ood(trusted, bad) == pytest.approx(d.fpr95(-bad, -trusted))


def test_ninety_five_per_cent_of_twenty_is_nineteen():
    trusted = np.arange(20.0)
    assert d.fpr95(trusted, np.array([18.5])) == 0
    assert d.fpr95(trusted, np.array([18.0])) == 1


def test_rates_agree_with_torchmetrics():
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    scores = rng.permutation(500) / 500
    trusted, bad = scores[:300], scores[300:] ** 0.5
    truth = torch.from_numpy(np.repeat([0, 1], [300, 200]))
    both = torch.from_numpy(np.concatenate([trusted, bad]))
    assert d.auroc(trusted, bad) == pytest.approx(float(peer.binary_auroc(both, truth)))
    assert d.ap(trusted, bad) == pytest.approx(float(peer.binary_average_precision(both, truth)))


@pytest.mark.parametrize("name", d.RATES)
def test_every_rate_has_an_interval_around_its_estimate(name):
    rng = np.random.default_rng(0)
    trusted, bad = rng.normal(size=80), rng.normal(1, size=60)
    found = d.value(name, trusted, bad, resamples=300)
    assert found.low < found.estimate < found.high
    assert found.n == 140
    assert found.higher_is_better is (not name.startswith("fpr"))


def test_interval_of_the_auroc_is_that_of_drawing_inputs_again():
    rng = np.random.default_rng(1)
    trusted, bad = rng.normal(size=60), rng.normal(1, size=40)
    found = d.value("auroc", trusted, bad)
    drawn = [
        d.auroc(rng.choice(trusted, len(trusted)), rng.choice(bad, len(bad))) for _ in range(1000)
    ]
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_error_at_counts_what_lies_above_the_threshold():
    found = d.error_at(TRUSTED, BAD, 0.35)
    assert found["refused"].estimate == 0.75
    assert found["false_refusals"].estimate == 0.25
    assert found["refused"].method == "wilson"
    assert d.balanced_accuracy(TRUSTED, BAD, 0.35) == 0.75
    assert d.accuracy_real(TRUSTED, 0.35) == 0.75
    assert d.accuracy_fake(BAD, 0.35) == 0.75


@pytest.mark.parametrize(
    ("trusted", "bad"), [([], [1.0]), ([1.0], []), ([1.0], [np.nan]), ([np.inf], [1.0])]
)
def test_scores_that_are_missing_or_not_finite_are_refused(trusted, bad):
    with pytest.raises(ValueError, match=r"needed|not finite"):
        d.auroc(np.array(trusted), np.array(bad))


def test_conformal_threshold_is_the_kth_smallest():
    assert d.conformal_threshold(np.arange(19.0), 0.05) == 18
    assert d.conformal_threshold(np.arange(99.0), 0.05) == 94
    assert d.conformal_threshold(np.arange(99.0), 0.01) == 98


@pytest.mark.parametrize(("fpr", "needed"), [(0.05, 19), (0.01, 99), (0.001, 999)])
def test_too_few_references_give_no_threshold(fpr, needed):
    assert d.references_needed(fpr) == needed
    d.conformal_threshold(np.zeros(needed), fpr)
    with pytest.raises(ValueError, match="no threshold"):
        d.conformal_threshold(np.zeros(needed - 1), fpr)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array),
    st.integers(-1, 8),
    st.sampled_from([0.02, 0.05, 0.1, 0.2, 0.5]),
)
def test_p_below_the_rate_and_score_above_the_threshold_are_the_same(calibration, score, fpr):
    p = d.conformal_p(calibration, np.array([score]))[0]
    assert p == (1 + (calibration >= score).sum()) / (len(calibration) + 1)
    if len(calibration) >= d.references_needed(fpr):
        assert (score > d.conformal_threshold(calibration, fpr)) == (p <= fpr + 1e-12)


def test_false_refusals_are_at_most_what_was_promised():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(10_000, 100))
    ordered = np.sort(draws[:, :99], axis=1)
    thresholds = [d.conformal_threshold(row, 0.05) for row in ordered[:50]]
    assert thresholds == list(ordered[:50, 94])  # the 95th of 99
    assert 0.045 <= (draws[:, 99] > ordered[:, 94]).mean() <= 0.055


def square(rows: slice, columns: slice, side: int = 20) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[rows, columns] = True
    return mask


def test_aupro_of_perfect_constant_and_half_blind_maps():
    small, large = square(slice(0, 2), slice(0, 2)), square(slice(10, 18), slice(10, 18))
    both = small | large
    assert d.aupro([both.astype(float)], [both]) == pytest.approx(1)
    assert d.aupro([np.zeros((20, 20))], [both]) == pytest.approx(0.15)
    half = np.where(large, 1.0, np.where(small, -1.0, 0.0))
    assert d.aupro([half], [both]) == pytest.approx(0.5)


def test_each_region_weighs_the_same_whatever_its_size():
    small, large = square(slice(0, 1), slice(0, 1)), square(slice(5, 19), slice(5, 19))
    fpr, overlap = d.pro([small.astype(float)], [small | large])
    assert (fpr[1], overlap[1]) == (0, 0.5)


def test_regions_that_touch_at_a_corner_are_one():
    touching = square(slice(0, 2), slice(0, 2)) | square(slice(2, 4), slice(2, 4))
    found = np.zeros((20, 20))
    found[:2, :2] = 1
    _, overlap = d.pro([found], [touching])
    assert overlap[1] == 0.5
    apart = square(slice(0, 2), slice(0, 2)) | square(slice(3, 5), slice(3, 5))
    found[0, 0] = 0
    _, overlap = d.pro([found], [apart])
    assert overlap[1] == pytest.approx(3 / 8)


def test_aupro_is_that_of_the_authors_script():
    record = golden("13_lsfa.aupro")
    inputs, outputs = record["inputs"], record["outputs"]
    masks = np.array(inputs["masks"])
    rng = np.random.default_rng(11)
    maps = [rng.random(mask.shape) + 0.6 * mask * rng.random() for mask in masks]
    for limit, exact in ((0.3, 0.57657), (0.05, 0.42311)):
        found = d.aupro(maps, masks, limit)
        assert found == pytest.approx(exact, abs=1e-5)
        assert found == pytest.approx(
            outputs[f"aupro_{limit}_2304"], abs=record["tolerance"]["absolute"]
        )
    assert d.aupro(maps, masks, 1.0) == pytest.approx(outputs["aupro_1.0_2304"], abs=1e-3)


def test_maps_without_regions_or_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="Regions"):
        d.aupro([np.zeros((4, 4))], [np.zeros((4, 4), bool)])
    with pytest.raises(ValueError, match="shape"):
        d.aupro([np.zeros((4, 4))], [np.ones((4, 5), bool)])


def test_pixel_rates_go_over_all_images():
    maps = [np.array([[0.1, 0.9]]), np.array([[0.2, 0.3]])]
    masks = [np.array([[False, True]]), np.array([[False, True]])]
    assert d.pixel_auroc(maps, masks) == 1
    assert d.iou_at(maps, masks, 0.5) == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(d.iou_at(maps, [np.zeros((1, 2), bool)] * 2, 2.0))

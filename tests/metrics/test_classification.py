"""Classification metrics against scikit-learn, torchmetrics, and hand examples."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as peer

from beholder.metrics.calibration import ece, softmax
from beholder.metrics.classification import (
    accuracy,
    affordable_resamples,
    auroc,
    auroc_macro,
    balanced_accuracy,
    best_assignment,
    brier,
    confusion,
    macro_f1,
    nll,
    per_class,
    top_k,
)
from beholder.metrics.intervals import wilson


@pytest.fixture(params=[2, 5])
def answers(request):
    """True class, answer, probability [300, C]."""
    rng = np.random.default_rng(request.param)
    true = rng.integers(0, request.param, 300)
    probability = softmax(rng.normal(size=(300, request.param)) + np.eye(request.param)[true])
    return true, probability.argmax(axis=1), probability


def test_labels_are_judged_as_by_scikit_learn(answers):
    true, predicted, probability = answers
    classes = probability.shape[1]
    assert (
        confusion(true, predicted, classes) == sklearn.metrics.confusion_matrix(true, predicted)
    ).all()
    for ours, theirs in [
        (accuracy, sklearn.metrics.accuracy_score),
        (balanced_accuracy, sklearn.metrics.balanced_accuracy_score),
        (macro_f1, lambda t, p: sklearn.metrics.f1_score(t, p, average="macro")),
    ]:
        assert ours(true, predicted) == pytest.approx(theirs(true, predicted), abs=1e-6)


def test_labels_are_judged_as_by_torchmetrics(answers):
    true, predicted, probability = answers
    classes = probability.shape[1]
    t, p = torch.tensor(true), torch.tensor(predicted)
    table = peer.multiclass_confusion_matrix(p, t, classes).numpy()
    assert (confusion(true, predicted, classes) == table).all()
    for ours, theirs in [
        (accuracy, peer.multiclass_accuracy(p, t, classes, average="micro")),
        (balanced_accuracy, peer.multiclass_accuracy(p, t, classes, average="macro")),
        (macro_f1, peer.multiclass_f1_score(p, t, classes, average="macro")),
    ]:
        assert ours(true, predicted) == pytest.approx(float(theirs), abs=1e-6)


def test_probabilities_are_judged_as_by_scikit_learn(answers):
    true, _, probability = answers
    classes = probability.shape[1]
    score = probability[:, 1] if classes == 2 else probability
    assert auroc_macro(probability, true) == pytest.approx(
        sklearn.metrics.roc_auc_score(true, score, multi_class="ovr"), abs=1e-6
    )
    assert brier(probability, true) == pytest.approx(
        sklearn.metrics.brier_score_loss(true, score), abs=1e-6
    )
    assert nll(probability, true) == pytest.approx(
        sklearn.metrics.log_loss(true, probability), abs=1e-6
    )
    if classes > 2:
        assert top_k(probability, true, 2) == pytest.approx(
            sklearn.metrics.top_k_accuracy_score(true, probability, k=2), abs=1e-6
        )


def test_probabilities_are_judged_as_by_torchmetrics(answers):
    true, predicted, probability = answers
    classes = probability.shape[1]
    t, p = torch.tensor(true), torch.tensor(probability)
    if classes == 2:
        theirs = peer.binary_auroc(p[:, 1], t)
    else:
        theirs = peer.multiclass_auroc(p, t, classes, average="macro")
    assert auroc_macro(probability, true) == pytest.approx(float(theirs), abs=1e-6)
    assert ece(probability.max(axis=1), predicted == true, 15, mode="width") == pytest.approx(
        float(peer.multiclass_calibration_error(p, t, classes, n_bins=15)), abs=1e-6
    )


def test_auroc_counts_ties_half_and_takes_weights_as_scikit_learn():
    rng = np.random.default_rng(0)
    score, positive, weights = rng.integers(0, 5, 200), rng.random(200) < 0.4, rng.random(200)
    assert auroc(score, positive, weights) == pytest.approx(
        sklearn.metrics.roc_auc_score(positive, score, sample_weight=weights), abs=1e-6
    )
    assert auroc(np.zeros(10), np.arange(10) < 3) == 0.5
    assert np.isnan(auroc(np.arange(3.0), np.ones(3, bool)))


def test_constant_model_is_at_chance():
    true, predicted = np.repeat([0, 1, 2], [60, 30, 10]), np.zeros(100, int)
    assert accuracy(true, predicted) == 0.6
    assert balanced_accuracy(true, predicted) == pytest.approx(1 / 3)
    assert auroc_macro(np.full((100, 3), 1 / 3), true) == 0.5


def test_absent_classes_do_not_count():
    true, predicted = np.array([0, 0, 2]), np.array([0, 2, 2])
    assert balanced_accuracy(true, predicted, 5) == 0.75
    assert macro_f1(true, predicted, 5) == pytest.approx(2 / 3)
    probability = np.eye(5)[predicted]
    assert auroc_macro(probability, true) == pytest.approx(0.75)


def test_weights_multiply_accuracy_and_confusion():
    true, predicted, weights = np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([1.0, 2, 5])
    assert accuracy(true, predicted, weights) == 0.75
    assert confusion(true, predicted, 2, weights).tolist() == [[1, 2], [0, 5]]


def test_top_one_is_accuracy_even_with_ties():
    probability, true = np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9]]), np.array([0, 1, 1])
    assert top_k(probability, true, 1) == accuracy(true, probability.argmax(axis=1)) == 2 / 3
    assert top_k(probability, true, 2) == 1


def test_certain_and_wrong_costs_a_finite_nll():
    assert nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-np.log(1e-7))


def test_cyclic_renaming_of_classes_is_found():
    true = np.repeat(np.arange(4), 25)
    predicted = (true + 1) % 4
    predicted[::10] = 0
    assignment = best_assignment(confusion(true, predicted, 4))
    assert assignment.tolist() == [3, 0, 1, 2]
    assert accuracy(true, assignment[predicted]) > 0.9 > accuracy(true, predicted)


def test_nothing_judged_is_nan():
    none, scores = np.zeros(0, int), np.zeros((0, 2))
    for value in (
        accuracy(none, none),
        balanced_accuracy(none, none),
        macro_f1(none, none),
        auroc(scores[:, 0], none),
        auroc_macro(scores, none),
        top_k(scores, none, 1),
        brier(scores, none),
        nll(scores, none),
    ):
        assert np.isnan(value)


def test_per_class_table_has_every_figure_with_its_interval(answers):
    true, predicted, probability = answers
    classes = probability.shape[1]
    table = per_class(true, predicted, probability, classes)
    theirs = sklearn.metrics.precision_recall_fscore_support(true, predicted)
    for name, column in zip(("precision", "recall", "f1", "n"), theirs, strict=True):
        assert table[name].to_list() == pytest.approx(column.tolist())
    for label, row in enumerate(table.iter_rows(named=True)):
        assert row["class"] == label
        assert row["auroc"] == pytest.approx(auroc(probability[:, label], true == label))
        hits = int(((true == label) & (predicted == label)).sum())
        assert (row["recall_low"], row["recall_high"]) == wilson(hits, row["n"])
        assert row["precision_low"] < row["precision"] < row["precision_high"]
        assert row["f1_low"] < row["f1"] < row["f1_high"]
        assert row["auroc_low"] < row["auroc"] < row["auroc_high"]


def test_per_class_table_leaves_undefined_figures_empty():
    true, predicted = np.zeros(30, int), np.zeros(30, int)
    absent = per_class(true, predicted, None, 2).row(1, named=True)
    assert absent.pop("class") == 1
    assert absent.pop("n") == 0
    assert set(absent.values()) == {None}


def test_per_class_intervals_widen_with_sources(answers):
    true, predicted, probability = answers
    copied = [np.repeat(x, 4, axis=0) for x in answers]
    classes = probability.shape[1]
    plain = per_class(true, predicted, probability, classes)
    table = per_class(*copied, classes, units=np.repeat(np.arange(300), 4))
    for name in ("recall", "f1", "auroc"):
        widths = [(t[f"{name}_high"] - t[f"{name}_low"]).to_numpy() for t in (plain, table)]
        assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_resamples_shrink_only_for_large_jobs():
    assert affordable_resamples(656, 10) == 2000
    assert affordable_resamples(50_000, 1000) == 200

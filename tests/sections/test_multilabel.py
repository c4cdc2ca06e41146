"""Several labels per image: average precision, thresholds of other folds, labels that come
together."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from study.world import SMALL, alone, draw

from beholder.core.features import Features
from beholder.core.options import Options
from beholder.core.sections import Section, Value
from beholder.evaluate.benchmarks.base import SECTIONS, Evidence
from beholder.evaluate.benchmarks.multilabel import finding, judged, parts, scored, truth_of
from beholder.evaluate.benchmarks.verdict import verdict
from beholder.evaluate.report import Report
from beholder.metrics.multilabel import (
    average_precision_of,
    best_threshold,
    f1_of,
    lift,
    mean_average_precision_of,
)
from beholder.study import study

OPTIONS = Options.parse(data="planted")
ONES = np.ones((1, 1))


def several(truth: np.ndarray, scores: np.ndarray, fold: np.ndarray | None = None) -> Evidence:
    n, c = truth.shape
    evidence = planted.of_kind("multilabel", n)
    labels = [np.flatnonzero(row).tolist() for row in truth]
    evidence.frame = evidence.frame.with_columns(pl.Series("labels", labels, pl.List(pl.Int32)))
    evidence.classes = tuple("abcdefgh"[:c])
    evidence.embeddings = np.zeros((n, 2), np.float32)
    fold = np.arange(n) % 5 if fold is None else fold
    made = {"id": evidence.frame["id"], "fold": fold, "scores": scores.tolist()}
    evidence.records["multilabel"] = {"scores": pl.DataFrame(made)}
    return evidence


def summarised(*planting) -> Section:
    return SECTIONS["multilabel"].summarise(several(*planting), OPTIONS)


def some(n: int = 300, c: int = 4, noise: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, c)) < np.linspace(0.5, 0.1, c)
    return truth, 2.0 * truth - 1 + rng.normal(0, noise, (n, c))


def test_average_precision_by_hand():
    score, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    # precision 1 at the first, 2/3 at the third
    value = average_precision_of(score, positive)(np.ones((1, 4)))
    assert value == pytest.approx([(1 + 2 / 3) / 2])
    tied = average_precision_of(np.zeros(4), positive)(np.ones((1, 4)))
    assert tied == pytest.approx([0.5])
    assert np.isnan(average_precision_of(score, np.zeros(4, bool))(np.ones((1, 4))))


@pytest.mark.parametrize("seed", range(5))
def test_statistics_are_those_of_scikit_learn_with_weights(seed: int):
    truth, scores = some(120, seed=seed)
    scores = scores.round(1)  # many ties
    counts = np.random.default_rng(seed).integers(0, 4, (3, 120))
    answers = scores > 0
    found = mean_average_precision_of(scores, truth)(counts)
    macro, micro = (f1_of(answers, truth, macro=macro)(counts) for macro in (True, False))
    for row, weight in enumerate(counts):
        parts = [
            average_precision_score(truth[:, c], scores[:, c], sample_weight=weight)
            for c in range(truth.shape[1])
        ]
        assert found[row] == pytest.approx(np.mean(parts))
        for got, kind in ((macro, "macro"), (micro, "micro")):
            wanted = f1_score(truth, answers, average=kind, sample_weight=weight)
            assert got[row] == pytest.approx(wanted)


def test_the_best_threshold_by_hand():
    score, positive = np.array([0.1, 0.4, 0.6, 0.9]), np.array([False, True, False, True])
    # yes from .4 on: precision 2/3, recall 1, F1 .8; from .9 on: F1 2/3
    assert best_threshold(score, positive) == pytest.approx(0.25)
    assert best_threshold(np.array([0.1, 0.9]), np.array([False, True])) == pytest.approx(0.5)
    assert best_threshold(score, np.zeros(4, bool)) == np.inf
    assert best_threshold(np.zeros(3), np.array([True, False, True])) < 0


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_best(seed: int):
    truth, scores = some(80, 1, seed=seed)
    best = best_threshold(scores[:, 0], truth[:, 0])
    reached = f1_score(truth[:, 0], scores[:, 0] >= best)
    assert reached == max(f1_score(truth[:, 0], scores[:, 0] >= s) for s in scores[:, 0])


def test_lift_by_hand():
    labels = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]], bool)
    count, times = lift(labels)
    assert count[0, 1] == 2
    assert times[0, 1] == pytest.approx(2 * 4 / (3 * 2))
    assert times[0, 2] == 0


def value(estimate: float, low: float) -> Value:
    return Value(estimate=estimate, low=low, high=0.95, unit="")


@pytest.mark.parametrize(
    ("low", "chance", "severity"),
    [
        (0.80, 0.0, "good"),
        (0.79, 0.0, "look"),
        (0.50, 0.0, "look"),
        (0.49, 0.0, "act"),
        (0.61, 0.2, "look"),
        (0.59, 0.2, "act"),
        (0.90, 0.5, "good"),
    ],
)
def test_the_border_is_the_way_from_chance_to_one(low: float, chance: float, severity: str):
    said, sentence = finding(value(0.91, low), chance, ("dog", 0.4), 200)
    assert said == severity
    assert sentence == (
        f"On 200 unseen images the mean average precision is 0.91 ({low:.2f} to 0.95), "
        f"{chance:.2f} by chance; weakest is dog (0.40)."
    )


def test_perfect_scores():
    truth, _ = some()
    section = summarised(truth, 2.0 * truth - 1)
    assert section.severity == "good"
    for name in ("map", "f1_macro", "f1_micro"):
        assert section.values[name].estimate == 1
    assert section.values["map_chance"].estimate == pytest.approx(truth.mean())


def test_scores_by_chance_are_to_act_on():
    truth, _ = some()
    section = summarised(truth, np.random.default_rng(1).normal(size=truth.shape))
    assert section.severity == "act"
    table = section.frame("per_class")
    assert (table["ap"] - table["share"]).abs().max() < 0.12  # pyright: ignore[reportOperatorIssue]


def test_the_weakest_class_is_named():
    truth, scores = some(noise=0.5)
    scores[:, 2] = np.random.default_rng(3).normal(size=len(scores))
    assert "weakest is c (" in summarised(truth, scores).finding


def test_an_image_has_no_part_in_its_own_threshold():
    truth, scores = some(100, 2)
    base = judged(several(truth, scores))
    moved = scores.copy()
    moved[::5] += 7  # fold 0: its own thresholds stay, all are answered yes
    answers = judged(several(truth, moved)).answers
    assert answers[::5].all()
    assert not base.answers[::5].all()


def test_a_given_test_part_alone_is_judged_with_thresholds_of_the_rest():
    truth, scores = some(200, 2)
    fold = np.where(np.arange(200) < 150, np.arange(200) % 5, -1)
    found = judged(several(truth, scores, fold))
    assert found.truth.tolist() == truth[150:].tolist()
    wanted = [best_threshold(scores[:150, c], truth[:150, c]) for c in range(2)]
    assert found.threshold == pytest.approx(wanted)
    assert summarised(truth, scores, fold).n == 50


def test_a_class_without_images_is_said_and_left_out():
    truth, scores = some()
    truth[:, 1] = False
    section = summarised(truth, scores)
    assert any("no image has them: b" in line for line in section.method)
    assert section.frame("per_class")["ap"][1] is None
    assert section.values["map"].estimate is not None


def test_images_without_any_label_can_be_summarised():
    section = summarised(np.zeros((60, 2), bool), np.zeros((60, 2)))
    assert section.severity == "none"
    assert section.finding.startswith("Average precision cannot be told on 60 images")


def test_the_verdict_begins_with_it():
    truth, _ = some()
    evidence = several(truth, 2.0 * truth - 1)
    section = SECTIONS["multilabel"].summarise(evidence, OPTIONS)
    said = verdict({"multilabel": section}, evidence, OPTIONS)
    assert said["severity"] == "good"
    assert said["sentence"].startswith("On 300 unseen images the mean average precision is 1.00")


def test_folds_keep_units_whole_and_rare_labels_even():
    truth, _ = some(200, 3)
    unit = np.arange(200) // 2
    fold = parts(truth, unit, 0)
    assert (fold[::2] == fold[1::2]).all()
    rare = np.bincount(fold, truth[:, 2], 5)
    assert rare.max() - rare.min() <= 4


def test_a_classifier_per_class_learns_what_is_there():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    truth = x[:, :3] > 0.3
    features = Features.of(x)
    features.layout = {"pooled": slice(0, 6)}
    learn, answer = np.arange(200), np.arange(200, 300)
    found = scored(features, truth, learn, answer)
    assert all(average_precision_score(truth[answer, c], found[:, c]) > 0.95 for c in range(3))
    spoilt = truth.copy()
    spoilt[answer] = ~truth[answer]  # labels of those to be answered have no part
    assert np.array_equal(found, scored(features, spoilt, learn, answer))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kind": "classes"}, "Every image has one label at most: see accuracy."),
        ({"embeddings": None}, "The model gives no features to learn from."),
        (
            {"model": {"origin": "given"}},
            "A given model answers one class per image, so several labels are not judged.",
        ),
    ],
)
def test_where_it_does_not_apply(changes, why: str):
    evidence = several(*some())
    for name, changed in changes.items():
        setattr(evidence, name, changed)
    assert SECTIONS["multilabel"].needs(evidence) == why


def test_too_few_images():
    truth, scores = some(39)
    evidence = several(truth, scores)
    assert SECTIONS["multilabel"].needs(evidence) == (
        "Too few labelled images to learn from (39 < 40)."
    )


def test_labels_of_a_list_column():
    labels = pl.Series([[0, 2], None, []], dtype=pl.List(pl.Int32))
    assert truth_of(labels, 3).tolist() == [[True, False, True], [False] * 3, [False] * 3]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Pictures of two digits side by side, named by what is on them."""
    place = tmp_path_factory.mktemp("several")
    rng, rows = np.random.default_rng(0), []
    for i in range(60):
        a, b = rng.integers(0, 2, 2)
        digits = [draw(int(d), int(rng.integers(100))) for d in (a, b)]
        Image.fromarray(np.concatenate([np.asarray(d) for d in digits], 1)).save(place / f"{i}.png")
        rows.append((f"{i}.png", "|".join(sorted({("zero", "one")[d] for d in (a, b)}))))
    with (place / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "labels"), *rows])
    options = SMALL | {"sections": ("data", "accuracy", "multilabel"), "without": ()}
    with alone(place / "cache"):
        report = study(place, out=place / "run", **options)
    return place, report


def test_a_study_of_several_labels_is_judged(studied: tuple[Path, Report]):
    place, report = studied
    section = report["multilabel"]
    assert section.status == "measured"
    assert section.n == 60
    assert section.values["map"].estimate is not None
    assert report.verdict.sentence.startswith("On 60 unseen images the mean average precision")
    assert Report.load(place / "run")["multilabel"].to_dict() == section.to_dict()

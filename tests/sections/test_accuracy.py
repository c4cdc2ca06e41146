"""The accuracy section on planted answers (specs/study.md, 4.3 and section 10)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.core.sections import Value
from beholder.evaluate.benchmarks import calibration, confusion, groups, mistakes
from beholder.evaluate.benchmarks.accuracy import (
    Facts,
    class_permutation,
    effective_size,
    finding,
    summarise,
)
from beholder.evaluate.benchmarks.base import SECTIONS

OPTIONS = Options.parse(data="planted")
JUDGING = (groups, confusion, mistakes, calibration)
SURE = Value(estimate=0.86, low=0.84, high=0.88, n=656, method="wilson")


def skill(low: float | None, estimate: float | None = None) -> Value:
    return Value(estimate=low if estimate is None else estimate, low=low, high=1.0, n=656)


GOOD = Facts(
    *(656, SURE, True),
    skill=skill(0.8),
    p_chance=1e-9,
    majority="good",
    ceiling=None,
)


@pytest.mark.parametrize(
    ("change", "severity", "said"),
    [
        ({}, "good", "On 656 unseen images the model is right 86.0 % of the time (84.0 to 88.0)."),
        ({"unseen": False}, "good", "On 656 images the model is right"),
        ({"ceiling": 0.9491}, "good", "a perfect one would agree with these labels on 94.9 %"),
        ({"skill": skill(0.799)}, "look", "right 86.0 % of the time (84.0 to 88.0)."),
        ({"skill": skill(0.5)}, "look", "(84.0 to 88.0)."),
        ({"skill": skill(0.499)}, "act", "better than guessing, too often wrong to rely on."),
        ({"skill": skill(0.199)}, "act", "little better than guessing."),
        ({"skill": skill(0.1, 0.6)}, "act", "cannot rule out little more than guessing."),
        ({"skill": skill(None)}, "look", "(84.0 to 88.0)."),
        ({"p_chance": 0.05}, "good", "(84.0 to 88.0)."),
        ({"p_chance": 0.051}, "act", ": no better than always answering good."),
        ({"target": 0.84}, "good", "the target of 84 % is reached"),
        ({"target": 0.85}, "look", "cannot be told at this n; about 4,626 images would"),
        ({"target": 0.88}, "look", "cannot be told"),
        ({"target": 0.881}, "act", "the target of 88.1 % is not reached"),
        ({"target": 0.84, "skill": skill(0.1)}, "good", "is reached"),
        ({"thumbnail": (0.84, 0.84)}, "look", "Colour and layout alone do as well (84.0 %)."),
        ({"thumbnail": (0.839, 0.84)}, "good", "(84.0 to 88.0)."),
        ({"thumbnail": (0.85, 0.84), "skill": skill(0.1)}, "act", "Colour and layout"),
        ({"more_images": True}, "good", " More images would help."),
        ({"wrong_order": "a are called b"}, "act", "The class order is probably wrong: most"),
    ],
)
def test_the_finding_changes_exactly_at_its_borders(change, severity, said):
    found = finding(replace(GOOD, **change))
    assert found[0] == severity
    assert said in found[1]


def test_a_perfect_model_has_accuracy_one_with_wilsons_lower_bound():
    section = summarise(planted.perfect(656), OPTIONS)
    for name in ("accuracy", "accuracy_first_split", "accuracy_certain", "balanced"):
        assert section.values[name].estimate == 1
    assert section.values["accuracy"].low == pytest.approx(0.994178, abs=1e-6)
    assert section.values["auroc"].estimate == 1
    assert section.severity == "good"


def test_a_constant_model_is_no_better_than_the_majority():
    section = summarise(planted.constant(400, 0.7), OPTIONS)
    assert section.values["accuracy"].estimate == pytest.approx(0.7)
    assert section.values["auroc"].estimate == 0.5
    assert section.values["balanced"].estimate == 0.5
    assert section.values["kappa_chance"].estimate == 0
    assert section.severity == "act"
    assert "no better than always answering class 0" in section.finding


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_are_no_better_than_chance(seed):
    section = summarise(planted.random_labels(seed=seed), OPTIONS)
    assert section.severity == "act"
    assert "no better than always answering" in section.finding


def test_a_wrong_class_order_is_said_with_its_permutation():
    section = summarise(planted.wrong_order(), OPTIONS)
    assert section.severity == "act"
    assert section.finding.startswith("The class order is probably wrong: most images of a are")
    permutation = section.frame("permutation")
    assert dict(permutation.select("class", "called").iter_rows()) == {"a": "b", "b": "c", "c": "a"}
    assert permutation["count"].to_list() == [95, 95, 95]


def test_the_class_order_of_our_own_model_is_not_suspected():
    section = summarise(planted.wrong_order(origin="made"), OPTIONS)
    assert "permutation" not in section.tables
    assert "no better than" in section.finding


@pytest.mark.parametrize("classes", [2, 10, 20])
def test_guessing_is_not_taken_for_a_wrong_class_order(classes):
    evidence = planted.random_labels(60, classes)
    assert class_permutation(evidence.judged, evidence.classes) is None


def test_exchanged_binary_classes_are_found():
    labels = np.arange(100) % 2
    predicted = np.where(np.arange(100) % 10 == 0, labels, 1 - labels)
    evidence = planted.evidence(labels, planted.answers(predicted, 2), origin="given")
    permutation = class_permutation(evidence.judged, evidence.classes)
    assert permutation is not None
    assert permutation.tolist() == [1, 0]


def test_accuracy_is_the_mean_over_seeds_and_the_spread_is_told():
    evidence = planted.fixed_model(0.8, {"a": 300})
    ids = evidence.frame["id"]
    seeds = [
        pl.DataFrame({"seed": seed, "id": ids[:100], "correct": np.arange(100) < hits})
        for seed, hits in enumerate((70, 80, 90))
    ]
    evidence.repeats = pl.concat(seeds)
    section = summarise(evidence, OPTIONS)
    assert section.values["accuracy"].estimate == pytest.approx(0.8)
    assert section.values["accuracy"].method == "bootstrap"
    assert section.frame("splits")["accuracy"].to_list() == [0.7, 0.8, 0.9]
    assert any("single splits gave 70.0 to 90.0 %" in line for line in section.method)


def test_certainty_weighs_images_and_certain_ones_stand_alone():
    """60 certain images all right, 40 at certainty 1/3 all wrong: .6, 60 / (60 + 40/3), 1."""
    labels = np.arange(100) % 2
    certain = np.arange(100) < 60
    evidence = planted.evidence(
        labels,
        planted.answers(np.where(certain, labels, 1 - labels), 2),
        certainty=np.where(certain, 1, 1 / 3),
    )
    values = summarise(evidence, OPTIONS).values
    assert values["accuracy"].estimate == pytest.approx(0.6)
    assert values["accuracy_weighted"].estimate == pytest.approx(60 / (60 + 40 / 3), abs=1e-6)
    assert values["accuracy_certain"].estimate == 1
    assert values["accuracy_certain"].n == 60
    assert values["ceiling"].estimate == pytest.approx(0.6 + 0.4 * 2 / 3)


def test_given_weights_multiply_and_the_effective_size_is_told():
    evidence = planted.fixed_model(0.8, {"a": 200})
    weight = np.where(evidence.frame["correct"], 3.0, 1.0)
    evidence.frame = evidence.frame.with_columns(pl.Series("weight", weight, dtype=pl.Float32))
    evidence.weighted = True
    section = summarise(evidence, OPTIONS)
    hits = evidence.frame["correct"].to_numpy()
    value = section.values["accuracy"]
    assert value.estimate == pytest.approx((hits * weight).sum() / weight.sum())
    assert value.method == "bootstrap"
    assert any(f"{effective_size(weight):,.0f} equally weighted" in line for line in section.method)
    assert effective_size(np.ones(7)) == 7


def test_top_five_is_given_from_twenty_classes_on():
    many, few = planted.random_labels(200, 20), planted.random_labels(200, 19)
    assert "top5" in summarise(many, OPTIONS).values
    assert "top5" not in summarise(few, OPTIONS).values


def test_each_baseline_has_a_paired_difference():
    labels = np.arange(100) % 2
    evidence = planted.evidence(
        labels, planted.answers(np.where(np.arange(100) < 90, labels, 1 - labels), 2)
    )
    ids = evidence.frame["id"]
    thumbnail = np.where(np.arange(100) < 50, labels, 1 - labels)
    rows = {"majority": np.zeros(100, int), "thumbnail": thumbnail}
    evidence.baselines = pl.concat(
        pl.DataFrame({"name": name, "id": ids, "predicted": answer})
        for name, answer in rows.items()
    )
    table = summarise(evidence, OPTIONS).frame("baselines")
    assert table["name"].to_list() == ["majority", "thumbnail"]
    second = table.row(1, named=True)
    assert (second["accuracy"], second["difference"]) == (0.5, pytest.approx(0.4))
    assert second["difference_low"] > 0.25
    assert second["p"] == pytest.approx(2 * 0.5**40)


def test_a_thumbnail_as_good_as_the_model_is_said():
    evidence = planted.fixed_model(0.95, {"a": 400})
    evidence.baselines = evidence.frame.select(pl.lit("thumbnail").alias("name"), "id", "predicted")
    section = summarise(evidence, OPTIONS)
    assert section.severity == "look"
    assert "Colour and layout alone do as well" in section.finding


@pytest.mark.parametrize(("half", "helps"), [(0.6, True), (0.9, False)])
def test_the_learning_curve_tells_whether_more_images_would_help(half, helps):
    evidence = planted.fixed_model(0.9, {"a": 400})
    rng = np.random.default_rng(0)
    whole = evidence.frame.select(
        pl.lit(1.0).alias("share"), pl.lit(0).alias("draw"), "id", "correct"
    )
    drawn = [
        pl.DataFrame(
            {"share": share, "draw": draw, "id": whole["id"], "correct": rng.random(400) < chance}
        )
        for share, chance in ((0.25, half - 0.1), (0.5, half))
        for draw in range(3)
    ]
    evidence.learning = pl.concat(
        [whole.with_columns(pl.col("draw").cast(pl.Int64)), *drawn], how="vertical_relaxed"
    )
    section = summarise(evidence, OPTIONS)
    assert ("More images would help." in section.finding) is helps
    assert section.frame("learning")["share"].to_list() == [0.25, 0.5, 1.0]
    assert section.figures["learning"].kind == "lines"


def test_per_class_rows_have_the_columns_of_the_specification():
    section = summarise(planted.overconfident(1, 400), OPTIONS)
    names = [
        f"{m}{s}" for m in ("recall", "precision", "f1", "auroc") for s in ("", "_low", "_high")
    ]
    assert section.frame("per_class").columns == ["class", "n", *names]
    assert section.frame("per_class")["class"].to_list() == ["class 0", "class 1", "class 2"]


def test_fewer_than_thirty_images_cap_the_severity_and_are_said_first():
    section = summarise(planted.fixed_model(0.5, {"a": 29}), OPTIONS)
    assert section.severity == "look"
    assert section.finding.startswith("With only 29 images,")
    assert not summarise(planted.fixed_model(0.5, {"a": 30}), OPTIONS).finding.startswith("With")


def test_sources_widen_the_interval():
    """40 patients x 10 images, whole patients right or wrong: at least twice as wide."""
    labels = np.arange(400) % 2
    right = (np.arange(400) // 10) % 5 != 0
    probability = planted.answers(np.where(right, labels, 1 - labels), 2)
    patients = np.arange(400) // 10
    alone = summarise(planted.evidence(labels, probability), OPTIONS)
    together = summarise(
        planted.evidence(labels, probability, units=patients, source_given=True), OPTIONS
    )
    assert together.unit == "source"
    assert together.values["accuracy"].width >= 2 * alone.values["accuracy"].width


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("unlabelled", "No labels, so nothing can be called right or wrong."),
        ("one_class", "Only one class: see unknown inputs."),
        ("multilabel", "Several labels per image: accuracy of one answer does not apply."),
    ],
)
@pytest.mark.parametrize("id", ["accuracy", *(m.__name__.rsplit(".", 1)[1] for m in JUDGING)])
def test_data_that_cannot_be_judged_gets_its_sentence(id, kind, said):
    section, traceback = SECTIONS[id].run(planted.of_kind(kind), OPTIONS)
    assert (section.status, section.finding, traceback) == ("not_applicable", said, None)

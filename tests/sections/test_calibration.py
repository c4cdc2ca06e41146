"""The calibration section on planted confidences (specs/study.md, 4.7 and section 10)."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.core.sections import Value
from beholder.evaluate.benchmarks import calibration
from beholder.evaluate.benchmarks.base import SECTIONS
from beholder.evaluate.benchmarks.calibration import (
    Calibration,
    OperatingPoint,
    choose,
    finding,
    halves,
    severity_of,
    summarise,
)
from beholder.metrics.calibration import operating_point

OPTIONS = Options.parse(data="planted")
NUMBER = Value(estimate=0.1)


def measured(ece: float, p: float, gap: float = 0.1) -> Calibration:
    return Calibration(ece, 0.0, p, gap, NUMBER, NUMBER, 0.1)


@pytest.mark.parametrize(
    ("ece", "p", "severity"),
    [
        (0.020, 0.001, "good"),
        (0.021, 0.001, "look"),
        (0.050, 0.001, "look"),
        (0.051, 0.001, "act"),
        (0.200, 0.010, "good"),
        (0.200, 0.009, "act"),
    ],
)
def test_severity_changes_exactly_at_its_borders(ece, p, severity):
    assert severity_of(measured(ece, p)) == severity


@pytest.mark.parametrize(
    ("gap", "threshold", "said"),
    [
        (0.1, 0.8, "The model is overconfident by 10.0 points (ECE 0.200, 0.000 expected by"),
        (-0.1, 0.8, "The model is underconfident by 10.0 points"),
        (0.1, 0.8, "; answers 62.0 % of images at 10.0 % error (5 % wanted)."),
        (0.1, None, "; no threshold on the confidence keeps 5 % error."),
    ],
)
def test_the_sentence_says_which_way_and_what_may_be_answered(gap, threshold, said):
    point = OperatingPoint(0.05, threshold, np.ones(1, bool), Value(estimate=0.62), NUMBER)
    assert said in finding(measured(0.2, 0.001, gap), point)[1]


@pytest.mark.parametrize("seed", range(3))
def test_overconfident_is_act_before_and_good_or_look_after(seed):
    section = summarise(planted.overconfident(3, 2000, seed), OPTIONS)
    before, after = section.frame("before_after")["severity"]
    assert before == "act"
    assert after in ("good", "look")
    assert section.severity == after
    assert section.frame("before_after")["confidence_minus_accuracy"][0] > 0.05


def test_a_calibrated_model_is_good():
    found = [
        summarise(planted.overconfident(1, 2 * 656, seed), OPTIONS).severity for seed in range(20)
    ]
    assert found.count("good") >= 19


def test_a_perfect_model_has_no_area_under_the_risk_curve():
    section = summarise(planted.perfect(), OPTIONS)
    assert section.values["aurc"].estimate == 0
    assert section.values["ece"].estimate == 0
    assert section.values["coverage"].estimate == 1


def test_the_hand_example_gives_its_area():
    """Ties averaged: AURC .222768 (specs/study.md, 4.7)."""
    confidence = np.array([0.95, 0.95, 0.85, 0.85, 0.65, 0.65, 0.55, 0.55])
    hits = np.array([1, 1, 1, 0, 1, 0, 1, 0])
    evidence = planted.evidence(1 - hits, np.stack([confidence, 1 - confidence], axis=1))
    section = summarise(evidence, OPTIONS)
    assert section.values["aurc"].estimate == pytest.approx(0.222768, abs=1e-6)
    assert section.severity == "look"
    assert section.finding.startswith("With only 8 images,")


def test_values_and_tables_are_those_of_the_specification():
    section = summarise(planted.overconfident(1), OPTIONS)
    names = ["ece", "ece_expected", "brier", "nll", "aurc", "threshold", "coverage", "risk"]
    assert list(section.values) == names
    bins = ["bin", "n", "confidence", "accuracy", "low", "high"]
    assert section.frame("reliability").columns == bins
    assert section.frame("risk_coverage").columns == ["coverage", "risk", "threshold"]
    assert len(section.frame("risk_coverage")) <= 2000


def test_brier_of_two_classes_is_the_mean_squared_difference():
    evidence = planted.evidence(np.arange(40) % 2, np.tile([0.2, 0.8], (40, 1)))
    values = summarise(evidence, OPTIONS).values
    assert values["brier"].estimate == pytest.approx((0.8**2 + 0.2**2) / 2, abs=1e-6)
    assert values["nll"].estimate == pytest.approx(-(np.log(0.2) + np.log(0.8)) / 2, abs=1e-6)


def test_the_threshold_is_never_chosen_on_the_test_part(monkeypatch):
    evidence = planted.overconfident(1, 2000)
    train = evidence.frame.filter(pl.col("split") == "train")
    seen = []

    def spy(confidence, hit, risk):
        seen.append(confidence)
        return operating_point(confidence, hit, risk)

    monkeypatch.setattr(calibration, "operating_point", spy)
    choose(evidence, 0.1)
    assert [sorted(x) for x in seen] == [sorted(train["confidence"].to_list())]


def test_when_cross_fitted_each_folds_threshold_comes_from_the_others(monkeypatch):
    evidence = planted.overconfident(1, 600)
    fold = np.arange(600) % 3
    evidence.frame = evidence.frame.with_columns(
        pl.lit("test").alias("split"), pl.Series("fold", fold, dtype=pl.Int8)
    )
    sizes = []
    thresholds = iter((0.5, 0.6, 0.7, None))  # of all, then of each fold

    def spy(confidence, hit, risk):
        sizes.append(len(confidence))
        return next(thresholds)

    monkeypatch.setattr(calibration, "operating_point", spy)
    point = choose(evidence, 0.1)
    confidence = evidence.frame["confidence"].to_numpy()
    assert sizes == [600, 400, 400, 400]
    assert point.threshold == 0.5
    limit = np.array([0.6, 0.7, np.inf])[fold]
    assert (point.answered == (confidence >= limit)).all()
    assert point.coverage.estimate == pytest.approx((confidence >= limit).mean())


def test_a_test_part_alone_is_halved_by_unit():
    frame = pl.DataFrame({"unit": [1, 1, 2, 3, 3, 3] * 50})
    side = halves(frame)
    assert set(side) == {0, 1} or len(set(side)) == 1
    for unit in (1, 2, 3):
        assert len(set(side[frame["unit"].to_numpy() == unit])) == 1
    many = halves(pl.DataFrame({"unit": np.arange(1000)}))
    assert 440 < many.sum() < 560


def test_the_wanted_error_is_half_of_the_models_and_at_least_one_per_cent():
    assert choose(planted.perfect(), None).wanted == 0.01
    labels = np.arange(400) % 2
    predicted = np.where(np.arange(400) < 80, 1 - labels, labels)
    evidence = planted.evidence(labels, planted.answers(predicted, 2))
    assert choose(evidence, None).wanted == pytest.approx(0.1)
    assert choose(evidence, 0.03).wanted == 0.03


def test_the_realised_error_keeps_what_was_asked():
    section = summarise(planted.overconfident(1, 4000), Options.parse(data="planted", risk=0.05))
    risk = section.values["risk"]
    assert risk.method == "wilson"
    assert risk.low <= 0.05
    assert section.finding.endswith("error (5 % wanted).")
    assert any("Wanted error: 5 % (given)." in line for line in section.method)


def test_a_model_without_an_operating_point_says_so():
    section = summarise(planted.random_labels(), Options.parse(data="planted", risk=0.01))
    assert section.values["threshold"].estimate is None
    assert "no threshold on the confidence keeps 1 % error" in section.finding
    assert section.values["coverage"].estimate == 0
    assert section.values["risk"].why == "no image was answered"


def test_a_model_that_gives_labels_only_has_no_calibration():
    evidence = planted.perfect()
    nothing = pl.lit(None, pl.List(pl.Float32)).alias("probability")
    evidence.frame = evidence.frame.with_columns(nothing)
    section, _ = SECTIONS["calibration"].run(evidence, OPTIONS)
    assert (section.status, section.finding) == ("not_applicable", "The model gives no scores.")

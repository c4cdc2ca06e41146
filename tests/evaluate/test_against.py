"""One run against another: which images count, what is said, and a model that answers anew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score
from study.world import SMALL, alone, folders

from beholder.core.errors import ArgumentError, DataError
from beholder.core.sections import Section, Severity, Value
from beholder.evaluate.against import Facts, brier, compare, finding, paired_p
from beholder.evaluate.benchmarks.verdict import sentence
from beholder.evaluate.pairs import Side, pairs
from beholder.evaluate.report import Report
from beholder.evaluate.report.results import Results
from beholder.evaluate.rival import Rival
from beholder.metrics.intervals import mcnemar
from beholder.study import study

CLASSES = ("class 0", "class 1")


def side(
    labels: np.ndarray, predicted: np.ndarray, name: str = "there", classes: int = 2, **planting
) -> Side:
    """A model with these answers; the pixels of image i are called h<i>."""
    evidence = planted.evidence(labels, planted.answers(predicted, classes), **planting)
    hashes = [f"h{i}" for i in range(len(labels))]
    names = [evidence.classes[label] for label in labels]
    frame = evidence.frame.with_columns(
        pl.Series("exact_hash", hashes), pl.Series("label_name", names)
    )
    return Side(name, frame, evidence.classes, "same")


def flipped(labels: np.ndarray, wrong: list[int]) -> np.ndarray:
    out = labels.copy()
    out[wrong] = 1 - out[wrong]
    return out


def changed(side: Side, **columns: pl.Expr | pl.Series) -> Side:
    return Side(side.name, side.frame.with_columns(**columns), side.classes, side.fingerprint)


LABELS = np.arange(400) % 2


def difference(estimate: float, low: float | None, high: float | None) -> Value:
    return Value(estimate=estimate, low=low, high=high, n=656, unit="points")


@pytest.mark.parametrize(
    ("estimate", "low", "high", "part", "severity", "words"),
    [
        (0.018, 0.003, 0.034, None, "good", "right on 1.8 points more than B (0.3 to 3.4; 656"),
        (-0.018, -0.034, -0.003, None, "act", "B is better: this model is right on 1.8 points"),
        (-0.018, -0.034, -0.003, ("class x", -0.2), "act", "less (0.3 to 3.4; 656 images)."),
        (0.01, -0.003, 0.021, None, "none", "No difference to B larger than 2.1 points could be"),
        (0.01, -0.003, 0.021, ("class x", -0.2), "look", "On class x it is right on 20.0 points"),
        (0.018, 0.003, 0.034, ("class x", -0.2), "look", "On class x"),
        (
            0.01,
            -0.003,
            0.021,
            ("class x", 0.2),
            "none",
            "On class x it is right on 20.0 points more",
        ),
        (
            0.018,
            0.003,
            0.034,
            ("class x", 0.2),
            "good",
            "On class x it is right on 20.0 points more",
        ),
        (0.018, 0.0, 0.034, None, "none", "larger than 3.4 points"),
        (-0.018, -0.034, 0.0, None, "none", "larger than 3.4 points"),
        (0.1, None, None, None, "none", "Too few independent images to compare"),
    ],
)
def test_the_interval_decides_what_is_said(
    estimate, low, high, part, severity: Severity, words: str
):
    facts = Facts("B", 656, 0.8 + estimate, 0.8, difference(estimate, low, high), 30, part)
    said, sentence = finding(facts)
    assert said == severity
    assert words in sentence


def test_equal_hits_are_said():
    facts = Facts("B", 40, 0.9, 0.9, difference(0.0, 0.0, 0.0), 0)
    assert finding(facts) == ("none", "This model and B are right on the same of 40 images.")


@pytest.mark.parametrize(("b", "c", "p", "mid"), [(5, 15, 0.04139, 0.02660), (2, 8, 0.10938, None)])
def test_mcnemar_by_hand(b: int, c: int, p: float, mid: float | None):
    here = np.repeat([True, False, True], [b, c, 100])
    there = np.repeat([False, True, True], [b, c, 100])
    assert paired_p(here, there, np.arange(len(here))) == pytest.approx(p, abs=5e-6)
    if mid is not None:
        assert mcnemar(b, c, mid=True) == pytest.approx(mid, abs=5e-6)


def test_p_of_the_accuracy_stands_in_the_results():
    one = side(LABELS, flipped(LABELS, list(range(15))))
    other = side(LABELS, flipped(LABELS, list(range(100, 105))))
    against, section = compare(one, other)
    assert against.values["accuracy"].p == pytest.approx(0.04139, abs=5e-6)
    assert against.values["accuracy"].difference.estimate == pytest.approx(-10 / 400)
    assert section.severity == "act"
    assert section.finding.startswith("there is better: this model is right on 2.5 points less")


def test_units_of_several_images_are_tested_together():
    here, there = np.zeros(60, bool), np.ones(60, bool)
    assert paired_p(here, there, np.repeat(np.arange(3), 20)) > 0.2
    assert paired_p(here, there, np.arange(60)) < 1e-15


def test_what_either_learned_from_is_left_out_and_counted():
    split = ["train"] * 100 + ["test"] * 300
    one = side(LABELS, LABELS, split=split)
    other = side(LABELS, LABELS, split=["test"] * 350 + ["val"] * 50)
    found = pairs(one, other)
    assert found.frame["id"].to_list() == [f"{i:06d}.png" for i in range(100, 350)]
    assert found.learned == 150
    _, section = compare(one, other)
    assert any(
        line.startswith("150 images in both data sets are left out") for line in section.method
    )


def test_a_copy_that_one_learned_from_is_left_out_too():
    one = side(LABELS, LABELS)
    twice = pl.concat(
        [one.frame, one.frame.head(1).with_columns(id=pl.lit("copy"), split=pl.lit("train"))]
    )
    found = pairs(one, Side("there", twice, one.classes))
    assert "000000.png" not in found.frame["id"].to_list()
    assert len(found) == 399


def test_images_are_matched_by_pixels_and_equal_ones_by_id():
    one = side(LABELS[:4], LABELS[:4])
    other = side(LABELS[:4], flipped(LABELS[:4], [3]))
    one = changed(one, exact_hash=pl.Series(["x", "x", "b", "c"]))
    other = changed(
        other,
        id=pl.Series(["000001.png", "000000.png", "elsewhere.png", "000003.png"]),
        exact_hash=pl.Series(["x", "x", "b", "other pixels"]),
    )
    found = pairs(one, other)
    assert found.frame["id"].to_list() == ["000000.png", "000001.png", "000002.png"]
    assert found.frame["answer_other"].to_list() == ["class 1", "class 0", "class 0"]
    assert found.other_pixels == 1


def test_classes_are_matched_by_name_never_by_position():
    one = side(LABELS, LABELS)
    turned = side(LABELS, 1 - LABELS)
    turned = Side("there", turned.frame, CLASSES[::-1])
    turned = changed(turned, label_name=one.frame["label_name"])
    against, section = compare(one, turned)
    assert section.finding == "This model and there are right on the same of 400 images."
    assert against.values["auroc"].b.estimate == 1
    assert against.values["brier"].difference.estimate == pytest.approx(0, abs=1e-9)


def test_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.3).astype(int)
    sides, chances = [], []
    for _ in range(2):
        chance = np.clip(0.5 + 0.3 * (labels - 0.5) + rng.normal(0, 0.2, 300), 0.01, 0.99)
        probability = np.stack([1 - chance, chance], 1)
        made = side(labels, probability.argmax(1))
        sides.append(changed(made, probability=pl.Series(probability.tolist())))
        chances.append(chance)
    values = compare(*sides)[0].values
    for part, chance in zip("ab", chances, strict=True):
        got = {name: getattr(values[name], part).estimate for name in values}
        assert got["balanced"] == pytest.approx(balanced_accuracy_score(labels, chance > 0.5))
        assert got["auroc"] == pytest.approx(roc_auc_score(labels, chance))
        assert got["brier"] == pytest.approx(brier_score_loss(labels, chance))
    for value in values.values():
        between = value.a.estimate - value.b.estimate  # pyright: ignore
        assert value.difference.estimate == pytest.approx(between)
        assert value.difference.low <= value.difference.estimate <= value.difference.high  # pyright: ignore


def test_brier_by_hand():
    assert brier(np.array([[0.8, 0.2]]), np.array([0])) == pytest.approx([0.04])
    assert brier(np.array([[0.5, 0.3, 0.2]]), np.array([1])) == pytest.approx([0.25 + 0.49 + 0.04])


def test_swapping_the_sides_turns_every_sign():
    one = side(LABELS, flipped(LABELS, list(range(20))))
    other = side(LABELS, flipped(LABELS, list(range(15, 60))))
    there, back = (compare(a, b)[0].values for a, b in ((one, other), (other, one)))
    assert there.keys() == back.keys()
    for name, value in there.items():
        assert value.difference.estimate == pytest.approx(-back[name].difference.estimate)  # pyright: ignore
        assert value.p == back[name].p


def test_a_spoilt_group_is_named_although_the_whole_is_equal():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    site = np.repeat(["a", "b", "c"], 200)
    groups = {"site": site.tolist()}
    here = flipped(labels, list(rng.choice(200, 40, replace=False)))
    there = flipped(labels, list(200 + rng.choice(400, 40, replace=False)))
    against, section = compare(side(labels, here, groups=groups), side(labels, there))
    assert section.severity == "look"
    assert section.finding.endswith("On site a it is right on 20.0 points less.")
    parts = section.frame("parts")
    assert parts["part"].to_list() == [
        "class class 0",
        "class class 1",
        "site a",
        "site b",
        "site c",
    ]
    assert (parts["p_holm"] >= parts["p"]).all()
    assert against.values["site a"].p == parts.filter(pl.col("part") == "site a")["p_holm"][0]


def test_gained_and_lost_images_are_shown():
    one = side(LABELS, flipped(LABELS, [0, 1, 2]))
    other = side(LABELS, flipped(LABELS, [2, 3]))
    _, section = compare(one, other)
    shown = {(picture.bucket.split(":")[0], picture.id) for picture in section.pictures}
    assert shown == {("Lost", "000000.png"), ("Lost", "000001.png"), ("Gained", "000003.png")}
    assert section.frame("changed").height == 3


def test_a_few_images_are_only_a_hint():
    labels = LABELS[:25]
    _, section = compare(side(labels, 1 - labels), side(labels, labels))
    assert section.severity == "look"
    assert section.finding.startswith("With only 25 images, take this as a hint: there is better")


def test_refusals_are_compared_where_both_have_a_guard():
    one, other = side(LABELS, LABELS), side(LABELS, LABELS)
    assert "refused" not in compare(one, other)[0].values
    one = changed(one, refused=pl.Series(np.arange(400) < 40))
    assert "refused" not in compare(one, other)[0].values
    other = changed(other, refused=pl.Series(np.arange(400) < 20))
    value = compare(one, other)[0].values["refused"]
    assert value.difference.estimate == pytest.approx(0.05)
    assert value.difference.higher_is_better is False
    assert value.p == pytest.approx(mcnemar(20, 0))


def test_nothing_in_common_is_one_sentence():
    one = side(LABELS, LABELS)
    other = changed(one, exact_hash=pl.col("exact_hash") + "!", id=pl.col("id") + "!")
    against, section = compare(one, other)
    assert (section.status, against.common_images, against.values) == ("not_applicable", 0, {})
    assert section.finding == "This model and there were judged on no common image."
    learned = changed(one, split=pl.lit("train"))
    assert "one of them learned from 400 images" in compare(one, learned)[1].finding


def test_a_table_without_answers_has_no_image_in_common():
    bare = Side("there", side(LABELS, LABELS).frame.select("id", "exact_hash", "split"), ())
    assert compare(side(LABELS, LABELS), bare)[1].status == "not_applicable"


def test_the_same_twice_gives_the_same():
    sides = side(LABELS, flipped(LABELS, [0, 1, 2])), side(LABELS, flipped(LABELS, [2, 3]))
    assert compare(*sides)[1].to_dict() == compare(*sides)[1].to_dict()


def test_a_place_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(ArgumentError, match="nowhere holds no run"):
        Rival.open(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="holds no run"):
        study("digits", against=tmp_path, quiet=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Run B on some images; run A on others and a few of them, against B."""
    place = tmp_path_factory.mktemp("against")
    options = SMALL | {"sections": ("data", "accuracy"), "without": ()}
    with alone(place / "cache"):
        data = folders(place / "b", ["one", "seven"], 40)
        study(data, out=place / "run-b", **options)
        data = folders(place / "a", ["one", "seven"], 40, first=30)
        report = study(data, out=place / "run-a", against=place / "run-b", **options)
    return place, report


def test_the_other_model_answers_to_other_data(runs: tuple[Path, Report]):
    place, report = runs
    assert report.against is not None
    assert not report.against.fingerprint_equal
    # 80 judged here by cross-fit; 2 x 10 of them are the other's own
    assert report.against.common_images == 60
    assert report["against"].n == 60
    assert [section.id for section in report.sections] == ["data", "accuracy", "against"]
    assert any(line.startswith("20 images in both") for line in report["against"].method)
    written = json.loads((place / "run-a" / "results.json").read_bytes())
    assert Results.model_validate(written).against == report.against
    assert 'id="against"' in (place / "run-a" / "report.html").read_text()
    assert report["against"].finding.split(" ")[0] in report.verdict.sentence


def test_reports_compare_what_both_were_judged_on(runs: tuple[Path, Report]):
    place, report = runs
    other = Report.load(place / "run-b")
    section = report.compare(other)
    # both cross-fitted: the 20 common images were held back by both
    assert section.n == 20
    itself = report.compare(report)
    assert itself.finding == "This model and run-a are right on the same of 80 images."


def test_a_report_that_is_not_on_disk_cannot_be_compared(runs: tuple[Path, Report]):
    _, report = runs
    from dataclasses import replace

    with pytest.raises(DataError, match=r"predictions\.parquet"):
        report.compare(replace(report, directory=None))


def test_the_verdict_makes_room_for_what_was_asked():
    long = (
        "On 656 unseen images the model is right 82.2 % of the time (79.1 to 85.1); a perfect one "
    )
    long += (
        "would agree with these labels on 94.9 %; so few images cannot rule out little more than "
    )
    accuracy = Section(id="accuracy", title="", finding=long + "guessing.", severity="act")
    other = "No difference to run larger than 4.7 points could be seen (656 images)."
    against = Section(id="against", title="", finding=other, severity="none")
    groups = Section(id="groups", title="", finding="A group is bad.", severity="act")
    sections = {"accuracy": accuracy, "against": against, "groups": groups}
    said = sentence(sections, planted.perfect())
    assert said.startswith("On 656 unseen images the model is right 82.2 % of the time")
    assert said.endswith(f"94.9 %. {other}")
    assert len(said.split()) <= 45

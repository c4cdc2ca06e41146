"""The section on label errors: what it says of planted findings (specs/study.md, 4.12)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.errors import DataError
from beholder.core.options import Options
from beholder.core.sections import Spent
from beholder.evaluate.benchmarks.base import SECTIONS, Evidence
from beholder.evaluate.benchmarks.label_search import (
    FILE,
    ISSUES,
    believed,
    conflicting,
    listed,
    with_verdicts,
)
from beholder.evaluate.benchmarks.labels import Facts, finding, least_recall, review, summarise

OPTIONS = Options.parse(data="planted")
LEAST = 0.583983  # Wilson's lower bound of 16 / 20


@pytest.mark.parametrize(
    ("facts", "severity", "said"),
    [
        (Facts(1000, 10, 50, 40, 0.9, most=0.0125), "look", "at most 1.2 % of 1,000 labels are"),
        (Facts(1000, 8, 50, 40, 0.9, most=0.01), "good", "The search found 40 of 50 planted"),
        (Facts(1000, 24, 50, 40, 0.49, most=0.03), "look", "most flags may be errors of the model"),
        (Facts(1000, 0, 50, 40), "good", "Of 1,000 labels none looks wrong; the search found 40"),
        (Facts(1000, 90, 100, 29, most=1.0), "none", "the model is too weak to judge labels."),
        (Facts(1000, 90, 100, 30, most=0.3), "look", "review 24."),
        (Facts(1000, 0, 50, 40, twice=10, most=0.01), "good", "10 labels are certainly wrong"),
        (Facts(1000, 0, 50, 40, twice=11, most=0.011), "act", "11 labels are certainly wrong"),
        (Facts(1000, 90, 100, 20, twice=11, most=1.0), "act", "too weak"),
        (Facts(90, 1, 5, 4, twice=1, most=0.02), "act", "1 label is certainly wrong"),
        (Facts(300, 9, 5, 4, reviewed=1, wrong=1, most=0.03), "look", "Of 1 reviewed label 1 are"),
        (Facts(300, 9, 5, 4, reviewed=6, wrong=4, most=0.03), "act", "Of 6 reviewed labels 4 are"),
        (Facts(300, 3, most=1.0), "look", "3 of 300 labels look wrong; not tested."),
        (Facts(0), "none", "No label was judged"),
    ],
)
def test_the_finding_follows_from_its_facts(facts: Facts, severity: str, said: str):
    assert finding(facts)[0] == severity
    assert said in finding(facts)[1]


def flags(*verdicts: str | None) -> pl.DataFrame:
    return pl.DataFrame({"verdict": pl.Series(verdicts, dtype=pl.String)})


def test_nothing_reviewed_leaves_all_flags_in_question():
    found = review(flags(None, None, None))
    assert (found.reviewed, found.wrong, found.expected, found.most) == (0, 0, 3, 3)
    assert found.share.estimate is None


def test_a_whole_review_leaves_nothing_open():
    found = review(flags("wrong", "right", "wrong"))
    assert (found.reviewed, found.wrong, found.expected, found.most) == (3, 2, 2, 2)
    assert found.share.low == pytest.approx(0.207655, abs=1e-5)


def test_flags_beyond_the_review_are_no_better_than_the_last_twelve_reviewed():
    """20 reviewed: the first 8 wrong, of the last 12 six; 10 more and an unclear one are open."""
    verdicts = ["wrong"] * 8 + ["wrong", "right"] * 6 + ["unclear"] + [None] * 10
    found = review(flags(*verdicts))
    assert (found.reviewed, found.wrong) == (20, 14)
    assert found.expected == 14 + 11 * 0.5
    assert found.most == pytest.approx(14 + 11 * 0.746222, abs=1e-4)  # Wilson's bound of 6 / 12


def test_of_equal_pictures_all_but_the_commonest_label_are_wrong():
    """Three and one under two labels; a pair that agrees; a pair of which one is uncertain."""
    labels = [0, 0, 0, 1, 2, 2, 0, 1]
    certainty = np.array([1, 1, 1, 1, 1, 1, 1, 0.5])
    evidence = planted.evidence(
        labels,
        planted.answers(np.array(labels), 3),
        certainty=certainty,
        columns={"exact_hash": list("aaaabbcc")},
    )
    twice, wrong = conflicting(evidence.frame)
    assert twice.tolist() == [True] * 4 + [False] * 4
    assert wrong == 1


def issues(n: int = 4) -> pl.DataFrame:
    """The first two are flagged, the third is another label of the same picture."""
    labels = np.zeros(n, int)
    probability = np.stack([np.linspace(0.1, 0.9, n), 1 - np.linspace(0.1, 0.9, n)], 1)
    frame = planted.evidence(labels, probability, classes=["cat", "dog"]).frame
    table = believed(frame, probability, ("cat", "dog")).with_columns(
        pl.Series("flagged", np.arange(n) < 2)
    )
    return listed(table, np.arange(n) == 2)


def test_issues_are_ranked_certain_ones_first_then_least_believed():
    table = issues()
    assert table.schema == ISSUES
    assert table["id"].to_list() == ["000002.png", "000000.png", "000001.png"]
    assert table["reason"].to_list() == ["same picture, other label", *["label_error"] * 2]
    assert table["given"].to_list() == ["cat"] * 3
    assert table["suggested"][1] == "dog"
    assert table["p_given"][1] == pytest.approx(0.1)


def test_an_image_without_an_answer_has_no_belief():
    frame = planted.evidence([0, 1], planted.answers(np.array([0, 1]), 2)).frame
    table = believed(frame, np.array([[0.2, 0.8], [np.nan, np.nan]]), ("a", "b"))
    assert table.row(1)[3:] == (None, None, None)
    assert table.row(0)[2:4] == ("a", "b")


def test_verdicts_are_taken_up_and_none_is_lost(tmp_path: Path):
    old = issues().with_columns(pl.Series("verdict", [None, " Wrong", "unclear"]))
    gone = old.tail(1).with_columns(pl.lit("gone.png").alias("id"))
    pl.concat([old, gone]).write_parquet(tmp_path / FILE)
    table = with_verdicts(issues(), tmp_path / FILE)
    assert dict(table.select("id", "verdict").iter_rows()) == {
        "000002.png": None,
        "000000.png": "wrong",
        "000001.png": "unclear",
        "gone.png": "unclear",
    }
    assert table.filter(pl.col("rank").is_null())["id"].to_list() == ["gone.png"]
    table.write_parquet(tmp_path / FILE)
    assert with_verdicts(issues(), tmp_path / FILE).equals(table)


def test_a_verdict_on_another_label_of_the_image_does_not_count(tmp_path: Path):
    other = issues().with_columns(pl.lit("dog").alias("given"), pl.lit("wrong").alias("verdict"))
    other.write_parquet(tmp_path / FILE)
    table = with_verdicts(issues(), tmp_path / FILE)
    assert table.filter(pl.col("rank").is_not_null())["verdict"].null_count() == 3
    assert len(table) == 6


def test_another_word_than_the_three_verdicts_is_refused_and_named(tmp_path: Path):
    issues().with_columns(pl.lit("maybe").alias("verdict")).write_parquet(tmp_path / FILE)
    with pytest.raises(DataError, match="'maybe' is no verdict"):
        with_verdicts(issues(), tmp_path / FILE)


def test_a_file_that_cannot_be_read_is_not_overwritten(tmp_path: Path):
    (tmp_path / FILE).write_text("my notes")
    with pytest.raises(DataError, match="your verdicts would be lost"):
        with_verdicts(issues(), tmp_path / FILE)
    assert (tmp_path / FILE).read_text() == "my notes"


def searched(
    flagged: int = 20, n: int = 400, verdicts: list[str] | None = None, found: int = 16
) -> Evidence:
    """The first of `n` test images are flagged and answered wrongly; 20 were planted."""
    labels = np.arange(n) % 2
    probability = planted.answers(np.where(np.arange(n) < flagged, 1 - labels, labels), 2)
    evidence = planted.evidence(labels, probability, classes=["cat", "dog"])
    mask = np.arange(n) < flagged
    table = believed(evidence.frame, probability, evidence.classes)
    rows = listed(table.with_columns(pl.Series("flagged", mask)), np.zeros(n, bool))
    if verdicts:
        filled = verdicts + [None] * (len(rows) - len(verdicts))
        rows = rows.with_columns(pl.Series("verdict", filled, pl.String))
    tested = {"planted": [20], "found": [found], "flagged": [40], "lowest": [18]}
    evidence.frame = evidence.frame.with_columns(pl.Series("label_issue", mask))
    evidence.records["labels"] = {
        "issues": rows,
        "self_test": pl.DataFrame(tested),
        "uncertain": table.head(0),
    }
    evidence.spent["labels"] = Spent(wanted=5, used=1, what="plantings")
    return evidence


def test_recall_is_bounded_by_the_luck_of_one_planting():
    """Wilson's lower bound of 16 / 20, however often it was repeated."""
    one = pl.DataFrame({"planted": [20], "found": [16]})
    assert least_recall(one) == pytest.approx(LEAST, abs=1e-6)
    assert least_recall(pl.concat([one] * 5)) == pytest.approx(LEAST, abs=1e-6)
    assert least_recall(one.head(0)) == 0


def test_the_range_goes_from_the_certain_to_flags_by_recall():
    section = summarise(searched(), OPTIONS)
    value = section.values["estimated_errors"]
    assert (value.low, value.estimate) == (0, pytest.approx(20 / LEAST / 400))
    assert section.values["recall"].estimate == 0.8
    assert section.values["precision"].estimate == 0.4
    assert section.values["recall_lowest"].estimate == 0.9
    assert section.self_test is not None
    assert (section.self_test.planted, section.self_test.found) == (20, 16)
    assert section.severity == "look"
    assert len(section.pictures) == 20
    assert section.pictures[0].caption == "labelled cat, looks like dog"


def test_a_review_narrows_the_range_from_both_ends():
    section = summarise(searched(verdicts=["wrong"] * 8 + ["right"] * 12), OPTIONS)
    value = section.values["estimated_errors"]
    assert (value.low, value.estimate) == (8 / 400, pytest.approx(8 / LEAST / 400))
    assert section.values["reviewed_wrong"].estimate == 0.4
    assert section.severity == "act"
    assert "Of 20 reviewed labels 8 are wrong." in section.finding


def test_a_weak_model_gives_no_figure():
    section = summarise(searched(found=5), OPTIONS)
    assert section.values["estimated_errors"].estimate is None
    assert section.severity == "none"


def test_accuracy_without_the_flagged_is_paired_with_that_on_all():
    section = summarise(searched(), OPTIONS)
    assert section.values["accuracy_without"].estimate == 1
    assert section.values["gain_without"].estimate == pytest.approx(0.05)


def test_without_any_flag_there_is_a_sentence_and_nothing_to_show():
    section = summarise(searched(flagged=0), OPTIONS)
    assert section.severity == "good"
    assert "none looks wrong" in section.finding
    assert section.pictures == []
    assert section.values["accuracy_without"].estimate is None


def test_few_labels_are_only_a_hint():
    section = summarise(searched(flagged=2, n=20), OPTIONS)
    assert section.severity == "look"
    assert section.finding.startswith("With only 20 images")


def test_a_given_model_is_told_to_have_perhaps_seen_the_labels():
    evidence = searched()
    evidence.model["origin"] = "given"
    assert "memorised" in summarise(evidence, OPTIONS).assumptions[0]


@pytest.mark.parametrize("kind", ["unlabelled", "one_class", "multilabel"])
def test_other_kinds_of_data_have_no_label_to_doubt(kind):
    assert SECTIONS["labels"].needs(planted.of_kind(kind))


def test_a_black_box_may_have_memorised_the_labels():
    evidence = planted.evidence([0, 1], planted.answers(np.array([0, 1]), 2), origin="given")
    assert SECTIONS["labels"].needs(evidence) == "The model may have memorised these labels."
    evidence.embeddings = np.zeros((2, 4))
    assert SECTIONS["labels"].needs(evidence) is None

"""The mistakes section on planted errors (specs/study.md, 4.6)."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.evaluate.benchmarks.base import SECTIONS
from beholder.evaluate.benchmarks.mistakes import BUCKETS, finding, summarise, triaged

OPTIONS = Options.parse(data="planted")


def errors(n: int = 60, confidence: float = 0.9, **columns):
    """`n` wrong and `n` right answers of two classes."""
    labels = np.arange(2 * n) % 2
    predicted = np.where(np.arange(2 * n) < n, 1 - labels, labels)
    return planted.evidence(labels, planted.answers(predicted, 2, confidence), columns=columns)


@pytest.mark.parametrize(
    ("shares", "severity"),
    [
        ({"confidently wrong": 0.5, "uncertain label": 0.5}, "good"),
        ({"confidently wrong": 0.51, "uncertain label": 0.49}, "look"),
        ({"uncertain label": 1.0}, "good"),
    ],
)
def test_more_than_half_confidently_wrong_is_look(shares, severity):
    assert finding(10, shares)[0] == severity


def test_the_finding_lists_the_kinds_from_frequent_to_rare():
    said = finding(40, {"between the classes": 0.25, "confidently wrong": 0.75})[1]
    assert said == "40 errors: 75 % confidently wrong, 25 % between the classes."


def test_the_first_kind_that_fits_is_taken():
    """Six rows: each has the flags of its own kind and of all later ones."""
    n = len(BUCKETS)
    flags = {
        "label_issue": [i == 0 for i in range(n)],
        "p_unknown": [0.01 if i <= 2 else 0.5 for i in range(n)],
        "oddity": [i <= 3 for i in range(n)],
    }
    confidence = np.array([0.55 if i <= 4 else 0.9 for i in range(n)])
    evidence = planted.evidence(
        np.zeros(n, int),
        np.stack([1 - confidence, confidence], axis=1),
        certainty=np.array([1 / 3 if i <= 1 else 1.0 for i in range(n)]),
        columns=flags,
    )
    assert triaged(evidence).sort("id")["bucket"].to_list() == list(BUCKETS)


def test_flags_that_were_not_measured_are_no_kind():
    assert set(triaged(errors())["bucket"]) == {"confidently wrong"}


@pytest.mark.parametrize(("confidence", "bucket"), [(0.599, BUCKETS[4]), (0.601, BUCKETS[5])])
def test_a_difference_of_a_fifth_parts_between_from_confident(confidence, bucket):
    assert set(triaged(errors(confidence=confidence))["bucket"]) == {bucket}


def test_the_table_lists_every_error_worst_first_with_the_columns_of_the_specification():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 50)
    evidence = planted.evidence(np.zeros(50, int), np.stack([1 - p, p], axis=1))
    table = summarise(evidence, OPTIONS).frame("mistakes")
    assert table.columns == ["id", "path", "true", "predicted", "p_true", "p_predicted", "bucket"]
    assert len(table) == 50
    assert table["p_predicted"].is_sorted(descending=True)
    assert set(table["true"]) == {"class 0"}


def test_shares_of_kinds_have_wilsons_interval():
    section = summarise(errors(10), OPTIONS)
    row = section.frame("buckets").row(0, named=True)
    assert (row["errors"], row["share"]) == (10, 1)
    assert row["low"] == pytest.approx(0.722467, abs=1e-6)
    assert section.values["confidently_wrong"].low == row["low"]


def test_four_of_each_kind_are_shown_then_the_worst_up_to_24():
    confidence = np.r_[np.full(40, 0.95), np.full(40, 0.55)]
    evidence = planted.evidence(np.zeros(80, int), np.stack([1 - confidence, confidence], axis=1))
    section = summarise(evidence, OPTIONS)
    kinds = [picture.bucket for picture in section.pictures]
    assert len(kinds) == 24
    assert kinds.count("between the classes") == 4
    assert kinds.count("confidently wrong") == 20
    first = section.pictures[0]
    assert first.facts == {"confidence": "0.55"}
    assert first.alt == (
        "true class 0, predicted class 1, confidence 0.55, file class 0/000040.png"
    )


def test_beside_stand_the_nearest_training_images_of_both_classes():
    """Row 0 is a mistake; rows 1-4 are training images, 5 a test image just like it."""
    labels = np.array([0, 0, 0, 1, 1, 0])
    embeddings = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.8, 0.3], [-1, 0], [1, 0]], np.float32)
    evidence = planted.evidence(
        labels,
        planted.answers(np.array([1, 0, 0, 1, 1, 0]), 2),
        split=["test", *["train"] * 4, "test"],
        embeddings=embeddings,
    )
    (picture,) = summarise(evidence, OPTIONS).pictures
    assert [other.id for other in picture.beside] == ["000001.png", "000003.png"]
    assert [other.caption for other in picture.beside] == ["nearest class 0", "nearest class 1"]


def test_when_cross_fitted_the_nearest_image_is_of_another_unit():
    labels = np.array([0, 0, 0, 1])
    evidence = planted.evidence(
        labels,
        planted.answers(np.array([1, 0, 0, 1]), 2),
        units=[7, 7, 8, 9],
        embeddings=np.array([[1, 0], [1, 0], [0.5, 0.5], [0, 1]], np.float32),
    )
    (picture,) = summarise(evidence, OPTIONS).pictures
    assert [other.id for other in picture.beside] == ["000002.png", "000003.png"]


def test_without_errors_it_says_so():
    section, _ = SECTIONS["mistakes"].run(planted.perfect(), OPTIONS)
    assert (section.status, section.finding) == ("not_applicable", "No errors on 656 images.")


def test_without_scores_it_says_so():
    evidence = errors()
    evidence.frame = evidence.frame.with_columns(
        pl.lit(None, pl.List(pl.Float32)).alias("probability")
    )
    section, _ = SECTIONS["mistakes"].run(evidence, OPTIONS)
    assert (section.status, section.finding) == ("not_applicable", "The model gives no scores.")

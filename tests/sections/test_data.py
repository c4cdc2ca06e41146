"""The data section on planted counts (specs/study.md, 4.2)."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.evaluate.benchmarks.data import Facts, finding, summarise

OPTIONS = Options.parse(data="planted")


@pytest.mark.parametrize(
    ("facts", "severity", "said"),
    [
        (Facts(100, counts={"a": 50, "b": 50}), "good", "100 images in 2 classes"),
        (Facts(100, 0.2, {"a": 50, "b": 50}), "good", "100 images"),
        (Facts(100, 0.21, {"a": 50, "b": 50}), "act", "21.0 % of the files could not be used"),
        (Facts(100, counts={"a": 50, "b": 10}), "good", "the rarest, b, has 10"),
        (Facts(100, counts={"a": 51, "b": 10}), "look", "a has 5 times as many images as b"),
        (Facts(100, counts={"a": 500, "b": 10}), "look", "50 times"),
        (Facts(100, counts={"a": 501, "b": 10}), "act", "50 times"),
        (Facts(100, counts={"a": 50, "b": 9}), "act", "b has only 9 images"),
        (Facts(100, counts={"a": 5, "b": 5}, association=("site", 0.9)), "act", "site almost"),
        (Facts(100, counts={"a": 50, "b": 50}, association=("site", 0.29)), "good", "100"),
        (Facts(100, counts={"a": 50, "b": 50}, association=("site", 0.3)), "look", "goes together"),
        (Facts(100, counts={"a": 50, "b": 50}, association=("site", 0.7)), "act", "says little"),
        (Facts(100), "good", "100 images, no labels."),
        (Facts(1, counts={"a": 1}), "good", "1 image, one class: a."),
        (Facts(9, counts={"a": 9, "b": 2}, several_labels=True), "good", "several labels"),
    ],
)
def test_the_finding_changes_exactly_at_its_borders(facts, severity, said):
    assert finding(facts)[0] == severity
    assert said in finding(facts)[1]


def test_a_group_that_decides_the_label_is_act():
    labels = np.arange(200) % 2
    sites = ["north" if label else "south" for label in labels]
    evidence = planted.evidence(labels, planted.answers(labels, 2), groups={"site": sites})
    section = summarise(evidence, OPTIONS)
    assert section.severity == "act"
    assert "site almost decides the label" in section.finding
    assert section.values["association"].estimate == pytest.approx(1, abs=0.01)


def test_counts_add_up_to_the_images_and_are_never_more():
    section = summarise(planted.group(0.2), OPTIONS)
    table = section.frame("images")
    assert table.columns == ["class", "split", "group", "images", "share", "certain"]
    assert table["images"].sum() == 535
    assert table["share"].sum() == pytest.approx(1)


def test_the_ceiling_is_the_mean_of_the_likeliest_share():
    """`solar`: 2,223 certain labels and 401 at 2/3 give .949060 (specs/study.md, section 10)."""
    labels = np.zeros(2624, int)
    labels[::2] = 1
    certainty = np.ones(2624)
    certainty[:401] = 1 / 3
    evidence = planted.evidence(labels, planted.answers(labels, 2), certainty=certainty)
    section = summarise(evidence, OPTIONS)
    assert section.values["ceiling"].estimate == pytest.approx(0.949060, abs=1e-6)
    histogram = section.figures["uncertainty"].data
    assert histogram["count"].sum() == 2624
    assert section.frame("images")["certain"].sum() == 2223


def test_labels_without_a_distribution_are_certain():
    evidence = planted.perfect(40)
    evidence.frame = evidence.frame.with_columns(pl.lit(None, pl.List(pl.Float32)).alias("q"))
    section = summarise(evidence, OPTIONS)
    assert section.values["ceiling"].estimate == 1
    assert "uncertainty" not in section.figures


def test_one_picture_per_class_and_group_at_most_24_and_every_class_once():
    labels = np.arange(600) % 20
    sites = [f"site {i % 3}" for i in range(600)]
    evidence = planted.evidence(labels, planted.answers(labels, 20), groups={"site": sites})
    pictures = summarise(evidence, OPTIONS).pictures
    assert len(pictures) == 24
    assert len({p.caption.split(",")[0] for p in pictures}) == 20
    shuffled = planted.evidence(labels, planted.answers(labels, 20), groups={"site": sites})
    shuffled.frame = shuffled.frame.sample(fraction=1, shuffle=True, seed=1)
    again = summarise(shuffled, OPTIONS).pictures
    assert {p.id for p in again} == {p.id for p in pictures}


def test_skipped_files_are_listed_by_reason_with_five_paths():
    skipped = pl.DataFrame(
        {
            "path": [f"{i}.jpg" for i in range(9)],
            "reason": ["truncated"] * 7 + ["animated_extra"] * 2,
            "detail": [""] * 9,
        }
    )
    labels = np.arange(24) % 2
    evidence = planted.evidence(labels, planted.answers(labels, 2), skipped=skipped)
    section = summarise(evidence, OPTIONS)
    first = section.frame("skipped").row(0, named=True)
    assert (first["reason"], first["count"], len(first["first_paths"])) == ("truncated", 7, 5)
    assert section.values["skipped"].estimate == pytest.approx(7 / 31)
    assert section.severity == "act"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("unlabelled", "60 images, no labels."),
        ("one_class", "60 images, one class: good."),
        ("multilabel", "60 images, 2 classes, several labels per image."),
    ],
)
def test_data_of_every_kind_is_described(kind, said):
    section = summarise(planted.of_kind(kind), OPTIONS)
    assert section.finding == said
    assert section.pictures
    assert section.frame("images")["images"].max() <= 60

"""The section on copies: what it says of planted groups (specs/study.md, 4.13)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.data.curate.duplicates import LOOK_ALIKE
from beholder.evaluate.benchmarks.base import SECTIONS, Evidence
from beholder.evaluate.benchmarks.duplicates import (
    Facts,
    conflicts,
    finding,
    grouped,
    leaked,
    summarise,
)

OPTIONS = Options.parse(data="planted")


@pytest.mark.parametrize(
    ("facts", "severity", "said"),
    [
        (Facts(300), "good", "No two images show the same picture."),
        (Facts(300, planted=128, found=125), "good", "Of 128 planted copies 125 were found."),
        (Facts(300, 2, 1, 1), "good", "3 of 300 images show 1 picture more than once: 2 equal, 1"),
        (Facts(300, 4, 0, 2), "look", "4 of 300 images show 2 pictures more than once"),
        (Facts(300, 2, 0, 1, conflicts=1), "act", "1 picture is there under two labels."),
        (Facts(300, 0, 2, 1, tested=100, leaked=1), "look", "1 of 100 test images is in the"),
        (Facts(300, 0, 4, 2, tested=100, leaked=2), "act", "2 of 100 test images are in the"),
        (Facts(300, 2, 0, 1, tested=100, leaked=1, leaked_exact=1), "act", "training part too."),
        (
            Facts(300, 0, 4, 2, tested=100, leaked=2, accuracy=(0.9, 0.85)),
            "act",
            "without them the model is right 85.0 % of the time, with them 90.0 %.",
        ),
        (Facts(300, tested=100, leaked_sources=2), "act", "2 of 100 test images come from a"),
        (Facts(300, look_alike=True), "look", LOOK_ALIKE),
    ],
)
def test_the_finding_follows_from_its_facts(facts: Facts, severity: str, said: str):
    assert finding(facts)[0] == severity
    assert said in finding(facts)[1]


def world(
    group: Sequence[int | None],
    exact: str,
    labels: Sequence[int] | None = None,
    given: Sequence[str] | None = None,
    hits: Sequence[bool] | None = None,
) -> Evidence:
    """Images in these groups of copies, with one letter per picture; all judged but 'train'."""
    n = len(exact)
    labels = [0] * n if labels is None else labels
    hits = [True] * n if hits is None else hits
    predicted = [label if hit else 1 - label for label, hit in zip(labels, hits, strict=True)]
    evidence = planted.evidence(
        labels,
        planted.answers(np.array(predicted), 2),
        split=given,
        columns={
            "exact_hash": list(exact),
            "copy_group": pl.Series(group, dtype=pl.Int32),
            "label_name": ["ab"[label] for label in labels],
        },
    )
    ids = evidence.frame["id"].to_list()
    pairs = [
        (
            ids[i],
            ids[j],
            1.0 if exact[i] == exact[j] else 0.97,
            "exact" if exact[i] == exact[j] else "copy",
        )
        for i in range(n)
        for j in range(i + 1, n)
        if group[i] is not None and group[i] == group[j]
    ]
    schema = {"a": pl.String, "b": pl.String, "ncc": pl.Float64, "kind": pl.String}
    table = pl.DataFrame(pairs, schema, orient="row")
    roles = evidence.frame.select(
        "id",
        pl.Series("given", given, pl.String) if given else pl.lit(None, pl.String).alias("given"),
    )
    joined = evidence.frame.join(roles, on="id", how="left", maintain_order="left")
    edits = ["jpeg_75"] * 4 + ["half_size"] * 4 + ["jpeg_30"] * 4
    evidence.records["duplicates"] = {
        "members": grouped(joined, table),
        "pairs": table,
        "roles": roles,
        "similarity": pl.DataFrame({"id": ids, "best": [0.5] * n}),
        "planted": pl.DataFrame(
            {"edit": edits, "ncc": [0.99] * 8 + [0.9] * 4, "found": [True] * 8 + [False] * 4}
        ),
        "search": pl.DataFrame({"threshold": [0.95], "look_alike": [False]}),
    }
    return evidence


def test_every_image_is_counted_once():
    """Of five images four show two pictures: three distinct ones."""
    section = summarise(world([0, 0, 1, 1, None], "aabcd"), OPTIONS)
    values = section.values
    assert values["images"].estimate == 4 / 5
    assert values["exact"].estimate == 2
    assert values["pictures"].estimate == 3
    assert len(section.frame("copies")) == 4
    assert "4 of 5 images show 2 pictures more than once: 2 equal, 2 changed." in section.finding


def test_the_self_test_is_told_by_kind_and_in_all():
    section = summarise(world([None] * 3, "abc"), OPTIONS)
    assert section.self_test is not None
    assert (section.self_test.planted, section.self_test.found) == (12, 8)
    table = section.frame("self_test")
    assert table["kind"].to_list() == [
        "copies as JPEG 75",
        "copies of half the size",
        "copies as JPEG 30",
    ]
    assert table["found"].to_list() == [4, 4, 0]
    assert "Of 8 planted copies 8 were found." in section.finding


def test_one_picture_under_two_labels_is_a_conflict_and_its_pair_is_shown_first():
    evidence = world([0, 0, 1, 1], "aabb", labels=[0, 0, 0, 1])
    section = summarise(evidence, OPTIONS)
    assert section.severity == "act"
    assert section.values["conflicts"].estimate == 1
    first = section.pictures[0]
    assert first.bucket == "same picture, other label"
    assert [first.id, first.beside[0].id] == ["000002.png", "000003.png"]


def test_among_look_alikes_only_equal_pictures_are_copies():
    evidence = world([0, 0, 1, 1], "aabc", labels=[0, 0, 0, 1])
    search = evidence.records["duplicates"]["search"].with_columns(look_alike=pl.lit(True))
    evidence.records["duplicates"]["search"] = search
    section = summarise(evidence, OPTIONS)
    assert section.severity == "look"
    assert section.values["conflicts"].estimate == 0
    assert "2 of 4 images show 1 picture more than once: 2 equal, 0 changed." in section.finding


def test_an_uncertain_label_is_no_conflict():
    frame = world([0, 0], "aa", labels=[0, 1]).frame
    assert conflicts(frame).to_list() == [0]
    doubted = frame.with_columns(pl.Series("certainty", [1.0, 0.3], pl.Float32))
    assert conflicts(doubted).to_list() == []


def test_copies_across_a_given_split_are_leaks():
    """Two test images are in training, one exactly; a pair inside the test part is no leak."""
    given = ["train", "train", "test", "test", "test", "test", *["test"] * 34]
    group = [0, 1, 0, 1, 2, 2, *[None] * 34]
    exact = "abaecc" + "".join(chr(100 + 2 * i) for i in range(34))
    hits = [True] * 4 + [False] * 2 + [True] * 34
    evidence = world(group, exact, given=given, hits=hits)
    section = summarise(evidence, OPTIONS)
    frame = evidence.frame.with_columns(pl.Series("given", given))
    assert leaked(frame, "copy_group").to_list() == ["000002.png", "000003.png"]
    assert leaked(frame, "exact_hash").to_list() == ["000002.png"]
    assert section.severity == "act"
    assert section.values["straddling"].estimate == 2 / 38
    assert section.values["accuracy_without"].estimate == 34 / 36
    assert section.values["gain_without"].estimate == pytest.approx(34 / 36 - 36 / 38)
    assert section.pictures[0].bucket == "in training and test"


def test_a_split_made_here_has_no_leak_by_construction():
    section = summarise(world([0, 0, None], "aab"), OPTIONS)
    assert section.values["straddling"].estimate is None
    assert "the split was made here" in (section.values["straddling"].why or "")


def test_sources_across_a_given_split_are_told():
    given = ["train"] * 20 + ["test"] * 20
    evidence = world([None] * 40, "".join(chr(200 + i) for i in range(40)), given=given)
    source = ["patient 1", *[None] * 19, "patient 1", *[None] * 19]
    evidence.frame = evidence.frame.with_columns(pl.Series("source", source))
    evidence.source_given = True
    section = summarise(evidence, OPTIONS)
    assert section.severity == "act"
    assert "1 of 20 test images come from a source" in section.finding


@pytest.mark.parametrize("kind", ["unlabelled", "one_class", "multilabel"])
def test_it_applies_to_every_kind_of_data(kind):
    assert SECTIONS["duplicates"].needs(planted.of_kind(kind)) is None


def test_the_threshold_is_marked_and_the_shares_of_each_series_sum_to_one():
    figure = summarise(world([None] * 3, "abc"), OPTIONS).figures["similarity"]
    totals = figure.data.group_by("series").agg(pl.col("count").sum())["count"].to_list()
    assert totals == pytest.approx([1, 1])
    assert figure.data["mark"].unique().to_list() == [0.95]

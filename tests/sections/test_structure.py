"""Images without labels: groups that come back, lone images, what to label first."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest
from study.world import SMALL, alone, draw

from beholder.core.options import Options
from beholder.core.sections import Section
from beholder.evaluate.benchmarks.base import SECTIONS, Evidence
from beholder.evaluate.benchmarks.structure import Facts, finding, lone
from beholder.evaluate.benchmarks.structure_found import (
    group_frames,
    groups_of,
    label_first,
    source_of,
    worth_labelling,
)
from beholder.evaluate.benchmarks.verdict import verdict
from beholder.evaluate.report import Report
from beholder.study import study

OPTIONS = Options.parse(data="planted")
NONE = "no image is far from all others."


def blobs(sizes: list[int], apart: float, dim: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = apart * np.eye(len(sizes), dim)
    return np.concatenate(
        [c + rng.normal(0, 1, (n, dim)) for c, n in zip(centres, sizes, strict=True)]
    )


def unlabelled(n: int, **changes) -> Evidence:
    evidence = planted.evidence(np.zeros(n, int), planted.answers(np.zeros(n, int), 2))
    drop = ["label", "predicted", "correct", "logits", "probability", "confidence", "q"]
    evidence.frame = evidence.frame.drop(drop)
    evidence.kind, evidence.classes = "unlabelled", ()
    evidence.embeddings = np.zeros((n, 2), np.float32)
    for name, value in changes.items():
        setattr(evidence, name, value)
    return evidence


def summarised(x: np.ndarray, distance: np.ndarray | None = None) -> tuple[Section, Evidence]:
    evidence = unlabelled(len(x))
    ids = evidence.frame["id"]
    found = groups_of(x, 0)
    assert found is not None
    distance = np.linspace(0.1, 0.2, len(x)) if distance is None else distance
    chosen = label_first(x, np.ones(len(x), bool), 50)
    evidence.records["structure"] = group_frames(found, x, ids) | {
        "nearest": pl.DataFrame({"id": ids, "distance": distance, "nearest_id": ids}),
        "label_first": chosen.select(
            ids.gather(chosen["row"]).alias("id"), "represents", "distance"
        ),
    }
    return SECTIONS["structure"].summarise(evidence, OPTIONS), evidence


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (Facts((200, 100), 0, 300), f"2 stable groups of alike images (200, 100); {NONE}"),
        (Facts((), 1, 300), "No stable groups of alike images; 1 image is far from all others."),
        (Facts((), 2, 300), "No stable groups of alike images; 2 images are far from all others."),
        (
            Facts((9,) * 8, 0, 72),
            f"8 stable groups of alike images (9, 9, 9, 9, 9, 9, ...); {NONE}",
        ),
        (Facts(answers=(("a", 0.75), ("b", 0.25))), "The model answers a (75.0 %), b (25.0 %)."),
        (
            Facts(answers=(("a", 1.0),), accuracy=0.874),
            "The model answers a (100.0 %). "
            "It is right on about 87 % (an estimate, not a measurement).",
        ),
    ],
)  # fmt: skip
def test_the_sentence(facts: Facts, sentence: str):
    assert finding(facts) == sentence


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_planted_groups_are_found(count: int, seed: int):
    x = blobs([60] * count, apart=12, seed=seed)
    found = groups_of(x, seed)
    assert found is not None
    assert found.fitted.n_clusters == count
    assert np.mean(found.agreement) > 0.99
    section, _ = summarised(x)
    assert section.values["groups"].estimate == count
    assert section.frame("groups")["images"].to_list() == [60] * count


@pytest.mark.parametrize("seed", range(3))
def test_one_cloud_has_no_stable_groups(seed: int):
    section, _ = summarised(blobs([300], apart=0, dim=32, seed=seed))
    assert section.finding.startswith("No stable groups")
    assert "groups" not in section.values
    assert not any("group" in picture.bucket for picture in section.pictures)
    stability = section.values["stability"].estimate
    assert stability is not None
    assert stability < 0.6


def test_images_that_are_all_the_same_have_no_groups():
    assert groups_of(np.ones((40, 4)), 0) is None


def test_groups_are_repeatable():
    x = blobs([40, 40], apart=4)
    one, other = groups_of(x, 0), groups_of(x, 0)
    assert one is not None
    assert other is not None
    assert one.silhouettes == other.silhouettes
    assert one.agreement == other.agreement


def test_central_and_border_images_by_hand():
    line = np.r_[np.linspace(-1, 1, 21), np.linspace(9, 11, 21)]
    section, evidence = summarised(np.stack([line, np.zeros(42)], 1))
    ids = evidence.frame["id"].to_list()
    shown = {}
    for picture in section.pictures:
        shown.setdefault(picture.bucket, []).append(ids.index(picture.id))
    number = 1 if shown["group 1: most typical"][0] == 10 else 2
    assert set(shown[f"group {number}: most typical"]) == {9, 10, 11}
    assert shown[f"group {number}: border"] == [20, 19, 18]


def test_label_first_begins_in_the_middle_and_goes_to_the_ends():
    x = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    found = label_first(x, np.ones(5, bool), 3)
    assert found["row"].to_list() == [3, 4, 0]
    assert found["distance"].to_list() == [None, 7.0, 3.0]
    assert found["represents"].to_list() == [2, 1, 2]
    assert found["represents"].sum() == len(x)


def test_copies_and_oddities_are_not_worth_a_label():
    frame = pl.DataFrame({"unit": [0, 0, 1, 2], "oddity": [None, None, True, False]})
    assert worth_labelling(frame).tolist() == [True, False, False, True]
    odd = frame.with_columns(oddity=pl.lit(True))
    assert worth_labelling(odd).tolist() == [True, False, True, True]


def test_lone_images_by_hand():
    even = np.linspace(0.1, 0.2, 101)  # quartiles .125 and .175: border .325
    assert not lone(np.r_[even, 0.32]).any()
    assert lone(np.r_[even, 0.34]).tolist() == [False] * 101 + [True]


def test_the_verdict_says_what_it_is_and_what_to_label():
    distance = np.r_[np.linspace(0.1, 0.2, 119), 0.9]
    section, evidence = summarised(blobs([60, 60], apart=12), distance)
    said = verdict({"structure": section}, evidence, OPTIONS)
    assert said["sentence"] == (
        "120 images, no labels: 2 stable groups of alike images (60, 60); 1 image is far from all "
        "others."
    )
    steps = [step["sentence"] for step in said["next"][:3]]
    assert steps[0].startswith("Label first the 50 images of label_first.csv")
    assert steps[1].startswith("Then some at the borders of the 2 groups")
    assert steps[2].startswith("Look at the 1 image far from all others")
    assert said["severity"] == "none"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kind": "classes"}, "The images have labels: see groups and confusion."),
        ({"embeddings": None}, "The model gives neither features nor answers."),
    ],
)
def test_where_it_does_not_apply(changes, why: str):
    assert SECTIONS["structure"].needs(unlabelled(40, **changes)) == why


def test_too_few_images():
    assert (
        SECTIONS["structure"].needs(unlabelled(19))
        == "Too few images to look for groups (19 < 20)."
    )
    assert SECTIONS["structure"].needs(unlabelled(20)) is None


def test_a_model_without_features_is_judged_by_its_answers():
    evidence = planted.evidence(np.zeros(40, int), planted.answers(np.arange(40) % 4 // 3, 2, 0.8))
    evidence.kind = "unlabelled"
    source = {"n": [100], "accuracy": [0.9], "threshold": [0.7]}
    evidence.records["structure"] = {"source": pl.DataFrame(source)}
    section = SECTIONS["structure"].summarise(evidence, OPTIONS)
    assert section.finding == (
        "The model answers class 0 (75.0 %), class 1 (25.0 %). "
        "It is right on about 100 % (an estimate, not a measurement)."
    )
    assert section.frame("answers")["images"].to_list() == [30, 10]
    assert section.figures["confidence"].data["count"].sum() == 40
    assert {picture.bucket for picture in section.pictures} == {"least sure"}


def test_the_threshold_of_the_estimate_leaves_out_as_many_as_were_wrong(tmp_path: Path):
    frame = pl.DataFrame(
        {
            "split": ["test"] * 10 + ["train"] * 5,
            "confidence": [*np.arange(1, 11) / 10, *[1.0] * 5],
            "correct": [False, True, False, True, True, True, True, True, True, True, *[True] * 5],
        }
    )
    frame.write_parquet(tmp_path / "predictions.parquet")
    found = source_of(str(tmp_path))
    assert found is not None
    assert found.row(0) == (10, 0.8, 0.2)
    assert source_of(str(tmp_path / "nowhere")) is None
    assert source_of(None) is None
    frame.drop("confidence").write_parquet(tmp_path / "predictions.parquet")
    assert source_of(str(tmp_path)) is None


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    place = tmp_path_factory.mktemp("structure")
    data = place / "flat"
    data.mkdir()
    for digit, count in ((0, 24), (1, 24), (7, 6)):
        for number in range(count):
            draw(digit, number).save(data / f"{digit}_{number:02d}.png")
    options = SMALL | {"sections": ("data", "structure"), "without": ()}
    with alone(place / "cache"):
        report = study(data, out=place / "run", **options)
    return place, report


def test_a_study_writes_what_to_label_first(studied: tuple[Path, Report]):
    place, report = studied
    section = report["structure"]
    assert section.status == "measured"
    assert (section.n, section.budget.used) == (54, 54)
    with (place / "run" / "label_first.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 50
    assert len({row["id"] for row in rows}) == 50
    assert [int(row["rank"]) for row in rows] == list(range(1, 51))
    assert sum(int(row["represents"]) for row in rows) == 54
    assert report.verdict.sentence.startswith("54 images, no labels: ")
    assert "label_first.csv" in report.verdict.next[0].sentence
    assert "label_first.csv" in (place / "run" / "report.html").read_text()


def test_a_report_of_it_can_be_read_again(studied: tuple[Path, Report]):
    place, report = studied
    again = Report.load(place / "run")
    assert again["structure"].to_dict() == report["structure"].to_dict()

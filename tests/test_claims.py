"""Claims: verdicts follow from intervals, and what was measured is never measured twice."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beholder.core.errors import ArgumentError
from beholder.core.sections import Value
from beholder.survey import claim_files, part_value, recorded
from claims.models import small_cnn, tiny_vit
from claims.verdict import (
    PLACE,
    Part,
    above,
    below,
    difference,
    judged,
    load_claim,
    overall,
    per_image,
    run_claim,
    student,
)

CLAIM = """
from pathlib import Path
from claims.verdict import difference, reported

ROW = 3
CLAIM = "New is better than old."
SETTING = "Numbers."
SEEDS = (0, 1, 2)
CALLS = Path(__file__).parent / "calls"

def run(seed):
    with CALLS.open("a") as calls:
        calls.write(f"{seed} ")
    if seed == 2 and len(CALLS.read_text().split()) == 3:
        raise KeyboardInterrupt
    return {"new": 0.8 + 0.01 * seed, "old": 0.5, "each": [1.0, 0.0]}

def parts(results):
    return [difference("new over old", results, "new", "old"), reported("old", results, "old")]
"""
FIGURES = st.floats(-1e3, 1e3)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "03_new.py").write_text(CLAIM)
    return tmp_path / "claims"


def test_the_interval_is_students():
    value = student([0.1, 0.2, 0.3])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom, deviation 0.1
    assert value.estimate == pytest.approx(0.2)
    assert (value.low, value.high) == pytest.approx((0.2 - half, 0.2 + half))
    assert value.n == 3


def test_one_seed_has_no_interval_and_decides_nothing():
    part = above("a", [{"x": 0.9}], "x", 0.5)
    assert (part.value.low, part.verdict) == (None, "not decided")


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ([0.30, 0.31, 0.32], "holds"),
        ([0.10, 0.30, 0.20], "not decided"),
        ([0.10, 0.11, 0.12], "does not hold"),
        ([0.20, 0.20, 0.20], "does not hold"),
    ],
)
def test_a_difference_is_decided_by_its_whole_interval(new: list[float], verdict: str):
    results = [{"new": x, "old": 0.2} for x in new]
    assert difference("d", results, "new", "old").verdict == verdict


def test_a_difference_is_paired_over_seeds():
    results = [{"new": x + 0.01, "old": x} for x in (0.1, 0.5, 0.9)]
    part = difference("d", results, "new", "old")
    assert part.value.width == pytest.approx(0, abs=1e-12)
    assert part.verdict == "holds"
    assert difference("d", results, "new", "old", at_least=0.02).verdict == "does not hold"


@given(low=FIGURES, width=st.floats(0, 10), bar=FIGURES)
def test_above_and_below_never_both_hold(low: float, width: float, bar: float):
    value = Value(estimate=low, low=low, high=low + width)
    verdicts = [judged("x", value, above=bar).verdict, judged("x", value, below=bar).verdict]
    assert verdicts.count("holds") < 2
    if verdicts[0] == "holds":
        assert verdicts[1] == "does not hold"


def test_below_is_the_mirror_of_above():
    results = [{"x": 0.1}, {"x": 0.11}, {"x": 0.12}]
    assert below("x", results, "x", 0.2).verdict == "holds"
    assert below("x", results, "x", 0.05).verdict == "does not hold"


def test_images_that_come_again_are_drawn_together():
    rng = np.random.default_rng(0)
    new, old = rng.random(80), rng.random(80)
    one = per_image("x", [{"new": new, "old": old}], "new", "old")
    three = per_image("x", [{"new": new, "old": old}] * 3, "new", "old")
    assert three.value.estimate == pytest.approx(one.value.estimate)
    assert three.value.n == 80
    assert three.value.width == pytest.approx(one.value.width)


def test_images_of_different_seeds_are_told_apart_by_their_ids():
    rng = np.random.default_rng(0)
    results = [{"x": rng.random(40), "id": [f"{seed}-{i}" for i in range(40)]} for seed in range(3)]
    assert per_image("x", results, "x", ids="id").value.n == 120


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "reported"], "holds"),
        (["holds", "not decided"], "not decided"),
        (["not decided", "does not hold"], "does not hold"),
        (["reported"], "not decided"),
        ([], "not decided"),
    ],
)
def test_the_claim_is_as_weak_as_its_weakest_part(verdicts: list, expected: str):
    assert overall(Part("", verdict, Value.undefined("")) for verdict in verdicts) == expected


def test_an_interrupted_claim_goes_on_where_it_was(place: Path):
    with pytest.raises(KeyboardInterrupt):
        run_claim(3, place=place)
    assert recorded(3, place) is None
    record = run_claim(3, place=place)
    assert (place / "calls").read_text() == "0 1 2 2 "
    assert record["verdict"] == "holds"
    assert record["figures"][1] == {"new": 0.81, "old": 0.5, "each": 0.5}
    assert [path.name for path in (place / "results").iterdir()] == ["03.json"]


def test_what_was_measured_of_an_older_claim_is_not_taken(place: Path):
    with pytest.raises(KeyboardInterrupt):
        run_claim(3, place=place)
    (place / "03_new.py").write_text(CLAIM.replace("0.8", "0.4"))
    record = run_claim(3, place=place)
    assert record["figures"][0]["new"] == 0.4
    assert record["verdict"] == "does not hold"


def test_a_record_is_stale_once_the_claim_says_something_else(place: Path):
    (place / "calls").write_text("9 9 9 ")
    run_claim(3, place=place)
    assert recorded(3, place)["stale"] is False  # type: ignore[index]
    (place / "03_new.py").write_text(CLAIM + "\n\n# a comment\n")
    assert recorded(3, place)["stale"] is False  # type: ignore[index]
    (place / "03_new.py").write_text(CLAIM.replace("0.5", "0.9"))
    assert recorded(3, place)["stale"] is True  # type: ignore[index]


def test_other_seeds_are_a_trial_that_is_not_recorded(place: Path):
    assert run_claim(3, seeds=(5, 6), place=place)["seeds"] == [5, 6]
    assert recorded(3, place) is None


def test_a_part_reads_back_as_the_value_that_decided(place: Path):
    (place / "calls").write_text("9 9 9 ")
    record = run_claim(3, place=place)
    gaps = [figures["new"] - figures["old"] for figures in record["figures"]]
    assert part_value(record["parts"][0]) == student(gaps, "points")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("ROW = 3", "ROW = 4", "says ROW = 4"),
        ("SEEDS = (0, 1, 2)", "SEEDS = (0, 0, 1)", "has 3 seeds"),
        ("SETTING =", "SITTING =", "lacks SETTING"),
    ],
)
def test_a_claim_that_is_not_one_is_refused(place: Path, old: str, new: str, says: str):
    (place / "03_new.py").write_text(CLAIM.replace(old, new))
    with pytest.raises(ArgumentError, match=says):
        run_claim(3, place=place)


def test_a_measure_that_is_no_number_is_refused(place: Path):
    (place / "03_new.py").write_text(CLAIM.replace("0.5", "float('nan')"))
    with pytest.raises(ArithmeticError, match="claim 3, seed 0: old is nan"):
        run_claim(3, place=place)


def test_an_unknown_claim_names_those_there_are(place: Path):
    with pytest.raises(ArgumentError, match="There is no claim of row 5") as raised:
        load_claim(5, place)
    assert raised.value.hint == "There is: 03."
    shutil.rmtree(place / "results", ignore_errors=True)


@pytest.mark.parametrize("row", claim_files(PLACE))
def test_every_claim_of_ours_has_what_the_runner_asks_for(row: int):
    claim = load_claim(row)
    assert claim.CLAIM.endswith(".")
    assert claim.SETTING.endswith(".")


@pytest.mark.parametrize("path", sorted((PLACE / "results").glob("*.json")), ids=lambda p: p.stem)
def test_every_verdict_follows_from_its_recorded_intervals(path: Path):
    record = json.loads(path.read_text())
    assert len(record["seeds"]) == len(record["figures"]) >= 3
    parts = [Part(p["text"], p["verdict"], part_value(p)) for p in record["parts"]]
    assert overall(parts) == record["verdict"]
    for part in parts:
        if part.verdict != "reported":
            assert part.value.low is not None or part.verdict == "not decided"


def test_small_networks_have_a_true_stride_and_repeat():
    import torch

    model = small_cnn("abc", size=64, seed=1)
    images = torch.rand(2, 3, 64, 64)
    for stage, maps in zip(
        model.backbone.feature_info, model.feature_maps(images).values(), strict=True
    ):
        assert maps.shape[1:] == (stage["num_chs"], *[64 // stage["reduction"]] * 2)
    assert model.logits(images).shape == (2, 3)
    assert model.weights_hash == small_cnn("abc", size=64, seed=1).weights_hash
    assert model.weights_hash != small_cnn("abc", size=64, seed=2).weights_hash
    assert tiny_vit("ab", size=32, patch=4).logits(torch.rand(1, 3, 32, 32)).shape == (1, 2)

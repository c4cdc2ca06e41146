"""Defects by type, planted defects, false alarms; and a study of data in the layout of MVTec AD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest
from PIL import Image
from study.world import SMALL, alone

from beholder.core.options import Options
from beholder.core.sections import Value
from beholder.data.sources import open_images
from beholder.data.synthesize.defects import cut_paste
from beholder.evaluate.benchmarks.inspection import Facts, finding, summarise, worst_type
from beholder.evaluate.benchmarks.inspection_asked import PLANTED, SCORES, Usual, chosen, overlaid
from beholder.metrics.detection import auroc
from beholder.models.open import open_vision
from beholder.study import study
from beholder.trust.detectors.gaussian_ad import GaussianAD

ALARMS = Value(estimate=0.05, low=0.03, high=0.07, n=500)
MANY = Value(estimate=0.12, low=0.08, high=0.16, n=500)


@pytest.mark.parametrize(
    ("told", "severity", "words"),
    [
        (Facts(0.95, 0.99, ALARMS), "good", "Finds 95 % of the defects at 5.0 % false alarms"),
        (Facts(0.9, 0.99, ALARMS), "good", "(AUROC 0.99)"),
        (Facts(0.95, 0.99, MANY), "look", "12.0 % false alarms"),
        (Facts(0.89, 0.9, ALARMS), "look", "Finds 89 %"),
        (Facts(0.49, 0.8, ALARMS), "act", "Finds 49 %"),
        (Facts(0.95, 0.9, ALARMS, worst=("rust", 0.49)), "act", "; least of rust (49 %)."),
        (Facts(0.95, 0.9, ALARMS, worst=("rust", 0.5)), "look", "; least of rust (50 %)."),
        (Facts(None, None, ALARMS, planted={"a": 1.0, "b": 0.9}), "good", "100 % of a and 90 %"),
        (Facts(None, None, ALARMS, planted={"a": 1.0, "b": 0.1}), "look", "10 % of b"),
        (Facts(None, None, ALARMS, planted={"a": 1.0}), "good", "finds 100 % of a, at"),
    ],
)
def test_the_finding_at_its_borders(told, severity, words):
    found, sentence = finding(told)
    assert found == severity
    assert words in sentence


def rows(type: str, scores: list[float], bad: bool, detector: str = "gaussian_ad") -> pl.DataFrame:
    n = len(scores)
    columns = {
        "id": [f"{int(number):06d}.png" for number in range(n)],
        "type": [type] * n,
        "bad": [bad] * n,
        "unit": range(n),
        "detector": [detector] * n,
        "score": scores,
        "refused": [score > 1 for score in scores],
        "refused_strict": [score > 2 for score in scores],
    }
    return pl.DataFrame(columns, SCORES)


def evidence_of(*scores: pl.DataFrame):
    evidence = planted.of_kind("one_class")
    made = {"kind": ["scratch"] * 4 + ["blur"] * 4, "detector": ["gaussian_ad"] * 8}
    made |= {"score": [3.0] * 7 + [0.0], "refused": [True] * 7 + [False]}
    everything = pl.concat(scores)
    evidence.records["inspection"] = {
        "scores": everything,
        "planted": pl.DataFrame(made, PLANTED),
        "how": pl.DataFrame([{"how": "So.", "learned": 40, "features": True}]),
        "shown": chosen(everything).with_columns(pl.lit(True).alias("mapped")),
    }
    return evidence


def test_figures_by_type():
    good = rows("good", [0.0] * 38 + [1.5, 1.5], False)
    bad = [rows("rust", [3.0] * 20, True), rows("dent", [0.5] * 18 + [3.0] * 2, True)]
    found = summarise(evidence_of(good, *bad), Options(data="x"))
    table = {row["type"]: row for row in found.frame("types").iter_rows(named=True)}
    assert (table["all"]["n"], table["rust"]["n"], table["dent"]["n"]) == (40, 20, 20)
    assert (table["all"]["refused"], table["dent"]["refused"]) == (22 / 40, 0.1)
    assert table["rust"]["auroc"] == 1
    assert table["dent"]["auroc"] == pytest.approx(0.9 * 0.95 + 0.1)
    assert table["all"]["refused_strict"] == 22 / 40
    assert found.values["false_refusals"].estimate == 0.05
    assert found.severity == "act"
    assert "least of dent" in found.finding
    assert found.self_test is not None
    assert (found.self_test.planted, found.self_test.found) == (8, 7)
    made = {row["kind"]: row for row in found.frame("planted").iter_rows(named=True)}
    assert (made["scratch"]["found"], made["blur"]["found"]) == (1, 0.75)
    assert made["blur"]["low"] == pytest.approx(0.300642, abs=1e-5)  # Wilson, 3 of 4


def test_no_type_is_named_where_they_differ_by_chance():
    bad = [rows("rust", [3.0] * 10 + [0.0] * 2, True), rows("dent", [3.0] * 9 + [0.0] * 3, True)]
    assert worst_type(pl.concat(bad), 0) is None
    assert worst_type(bad[0], 0) is None


def test_missed_defects_of_every_type_false_alarms_and_finds_are_shown():
    scores = pl.concat(
        [
            rows("good", [0.0] * 20 + [1.5, 1.7], False),
            rows("rust", [0.1] * 30, True),
            rows("dent", [0.2, 5.0], True),
        ]
    )
    shown = chosen(scores)
    missed = shown.filter(pl.col("why") == "missed")
    assert set(missed["type"]) == {"rust", "dent"}
    assert len(missed) == 8
    assert shown.filter(pl.col("why") == "false alarm")["score"].to_list() == [1.7, 1.5]
    assert shown.filter(pl.col("why") == "found")["type"].to_list() == ["dent"]


def test_too_few_images_or_no_features_are_sentences():
    evidence = planted.of_kind("one_class")
    for features, words in ((True, "12 trusted images are too few"), (False, "no features")):
        how = {"how": "So.", "learned": 12, "features": features}
        frames = {"scores": pl.DataFrame(schema=SCORES), "how": pl.DataFrame([how])}
        evidence.records["inspection"] = frames
        found = summarise(evidence, Options(data="x"))
        assert found.status == "not_applicable"
        assert words in found.finding


def test_heat_is_what_exceeds_the_usual_at_its_place():
    maps = np.random.default_rng(0).normal(0, 1, (40, 6, 6)) + 10
    maps[:, 0] += 50  # a border that is always far
    usual = Usual.of(maps)
    heat = maps[0].copy()
    heat[3, 3] += 9
    standard = usual.standardised(heat)
    assert standard.argmax() == 3 * 6 + 3
    assert np.abs(standard[0]).max() < 5
    image = overlaid(np.full((6, 6, 3), 100, np.uint8), standard)
    assert image.dtype == np.uint8
    assert image[3, 3, 0] > image[3, 3, 1]


def weave(number: int, side: int = 48) -> np.ndarray:
    """An even texture with noise of its own."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side]
    wave = 120 + 40 * np.sin((x + 2 * y + rng.uniform(0, 6)) / 2.5)
    grey = (wave + rng.normal(0, 6, (side, side))).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, 2)


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory):
    """MVTec's layout: 40 good images, 12 more in the test part, 12 holes with masks, 12 faint."""
    where = tmp_path_factory.mktemp("inspection")
    data = where / "mvtec"

    def write(place: str, number: int, pixels: np.ndarray) -> None:
        file: Path = data / place / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)

    for number in range(40):
        write("train/good", number, weave(number))
    for number in range(12):
        write("test/good", number, weave(100 + number))
        hole, mask = weave(200 + number), np.zeros((48, 48), np.uint8)
        hole[10:30, 12:32], mask[10:30, 12:32] = 0, 255
        write("test/hole", number, hole)
        Image.fromarray(mask)
        (data / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(data / f"ground_truth/hole/{number:03d}_mask.png")
        write("test/nothing", number, weave(300 + number))
    with alone(where / "cache") as patch:
        patch.setattr("beholder.evaluate.benchmarks.inspection_asked.WANTED", 20)
        options = SMALL | {"sections": ("inspection", "data"), "without": (), "budget": 0}
        return study(data, out=where / "run", **options)


def test_given_and_planted_defects_are_told_of_by_type(inspected):
    section = inspected["inspection"]
    assert section.status in ("measured", "reduced"), section.finding
    types = section.frame("types").filter(pl.col("detector") == "gaussian_ad")
    refused = dict(types.select("type", "refused").iter_rows())
    assert refused["hole"] >= 0.9
    assert refused["nothing"] <= 0.4
    assert set(section.frame("planted")["kind"]) == {
        *("patch", "scratch", "blur", "brightness", "tiles")
    }
    assert section.frame("planted")["n"].unique().to_list() == [12]


def test_good_test_images_give_the_false_alarms(inspected):
    assert inspected["inspection"].values["false_refusals"].n == 12


def test_masks_give_an_aupro_and_pictures_have_heat_maps(inspected):
    section = inspected["inspection"]
    area = dict(section.frame("pixels").select("type", "aupro").iter_rows())
    assert area["hole"] > 0.5
    assert area["all"] == area["hole"]
    assert section.pictures
    assert {beside.id for picture in section.pictures for beside in picture.beside} == {
        f"inspection/{picture.id}" for picture in section.pictures
    }


def test_a_patch_of_a_tenth_is_seen_by_one_that_knows_120_good_textiles():
    images = open_images("textile").where(pl.col("label") == 0)
    vision = open_vision(input_size=(96, 96))
    good = [images.read(row) for row in range(150)]
    broken = [
        cut_paste(image, np.random.default_rng(i), good[i], share=0.1).image
        for i, image in enumerate(good[120:])
    ]
    detector = GaussianAD().fit(good[:120], model=vision, calibration=0)
    kept, found = detector.score(good[120:]).image, detector.score(broken).image
    assert auroc(kept.numpy(), found.numpy()) >= 0.9

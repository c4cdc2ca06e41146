"""`beholder curate`, and a study of what a manifest keeps."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from study.world import MODEL, SMALL, cli

from beholder.data.curate.manifest import Manifest
from beholder.data.sources import open_images
from beholder.study import study


def test_it_prints_one_sentence_then_tables_and_writes_the_manifest(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["curate", place, "--method", "random", "--budget", "0.5", "--per-class", "-q"]
    assert cli(words, monkeypatch) == 0
    told = capsys.readouterr().out
    assert told.startswith("21 of 42 images are kept.\n")
    assert "runs/three-random.parquet: 21 of 42 kept" in told
    manifest = Manifest.load("runs/three-random.parquet", open_images(place))
    assert manifest.info["parameters"] == {"per_class": True}
    assert manifest.apply(open_images(place)).table["label"].value_counts()["count"].to_list() == [
        *(7, 7, 7)
    ]


def test_json_is_the_section_and_nothing_else(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out, sheet = tmp_path / "m.parquet", tmp_path / "sheet.png"
    words = ["curate", place, "--method", "outliers", "--model", MODEL, "--json", "-o", out]
    assert cli([*words, "--budget", "40", "--sheet", sheet], monkeypatch) == 0
    section = json.loads(capsys.readouterr().out)
    assert section["id"] == "curate"
    assert section["self_test"]["planted"] == 12
    assert section["values"]["kept"]["estimate"] == 40
    assert len(Manifest.load(out)) == 42
    assert Image.open(sheet).size[0] > 0


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--method", "luck"], 2, "There is no curator 'luck'"),
        (["--method", "random", "--budget", "many"], 2, "'many' is no number"),
        (["--method", "random"], 2, "random needs a budget"),
        (["--method", "random", "--budget", "3", "--k", "5"], 2, "There is no option --k"),
        (["--method", "random", "--budget", "3", "--format", "wood"], 2, "wood"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    more: list[str],
    code: int,
    words: str,
) -> None:
    assert cli(["curate", place, "-q", *more], monkeypatch) == code
    assert words in capsys.readouterr().err


def test_a_study_judges_what_the_manifest_keeps_and_says_so(place: Path, tmp_path: Path) -> None:
    images = open_images(place)
    keep = ~pl.col("id").str.contains("_00[01]")
    decided = images.table.select("id", keep=keep).with_columns(
        reason=pl.when("keep").then(pl.lit("kept")).otherwise(pl.lit("user"))
    )
    manifest = Manifest(decided, Manifest.from_cleanlab(pl.DataFrame({"x": [0] * 42}), images).info)
    manifest.save(tmp_path / "m.parquet")
    options = SMALL | {"sections": ("accuracy", "method"), "without": ()}
    report = study(place, out=tmp_path / "run", manifest=str(tmp_path / "m.parquet"), **options)
    assert report.data.images == 36
    told = next(section.assumptions for section in report.sections if section.id == "method")
    assert any("36 of 42 kept" in note for note in told)
    judged = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert set(judged["id"]) == set(manifest.apply(images).table["id"])


def test_a_study_refuses_the_manifest_of_other_data(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    other = open_images("digits").where(pl.col("id") < "digits-0010")
    Manifest.from_cleanlab(pl.DataFrame({"x": [0] * 10}), other).save(tmp_path / "m.parquet")
    words = ["study", place, "--manifest", tmp_path / "m.parquet", "--out", tmp_path / "run", "-q"]
    assert cli(words, monkeypatch) == 3
    assert "The manifest was made from digits" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

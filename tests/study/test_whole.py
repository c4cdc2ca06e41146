"""A whole study: what it says, what it writes, and what is drawn from it later."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path

import polars as pl
import pytest
from study.conftest import Studied
from study.world import SMALL, cli, python, same_figures

from beholder.core.sections import Section
from beholder.evaluate.benchmarks import SECTIONS
from beholder.evaluate.report import Report
from beholder.evaluate.report.results import Results, schema
from beholder.study import study

IDS = [id for id, spec in SECTIONS.items() if spec.only is None]


def test_every_section_is_there_in_order_with_a_status(whole: Studied):
    found = [(section.id, section.status) for section in whole.report.sections]
    assert [id for id, _ in found] == IDS
    assert {status for _, status in found} <= {
        *("measured", "reduced", "not_applicable", "skipped_budget"),
    }
    assert all(section.finding for section in whole.report.sections)


def test_no_section_failed_and_there_is_no_log(whole: Studied):
    assert not (whole.run / "log.txt").exists()


def test_the_run_directory_holds_what_the_specification_names(whole: Studied):
    names = {path.name for path in whole.run.iterdir()}
    assert names >= {
        *("results.json", "report.html", "report.md", "predictions.parquet", "skipped.csv"),
        *("run.toml", "environment.json", "state.json", "records"),
        *("model.safetensors", "config.json", "head.safetensors", "head.json"),
    }
    assert {path.stem for path in (whole.run / "records").glob("*.json")} == set(IDS)


def test_results_are_valid_and_those_of_the_report(whole: Studied):
    written = json.loads((whole.run / "results.json").read_bytes())
    Results.model_validate(written)
    assert set(written) == set(schema()["properties"])
    assert written == whole.report.to_dict()


def test_accuracy_is_the_share_of_right_predictions(whole: Studied, small: Studied):
    for studied, judged in ((whole, 42), (small, 32)):
        rows = pl.read_parquet(studied.run / "predictions.parquet").filter(
            pl.col("split") == "test"
        )
        right = (rows["predicted"] == rows["label"]).sum()
        value = studied.report.accuracy.values["accuracy"]
        assert value.n == len(rows) == judged
        assert value.estimate == pytest.approx(right / judged, abs=1e-12)


def test_predictions_have_one_row_per_image_sorted_by_id(whole: Studied):
    rows = whole.report.predictions
    files = [p.relative_to(whole.data).as_posix() for p in whole.data.rglob("*.png")]
    assert rows["id"].to_list() == sorted(files)
    assert rows["path"].to_list() == rows["id"].to_list()
    probability = pl.DataFrame(rows["probability"].to_list(), orient="row")
    assert probability.sum_horizontal().to_list() == pytest.approx([1] * 42, abs=1e-5)
    assert (rows["confidence"] - probability.max_horizontal()).abs().max() < 1e-6


def test_a_given_split_is_kept(small: Studied):
    rows = small.report.predictions
    folder = rows["id"].str.split("/").list.first()
    assert rows["split"].to_list() == folder.to_list()
    assert small.report.split.kind == "given"


def test_the_report_is_drawn_again_from_the_records_alone(
    whole: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = shutil.copytree(whole.run, tmp_path / "elsewhere")
    page = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert cli(["report", copy], monkeypatch) == 0
    assert (copy / "report.html").read_text() == page
    assert (copy / "results.json").read_bytes() == (whole.run / "results.json").read_bytes()


def test_a_report_opens_without_its_images_and_without_torch(whole: Studied, tmp_path: Path):
    copy = shutil.copytree(whole.run, tmp_path / "elsewhere")
    said = python(
        "import sys, beholder\n"
        f"report = beholder.Report.load({str(copy)!r})\n"
        "print(len(report.sections), len(report.to_html()) > 10_000)\n"
        "print({'torch', 'timm', 'sklearn', 'lightning'} & set(sys.modules))"
    )
    assert said.split("\n")[:2] == [f"{len(IDS)} True", "set()"]


def test_a_loaded_report_equals_the_one_that_was_saved(whole: Studied):
    loaded = Report.load(whole.run)
    assert loaded.to_dict() == whole.report.to_dict()
    assert loaded.to_html() == whole.report.to_html()
    assert isinstance(loaded["accuracy"], Section)


def test_the_model_of_a_report_answers_as_the_predictions_say(small: Studied):
    import torch

    from beholder.data.sources import open_images

    images, rows = open_images(small.data), small.report.predictions
    model = small.report.model
    ids = images.table["id"].to_list()
    for id in rows.filter(pl.col("split") == "test")["id"].to_list()[::8]:
        pixels = torch.from_numpy(model.prepare(images.read(ids.index(id))))
        with torch.inference_mode():
            answer = model.logits(pixels.permute(2, 0, 1)[None]).softmax(1)[0]
        expected = rows.row(by_predicate=pl.col("id") == id, named=True)["probability"]
        assert answer.tolist() == pytest.approx(expected, abs=2e-3)


def test_plain_timm_opens_the_run_and_gives_as_many_classes(small: Studied):
    import timm

    model = timm.create_model(f"local-dir:{small.run}", pretrained=True)
    assert model.num_classes == 2


def test_no_file_of_the_run_names_the_machine_its_user_or_a_path(whole: Studied, small: Studied):
    words = [f"{Path.home()}/", socket.gethostname(), str(whole.data.parent), os.getcwd()]
    pictures = re.compile(rb"base64,[A-Za-z0-9+/=]+")
    for studied in (whole, small):
        for path in studied.run.rglob("*"):
            if path.is_file() and path.suffix not in (".parquet", ".safetensors"):
                content = pictures.sub(b"", path.read_bytes())
                found = [word for word in words if re.search(rb"\b%b\b" % word.encode(), content)]
                assert found == [], path


def test_the_second_study_of_the_same_command_changes_no_figure(
    small: Studied, known: pytest.MonkeyPatch, tmp_path: Path
):
    known.chdir(tmp_path)
    again = study(small.data, out=tmp_path / small.run.name, **SMALL)
    assert same_figures(again.to_dict(), small.report.to_dict())

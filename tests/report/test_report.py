"""The report as data: JSON, disk, pickle, names of files hidden."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report import fake

from beholder.core.errors import ArgumentError, DataError
from beholder.core.sections import Section, Table, Value
from beholder.evaluate.report import results
from beholder.evaluate.report.pictures import render_pictures
from beholder.evaluate.report.report import Report

SECTION_KEYS = {
    *("id", "version", "title", "status", "severity", "finding", "n", "unit", "values"),
    *("tables", "files", "assumptions", "self_test", "budget"),
}


@pytest.fixture(scope="module")
def report() -> Report:
    return fake.report()


def test_the_schema_on_disk_is_current() -> None:
    assert json.loads(results.SCHEMA_FILE.read_text()) == results.schema()


def test_results_have_exactly_the_keys_of_the_spec(report: Report) -> None:
    value = report.to_dict()
    assert set(value) == {
        *("schema", "created", "beholder", "command", "verdict", "headline", "data", "split"),
        *("model", "sections", "against", "budget", "timing"),
    }
    assert set(results.schema()["required"]) >= set(value) - {"against"}
    assert all(set(section) == SECTION_KEYS for section in value["sections"])
    columns = value["sections"][1]["tables"]["per_class"]["columns"]
    assert columns[0] == {"name": "class", "type": "String", "unit": ""}
    results.Results.model_validate(value)


def test_unknown_keys_are_refused(report: Report) -> None:
    with pytest.raises(ValueError, match="surprise"):
        results.Results.model_validate(report.to_dict() | {"surprise": 1})


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(numbers, numbers, st.text(max_size=30))
def test_json_holds_any_number_and_any_name(a: float, b: float, name: str) -> None:
    frame = pl.DataFrame({"name": [name], "x": [a], "list": [[a, b]]})
    section = Section(
        id="s",
        title=name,
        finding=name,
        values={"v": Value(estimate=a, low=b)},
        tables={name: Table(frame=frame)},
    )
    record = results.section_record(section)
    text = json.dumps(results.finite(record.model_dump(mode="json")), allow_nan=False)
    again = results.SectionRecord.model_validate_json(text)
    assert again == record
    for number in (a, b):
        if not math.isfinite(number):
            assert again.values["v"].why
    row = again.tables[name].rows[0]
    assert row[1] == (a if math.isfinite(a) else None)


def test_a_saved_report_is_the_loaded_one(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    again = Report.load(tmp_path)
    assert again.to_dict() == report.to_dict()
    assert [s.to_dict() for s in again.sections] == [s.to_dict() for s in report.sections]
    assert again.pictures == report.pictures
    assert again.to_html() == report.to_html()
    assert again.directory == tmp_path
    assert (tmp_path / "report.md").read_text() == report.to_markdown()
    assert not list(tmp_path.rglob("*.tmp"))


def test_loading_needs_no_torch(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    code = (
        "import sys\nfrom beholder.evaluate.report.report import Report\n"
        f"r = Report.load({str(tmp_path)!r})\nr.to_html()\n"
        "assert not {'torch', 'timm', 'sklearn'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_parts_are_named(report: Report, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\.json"):
        Report.load(tmp_path)
    report.save(tmp_path)
    (tmp_path / "records" / "groups.json").unlink()
    with pytest.raises(DataError, match=r"groups\.json is missing"):
        Report.load(tmp_path)


def test_sections_are_reached_by_id_and_by_name(report: Report) -> None:
    assert report["accuracy"] is report.accuracy
    assert report.accuracy.values["accuracy"].estimate == 565 / 656
    assert report["data"].title == "Data"
    assert report.data.name == "solar"
    assert report.severity == "act"
    with pytest.raises(KeyError, match="there are: data, accuracy"):
        report["nothing"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = report.nothing


def test_plain_dicts_become_parts_and_unknown_keys_are_refused(report: Report) -> None:
    facts = report.data.model_dump()
    assert dataclasses.replace(report, data=facts).data == report.data  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="surprise"):
        dataclasses.replace(report, data=facts | {"surprise": 1})  # type: ignore[arg-type]


def test_a_report_survives_pickling(report: Report) -> None:
    again = pickle.loads(pickle.dumps(report))
    assert again.to_dict() == report.to_dict()
    assert again.accuracy.title == "Accuracy"


def test_model_and_predictions_are_opened_when_asked_for(tmp_path: Path) -> None:
    bare = fake.report(pictures=False)
    with pytest.raises(DataError, match="model"):
        _ = bare.model
    with pytest.raises(DataError, match="predictions"):
        _ = bare.predictions
    with pytest.raises(ArgumentError, match="not on disk"):
        bare.open()
    bare.save(tmp_path)
    frame = pl.DataFrame({"id": ["a"], "predicted": [1]})
    frame.write_parquet(tmp_path / "predictions.parquet")
    assert bare.predictions.equals(frame)
    bare.open_model = lambda: "the model"  # type: ignore[assignment,return-value]
    assert bare.model == "the model"


def test_an_anonymous_report_names_no_file(report: Report, tmp_path: Path) -> None:
    hidden = fake.report()
    hidden.anonymous = True
    hidden.sections[3].finding = "The worst is cells/cell0003.png, then cell0004.png."
    hidden.save(tmp_path)
    for name in ("report.html", "report.md", "results.json", "records/mistakes.json"):
        text = (tmp_path / name).read_text()
        assert "cells/cell" not in text, name
        assert "cell0004" not in text, name
        assert "photo\\u202e" not in text, name
        assert "photo\u202e" not in text, name
    assert "image-" in hidden.to_html()
    assert len(hidden.public().pictures) == len(report.pictures)
    assert hidden.to_html().count("<img src=") == report.to_html().count("<img src=")
    # a chart's own labels keep their names
    assert "gaussian noise" in hidden.to_html()


def test_thumbnails_are_small_webp_and_vanished_files_are_left_out() -> None:
    made = render_pictures(fake.noise, {"a.png": True, "b.png": False, "cells/vanished.png": True})
    assert {id: set(sizes) for id, sizes in made.items()} == {"a.png": {192, 384}, "b.png": {192}}
    for sizes in made.values():
        for side, data in sizes.items():
            assert data[:4] == b"RIFF"
            assert len(data) < 20_000
            with Image.open(io.BytesIO(data)) as image:
                assert max(image.size) <= side


def test_small_pictures_are_not_enlarged() -> None:
    made = render_pictures(lambda id: np.zeros((8, 10, 3), np.uint8), {"a": False})
    with Image.open(io.BytesIO(made["a"][192])) as image:
        assert image.size == (10, 8)

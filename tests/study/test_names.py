"""Names that would run, break or mislead: shown, never obeyed."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import html5lib
import polars as pl
import pytest
from study.conftest import Studied
from study.world import SMALL, alone, draw

from beholder.study import study

EVIL = "<script>alert(1)<"  # a slash cannot stand in a file name
CLASSES = (f"{EVIL}b>", 'a"onload=x')
FILES = ("<img src=x onerror=y>.png", "line\nfeed.png", "صورة.png", "\u202egnp.exe.png", "=1+1.png")


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    """Two classes with hostile names; the pictures of half of the files lie in the wrong class."""
    place = tmp_path_factory.mktemp("evil")
    for digit, name in enumerate(CLASSES):
        (place / "data" / name).mkdir(parents=True)
        for number in range(24):
            file = FILES[number] if number < len(FILES) else f"{number}.png"
            wrong = number < len(FILES)
            draw(digit ^ wrong, number + 30 * digit).save(place / "data" / name / file)
    with alone(place / "cache"):
        report = study(place / "data", out=place / "run", **SMALL)
    return Studied(report, place / "data", place / "run", place / "cache")


def texts_and_tags(page: str) -> tuple[str, list]:
    tree = html5lib.parse(page, namespaceHTMLElements=False)
    return " ".join(tree.itertext()), list(tree.iter())


def test_no_section_fails(evil: Studied):
    assert "failed" not in {section.status for section in evil.report.sections}


def test_names_are_shown_as_text_and_make_no_element(evil: Studied):
    page = (evil.run / "report.html").read_text()
    text, elements = texts_and_tags(page)
    assert EVIL in text
    assert EVIL not in page
    assert "<img src=x" not in page
    scripts = [element for element in elements if element.tag == "script"]
    assert not [s for s in scripts if "alert(1)" in "".join(s.itertext()) and s.get("type") is None]
    handlers = {name for element in elements for name in element.attrib if name.startswith("on")}
    assert handlers == set()


def test_mistaken_files_are_named_with_visible_escapes(evil: Studied):
    mistakes = evil.report["mistakes"].frame("mistakes")
    assert any("\n" in id for id in mistakes["id"])
    page = (evil.run / "report.html").read_text()
    text, _ = texts_and_tags(page)
    assert "صورة.png" in text
    assert "\u202e" not in text
    assert "line\nfeed" not in text


def test_the_markdown_has_no_raw_markup_and_no_override(evil: Studied):
    text = (evil.run / "report.md").read_text()
    assert EVIL.replace("<", "\\<") in text
    assert not re.search(r"(?<!\\)<(script|img)", text)
    assert "\u202e" not in text


def test_names_are_whole_in_json_and_parquet(evil: Studied):
    results = json.loads((evil.run / "results.json").read_bytes())
    assert {c["name"] for c in results["data"]["classes"]} == set(CLASSES)
    ids = set(pl.read_parquet(evil.run / "predictions.parquet")["id"])
    assert {f"{name}/{file}" for name in CLASSES for file in FILES} <= ids


def test_anonymous_reports_hold_no_file_name(evil: Studied):
    with alone(evil.cache):
        report = study(evil.data, out=evil.run.with_name("hidden"), anonymous=True, **SMALL)
    for name in ("report.html", "report.md", "results.json", "records/mistakes.json"):
        content = (report.directory / name).read_text()
        assert "صورة" not in content, name
        assert "feed.png" not in content, name


def test_cells_that_a_table_program_would_run_have_an_apostrophe(fresh, tmp_path: Path):
    for digit, name in enumerate(("one", "two")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            draw(digit, number).save(tmp_path / "data" / name / f"{number}.png")
        (tmp_path / "data" / name / "=cmd.png").write_bytes(b"")
    (tmp_path / "data" / "=sum").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / "=sum" / name).write_bytes(b"")
    study(tmp_path / "data", out=tmp_path / "run", sections=("data",), **SMALL)
    with (tmp_path / "run" / "skipped.csv").open(newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert len(cells) == 3 * 5
    assert not [cell for cell in cells if cell[:1] in "=+-@" and cell]

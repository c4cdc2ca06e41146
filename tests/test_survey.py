"""The state of the survey is found in sources, tests and records; nothing of it is declared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study.world import python

from beholder import survey as module
from beholder.core.errors import ArgumentError
from beholder.core.registry import PACKAGE, Entry, find
from beholder.survey import (
    counts,
    lacks,
    options,
    paper,
    papers,
    read_tests,
    source_hash,
    survey,
)

KEYS = {"row", "name", "role", "module", "importable", "golden", "tests", "claim", "docs"}


@pytest.fixture(scope="module")
def states() -> list[dict]:
    return survey()


def test_there_are_76_papers_with_every_field():
    assert [paper.row for paper in papers()] == list(range(1, 77))
    for each in papers():
        filled = (each.name, each.title, each.authors, each.venue, each.arxiv, each.purpose)
        assert all(filled), each
        assert each.purpose.endswith(".")
        assert 2012 <= each.year <= 2025
        assert each.homes
        assert each.repository.count("/") == bool(each.repository)
    assert len({each.arxiv for each in papers()}) == 76


def test_an_unknown_row_is_an_error():
    with pytest.raises(ArgumentError, match="There is no row 77"):
        paper(77)


def test_no_row_is_hidden(states):
    assert [state["row"] for state in states] == list(range(1, 77))
    assert all(set(state) >= KEYS | {"complete"} for state in states)
    assert json.dumps(states, allow_nan=False)


def test_complete_means_that_nothing_is_lacking(states):
    for state in states:
        assert state["complete"] == (not lacks(state)), state["name"]


def test_a_row_without_a_file_is_missing(states):
    absent = [s for s in states if not (PACKAGE / paper(s["row"]).homes[0]).exists()]
    assert absent or counts(states)["importable"] == 76
    for state in absent:
        assert not state["importable"]
        assert not state["complete"]
        assert "does not exist" in state["why"]


def test_every_module_of_a_row_counts(monkeypatch):
    entry = Entry(27, "dlv", "verifier", "beholder.survey:survey")
    monkeypatch.setattr(module, "systems", lambda: [entry])
    state = survey()[26]
    assert state["systems"] == ["dlv"]
    assert not state["importable"]


def test_golden_files_count_when_a_test_reads_them(tmp_path: Path):
    place = tmp_path / "tests"
    (place / "golden").mkdir(parents=True)
    for name in ("14_a", "14_b", "14_c"):
        (place / "golden" / f"{name}.json").write_text("{}")
    (place / "test_a.py").write_text(
        "from beholder.core.files import digest\nimport beholder.study\n"
        'X = golden("14_a")\n# golden("14_b")\nS = \'golden("14_c")\'\n'
    )
    found = read_tests(place)
    assert found.files == ("14_a", "14_b", "14_c")
    assert found.golden == {"14_a"}
    assert found.of(["beholder.core.files"]) == ["tests/test_a.py"]
    assert found.of(["beholder.study"]) == ["tests/test_a.py"]
    assert found.of(["beholder.core.cache"]) == []


def test_layout_does_not_change_what_a_claim_says(tmp_path: Path):
    file = tmp_path / "x.py"
    hashes = []
    for text in ("A = 1", "A   =  1  # one", "A = 2"):
        file.write_text(text)
        hashes.append(source_hash(file))
    assert hashes[0] == hashes[1] != hashes[2]


def test_outside_of_a_checkout_nothing_is_claimed_of_tests(monkeypatch):
    monkeypatch.setattr(module, "checkout", lambda: None)
    state = survey()[13]
    assert state["importable"]
    for key in ("golden", "golden_unread", "tests", "claim", "complete"):
        assert state[key] is None


def test_options_are_read_from_the_signature():
    assert options(find("detector", "knn")) == {"k": {"type": "int", "default": "10"}}


def test_the_command_lists_76_objects_one_row_and_one_system():
    said = python(
        "import contextlib, io, json\nfrom beholder.cli import app\n"
        "def said(*words):\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out):\n"
        "        app(['systems', *words], standalone_mode=False)\n"
        "    return out.getvalue()\n"
        "print(json.dumps([json.loads(said('--json')), json.loads(said('14', '--json')),"
        " json.loads(said('knn', '--json')), said('14'), said()]))"
    )
    listed, row, named, text, table = json.loads(said)
    assert [each["row"] for each in listed] == list(range(1, 77))
    assert row["paper"]["arxiv"] == "2005.14140"
    assert row["options"][0]["name"] == "gaussian_ad"
    assert named[0]["options"]["k"]["default"] == "10"
    assert "Rippel" in text
    assert "missing" in table
    assert "Gaussian-AD" in table

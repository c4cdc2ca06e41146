"""The documentation says what is there: commands that exist, a page for every row."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from beholder.cli import app
from beholder.core.registry import PACKAGE, ROLES, Entry, arguments, find, systems
from beholder.survey import paper, papers, survey

pytest.importorskip("mkdocs")
DOCS = PACKAGE.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLUR = "--scale"
"""Option of the system that the guide 'Add a system' adds."""
ENTRY = {entry.name: entry for entry in systems()}
STATE = {
    "row": 14,
    "name": "Gaussian-AD",
    "role": ["detector"],
    "systems": ["gaussian_ad"],
    "importable": True,
    "why": None,
    "golden": ["14_gaussian_ad.stats"],
    "golden_unread": [],
    "tests": ["tests/trust/test_gaussian_ad.py"],
    "claim": {"verdict": "holds", "date": "2026-01-01", "stale": False},
    "docs": True,
    "complete": True,
}
RECORD = {
    "verdict": "does not hold",
    "claim": "One thing beats another.",
    "setting": "On numbers.",
    "seeds": [0, 1, 2],
    "seconds": 12.3,
    "machine": {"cpu": "a processor"},
    "date": "2026-01-01",
    "stale": False,
    "parts": [
        {
            "text": "one over another",
            "verdict": "does not hold",
            "value": -0.05,
            "low": -0.08,
            "high": -0.02,
            "level": 0.95,
            "n": 3,
            "unit": "points",
            "method": "t",
            "why": None,
        }
    ],
}


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pages", DOCS / "pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(page: Path) -> list[list[str]]:
    """The command lines of beholder in a page's shell blocks, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "beholder"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_exists_with_its_flags(page: Path):
    for words in commands(page):
        command = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands"):
            verb = rest.pop(0)
            assert verb in command.commands, f"{page.name}: beholder {verb}"
            command = command.commands[verb]
        known = {flag for option in command.params for flag in option.opts} | {BLUR}
        if command.context_settings.get("allow_extra_args"):
            named = {name for word in words for name in word.split(",")}
            known |= {flag for name in named & set(ENTRY) for flag in flags_of(ENTRY[name])}
        flags = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert flags <= known, f"{page.name}: beholder {' '.join(words)}"


def flags_of(entry: Entry) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in arguments(entry.load())]


def test_every_row_has_a_page_and_a_line_in_the_index(pages):
    made = pages.gallery()
    assert set(made) == {"gallery/index.md", *(pages.place_of(row) for row in range(1, 77))}
    for each in papers():
        assert each.title in made[pages.place_of(each.row)]
        assert f'href="{each.row:02d}.html"' in made["gallery/index.md"]


def test_a_row_that_is_not_built_is_shown_as_missing(pages):
    state = STATE | {"systems": [], "complete": False, "role": [], "claim": None}
    assert "Missing" in pages.page(paper(14), state, [])
    assert 'data-state="missing"' in pages.index([state])


def test_a_page_names_what_a_row_lacks(pages):
    state = STATE | {"complete": False, "golden": [], "golden_unread": ["14_gaussian_ad.stats"]}
    text = pages.page(paper(14), state, [find("detector", "gaussian_ad")])
    assert "not compared: 14_gaussian_ad.stats" in text
    assert 'data-state="partial"' in pages.index([state])


def test_a_page_shows_options_and_an_example_that_can_be_copied(pages):
    text = pages.page(paper(14), STATE, [find("detector", "gaussian_ad")])
    for name in arguments(find("detector", "gaussian_ad").load()):
        assert f"`--{name.replace('_', '-')}`" in text
    assert "```pycon\n>>> " in text


def test_a_claim_is_shown_with_interval_and_verdict(pages):
    text = pages.claim(RECORD)
    assert "| one over another | -5.0 points (-8.0 to -2.0) | does not hold |" in text
    assert '!!! failure "Does not hold"' in text
    assert "changed since" not in text
    assert "changed since" in pages.claim(RECORD | {"stale": True})


def test_every_role_with_systems_has_a_page_of_its_docstrings(pages):
    made = pages.api()
    for role in ROLES:
        if any(entry.module.startswith("beholder.") for entry in systems(role)):
            assert "::: beholder." in made[f"api/{role}.md"]


def test_the_index_counts_what_was_measured(pages):
    states = survey()
    complete = sum(bool(state["complete"]) for state in states)
    assert f"{complete} complete" in pages.index(states)

"""Examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib

import pytest

from beholder.core.errors import MissingExtraError
from beholder.core.registry import Entry, systems

NOUNS = ("beholder.data.sources", "beholder.core.registry", "beholder.study")
ENTRIES = {entry.module: entry for entry in systems() if entry.module.startswith("beholder.")}


def examples(module: str) -> doctest.TestResults:
    """What became of the examples of a module."""
    return doctest.testmod(
        importlib.import_module(module), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_examples_of_every_system_answer_as_written(entry: Entry):
    try:
        entry.load()
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert examples(entry.module).failed == 0


@pytest.mark.parametrize("module", NOUNS)
def test_examples_of_the_nouns_answer_as_written(module: str):
    assert examples(module).failed == 0


@pytest.mark.parametrize("entry", [e for e in systems() if e.row], ids=lambda e: e.name)
def test_every_system_of_the_survey_shows_an_example(entry: Entry):
    from beholder.survey import has_example

    assert has_example(entry.module)

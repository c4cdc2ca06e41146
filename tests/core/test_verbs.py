"""A verb is the same whichever way one gets hold of it."""

from __future__ import annotations

import importlib

import pytest

import beholder
from beholder.core.errors import DataError


def test_a_verb_can_be_called_again_after_its_module_was_imported() -> None:
    for _ in range(2):
        with pytest.raises(DataError, match=r"There is no nowhere\."):
            beholder.study("nowhere")
    importlib.import_module("beholder.study")
    with pytest.raises(DataError, match=r"There is no nowhere\."):
        beholder.study("nowhere")


def test_the_function_of_a_verb_is_still_in_its_module() -> None:
    from beholder.study import study

    with pytest.raises(DataError, match=r"There is no nowhere\."):
        study("nowhere")

"""Modules that can be called: `beholder.train` is a package, and the verb of that name."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A module whose call is that of one function in it or below it."""

    function: str

    def __call__(self, *args: Any, **options: Any) -> Any:
        home, _, name = self.function.partition(":")
        return getattr(importlib.import_module(home), name)(*args, **options)


def callable_as(module: str, function: str) -> None:
    """Make an imported module callable as `function`, 'package.module:name', loaded when called.

    Importing a submodule puts it into its package under its name, over any function that stood
    there: with this it makes no difference which of the two one has got hold of.
    """
    found = sys.modules[module]
    found.__class__ = Verb
    found.function = function  # type: ignore[attr-defined]

"""The application that every verb of the command line joins, and what the verbs share."""

from __future__ import annotations

from typing import Any

import typer

app = typer.Typer(
    name="beholder",
    help="How good is my image model really, where and why does it fail, how do I mend it?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA = "What data"
MODEL = "What model"
JUDGE = "How to judge"
WORK = "How to work"
OUTPUT = "What comes out"
SYSTEMS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of a verb whose further flags are arguments of the system it chooses."""


def option(panel: str, help: str, *names: str) -> Any:
    """An option that stands in a panel of the help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


def listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))

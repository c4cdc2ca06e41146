"""`doctor` and `cache`: the machine, and what is kept on it."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from beholder.core.errors import ArgumentError

from .app import app

cache_app = typer.Typer(help="What is kept between runs.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@app.command()
def doctor() -> None:
    """Versions, devices, and what is missing for which extra."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from beholder.core.environment import doctor as examine

    table = Table(box=None, show_header=False, pad_edge=False)
    for row in examine():
        table.add_row(*map(Text, row))
    Console().print(table)


@cache_app.command("size")
def cache_size() -> None:
    """How much is kept, and where."""
    from beholder.core.cache import size
    from beholder.core.files import cache_dir

    typer.echo(f"{size() / 2**20:,.0f} MiB in {cache_dir()}")


@cache_app.command("prune")
def cache_prune(
    older: Annotated[str, typer.Option(help="Unused for so long: 12h, 30d.")] = "30d",
) -> None:
    """Drop what was not used for long, and what is above 20 GiB."""
    from beholder.core.cache import prune

    match = re.fullmatch(r"(\d+)([hd])", older)
    if not match:
        raise ArgumentError(f"--older = {older!r} is no span of time.", "For example 12h or 30d.")
    seconds = int(match[1]) * (3600 if match[2] == "h" else 86400)
    typer.echo(f"{prune(seconds) / 2**20:,.0f} MiB freed")


@cache_app.command("clear")
def cache_clear() -> None:
    """Drop everything."""
    from beholder.core.cache import clear

    typer.echo(f"{clear() / 2**20:,.0f} MiB freed")

"""`index` and `find`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from beholder.core.errors import ArgumentError

from .app import DATA, MODEL, OUTPUT, SYSTEMS, WORK, app, listed, option


@app.command(context_settings=SYSTEMS)
def index(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(help="Data as in `study`.", show_default=False)],
    out: Annotated[Path, option(OUTPUT, "Directory of the index.", "--out", "-o")],
    model: Annotated[
        str | None, option(MODEL, "What makes the vectors: a timm name, a run.", "--model", "-m")
    ] = None,
    retriever: Annotated[str, option(MODEL, "exact.", "--retriever")] = "exact",
    seed: Annotated[int, option(WORK, "Of random weights (0).", "--seed")] = 0,
    device: Annotated[str, option(WORK, "auto, cpu, cuda, mps.", "--device")] = "auto",
    as_json: Annotated[bool, option(OUTPUT, "JSON on stdout, nothing else.", "--json")] = False,
) -> None:
    """Make an index of images, to be asked with `find`.

    Further options are those of the retriever: `beholder index photos --out idx --spatial 4`.
    """
    from beholder.core.registry import find as find_system
    from beholder.core.registry import parse_flags
    from beholder.retrieve.verb import index as run

    target = find_system("retriever", retriever).load()
    options = parse_flags(ctx.args, {"retriever": target})["retriever"]
    made = run(data, out, model, retriever=retriever, options=options, device=device, seed=seed)
    skipped = made.skipped.rows()
    if as_json:
        told = {"index": str(out), "images": len(made), "skipped": dict(skipped)}
        sys.stdout.write(json.dumps(told, ensure_ascii=False, sort_keys=True) + "\n")
        return
    left_out = f"; {len(skipped):,} could not be indexed" if skipped else ""
    typer.echo(f"{len(made):,} images in {out}{left_out}.")
    for id, reason in skipped:
        typer.echo(f"  {id}: {reason}")


@app.command()
def find(
    index: Annotated[Path, typer.Argument(help="Directory of an index.", show_default=False)],
    query: Annotated[
        str,
        typer.Argument(help="An image file; or words, for a model of words.", show_default=False),
    ],
    k: Annotated[int, option(DATA, "At most so many hits (20).", "--k", "-k")] = 20,
    where: Annotated[
        str | None, option(DATA, "COLUMN=VALUE, comma separated, of a hit.", "--where")
    ] = None,
    device: Annotated[str, option(WORK, "auto, cpu, cuda, mps.", "--device")] = "auto",
    as_json: Annotated[bool, option(OUTPUT, "JSON on stdout, nothing else.", "--json")] = False,
) -> None:
    """The images of an index that are nearest to a query."""
    from beholder.retrieve.verb import find as run

    hits = run(index, query, k=k, where=_pairs(where), device=device).table
    if as_json:
        sys.stdout.write(json.dumps(hits.to_dicts(), ensure_ascii=False) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not len(hits):
        console.print("Nothing in the index fits.")
        return
    best = hits.row(0, named=True)
    said = (
        f"{len(hits)} hits; the nearest is {best['path']}, at a cosine of {best['similarity']:.3f}."
    )
    console.print(said, markup=False, highlight=False)
    shown = [name for name in hits.columns if name != "id" and hits[name].null_count() < len(hits)]
    table = Table(*shown, box=None, pad_edge=False)
    for row in hits.select(shown).iter_rows():
        table.add_row(*(Text(f"{x:.3f}" if isinstance(x, float) else str(x)) for x in row))
    console.print(table)


def _pairs(where: str | None) -> dict[str, str]:
    found = {}
    for part in listed(where) or ():
        column, equals, value = part.partition("=")
        if not equals:
            raise ArgumentError(f"--where {part!r} is no COLUMN=VALUE.", "For example label=cat.")
        found[column.strip()] = value.strip()
    return found

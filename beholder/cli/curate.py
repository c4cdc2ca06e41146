"""`curate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beholder.core.errors import ArgumentError

from .app import DATA, JUDGE, MODEL, OUTPUT, SYSTEMS, WORK, app, option

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

SHOWN = 10  # dropped images in the table


@app.command(context_settings=SYSTEMS)
def curate(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(help="Data as in `study`.", show_default=False)],
    method: Annotated[
        str,
        option(JUDGE, "label_errors, duplicates, outliers, random, k_centre ...", "--method"),
    ],
    budget: Annotated[
        str | None, option(JUDGE, "Keep a share (0.3) or a count (500).", "--budget")
    ] = None,
    model: Annotated[
        str | None,
        option(MODEL, "A timm encoder or a run; the embedded encoder.", "--model", "-m"),
    ] = None,
    format: Annotated[
        str | None, option(DATA, "Skip the detection of the form.", "--format")
    ] = None,
    label_column: Annotated[
        str | None, option(DATA, "Column with the label.", "--label-column")
    ] = None,
    source_column: Annotated[
        str | None, option(DATA, "Column of what belongs together.", "--source-column")
    ] = None,
    seed: Annotated[int, option(JUDGE, "Of all that is chance (0).", "--seed")] = 0,
    device: Annotated[str, option(WORK, "auto, cpu, cuda, mps.", "--device")] = "auto",
    workers: Annotated[int, option(WORK, "Reading threads (2).", "--workers")] = 2,
    no_cache: Annotated[
        bool, option(WORK, "Neither read nor write the cache.", "--no-cache")
    ] = False,
    out: Annotated[
        Path | None, option(OUTPUT, "The manifest (runs/DATA-METHOD.parquet).", "--out", "-o")
    ] = None,
    sheet: Annotated[
        Path | None, option(OUTPUT, "Picture of the worst of what is dropped.", "--sheet")
    ] = None,
    quiet: Annotated[bool, option(OUTPUT, "No progress.", "--quiet", "-q")] = False,
    as_json: Annotated[bool, option(OUTPUT, "JSON on stdout, nothing else.", "--json")] = False,
) -> None:
    """Which images to use, and what is wrong with the others? Writes a manifest, never an image.

    Further options are those of the method: `beholder curate DATA --method random --per-class`.
    """
    from beholder.core.files import write_atomic
    from beholder.core.registry import find, parse_flags
    from beholder.curate import curate as run
    from beholder.data.sources import open_images
    from beholder.evaluate.report.terminal import Progress

    entry = find("curator", method)
    options = parse_flags(ctx.args, {"curator": entry.load()})["curator"]
    images = open_images(
        data, format=format, label_column=label_column, source_column=source_column
    )
    manifest = run(
        images,
        entry.name,
        model,
        None if budget is None else _budget(budget),
        seed=seed,
        device=device,
        workers=workers,
        cache=not no_cache,
        stage=Progress(quiet=quiet or as_json).stage,
        **options,
    )
    place = out or Path("runs") / f"{images.name}-{entry.name}.parquet"
    manifest.save(place)
    if sheet is not None:
        picture = manifest.contact_sheet()
        write_atomic(sheet, lambda stream: picture.save(stream, "PNG"))
    section = manifest.report()
    if as_json:
        sys.stdout.write(json.dumps(section.to_dict(), ensure_ascii=False, sort_keys=True) + "\n")
        return
    from rich.console import Console

    console = Console()
    console.print(section.finding, markup=False, highlight=False)
    for name in ("self_test", "reasons", "dropped"):
        if name in section.tables and len(section.frame(name)):
            console.print()
            console.print(_table(section.frame(name).head(SHOWN)))
    for note in section.assumptions:
        console.print(note, style="dim", markup=False, highlight=False)
    kept = f"{manifest.kept:,} of {len(manifest):,} kept"
    console.print(f"\n{place}: {kept}", markup=False, highlight=False, soft_wrap=True)


def _budget(text: str) -> float:
    """'500' is a count, '0.3' and '1.0' are shares."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise ArgumentError(
            f"--budget {text!r} is no number.", "Give 0.3 for 30 %, or 300 images."
        ) from error


def _table(frame: pl.DataFrame) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    shown = [name for name in frame.columns if frame[name].count()]
    for name in shown:
        justify = "right" if frame[name].dtype.is_numeric() else "left"
        table.add_column(name.replace("_", " "), justify=justify)
    for row in frame.select(shown).iter_rows():
        cells = ["" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x) for x in row]
        table.add_row(*map(Text, cells))
    return table

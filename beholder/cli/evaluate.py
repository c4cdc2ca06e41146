"""`evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import DATA, JUDGE, MODEL, OUTPUT, SYSTEMS, WORK, app, listed, option

if TYPE_CHECKING:
    from rich.console import Console

    from beholder.core.sections import Section

ROWS = 20


@app.command(context_settings=SYSTEMS)
def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A run, a timm name, local-dir:DIR, untrained:NAME, a .onnx or .pt2.",
            show_default=False,
        ),
    ],
    data: Annotated[str, typer.Argument(help="Data as in `study`.", show_default=False)],
    benchmark: Annotated[
        str | None, option(JUDGE, "Benchmarks, comma separated; see `systems`.", "--benchmark")
    ] = None,
    probe: Annotated[
        str | None,
        option(JUDGE, "linear, linear_sgd, knn, layers, svm, comma separated.", "--probe"),
    ] = None,
    compare: Annotated[
        list[str] | None, option(MODEL, "Another model; may be said again.", "--compare")
    ] = None,
    classes: Annotated[
        str | None, option(MODEL, "Names of its outputs, comma separated.", "--classes")
    ] = None,
    class_map: Annotated[
        Path | None, option(MODEL, "CSV: data_class, model_class.", "--class-map")
    ] = None,
    by_position: Annotated[bool, option(MODEL, "Output i is class i.", "--by-position")] = False,
    limit: Annotated[int | None, option(DATA, "At most so many images.", "--limit")] = None,
    seed: Annotated[int, option(WORK, "Of subset, split, chance (0).", "--seed")] = 0,
    device: Annotated[str, option(WORK, "auto, cpu, cuda, mps.", "--device")] = "auto",
    out: Annotated[
        Path | None, option(OUTPUT, "Directory for results.json and records.", "--out", "-o")
    ] = None,
    as_json: Annotated[bool, option(OUTPUT, "JSON on stdout, nothing else.", "--json")] = False,
) -> None:
    """The figures of a model on images: accuracy and calibration, benchmarks, or probes.

    Further options are those of the benchmark: `--benchmark augmentation_effect --eps .02`.
    """
    from beholder.core.registry import find, parse_flags
    from beholder.evaluate.verb import evaluate as run

    names = [find("benchmark", name).name for name in listed(benchmark) or ()]
    kinds = listed(probe) or ()
    chosen = {name: find("benchmark", name).load() for name in (*names, *["probes"][: len(kinds)])}
    found = run(
        model,
        data,
        benchmark=names,
        probe=kinds,
        compare=compare or [],
        classes=listed(classes),
        class_map=class_map,
        by_position=by_position,
        limit=limit,
        seed=seed,
        device=device,
        out=out,
        options=parse_flags(ctx.args, chosen),
    )
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict(), ensure_ascii=False, sort_keys=True) + "\n")
        return
    from rich.console import Console

    console = Console()
    for number, section in enumerate(found.sections):
        if number:
            console.print()
        show(section, console)


def show(section: Section, console: Console) -> None:
    """Its finding, its tables at `ROWS` rows each, what was assumed."""
    from rich.table import Table
    from rich.text import Text

    from beholder.evaluate.report.tables import view

    console.print(section.finding, markup=False, highlight=False)
    for name, content in section.tables.items():
        seen = view(name, content.frame, content.units)
        table = Table(box=None, pad_edge=False, title=seen.caption, title_justify="left")
        for head in seen.heads:
            table.add_column(Text(head.title), justify="right" if head.numeric else "left")
        for row in seen.rows[:ROWS]:
            table.add_row(*(Text(cell.text) for cell in row))
        console.print()
        console.print(table)
        if seen.total > ROWS:
            console.print(f"... {seen.total - ROWS:,} more rows with --json", style="dim")
    for note in section.assumptions:
        console.print(note, style="dim", markup=False, highlight=False)

"""`explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from beholder.core.errors import ArgumentError

from .app import DATA, JUDGE, MODEL, OUTPUT, SYSTEMS, WORK, app, listed, option


@app.command(context_settings=SYSTEMS)
def explain(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A run directory, a timm name, local-dir:DIR, untrained:NAME.", show_default=False
        ),
    ],
    images: Annotated[
        str, typer.Argument(help="An image, or data as in `study`.", show_default=False)
    ],
    method: Annotated[
        str, option(MODEL, "Explainers, comma separated (gradcam).", "--method")
    ] = "gradcam",
    target: Annotated[
        str | None, option(MODEL, "The class to explain (the answer).", "--target")
    ] = None,
    neuron: Annotated[
        str | None, option(MODEL, "LAYER:UNIT, in place of a class.", "--neuron")
    ] = None,
    limit: Annotated[int | None, option(DATA, "At most so many images (8).", "--limit")] = None,
    steps: Annotated[
        int | None, option(JUDGE, "Steps of deletion and insertion (16); 0 = none.", "--steps")
    ] = None,
    seed: Annotated[int, option(WORK, "Of the maps compared with (0).", "--seed")] = 0,
    device: Annotated[str, option(WORK, "auto, cpu, cuda, mps.", "--device")] = "auto",
    out: Annotated[Path, option(OUTPUT, "Directory (explained).", "--out", "-o")] = Path(
        "explained"
    ),
    as_json: Annotated[bool, option(OUTPUT, "JSON on stdout, nothing else.", "--json")] = False,
) -> None:
    """Where do a model's answers come from?

    Further options are those of the method: `beholder explain RUN cat.jpg --counterfactual`.
    """
    from beholder.core.registry import find, parse_flags
    from beholder.explain.targets import Neuron
    from beholder.explain.verb import LIMIT, STEPS
    from beholder.explain.verb import explain as run

    names = listed(method) or ()
    chosen = {name.replace("-", "_"): find("explainer", name).load() for name in names}
    options = parse_flags(ctx.args, chosen)
    if neuron is not None and target is not None:
        raise ArgumentError("--target and --neuron exclude each other.")
    explained = run(
        model,
        images,
        [made(**options[name]) for name, made in chosen.items()],
        target if neuron is None else Neuron(*_unit(neuron)),
        out=out,
        limit=LIMIT if limit is None else limit,
        steps=STEPS if steps is None else steps,
        seed=seed,
        device=device,
    )
    section = explained.section()
    if as_json:
        sys.stdout.write(json.dumps(section.to_dict(), ensure_ascii=False, sort_keys=True) + "\n")
        return
    from rich.console import Console

    console = Console()
    console.print(section.finding, markup=False, highlight=False)
    console.print()
    console.print(_table(section.frame("methods")))
    for note in section.assumptions:
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(f"\n{out / 'explanations.html'}", markup=False, highlight=False, soft_wrap=True)


def _unit(text: str) -> tuple[str, int]:
    layer, _, unit = text.rpartition(":")
    if not layer or not unit.isdecimal():
        raise ArgumentError(f"--neuron {text!r} is no unit.", "For example layer4:17.")
    return layer, int(unit)


def _table(frame: Any) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in frame.columns:
        right = column != "method"
        table.add_column(column.replace("_", " "), justify="right" if right else "left")
    for row in frame.iter_rows():
        cells = ["–" if x is None else f"{x:.3f}" if isinstance(x, float) else str(x) for x in row]
        table.add_row(*map(Text, cells))
    return table

"""`train` and `pretrain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beholder.core.errors import ArgumentError

from .app import DATA, MODEL, OUTPUT, SYSTEMS, WORK, app, option

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from beholder.train.verb import Trained

Data = Annotated[str, typer.Argument(help="Data as in `study`.", show_default=False)]
Backbone = Annotated[
    str | None, option(MODEL, "A timm name or one of ours (the embedded encoder).", "--backbone")
]
From = Annotated[Path | None, option(MODEL, "A run whose weights are the first.", "--from")]
Pretrained = Annotated[
    bool | None,
    option(
        MODEL,
        "First weights from the hub, or random ones (random for a --backbone).",
        "--pretrained/--random",
    ),
]
Weight = Annotated[
    list[str] | None, option(MODEL, "Weight of a loss term, term=0.5; repeat it.", "--weight")
]
Manifest = Annotated[Path | None, option(DATA, "Of `curate`: what to leave out.", "--manifest")]
ImageSize = Annotated[int | None, option(DATA, "Side in px (as the images).", "--image-size")]
Epochs = Annotated[int | None, option(WORK, "Passes over the data (20).", "--epochs")]
BatchSize = Annotated[int | None, option(WORK, "Images at once (64).", "--batch-size")]
Lr = Annotated[float | None, option(WORK, "Learning rate at its peak.", "--lr")]
Optimiser = Annotated[
    str | None, option(WORK, "adamw (default), sgd, rmsprop, lars, lamb.", "--optimiser")
]
Decay = Annotated[float | None, option(WORK, "Weight decay (0.05).", "--weight-decay")]
Layers = Annotated[float | None, option(WORK, "Factor of the rate per layer.", "--layer-decay")]
Warmup = Annotated[float | None, option(WORK, "Epochs of warm-up (1).", "--warmup")]
Accumulate = Annotated[int | None, option(WORK, "Batches per step (1).", "--accumulate")]
Clip = Annotated[float | None, option(WORK, "Largest norm of the gradient.", "--clip")]
Ema = Annotated[float | None, option(WORK, "Average the weights with this decay.", "--ema")]
Patience = Annotated[
    int | None, option(WORK, "End after so many epochs without a better one.", "--patience")
]
Precision = Annotated[str | None, option(WORK, "32-true, bf16-mixed, 16-mixed.", "--precision")]
Device = Annotated[str | None, option(WORK, "auto, cpu, cuda, mps.", "--device")]
Devices = Annotated[int | None, option(WORK, "Processes or GPUs (1).", "--devices")]
Workers = Annotated[int | None, option(WORK, "Reading processes.", "--workers")]
Compile = Annotated[bool | None, option(WORK, "Compile the backbone.", "--compile")]
MaxTime = Annotated[float | None, option(WORK, "Stop after so many minutes.", "--max-time")]
Seed = Annotated[int | None, option(WORK, "Of everything that is drawn (0).", "--seed")]
Out = Annotated[Path | None, option(OUTPUT, "Run directory.", "--out", "-o")]
Quiet = Annotated[bool, option(OUTPUT, "No progress.", "--quiet", "-q")]
Json = Annotated[bool, option(OUTPUT, "JSON on stdout, nothing else.", "--json")]


@app.command(context_settings=SYSTEMS)
def train(
    ctx: typer.Context,
    data: Data,
    backbone: Backbone = None,
    start: From = None,
    pretrained: Pretrained = None,
    objective: Annotated[
        str, option(MODEL, "What is minimised (classification); a+b = both.", "--objective")
    ] = "classification",
    weight: Weight = None,
    augment: Annotated[
        str | None, option(DATA, "Mix images: cutmix, mixup, a+b ...", "--augment")
    ] = None,
    manifest: Manifest = None,
    image_size: ImageSize = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    optimiser: Optimiser = None,
    weight_decay: Decay = None,
    layer_decay: Layers = None,
    warmup: Warmup = None,
    accumulate: Accumulate = None,
    clip: Clip = None,
    ema: Ema = None,
    patience: Patience = None,
    precision: Precision = None,
    device: Device = None,
    devices: Devices = None,
    workers: Workers = None,
    compile: Compile = None,
    max_time: MaxTime = None,
    seed: Seed = None,
    out: Out = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model on my images; the same command goes on where it was stopped.

    Further options are those of the objective and the augmentation: `--smoothing 0.1`.
    """
    from beholder.train.verb import train as run

    trained = run(
        data,
        backbone,
        objective,
        augment,
        "auto" if pretrained is None else ("pretrained" if pretrained else "random"),
        start=start,
        manifest=manifest,
        image_size=image_size,
        shares=_shares(weight),
        options=_options(ctx.args, objective, augment),
        out=out,
        quiet=quiet or as_json,
        **_given(ctx),
    )
    _show(trained, as_json)


@app.command(context_settings=SYSTEMS)
def pretrain(
    ctx: typer.Context,
    data: Data,
    backbone: Backbone = None,
    start: From = None,
    pretrained: Pretrained = None,
    objective: Annotated[
        str, option(MODEL, "What is minimised (barlow_twins); a+b = both.", "--objective")
    ] = "barlow_twins",
    weight: Weight = None,
    manifest: Manifest = None,
    image_size: ImageSize = None,
    stop_on_collapse: Annotated[
        bool, option(WORK, "Exit 3 where the features collapse.", "--stop-on-collapse")
    ] = False,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    optimiser: Optimiser = None,
    weight_decay: Decay = None,
    layer_decay: Layers = None,
    warmup: Warmup = None,
    accumulate: Accumulate = None,
    clip: Clip = None,
    ema: Ema = None,
    patience: Patience = None,
    precision: Precision = None,
    device: Device = None,
    devices: Devices = None,
    workers: Workers = None,
    compile: Compile = None,
    max_time: MaxTime = None,
    seed: Seed = None,
    out: Out = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train an encoder on my images without their labels, and watch it for collapse.

    Further options are those of the objective: `--projector 512,512`.
    """
    from beholder.train.verb import pretrain as run

    trained = run(
        data,
        backbone,
        objective,
        "pretrained" if pretrained else "random",
        start=start,
        manifest=manifest,
        image_size=image_size,
        shares=_shares(weight),
        options=_options(ctx.args, objective, None),
        stop_on_collapse=stop_on_collapse,
        out=out,
        quiet=quiet or as_json,
        **_given(ctx),
    )
    _show(trained, as_json)


SETTINGS = (
    *("epochs", "batch_size", "lr", "optimiser", "weight_decay", "layer_decay", "warmup"),
    *("accumulate", "clip", "ema", "patience", "precision", "device", "devices", "workers"),
    *("compile", "seed"),
)
"""Options that are fields of `TrainConfig`."""


def _given(ctx: typer.Context) -> dict[str, Any]:
    """The settings that were written."""
    given = {name: ctx.params[name] for name in SETTINGS if ctx.params[name] is not None}
    if ctx.params["max_time"] is not None:
        given["max_time"] = 60 * ctx.params["max_time"]
    return given


def _options(words: list[str], objective: str, augment: str | None) -> dict[str, dict[str, Any]]:
    """The left-over words, as arguments of the systems that are chosen."""
    from beholder.core.registry import find, parse_flags

    chosen = {name: find("objective", name).load() for name in _names(objective)}
    chosen |= {name: find("augmentation", name).load() for name in _names(augment or "")}
    return parse_flags(words, chosen)


def _names(text: str) -> list[str]:
    return [name.strip().replace("-", "_") for name in text.split("+") if name.strip()]


def _shares(words: list[str] | None) -> dict[str, float]:
    """`term=0.5` of every --weight."""
    shares = {}
    for word in words or ():
        name, _, number = word.partition("=")
        try:
            shares[name.replace("-", "_")] = float(number)
        except ValueError as error:
            raise ArgumentError(f"--weight {word} is no weight.", "Like rotnet=0.5.") from error
    return shares


def _show(trained: Trained, as_json: bool) -> None:
    """The sentence, the figures, the place."""
    section = trained.section()
    if as_json:
        facts = section.to_dict() | {"directory": str(trained.directory)}
        sys.stdout.write(json.dumps(facts, ensure_ascii=False, sort_keys=True) + "\n")
        return
    from rich.console import Console

    console = Console()
    console.print(section.finding, markup=False, highlight=False)
    console.print()
    console.print(_table(section.frame("figures")))
    for note in section.assumptions:
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(f"\n{trained.directory}", markup=False, highlight=False, soft_wrap=True)


def _table(frame: pl.DataFrame) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in frame.columns:
        table.add_column(
            "" if name == "part" else name, justify="left" if name in ("part", "name") else "right"
        )
    for row in frame.iter_rows():
        table.add_row(*(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row))
    return table

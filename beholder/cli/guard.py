"""`guard fit`, `guard score`, `guard compare`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import DATA, JUDGE, MODEL, OUTPUT, SYSTEMS, WORK, app, listed, option

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from beholder.core.sections import Section
    from beholder.trust.detectors.base import Detector

WORST = 10

guard = typer.Typer(help="Refuse images that a model should not be asked.", no_args_is_help=True)
app.add_typer(guard, name="guard")

References = Annotated[
    str, typer.Argument(help="Trusted images: data as in `study`.", show_default=False)
]
Classes = Annotated[
    str | None,
    option(DATA, "Classes of REFERENCES that are trusted, comma separated (all).", "--class"),
]
Against = Annotated[
    str | None, option(DATA, "Untrustworthy images that the detector learns from.", "--against")
]
Model = Annotated[
    str | None, option(MODEL, "Takes the features (the embedded encoder).", "--model", "-m")
]
Seed = Annotated[int, option(JUDGE, "Of what is kept aside (0).", "--seed")]
Device = Annotated[str, option(WORK, "auto, cpu, cuda, mps.", "--device")]
Json = Annotated[bool, option(OUTPUT, "JSON on stdout, nothing else.", "--json")]


@guard.command(context_settings=SYSTEMS)
def fit(
    ctx: typer.Context,
    references: References,
    detector: Annotated[
        str, option(MODEL, "Detector (gaussian_ad); see `beholder systems`.", "--detector")
    ] = "gaussian_ad",
    classes: Classes = None,
    against: Against = None,
    model: Model = None,
    fpr: Annotated[
        float, option(JUDGE, "Share of good images that may be refused (.05).", "--fpr")
    ] = 0.05,
    calibration: Annotated[
        float, option(JUDGE, "Share kept aside for the threshold (.2).", "--calibration")
    ] = 0.2,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, option(OUTPUT, "Directory (guard).", "--out", "-o")] = Path("guard"),
    as_json: Json = False,
) -> None:
    """Learn what images are like that can be trusted.

    Further options are those of the detector: `beholder guard fit good/ --levels stage4`.
    """
    from beholder.trust.guard import fit as run

    with _progress(as_json) as progress:
        fitted = run(
            references,
            _made([detector], ctx.args)[0],
            classes=listed(classes) or (),
            against=against,
            model=model,
            fpr=fpr,
            calibration=calibration,
            seed=seed,
            device=device,
            out=out,
            progress=progress,
        )
    facts = {
        "detector": fitted.called,
        "fpr": fpr,
        "threshold": fitted.threshold(fpr),
        "references": fitted.references,
        "out": str(out),
    }
    if as_json:
        sys.stdout.write(json.dumps(facts, sort_keys=True) + "\n")
        return
    known = fitted.references or {}
    typer.echo(
        f"{fitted.called} fitted on {known['count']:,} images; by {known['aside']:,} others it "
        f"refuses scores above {facts['threshold']:.4g}, at most {100 * fpr:g} % of images like "
        f"these.\n\n{out}\nNext: beholder guard score {out} IMAGES"
    )


@guard.command()
def score(
    place: Annotated[
        Path, typer.Argument(metavar="GUARD", help="What `guard fit` wrote.", show_default=False)
    ],
    images: Annotated[str, typer.Argument(help="Data as in `study`.", show_default=False)],
    fpr: Annotated[
        float | None, option(JUDGE, "Share of good images refused (as fitted).", "--fpr")
    ] = None,
    device: Device = "auto",
    out: Annotated[Path, option(OUTPUT, "Table (scores.parquet).", "--out", "-o")] = Path(
        "scores.parquet"
    ),
    as_json: Json = False,
) -> None:
    """Which of these images would be refused?"""
    from beholder.core.files import write_atomic
    from beholder.trust.guard import score as run

    with _progress(as_json) as progress:
        section = run(place, images, fpr=fpr, device=device, progress=progress)
    frame = section.frame("scores")
    write_atomic(out, lambda stream: frame.write_parquet(stream))
    _print(section, "scores", as_json, out, frame.sort("score", descending=True).head(WORST))


@guard.command(context_settings=SYSTEMS)
def compare(
    ctx: typer.Context,
    references: References,
    bad: Annotated[str, typer.Argument(help="Images to be refused.", show_default=False)],
    detector: Annotated[
        str, option(MODEL, "Detectors, comma separated (gaussian_ad,knn).", "--detector")
    ] = "gaussian_ad,knn",
    classes: Classes = None,
    bad_classes: Annotated[
        str | None, option(DATA, "Classes of BAD, comma separated (all).", "--bad-class")
    ] = None,
    against: Against = None,
    model: Model = None,
    fpr: Annotated[
        float, option(JUDGE, "Share of good images that may be refused (.05).", "--fpr")
    ] = 0.05,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path | None, option(OUTPUT, "The figures as JSON.", "--out", "-o")] = None,
    as_json: Json = False,
) -> None:
    """Which detector parts bad images from good ones best?

    Options of a detector are `--levels stage4`, or, where several have it, `--knn.k 3`.
    """
    from beholder.core.files import write_json
    from beholder.trust.guard import compare as run

    with _progress(as_json) as progress:
        section = run(
            references,
            bad,
            _made(listed(detector) or (), ctx.args),
            classes=listed(classes) or (),
            bad_classes=listed(bad_classes) or (),
            against=against,
            model=model,
            fpr=fpr,
            seed=seed,
            device=device,
            progress=progress,
        )
    if out is not None:
        write_json(out, section.to_dict())
    _print(section, "detectors", as_json, out, section.frame("detectors"))


def _made(names: tuple[str, ...] | list[str], words: list[str]) -> list[Detector]:
    """The detectors of these names, with their options out of the rest of the command line."""
    from beholder.core.registry import find, parse_flags

    chosen = {name.replace("-", "_"): find("detector", name).load() for name in names}
    options = parse_flags(words, chosen)
    return [made(**options[name]) for name, made in chosen.items()]


@contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[int], None]]:
    """Images done, on stderr."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description} {task.completed:,.0f} images"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done: bar.advance(task, done)


def _print(
    section: Section, name: str, as_json: bool, out: Path | None, frame: pl.DataFrame
) -> None:
    """One sentence, the table, notes, where the rest is."""
    if as_json:
        sys.stdout.write(json.dumps(section.to_dict(), ensure_ascii=False, sort_keys=True) + "\n")
        return
    from rich.console import Console

    console = Console()
    console.print(section.finding, markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(_worst(frame) if name == "scores" else _rates(section, frame))
    for note in (*section.method, *section.assumptions):
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"\n{out}", markup=False, highlight=False, soft_wrap=True)


def _worst(frame: pl.DataFrame) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("highest scores", "score", "p", "refused"):
        table.add_column(column, justify="left" if column == "highest scores" else "right")
    for id, score, p_value, refused in frame.iter_rows():
        cells = id, f"{score:.4g}", f"{p_value:.3f}", "yes" if refused else "no"
        table.add_row(*map(Text, cells))
    return table


def _rates(section: Section, frame: pl.DataFrame) -> Table:
    from rich.table import Table
    from rich.text import Text

    columns = {
        "auroc": "AUROC",
        "fpr95": "FPR95",
        "refused": "bad refused",
        "false_refusals": "good refused",
    }
    table = Table(box=None, pad_edge=False)
    for column in ("detector", *columns.values()):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for name in frame["detector"]:
        values = [section.values[f"{name}.{key}"] for key in columns]
        table.add_row(Text(name), *(Text(value.text()) for value in values))
    return table

"""`study` and `report`."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from beholder.core.errors import ArgumentError

from .app import DATA, JUDGE, MODEL, OUTPUT, WORK, app, listed, option

FAILED_ON = 6


@app.command()
def study(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a table, coco:ANN.json, wds:SHARDS, parquet:DIR, hf:NAME, or solar, "
            "textile, openmoji, digits, mnist5k, photos.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(MODEL, "A timm encoder, a run, local-dir:DIR, a .onnx or .pt2.", "--model", "-m"),
    ] = None,
    judge: Annotated[
        bool | None, option(MODEL, "Judge the timm model's own classifier.", "--judge")
    ] = None,
    harden: Annotated[
        bool | None,
        option(MODEL, "Train also on mildly changed copies, if that costs little.", "--harden"),
    ] = None,
    finetune: Annotated[
        bool | None, option(MODEL, "Train the last stages of the encoder too.", "--finetune")
    ] = None,
    finetune_budget: Annotated[
        float | None, option(MODEL, "Minutes for it (2 x --budget).", "--finetune-budget")
    ] = None,
    class_map: Annotated[
        Path | None, option(MODEL, "CSV: data_class, model_class.", "--class-map")
    ] = None,
    by_position: Annotated[
        bool | None, option(MODEL, "Output i is class i.", "--by-position")
    ] = None,
    preprocess: Annotated[
        Path | None, option(MODEL, "TOML or JSON: mean, std, scale, size.", "--preprocess")
    ] = None,
    crop: Annotated[str | None, option(MODEL, "squash (default) or center.", "--crop")] = None,
    device: Annotated[str | None, option(MODEL, "auto, cpu, cuda, mps.", "--device")] = None,
    format: Annotated[
        str | None, option(DATA, "Skip the detection of the form.", "--format")
    ] = None,
    label_column: Annotated[
        str | None, option(DATA, "Column with the label.", "--label-column")
    ] = None,
    source_column: Annotated[
        str | None,
        option(
            DATA, "Column of what must not straddle a split (patient, device).", "--source-column"
        ),
    ] = None,
    split_column: Annotated[
        str | None, option(DATA, "Column with train, val, test.", "--split-column")
    ] = None,
    classes: Annotated[
        str | None, option(DATA, "Names in order, comma separated.", "--classes")
    ] = None,
    root: Annotated[
        Path | None, option(DATA, "Folder that a table's paths start from.", "--root")
    ] = None,
    manifest: Annotated[
        str | None, option(DATA, "Only what this manifest of `curate` keeps.", "--manifest")
    ] = None,
    bins: Annotated[
        int | None, option(DATA, "Cut a measured label into so many classes.", "--bins")
    ] = None,
    max_pixels: Annotated[int | None, option(DATA, "Skip larger images.", "--max-pixels")] = None,
    target: Annotated[float | None, option(JUDGE, "Accuracy wanted, 0 to 1.", "--target")] = None,
    risk: Annotated[
        float | None, option(JUDGE, "Error wanted of the accepted answers.", "--risk")
    ] = None,
    latency_ms: Annotated[float | None, option(JUDGE, "Latency wanted.", "--latency-ms")] = None,
    fpr: Annotated[
        float | None, option(JUDGE, "Share of good images that may be refused (0.05).", "--fpr")
    ] = None,
    threat: Annotated[
        str | None, option(JUDGE, "adversarial: attackers are expected.", "--threat")
    ] = None,
    unknown: Annotated[
        str | None, option(JUDGE, "Images that must be refused.", "--unknown")
    ] = None,
    against: Annotated[
        Path | None, option(JUDGE, "A run to compare with, image by image.", "--against")
    ] = None,
    splits: Annotated[int | None, option(JUDGE, "Split seeds (3).", "--splits")] = None,
    seed: Annotated[int | None, option(JUDGE, "First seed (0).", "--seed")] = None,
    sections: Annotated[
        str | None, option(JUDGE, "Only these sections, comma separated.", "--sections")
    ] = None,
    without: Annotated[str | None, option(JUDGE, "All but these sections.", "--without")] = None,
    budget: Annotated[float | None, option(WORK, "Minutes (6); 0 = no limit.", "--budget")] = None,
    workers: Annotated[int | None, option(WORK, "Reading threads (2).", "--workers")] = None,
    no_cache: Annotated[
        bool, option(WORK, "Neither read nor write the cache.", "--no-cache")
    ] = False,
    config: Annotated[Path | None, option(WORK, "A run.toml to repeat.", "--config")] = None,
    out: Annotated[Path | None, option(OUTPUT, "Run directory.", "--out", "-o")] = None,
    overwrite: Annotated[
        bool | None, option(OUTPUT, "Replace another run there.", "--overwrite")
    ] = None,
    anonymous: Annotated[
        bool | None, option(OUTPUT, "No file names in the report.", "--anonymous")
    ] = None,
    strict: Annotated[
        bool | None, option(OUTPUT, "Exit 5 if a section failed.", "--strict")
    ] = None,
    fail_on: Annotated[
        str | None, option(OUTPUT, "Exit 6 from this severity on: look, act.", "--fail-on")
    ] = None,
    quiet: Annotated[bool, option(OUTPUT, "Only the verdict.", "--quiet", "-q")] = False,
    as_json: Annotated[
        bool, option(OUTPUT, "results.json on stdout, nothing else.", "--json")
    ] = False,
    open_report: Annotated[bool, option(OUTPUT, "Open the report in a browser.", "--open")] = False,
) -> None:
    """How good is a model on my images, and where and why does it fail?"""
    given = {
        "data": data,
        "model": model,
        "judge": judge,
        "harden": harden,
        "finetune": finetune,
        "finetune_budget": finetune_budget,
        "class_map": class_map,
        "by_position": by_position,
        "preprocess": preprocess,
        "crop": crop,
        "device": device,
        "format": format,
        "label_column": label_column,
        "source_column": source_column,
        "split_column": split_column,
        "classes": listed(classes),
        "root": root,
        "manifest": manifest,
        "bins": bins,
        "max_pixels": max_pixels,
        "target": target,
        "risk": risk,
        "fpr": fpr,
        "threat": threat,
        "unknown": unknown,
        "against": against,
        "latency_ms": latency_ms,
        "splits": splits,
        "seed": seed,
        "sections": listed(sections),
        "without": listed(without),
        "budget": budget,
        "workers": workers,
        "cache": False if no_cache else None,
        "out": out,
        "overwrite": overwrite,
        "anonymous": anonymous,
        "strict": strict,
        "fail_on": fail_on,
    }
    values = _configured(config) | {name: x for name, x in given.items() if x is not None}
    if "data" not in values:
        raise ArgumentError("There is no DATA.", "For example: beholder study solar")
    values.pop("quiet", None)
    from rich.console import Console

    from beholder.evaluate.report.terminal import render
    from beholder.study import study as run

    report = run(values.pop("data"), values.pop("model", None), quiet=quiet or as_json, **values)
    if as_json:
        sys.stdout.write(json.dumps(report.to_dict(), ensure_ascii=False, sort_keys=True) + "\n")
    else:
        render(report, Console(), quiet=quiet)
    if open_report:
        report.open()
    order = ("none", "good", "look", "act")
    wanted = values.get("fail_on")
    if wanted and order.index(report.severity) >= order.index(wanted):
        raise typer.Exit(FAILED_ON)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
) -> None:
    """Draw a run's report again, from its records alone."""
    from rich.console import Console

    from beholder.evaluate.report import Report
    from beholder.evaluate.report.terminal import render

    found = Report.load(run)
    found.save(run)
    render(found, Console())


def _configured(path: Path | None) -> dict[str, Any]:
    """The options of a `run.toml`."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ArgumentError(f"--config {path}: {error}.") from error

"""The last part of a report: what was measured on what, and how to repeat it.

The section `method` brings the definitions and everything that only the study knows.
"""

from __future__ import annotations

import shlex

import polars as pl

from .report import Report
from .results import SCHEMA

UNITS = {"image": "image", "source": "source", "copy_group": "group of copies"}

FILES = {
    "results.json": "every figure of this report, for machines",
    "report.md": "the findings as text",
    "predictions.parquet": "one row per image: label, answer, probabilities, measures",
    "records": "each section whole, with the data of its figures",
    "skipped.csv": "images that could not be used, and why",
    "label_issues.parquet": "labels that look wrong; its column `verdict` takes your review",
    "duplicates.parquet": "groups of copies",
    "label_first.csv": "images that are most worth a label, in their order",
    "model.safetensors": "backbone and a linear classifier; opens in plain timm",
    "head.safetensors": "the selected head",
    "run.toml": "every option of this run; repeats it",
    "environment.json": "versions and machine",
}


def facts(report: Report) -> list[tuple[str, str]]:
    """Names and sentences: split, model, budget, versions, command."""
    split, model, data, budget = report.split, report.model_facts, report.data, report.budget
    kinds = {"holdout": "held out", "given": "given with the data", "cross_fit": "cross-fitted"}
    parts = [f"{split.train:,} training", *([f"{split.val:,} validation"] if split.val else [])]
    folds = f", {split.folds} folds" if split.folds else ""
    seeds = ", ".join(str(seed) for seed in split.seeds or [split.seed])
    lines = [
        (
            "Split",
            f"{kinds[split.kind]}{folds}: {', '.join(parts)} and {split.test:,} test images in "
            f"{split.units:,} units; seeds {seeds}",
        )
    ]
    if model.name:
        head = f", head {model.head.name}" if model.head else ""
        size = f", input {model.input[0]} x {model.input[1]}" if any(model.input) else ""
        lines.append(("Model", f"{model.name} ({model.origin}){head}{size}"))
        if model.parameters:
            macs = f", {model.macs / 1e6:,.0f} million multiply-adds" if model.macs else ""
            lines.append(("Size", f"{model.parameters:,} parameters{macs}"))
        if model.weights_hash:
            lines.append(("Weights", model.weights_hash))
        if model.preprocessing:
            steps = ", ".join(
                f"{key} {_listed(value)}" for key, value in sorted(model.preprocessing.items())
            )
            lines.append(("Preprocessing", steps))
        lines.append(("Class names", f"matched: {model.class_match}"))
    lines.append(("Data", f"{data.format or 'folder'}, fingerprint {data.fingerprint or 'none'}"))
    limit = f"of {budget.limit_s:,.0f} s allowed" if budget.limit_s else "without a limit"
    lines.append(("Time", f"{budget.used_s:,.0f} s {limit}"))
    lines.append(("Versions", f"beholder {report.beholder}, results {SCHEMA}"))
    lines.append(("Made", report.created))
    if report.command and "method" not in report:
        lines.append(("Command", shlex.join(report.command)))
    cite = f"beholder {report.beholder}, study of {data.name}, {report.created[:10]}"
    lines.append(("How to cite", f"{cite}, data {data.fingerprint[:12] or 'without fingerprint'}"))
    return lines


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def effort(report: Report) -> pl.DataFrame:
    """One row per measured section: how much it judged, was allowed, and took."""
    rows = [
        (
            section.title,
            section.n,
            UNITS[section.unit],
            section.budget.used,
            section.budget.wanted,
            section.budget.what,
            round(1000 * section.budget.seconds),
        )
        for section in report.sections
        if section.status in ("measured", "reduced") and section.id != "method"
    ]
    names = ["section", "n", "unit", "used", "wanted", "of", "time_ms"]
    types = [pl.String, pl.Int64, pl.String, pl.Int64, pl.Int64, pl.String, pl.Int64]
    return pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")


def files(report: Report) -> list[tuple[str, str]]:
    """The files of the run that lie beside the report, with what they hold."""
    named = ["results.json", "report.md", "records", "predictions.parquet"]
    for section in report.sections:
        named += [name for name in section.files if name not in named]
    return [(name, FILES.get(name, "")) for name in named]

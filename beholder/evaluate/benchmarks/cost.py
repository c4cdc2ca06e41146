"""What an answer costs in time and memory, by engine (specs/study.md, 4.15)."""

from __future__ import annotations

from typing import Any

import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Figure, Section, Severity, Table, Unit, Value

from .base import Evidence, section

WHOLE = ("end to end", "single pass")  # rows that are no engine of the deployed model
EQUAL_ENOUGH = 0.999
COLUMNS = (
    "engine",
    "batch",
    "latency_p50_ms",
    "latency_p90_ms",
    "images_per_s",
    "memory_mb",
    "max_difference",
    "equal_answers",
)


def finding(row: dict[str, Any], limit: float | None) -> tuple[Severity, str]:
    """Severity only against a wanted latency: p90 within it good, only p50 look, neither act.

    Args:
        row: engine, latency_p50_ms, latency_p90_ms, images_per_s, memory_mb.
        limit: milliseconds wanted, or None.
    """
    p50, p90 = float(row["latency_p50_ms"] or 0), float(row["latency_p90_ms"] or 0)
    parts = [f"{p50:.3g} ms"]
    if row["images_per_s"] is not None:
        parts.append(f"{float(row['images_per_s']):.3g} images/s ({row['engine']})")
    if row["memory_mb"] is not None:
        parts.append(f"{float(row['memory_mb']):,.0f} MiB")
    said = ", ".join(parts)
    if limit is None:
        return "none", f"{said}."
    if p90 <= limit:
        return "good", f"{said}; within {limit:g} ms in nine of ten runs."
    if p50 <= limit:
        return "look", f"{said}; one run in ten takes more than {limit:g} ms ({p90:.3g})."
    return "act", f"{said}; slower than the {limit:g} ms wanted."


def measured_or_why(evidence: Evidence) -> str | None:
    """The sentence where no engine was timed, else None."""
    if evidence.cost is None or not len(evidence.cost):
        return "No model was timed."
    timed = evidence.cost.filter(~pl.col("engine").is_in(WHOLE))["latency_p50_ms"]
    return None if timed.count() else "No engine is installed that could be timed."


def fastest(cost: pl.DataFrame) -> dict[str, Any]:
    """The engine of the smallest latency for one image; throughput is its best over batches.

    Engines that answer differently on more than one image in a thousand do not count.
    """
    usable = cost.filter(
        ~pl.col("engine").is_in(WHOLE)
        & pl.col("latency_p50_ms").is_not_null()
        & (pl.col("equal_answers").fill_null(1.0) >= EQUAL_ENOUGH)
    )
    if not len(usable):
        usable = cost.filter(pl.col("latency_p50_ms").is_not_null())
    single = usable.filter(pl.col("batch") == usable["batch"].min())
    row = single.sort("latency_p50_ms").row(0, named=True)
    own = usable.filter(pl.col("engine") == row["engine"])
    return row | {"images_per_s": own["images_per_s"].max(), "memory_mb": own["memory_mb"].max()}


def marked(cost: pl.DataFrame) -> pl.DataFrame:
    """The table as shown; an engine that answers differently says so in its note."""
    differs = pl.col("equal_answers").fill_null(1.0) < EQUAL_ENOUGH
    note = (
        pl.when(differs & (pl.col("note").fill_null("") == ""))
        .then(pl.lit("answers differ"))
        .when(differs)
        .then(pl.format("{}; answers differ", "note"))
        .otherwise(pl.col("note"))
    )
    return cost.select(*COLUMNS, note.alias("note"))


@section("cost", "Cost", needs=measured_or_why)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Latency, throughput and memory of each engine, as deployed."""
    cost = evidence.cost
    assert cost is not None
    best = fastest(cost)
    severity, sentence = finding(best, options.latency_ms)
    bars = marked(cost).filter(pl.col("latency_p50_ms").is_not_null())
    bars = bars.filter(pl.col("batch") == bars["batch"].min())
    environment = evidence.environment
    method = [
        "As deployed: where an image and its mirror are both judged, an answer costs two passes; "
        "'single pass' is the model without the mirror.",
        "Latency: median (p50) and nine tenths (p90) of repeated runs on one image after a "
        "warm-up; 'end to end' includes reading and preparing the image.",
        "Memory: the greatest resident size of a process of its own, less what imports take.",
    ]
    load, cores = environment.get("load_at_start"), environment.get("cores")
    if isinstance(load, int | float) and isinstance(cores, int) and load > cores:
        method.append(f"Measured on a busy machine (load {load:.1f} on {cores} cores).")

    def value(name: str, unit: Unit, better: bool) -> Value:
        found = best[name]
        if found is None:
            return Value.undefined("not measured", unit=unit)
        return Value(estimate=float(found), unit=unit, higher_is_better=better)

    return Section(
        id="cost",
        title="Cost",
        finding=sentence,
        severity=severity,
        values={
            "latency_ms": value("latency_p50_ms", "ms", False),
            "latency_p90_ms": value("latency_p90_ms", "ms", False),
            "images_per_s": value("images_per_s", "images/s", True),
            "memory_mb": value("memory_mb", "MiB", False),
        },
        tables={
            "engines": Table(
                frame=marked(cost),
                units={
                    "latency_p50_ms": "ms",
                    "latency_p90_ms": "ms",
                    "images_per_s": "images/s",
                    "memory_mb": "MiB",
                    "equal_answers": "share",
                },
            )
        },
        figures={
            "latency": Figure(
                kind="bars",
                data=bars.select(
                    pl.col("engine").alias("label"),
                    pl.col("latency_p50_ms").alias("value"),
                    pl.col("latency_p50_ms").alias("low"),
                    pl.col("latency_p90_ms").alias("high"),
                ),
                title="Time for one image",
                x="milliseconds",
                note="Bar: median; whisker: nine tenths of the runs are faster.",
            )
        },
        method=method,
    )

"""Two models on the same images: is one better, where, and on which images (specs/study.md, 8).

A pure function of two `predictions.parquet`; which images are compared: see `pairs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.sections import (
    Figure,
    Picture,
    Section,
    Severity,
    Table,
    Unit,
    Value,
    share_text,
)
from beholder.metrics.bootstrap import (
    Statistic,
    auroc_macro_of,
    bootstrap,
    mean_of,
    paired,
    shares_of,
)
from beholder.metrics.classification import affordable_resamples
from beholder.metrics.intervals import holm, mcnemar, share, sign_flip

from .benchmarks.base import limited, plural
from .pairs import Pairs, Side, pairs
from .report.results import Against, PairedValue

TITLE = "Against"
MOST_SHOWN = 12
NAMED_P = 0.05


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        run: name of the other. n: images compared.
        here, there: accuracies. difference: of them, here - there.
        changed: images on which just one is right.
        part: class or group on which one is surely better, and here - there; a worse one first.
    """

    run: str
    n: int
    here: float
    there: float
    difference: Value
    changed: int
    part: tuple[str, float] | None = None


def finding(facts: Facts) -> tuple[Severity, str]:
    """Interval below 0: act; else look where one part is surely worse; above 0: good."""
    low, high, run = facts.difference.low, facts.difference.high, facts.run
    count = plural(facts.n, "image")
    if not facts.changed:
        return "none", f"This model and {run} are right on the same of {count}."
    if low is None or high is None:
        return "none", (
            f"Too few independent images to compare: of {count} this model is right on "
            f"{share_text(facts.here)}, {run} on {share_text(facts.there)}."
        )
    points = 100 * (facts.here - facts.there)
    if high < 0:
        return "act", (
            f"{run} is better: this model is right on {-points:.1f} points less "
            f"({-100 * high:.1f} to {-100 * low:.1f}; {count})."
        )
    if low > 0:
        text = (
            f"This model is right on {points:.1f} points more than {run} "
            f"({100 * low:.1f} to {100 * high:.1f}; {count})."
        )
    else:
        largest = 100 * max(-low, high)
        text = f"No difference to {run} larger than {largest:.1f} points could be seen ({count})."
    severity: Severity = "good" if low > 0 else "none"
    if facts.part is None:
        return severity, text
    part, gap = facts.part
    text += (
        f" On {part} it is right on {100 * abs(gap):.1f} points {'more' if gap > 0 else 'less'}."
    )
    return "look" if gap < 0 else severity, text


def compare(one: Side, other: Side, seed: int = 0) -> tuple[Against, Section]:
    """`one` against `other`, image by image: differences are those of `one` - `other`."""
    found, same_data = pairs(one, other), one.fingerprint == other.fingerprint
    against = Against(
        run=other.name, fingerprint_equal=same_data, common_images=len(found), values={}
    )
    if not len(found):
        why = _nothing(one, other, found)
        section = Section(id="against", title=TITLE, finding=why, status="not_applicable")
        return against, section
    values, parts = _values(found, one, other, seed), _parts(found, seed)
    corrected = holm(np.array([value.p for value in parts.values()], float))
    against.values = values | {
        name: value.model_copy(update={"p": float(p)})
        for (name, value), p in zip(parts.items(), corrected, strict=True)
    }
    table = _table(parts, "part").with_columns(pl.Series("p_holm", corrected))
    sure = table.filter(pl.col("p_holm") < NAMED_P).sort("difference")
    if len(sure) and sure["difference"][0] > 0:
        sure = sure.reverse()
    accuracy, changed = values["accuracy"], _changed(found)
    facts = Facts(
        run=other.name,
        n=len(found),
        here=accuracy.a.estimate or 0.0,
        there=accuracy.b.estimate or 0.0,
        difference=accuracy.difference,
        changed=len(changed),
        part=sure.select("part", "difference").row(0) if len(sure) else None,
    )
    severity, sentence = limited(*finding(facts), len(found))
    return against, Section(
        id="against",
        title=TITLE,
        finding=sentence,
        severity=severity,
        n=len(found),
        unit=found.unit,
        values={name: value.difference for name, value in values.items()},
        tables={
            "figures": Table(frame=_table(values, "figure").drop("n")),
            "parts": Table(frame=table),
            "changed": Table(frame=changed),
        },
        figures={"differences": _figure(values, table)},
        pictures=_pictures(changed, other.name),
        method=_method(other, found, same_data),
    )


def _nothing(one: Side, other: Side, found: Pairs) -> str:
    """Why there is no image to compare on."""
    if not one.classes:
        return f"No labels, so neither this model nor {other.name} can be called better."
    why = ""
    if found.learned:
        why = f": one of them learned from {plural(found.learned, 'image')} that both know"
    elif found.other_pixels:
        why = f": {plural(found.other_pixels, 'image')} of the same name have other pixels"
    return f"This model and {other.name} were judged on no common image{why}."


def paired_p(here: np.ndarray, there: np.ndarray, units: np.ndarray) -> float:
    """Exact McNemar test of hits [N] bool; where units hold several, signs of their totals."""
    if len(np.unique(units)) < len(units):
        return sign_flip(here.astype(float) - there, units)
    return mcnemar(int((here & ~there).sum()), int((there & ~here).sum()))


def _hits(found: Pairs, inside: np.ndarray, seed: int) -> PairedValue:
    """Accuracies on the images `inside`."""
    here, there, units = found.here[inside], found.there[inside], found.units[inside]
    weights = None if found.weights is None else found.weights[inside]
    return PairedValue(
        a=share(here, units, weights, seed=seed),
        b=share(there, units, weights, seed=seed),
        difference=paired(here, there, units, weights=weights, seed=seed, unit="points"),
        p=paired_p(here, there, units),
    )


def _values(found: Pairs, one: Side, other: Side, seed: int) -> dict[str, PairedValue]:
    """Figures of both over all compared images; those that both have."""
    frame, units, weights = found.frame, found.units, found.weights
    true = np.array([one.classes.index(name) for name in frame["label_name"]])

    def both(
        a: Statistic, b: Statistic, *, draws: int = 2000, unit: Unit = "share", better: bool = True
    ) -> PairedValue:
        first, second = (
            bootstrap(of, units, resamples=draws, seed=seed, unit=unit, higher_is_better=better)
            for of in (a, b)
        )
        difference = paired(
            a,
            b,
            units,
            resamples=draws,
            seed=seed,
            unit="points" if unit == "share" else unit,
            higher_is_better=better,
        )
        return PairedValue(a=first, b=second, difference=difference, p=None)

    values = {
        "accuracy": _hits(found, np.ones(len(found), bool), seed),
        "balanced": both(*(shares_of(true, hits, weights) for hits in (found.here, found.there))),
    }
    columns = "probability", "probability_other"
    if not any(frame[column].null_count() for column in columns):
        a, b = (
            _matrix(frame[column], side.classes, one.classes)
            for column, side in zip(columns, (one, other), strict=True)
        )
        c = len(one.classes)
        if len(np.unique(true)) > 1:
            draws = affordable_resamples(len(true), c if c > 2 else 1)
            ranked = (auroc_macro_of(p[:, :c], true) for p in (a, b))
            values["auroc"] = both(*ranked, draws=draws, unit="")
        first, second = brier(a, true), brier(b, true)
        means = (mean_of(x, weights) for x in (first, second))
        score = both(*means, unit="", better=False)
        values["brier"] = score.model_copy(update={"p": sign_flip(first - second, units)})
    if one.retained is not None and other.retained is not None:
        values["retained"] = _unpaired(one.retained, other.retained)
    if not any(frame[column].null_count() for column in ("refused", "refused_other")):
        a, b = (frame[column].to_numpy() for column in ("refused", "refused_other"))
        refused = both(mean_of(a, weights), mean_of(b, weights), better=False)
        values["refused"] = refused.model_copy(update={"p": paired_p(a, b, units)})
    return values


def _matrix(column: pl.Series, own: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
    """[N, wanted + the rest]: probabilities in the order of `wanted`, 0 for what is not there."""
    rows = np.array(column.to_list(), float)
    at = {name: place for place, name in enumerate(own)}
    picked = [rows[:, at[name]] if name in at else np.zeros(len(rows)) for name in wanted]
    rest = [rows[:, k] for k in range(rows.shape[1]) if k >= len(own) or own[k] not in wanted]
    return np.stack(picked + rest, 1)


def brier(probability: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Squared distance of [N, C] to the truth per image [N], halved for two classes."""
    of_true = probability[np.arange(len(true)), true]
    whole = np.square(probability).sum(1) - 2 * of_true + 1
    return whole / 2 if probability.shape[1] == 2 else whole


def _unpaired(a: Value, b: Value) -> PairedValue:
    """Two figures whose images are not known to be the same."""
    estimate = None
    if a.estimate is not None and b.estimate is not None:
        estimate = a.estimate - b.estimate
    why = "each was measured on its own sample: no paired interval"
    difference = Value(estimate=estimate, unit="points", n=min(a.n, b.n), why=why)
    return PairedValue(a=a, b=b, difference=difference, p=None)


def _parts(found: Pairs, seed: int) -> dict[str, PairedValue]:
    """Accuracies on every class and every given group."""
    groups = [(name, name[6:]) for name in found.frame.columns if name.startswith("group_")]
    return {
        f"{word} {value}": _hits(found, (column == value).fill_null(False).to_numpy(), seed)
        for name, word in [("label_name", "class"), *groups]
        for column in [found.frame[name]]
        for value in column.drop_nulls().unique().sort()
    }


def _table(values: dict[str, PairedValue], first: str) -> pl.DataFrame:
    numbers = ("here", "there", "difference", "low", "high", "p")
    rows = []
    for name, value in values.items():
        d = value.difference
        rows.append(
            (name, d.n, value.a.estimate, value.b.estimate, d.estimate, d.low, d.high, value.p)
        )
    schema = {first: pl.String, "n": pl.Int64} | dict.fromkeys(numbers, pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def _changed(found: Pairs) -> pl.DataFrame:
    """The images on which just one is right, the surest answers here first."""
    sure = [max(row) if row else None for row in found.frame["probability"].to_list()]
    frame = found.frame.select(
        "id",
        "path",
        pl.col("label_name").alias("true"),
        pl.col("answer").alias("here"),
        pl.col("answer_other").alias("there"),
        pl.Series("confidence", sure, pl.Float64),
        pl.Series("change", np.where(found.here, "gained", "lost")),
    )
    return frame.filter(pl.Series(found.here != found.there)).sort(
        "change", "confidence", "id", descending=[False, True, False], nulls_last=True
    )


def _pictures(changed: pl.DataFrame, run: str) -> list[Picture]:
    buckets = {
        "gained": f"Gained: right here, wrong in {run}",
        "lost": f"Lost: wrong here, right in {run}",
    }
    return [
        Picture(
            id=row["id"],
            caption=f"true {row['true']}, here {row['here'] or 'another class'}, "
            f"there {row['there'] or 'another class'}",
            alt=f"true {row['true']}, here {row['here']}, there {row['there']}, file {row['path']}",
            bucket=bucket,
        )
        for change, bucket in buckets.items()
        for row in changed.filter(pl.col("change") == change).head(MOST_SHOWN).iter_rows(named=True)
    ]


def _figure(values: dict[str, PairedValue], parts: pl.DataFrame) -> Figure:
    whole = _table({"all images": values["accuracy"]}, "part")
    frame = pl.concat([whole, parts.drop("p_holm")])
    return Figure(
        kind="dots",
        data=frame.select(
            pl.col("part").alias("label"),
            (100 * pl.col("difference")).alias("value"),
            (100 * pl.col("low")).alias("low"),
            (100 * pl.col("high")).alias("high"),
            pl.lit(0.0).alias("reference"),
        ),
        title="Difference in accuracy, in points",
        x="points",
        note="Right of 0 this model is better.",
    )


def _method(other: Side, found: Pairs, same_data: bool) -> list[str]:
    lines = [
        "Both models on the same images, matched by their pixels; a difference is the figure here "
        f"less that of {other.name}. Intervals: the same images are redrawn for both.",
        "p: exact McNemar test on the images that just one answers rightly (where units hold "
        "several images: signs of their totals flipped); of classes and groups Holm-corrected.",
        "Gained: right here and wrong there; lost: the reverse.",
    ]
    counts = {
        "in both data sets are left out, as one of the models learned from them.": found.learned,
        "of the same name have other pixels there and are left out.": found.other_pixels,
        "bear another label there; the label here counts.": found.relabelled,
    }
    if not same_data:
        lines.append("The runs have different data; only what is in both is compared.")
    return lines + [f"{plural(count, 'image')} {what}" for what, count in counts.items() if count]

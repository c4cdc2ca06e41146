"""Which inputs must be refused, and are: foreign and broken ones (specs/study.md, 4.11)."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Figure, Section, Severity, Table, Value, share_text
from beholder.metrics.detection import auroc, fpr95
from beholder.metrics.intervals import share

from .base import Evidence, limited, plural, section, unit_of
from .trusted import (
    too_few,
)
from .unknown_asked import GUARD, SETS, measure

GOOD, ACT = 0.9, 0.5
MOST_BENIGN = 0.15
SHARES = ("auroc", "fpr95", "refused", "low", "high", "false_refusals", "auroc_grey")


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        detector: the recommended one.
        worst_set: the set that is refused least; `worst`, `best`: shares refused.
        false_refusals: of the own images. fpr: what was asked for.
        benign: the largest share of slightly changed own images that is refused.
        given: the set is the user's own.
        missing: classes that the model lacks, their images, and the share of these refused.
    """

    detector: str
    worst_set: str
    worst: float
    best: float
    false_refusals: Value
    fpr: float = 0.05
    benign: float = 0.0
    given: bool = False
    missing: tuple[str, int, float] | None = None


def severity_of(facts: Facts) -> Severity:
    """`act` below half; `good` from nine tenths on, with no more false refusals than were asked for
    (beyond chance); classes that the model lacks: `act`."""
    low = facts.false_refusals.low
    kept = low is None or low <= facts.fpr
    if facts.missing or facts.worst < ACT:
        return "act"
    return "good" if facts.worst >= GOOD and kept and facts.benign <= MOST_BENIGN else "look"


def finding(facts: Facts) -> tuple[Severity, str]:
    """What is refused, what is not, and at what price."""
    price = f"refuses {facts.false_refusals.text(interval=False)} of your own images"
    worst, best = share_text(facts.worst, width=1), share_text(facts.best, width=1)
    if facts.missing:
        name, count, refused = facts.missing
        start = f"The model does not know {name}: of {plural(count, 'image')} of it"
        caught = share_text(refused, width=1)
        return severity_of(facts), f"{start} {facts.detector} refuses {caught}, and it {price}."
    if facts.given:
        said = f"{facts.detector} refuses {worst} of the images that must be refused, and {price}"
    elif facts.worst < ACT:
        said = (
            f"{facts.detector} does not notice {facts.worst_set}: it refuses {worst}, and {price}"
        )
    else:
        span = worst if worst == best else f"{worst.removesuffix(' %')} to {best}"
        said = f"{facts.detector} refuses {span} of foreign and broken images"
        said += f", least of {facts.worst_set}," if facts.worst < GOOD else ""
        said += f" and {price}"
    if facts.benign > MOST_BENIGN:
        changed = share_text(facts.benign, width=1)
        said += f"; re-saved or slightly brightened, it refuses {changed} of them"
    return severity_of(facts), f"{said}."


def table(scores: pl.DataFrame, near: pl.DataFrame | None) -> pl.DataFrame:
    """Set x detector: n, AUROC, FPR95, refused with its interval, false refusals of the detector,
    and the AUROC of nothing but whether an image is grey."""
    rows = []
    order = scores["detector"].unique(maintain_order=True)
    own = scores.filter(pl.col("kind") == "trusted")
    told = scores.filter((pl.col("kind") != "trusted") & (pl.col("half") == 1))
    for (name, kind), one in told.group_by("set", "kind", maintain_order=True):
        for detector in order:
            good, bad = (x.filter(pl.col("detector") == detector) for x in (own, one))
            if len(good) and len(bad):
                rows.append(_line(str(name), str(kind), str(detector), good, bad))
                grey = auroc(*(~x["grey"].to_numpy() for x in (good, bad)))
                rows[-1]["auroc_grey"] = max(grey, 1 - grey)
    for (name, detector), one in (
        () if near is None else near.group_by("set", "detector", maintain_order=True)
    ):
        good, bad = one.filter(~pl.col("bad")), one.filter("bad")
        rows.append(_line(str(name), "near", str(detector), good, bad))
    return pl.DataFrame(rows, infer_schema_length=None)


def _line(
    name: str, kind: str, detector: str, good: pl.DataFrame, bad: pl.DataFrame
) -> dict[str, object]:
    refused = share(bad["refused"].to_numpy())
    a, b = good["score"].to_numpy(), bad["score"].to_numpy()
    return {
        "set": name,
        "kind": kind,
        "n": len(bad),
        "detector": detector,
        "auroc": auroc(a, b),
        "fpr95": fpr95(a, b),
        "refused": refused.estimate,
        "low": refused.low,
        "high": refused.high,
        "false_refusals": float(good["refused"].to_numpy().mean()),
        "auroc_grey": None,
    }


def facts_of(rows: pl.DataFrame, best: str, evidence: Evidence, options: Options) -> Facts:
    """What the finding needs. `rows`: of `table`."""
    scores = evidence.records["unknown"]["scores"]
    mine = rows.filter(pl.col("detector") == best)
    given = "own" in mine["kind"]
    bad = mine.filter(pl.col("kind") == "own" if given else pl.col("kind").is_in(SETS))
    bad = bad.sort("refused", maintain_order=True)
    benign = mine.filter(pl.col("kind") == "benign")["refused"].to_list()
    missing = scores.filter((pl.col("kind") == "missing") & (pl.col("detector") == best))
    names = missing["set"].unique(maintain_order=True).to_list()
    return Facts(
        detector=best,
        worst_set=bad["set"][0],
        worst=bad["refused"][0],
        best=bad["refused"][-1],
        false_refusals=false_refusals(scores, best),
        fpr=options.fpr,
        benign=max(benign, default=0.0),
        given=given,
        missing=(", ".join(names), len(missing), float(missing["refused"].to_numpy().mean()))
        if len(missing)
        else None,
    )


def false_refusals(scores: pl.DataFrame, detector: str) -> Value:
    """Share of the trusted images that are refused."""
    own = scores.filter((pl.col("kind") == "trusted") & (pl.col("detector") == detector))
    units = own["unit"].to_numpy()
    return share(own["refused"].to_numpy(), units, higher_is_better=False)


@section("unknown", "Unknown inputs", measure=measure, uses="features", share=0.08)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Detectors against sets of images that must be refused, and what a guard costs."""
    empty = Section(id="unknown", title="Unknown inputs", finding="")
    records = evidence.records.get("unknown")
    if records is None:
        return empty.model_copy(
            update={"finding": "No model was asked about them.", "status": "not_applicable"}
        )
    how = records["how"].row(0, named=True)
    scores = records["scores"]
    if not len(scores):
        few = too_few(how["learned"], options.fpr)
        return empty.model_copy(update={"finding": few, "status": "not_applicable"})
    detectors = records["detectors"]
    best = detectors.filter("recommended")["detector"][0]
    rows = table(scores, records.get("near"))
    facts = facts_of(rows, best, evidence, options)
    n = len(scores.filter((pl.col("kind") == "trusted") & (pl.col("detector") == best)))
    severity, said = limited(*finding(facts), n)
    mine = rows.filter(pl.col("detector") == best)
    worst = mine.filter(pl.col("set") == facts.worst_set).row(0, named=True)
    shown = rows.with_columns(
        pl.col("set").alias("row"),
        pl.col("detector").alias("column"),
        pl.col("refused").alias("value"),
    )
    method = [
        how["how"],
        f"Detectors: {', '.join(detectors['detector'])}; recommended is the one that refuses most "
        "of the set that it refuses least, on one half of every set; the figures are of the other.",
        f"A threshold is set so that {100 * options.fpr:g} % of the images like those learned from "
        "are refused (split-conformal, on scores of detectors that did not see them).",
        "Intervals: Wilson. FPR95: share of a set that passes when 95 % of your own images pass.",
    ]
    if how["form"]:
        method.append(
            f"Foreign images are written as your files are ({how['form']}) and read back, so that "
            "no detector can tell them by the file; 'auroc_grey' is what colour alone would tell."
        )
    if "near" in records:
        method.append("near: a class is held out, detectors and head are made without it.")
    return Section(
        id="unknown",
        title="Unknown inputs",
        finding=said,
        severity=severity,
        n=n,
        unit=unit_of(evidence),
        values={
            "refused_worst": Value(
                estimate=worst["refused"],
                low=worst["low"],
                high=worst["high"],
                n=worst["n"],
                method="wilson",
            ),
            "false_refusals": facts.false_refusals,
            **_more(rows, best),
        },
        tables={
            "sets": Table(frame=rows, units=dict.fromkeys(SHARES, "share")),
            "detectors": Table(frame=detectors),
        },
        figures={
            "refused": Figure(
                kind="grid",
                data=shown.select("row", "column", "value", share_of("value").alias("text")),
                title="Share refused, by set and detector",
                x="detector",
                y="set",
                note="Of benign sets little should be refused, of all others everything.",
            )
        },
        files=[] if how["unsaved"] else [GUARD],
        method=method,
        assumptions=[how["unsaved"]] if how["unsaved"] else [],
    )


def share_of(column: str) -> pl.Expr:
    """A share as a whole number of per cent."""
    return (100 * pl.col(column)).round(0).cast(pl.Int64).cast(pl.String)


def _more(rows: pl.DataFrame, best: str) -> dict[str, Value]:
    """The largest refused share of benign sets, the mean of the near ones; AUROC of the worst."""
    mine = rows.filter(pl.col("detector") == best)
    found: dict[str, Value] = {}
    benign = mine.filter(pl.col("kind") == "benign").sort("refused", descending=True)
    if len(benign):
        row = benign.row(0, named=True)
        found["benign_refused"] = Value(
            estimate=row["refused"],
            low=row["low"],
            high=row["high"],
            n=row["n"],
            higher_is_better=False,
            method="wilson",
        )
    near = mine.filter(pl.col("kind") == "near")
    if len(near):
        found["refused_near"] = Value(
            estimate=float(near["refused"].to_numpy().mean()), n=len(near)
        )
    return found

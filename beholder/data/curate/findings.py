"""A manifest as a section of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from beholder.core.sections import Picture, Section, SelfTest, Severity, Table, Value
from beholder.metrics.intervals import wilson

if TYPE_CHECKING:
    from .manifest import Manifest

MOST_ROWS = 100
MOST_PICTURES = 24
WORTH_A_LOOK = 0.01
"""Share of the samples that a search may flag before one should look."""

FAULTS = ("near_duplicate", "label_error", "outlier", "unsafe", "watermark", "unreadable")


def section(manifest: Manifest) -> Section:
    """Finding, counts, self-test, worst pictures, what the search cannot see."""
    frame, info = manifest.frame, manifest.info
    tested = info.get("self_test", [])
    dropped = frame.filter(~pl.col("keep"))
    counts = (
        frame.group_by("reason", "keep").len("images").sort("images", "reason", descending=True)
    )
    tables = {
        "reasons": Table(frame=counts.with_columns(pl.col("reason").cast(pl.String))),
        "dropped": Table(frame=_listed(manifest)),
    }
    if tested:
        tables["self_test"] = Table(
            frame=pl.DataFrame(tested).with_columns(
                recall=pl.col("found") / pl.col("planted"),
                precision=pl.col("found") / pl.col("flagged"),
            ),
            units={"recall": "share", "precision": "share"},
        )
    return Section(
        id="curate",
        title=str(info["curator"]).replace("_", " "),
        finding=info.get("finding") or f"{manifest.kept:,} of {len(frame):,} images are kept.",
        severity=_severity(frame),
        n=len(frame),
        values={
            "kept": count_of(manifest.kept, len(frame)),
            "dropped": share_of(len(dropped), len(frame)),
        },
        tables=tables,
        pictures=[_picture(manifest, row) for row in manifest.worst(n=MOST_PICTURES).to_dicts()],
        assumptions=list(info.get("cannot_see", [])),
        self_test=_self_test(tested),
    )


def share_of(count: int, of: int) -> Value:
    """A share with Wilson's interval."""
    if not of:
        return Value.undefined("nothing was looked at")
    low, high = wilson(count, of)
    estimate = count / of
    return Value(estimate=estimate, low=low, high=high, n=of, method="wilson")


def count_of(count: int, of: int) -> Value:
    return Value(estimate=count, n=of, unit="count", higher_is_better=None, method="exact")


def _self_test(tested: list[dict]) -> SelfTest | None:
    """All kinds of planted faults together."""
    planted = sum(trial["planted"] for trial in tested)
    if not planted:
        return None
    found = sum(trial["found"] for trial in tested)
    flagged = [trial["flagged"] for trial in tested]
    precision = None
    if all(count is not None for count in flagged) and sum(flagged):
        precision = share_of(found, sum(flagged))
    return SelfTest(
        planted=planted, found=found, recall=share_of(found, planted), precision=precision
    )


def _severity(frame: pl.DataFrame) -> Severity:
    faults = int(frame["reason"].is_in(FAULTS).sum())
    if not faults:
        return "none" if (frame["reason"] == "not_sampled").any() else "good"
    return "look" if faults > WORTH_A_LOOK * len(frame) else "good"


def _listed(manifest: Manifest) -> pl.DataFrame:
    names = dict(enumerate(manifest.info["classes"]))
    worst = manifest.worst(n=MOST_ROWS)
    return worst.select(
        "id",
        pl.col("reason").cast(pl.String),
        pl.col("label").replace_strict(names, return_dtype=pl.String).alias("proposed"),
        "partner",
        "score",
        "detail",
    )


def _picture(manifest: Manifest, row: dict) -> Picture:
    caption = manifest.caption(row)
    beside = []
    if row["partner"]:
        beside = [Picture(id=row["partner"], caption=row["partner"], alt=row["partner"])]
    return Picture(id=row["id"], caption=caption, alt=caption, bucket=row["reason"], beside=beside)

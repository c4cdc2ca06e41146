"""The search for wrong labels, its test on flipped ones, and the verdicts of reviewers (4.12)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from beholder.core.errors import DataError
from beholder.core.features import Features
from beholder.core.files import write_atomic
from beholder.core.sections import Spent
from beholder.data.curate.label_errors import judgeable, label_issues, plant
from beholder.train.cross_fit import CrossFit

from .base import Evidence, Records

if TYPE_CHECKING:
    from beholder.evaluate.subject import Subject

FILE = "label_issues.parquet"
PLANTINGS, FLIPPED = 5, 0.05
LOOKS_WRONG, CONFLICT, EARLIER = "label_error", "same picture, other label", "reviewed earlier"
VERDICTS = ("wrong", "right", "unclear")
ISSUES = pl.Schema(
    {
        "rank": pl.Int32,
        "id": pl.String,
        "path": pl.String,
        "given": pl.String,
        "suggested": pl.String,
        "p_given": pl.Float32,
        "p_suggested": pl.Float32,
        "reason": pl.String,
        "verdict": pl.String,
    }
)
"""Columns of `label_issues.parquet`, gravest first; `verdict` is for the reviewer."""


def conflicting(frame: pl.DataFrame) -> tuple[np.ndarray, int]:
    """bool [N]: the same pixels are there under another certain label; and how many must be wrong:
    of every such group all but its commonest label."""
    certain = (frame["label"].is_not_null() & (frame["certainty"] > 1 - 1e-6)).to_numpy()
    if "exact_hash" not in frame.columns:
        return np.zeros(len(frame), bool), 0
    counts = (
        frame.filter(pl.Series(certain))
        .group_by("exact_hash", "label")
        .len()
        .group_by("exact_hash")
        .agg(pl.len().alias("labels"), (pl.col("len").sum() - pl.col("len").max()).alias("wrong"))
        .filter(pl.col("labels") > 1)
    )
    inside = frame["exact_hash"].is_in(counts["exact_hash"].to_list()).to_numpy()
    return inside & certain, int(counts["wrong"].sum())


def searcher(subject: Subject, labels: np.ndarray) -> CrossFit:
    """Heads of the kind that was chosen for the model; of a given model, on its embeddings."""
    evidence, seed = subject.evidence, subject.seed
    unit = evidence.frame["unit"].to_numpy()
    if subject.labelled is not None and subject.fitted is not None:
        assert subject.features is not None
        search = CrossFit(subject.features, labels, subject.labelled.soft, unit, seed)
        search.chosen, search.mirror = subject.fitted.candidate, subject.fitted.mirror
        return search
    assert evidence.embeddings is not None
    soft = np.zeros((len(labels), len(subject.images.classes)), np.float32)
    for row, (label, q) in enumerate(subject.images.table.select("label", "q").iter_rows()):
        if label is not None:
            soft[row] = np.eye(soft.shape[1])[label] if q is None else q
    return CrossFit(Features.of(evidence.embeddings), labels, soft, unit, seed)


def answers_of(evidence: Evidence) -> np.ndarray:
    """The model's out-of-sample probabilities [N, C]; NaN where there are none."""
    there = evidence.frame["probability"].is_not_null()
    found = np.full((len(there), len(evidence.classes)), np.nan)
    found[there.to_numpy()] = evidence.matrix("probability", evidence.frame.filter(there))
    return found


def measure(subject: Subject) -> Records:
    """Search, plant up to five times and search again, take up verdicts, write the file."""
    evidence, frame = subject.evidence, subject.evidence.frame
    labels = frame["label"].fill_null(-1).to_numpy()
    subject.expect(1 + PLANTINGS)
    search = searcher(subject, labels)
    probability = answers_of(evidence) if subject.fitted is not None else search(labels)
    there = np.isfinite(probability[:, 0]) & (labels >= 0)
    certain = (frame["certainty"] > 1 - 1e-6).to_numpy()
    rows = judgeable(labels, certain & there)
    flagged = np.zeros(len(frame), bool)
    if len(rows):
        flagged[rows] = label_issues(labels[rows], probability[rows])
    subject.progress(1)
    tested = self_test(subject, search, labels, rows)
    judged = np.isin(np.arange(len(frame)), rows)
    table = believed(frame, np.where(there[:, None], probability, np.nan), evidence.classes)
    table = table.with_columns(
        pl.Series("judged", judged), pl.Series("flagged", flagged), pl.Series("certain", certain)
    )
    issues = with_verdicts(listed(table, conflicting(frame)[0]), subject.run / FILE)
    write_atomic(subject.run / FILE, lambda out: issues.write_parquet(out))
    disagrees = pl.col("p_suggested").is_not_null() & (pl.col("given") != pl.col("suggested"))
    names = {name: number for number, name in enumerate(evidence.classes)}
    suggested = pl.col("suggested").replace_strict(names, return_dtype=pl.Int32)
    images = table.select(
        "id",
        pl.col("p_given").alias("label_quality"),
        pl.when("judged").then("flagged").alias("label_issue"),
        pl.when("flagged").then(suggested).alias("suggested"),
    )
    uncertain = table.filter(~pl.col("certain") & disagrees).sort("p_given", "id")
    return Records(
        {
            "images": images,
            "issues": issues,
            "self_test": tested,
            "uncertain": uncertain.select(*list(ISSUES)[1:7]),
        },
        Spent(wanted=PLANTINGS * bool(len(tested)), used=len(tested), what="plantings"),
    )


def self_test(
    subject: Subject, search: CrossFit, labels: np.ndarray, rows: np.ndarray
) -> pl.DataFrame:
    """Per planting: planted, found, flagged, lowest (planted among as many of lowest score).

    The first is always done, the others as far as there is time.
    """
    columns = ("planted", "found", "flagged", "lowest")
    unit, wanted = subject.evidence.frame["unit"].to_numpy(), PLANTINGS
    done: list[tuple[int, int, int, int]] = []
    while len(rows) and len(done) < wanted:
        start = time.monotonic()
        planted, flipped = plant(labels, rows, unit, FLIPPED, subject.seed * PLANTINGS + len(done))
        if not len(flipped):
            break
        probability = search(planted)
        flagged = rows[label_issues(planted[rows], probability[rows])]
        ranked = rows[np.argsort(probability[rows, planted[rows]], kind="stable")]
        found, lowest = (np.isin(flipped, x).sum() for x in (flagged, ranked[: len(flipped)]))
        done.append((len(flipped), int(found), len(flagged), int(lowest)))
        if len(done) == 1:
            wanted = 1 + subject.allowance.count(time.monotonic() - start, PLANTINGS - 1, 0)
        subject.progress(1)
    return pl.DataFrame(done, dict.fromkeys(columns, pl.Int64), orient="row")


def believed(frame: pl.DataFrame, probability: np.ndarray, classes: Sequence[str]) -> pl.DataFrame:
    """id, path, given, suggested, p_given, p_suggested of every image; null where unknown.

    Args:
        probability: [N, C], NaN where there is no answer.
    """
    there = np.isfinite(probability[:, 0])
    labels, best = frame["label"], np.nan_to_num(probability).argmax(1)
    at = np.arange(len(frame))
    own = probability[at, labels.fill_null(0).to_numpy()]
    names = pl.Series(list(classes), dtype=pl.String)
    return frame.select(
        "id",
        "path",
        names.gather(labels).alias("given"),
        names.gather(pl.Series(np.where(there, best, -1)).replace(-1, None)).alias("suggested"),
        pl.Series("p_given", own.astype(np.float32)).fill_nan(None),
        pl.Series("p_suggested", probability[at, best].astype(np.float32)).fill_nan(None),
    )


def listed(table: pl.DataFrame, twice: np.ndarray) -> pl.DataFrame:
    """The issues (`ISSUES`): labels that contradict a copy's, then flagged ones, least believed
    first. `twice`: bool [N]."""
    reason = pl.when(pl.Series(twice)).then(pl.lit(CONFLICT)).otherwise(pl.lit(LOOKS_WRONG))
    return (
        table.with_columns(reason.alias("reason"), pl.lit(None, pl.String).alias("verdict"))
        .filter(pl.Series(twice) | pl.col("flagged"))
        .sort(pl.col("reason") != CONFLICT, "p_given", "id", nulls_last=True)
        .with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("rank"))
        .select(*ISSUES)
    )


def with_verdicts(issues: pl.DataFrame, path: Path) -> pl.DataFrame:
    """`issues` with the verdicts of the file at `path`; those of other images follow, unranked.

    Raises:
        DataError: the file cannot be read, or holds another verdict.
    """
    if not path.is_file():
        return issues
    try:
        known = pl.read_parquet(path).select(name for name in ISSUES if name != "rank")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{FILE} cannot be read, so your verdicts would be lost ({type(error).__name__}).",
            f"Mend it, or move it away; it needs the columns {', '.join(ISSUES)}.",
        ) from error
    verdict = pl.col("verdict").cast(pl.String).str.strip_chars().str.to_lowercase()
    known = known.with_columns(verdict.replace("", None)).drop_nulls("verdict")
    if other := sorted(set(known["verdict"]) - set(VERDICTS)):
        raise DataError(
            f"{FILE}: {other[0]!r} is no verdict.", f"Write {', '.join(VERDICTS)}, or nothing."
        )
    if not len(known):
        return issues
    found = issues.drop("verdict").join(
        known.select("id", "given", "verdict"),
        on=["id", "given"],
        how="left",
        maintain_order="left",
    )
    rest = known.join(issues, on=["id", "given"], how="anti").with_columns(
        pl.lit(None, pl.Int32).alias("rank"), pl.lit(EARLIER).alias("reason")
    )
    return pl.concat([found.select(*ISSUES), rest.select(*ISSUES).cast(ISSUES)])

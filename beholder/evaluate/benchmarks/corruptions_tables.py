"""The records of changed images as arrays and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from beholder.data.augment.corruptions import shown_as
from beholder.data.augment.pipelines import DECIDING, PIPELINES
from beholder.metrics.bootstrap import paired
from beholder.metrics.intervals import holm, mcnemar, share
from beholder.metrics.robustness import retained

from .base import Evidence

CLEAN = "clean"
ORDER = (3, 5, 1, 2, 4)
"""Severities in the order in which time is spent on them."""
SHOWN_SEVERITY = ORDER[0]
COSTLY = 0.05
ONE_ANSWER, MORE_THAN_CLEAN = 0.75, 0.10


def asked_of(evidence: Evidence) -> pl.DataFrame:
    """Images whose answers are followed: the judged ones; without labels all that are answered."""
    if evidence.has_labels:
        return evidence.judged
    frame = evidence.frame
    there = "predicted" in frame.columns
    return frame.filter(pl.col("predicted").is_not_null()) if there else frame.head(0)


@dataclass(frozen=True)
class Measured:
    """The records as arrays; images in one order everywhere.

    Attributes:
        answers: (change, severity) -> its rows.
        unit: [N]. label: [N], or None without labels.
        common: the most frequent label (or clean answer).
    """

    answers: dict[tuple[str, int], pl.DataFrame]
    unit: np.ndarray
    label: np.ndarray | None
    kinds: dict[str, list[str]]

    @classmethod
    def of(cls, evidence: Evidence) -> Measured:
        rows = evidence.records["corruptions"]["answers"]
        cells = {
            (str(change), int(str(severity))): cell
            for (change, severity), cell in rows.partition_by(
                "change", "severity", as_dict=True, maintain_order=True
            ).items()
        }
        facts = (
            cells[CLEAN, 0]
            .select("id")
            .join(evidence.frame.select("id", "unit", "label"), on="id", maintain_order="left")
        )
        kinds = {
            str(kind): part["change"].unique(maintain_order=True).to_list()
            for (kind,), part in rows.group_by("kind", maintain_order=True)
        }
        label = facts["label"].to_numpy() if evidence.has_labels else None
        return cls(cells, facts["unit"].to_numpy(), label, kinds)

    def predicted(self, change: str, severity: int = 0) -> np.ndarray:
        return self.answers[change, severity]["predicted"].to_numpy()

    @cached_property
    def truth(self) -> np.ndarray:
        """What counts as right: [N]."""
        return self.predicted(CLEAN) if self.label is None else self.label

    def hits(self, change: str, severity: int = 0) -> np.ndarray:
        return self.predicted(change, severity) == self.truth

    @cached_property
    def has_reference(self) -> bool:
        """Whether a reference head answered too, and there is a truth to hold it against."""
        found = self.answers[CLEAN, 0]["reference"]
        return self.label is not None and not found.null_count()

    def reference_hits(self, change: str, severity: int = 0) -> np.ndarray:
        return self.answers[change, severity]["reference"].to_numpy() == self.truth

    @cached_property
    def common(self) -> np.ndarray:
        """Whether the one best answer to all is right: [N]."""
        return self.truth == np.bincount(self.truth).argmax()

    @cached_property
    def severities(self) -> list[int]:
        return sorted({severity for _, severity in self.answers if severity})

    @property
    def corruptions(self) -> list[str]:
        return self.kinds.get("corruption", [])

    def kept(self, change: str) -> float:
        """R of one kind of damage; NaN without skill."""
        accuracy = np.array([self.hits(change, s).mean() for s in self.severities])
        return retained(accuracy, self.hits(CLEAN).mean(), self.common.mean())

    def stays(self, change: str) -> float:
        """Accuracy (consistency) over all severities."""
        return float(np.mean([self.hits(change, s) for s in self.severities]))


def cell_table(measured: Measured) -> pl.DataFrame:
    """corruption, severity, n, accuracy, low, high, retained, reference_accuracy."""
    clean, majority = measured.hits(CLEAN).mean(), measured.common.mean()
    rows = []
    for name in measured.corruptions:
        for severity in measured.severities:
            hits, other = measured.hits(name, severity), None
            if measured.has_reference:
                other = measured.reference_hits(name, severity).mean()
            value = share(hits, measured.unit)
            rows.append(
                {
                    "corruption": shown_as(name),
                    "severity": severity,
                    "n": len(hits),
                    "accuracy": value.estimate,
                    "low": value.low,
                    "high": value.high,
                    "retained": retained(hits.mean(keepdims=True), clean, majority),
                    "reference_accuracy": other,
                }
            )
    schema = {"corruption": pl.String, "severity": pl.Int64, "n": pl.Int64}
    numbers = ("accuracy", "low", "high", "retained", "reference_accuracy")
    return pl.DataFrame(rows, schema | dict.fromkeys(numbers, pl.Float64)).fill_nan(None)


def kind_table(measured: Measured, classes: Sequence[str]) -> pl.DataFrame:
    """One row per corruption: retained, its McNemar p at severity 3, the answer given most.

    `dominated`: that answer takes more than 3 in 4, and clearly more than without damage.
    """
    clean, before = measured.hits(CLEAN), measured.predicted(CLEAN)
    rows, p = [], []
    for name in measured.corruptions:
        hits = measured.hits(name, SHOWN_SEVERITY)
        p.append(mcnemar(int((clean & ~hits).sum()), int((hits & ~clean).sum())))
        given = np.concatenate([measured.predicted(name, s) for s in measured.severities])
        top = int(np.bincount(given).argmax())
        part = float((given == top).mean())
        rows.append(
            {
                "corruption": shown_as(name),
                "retained": measured.kept(name),
                "accuracy": measured.stays(name),
                "accuracy_at_3": hits.mean(),
                "top_answer": classes[top],
                "top_share": part,
                "dominated": part > ONE_ANSWER
                and part >= float((before == top).mean()) + MORE_THAN_CLEAN,
            }
        )
    schema = {"corruption": pl.String, "retained": pl.Float64, "accuracy": pl.Float64}
    schema |= {"accuracy_at_3": pl.Float64, "top_answer": pl.String, "top_share": pl.Float64}
    frame = pl.DataFrame(rows, schema | {"dominated": pl.Boolean}).fill_nan(None)
    return frame.with_columns(pl.Series("p_holm", holm(np.array(p)), pl.Float64))


def mild_table(measured: Measured, seed: int) -> pl.DataFrame:
    """change, n, accuracy, low, high, difference to clean (low, high), same_answer.

    `costly`: more than 5 points, beyond chance; `to_act_on`: costly, and nobody can avoid it.
    """
    clean, before = measured.hits(CLEAN), measured.predicted(CLEAN)
    rows = []
    for name in (name for name in PIPELINES if (name, 0) in measured.answers):
        hits = measured.hits(name)
        value = share(hits, measured.unit)
        difference = paired(hits, clean, measured.unit, unit="points", seed=seed)
        row = {"change": name, "n": len(hits), "accuracy": value.estimate}
        row |= {"low": value.low, "high": value.high, "difference": difference.estimate}
        row |= {"difference_low": difference.low, "difference_high": difference.high}
        rows.append(row | {"same_answer": float((measured.predicted(name) == before).mean())})
    schema = {"change": pl.String, "n": pl.Int64}
    numbers = ("accuracy", "low", "high", "difference", "difference_low", "difference_high")
    frame = pl.DataFrame(rows, schema | dict.fromkeys((*numbers, "same_answer"), pl.Float64))
    costly = (pl.col("difference") < -COSTLY) & (pl.col("difference_high") < 0)
    return frame.with_columns(costly.fill_null(False).alias("costly")).with_columns(
        (pl.col("costly") & pl.col("change").is_in(DECIDING)).alias("to_act_on")
    )


def edit_table(measured: Measured) -> pl.DataFrame:
    """change, n, same_answer, low, high."""
    before, rows = measured.predicted(CLEAN), []
    for name in measured.kinds.get("edit", []):
        value = share(measured.predicted(name) == before, measured.unit)
        rows.append((name, len(before), value.estimate, value.low, value.high))
    schema = {"change": pl.String, "n": pl.Int64}
    numbers = dict.fromkeys(("same_answer", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema | numbers, orient="row")

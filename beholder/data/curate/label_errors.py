"""Label errors: labels that models which have not seen the image do not believe.

Northcutt, Jiang, Chuang: "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021.
Authors' code: cleanlab/cleanlab, which is used here (`filter_by="both"`). Ours: labels that are
uncertain by themselves are never errors; labels of the user's own images are flipped first, and
the manifest says how many of these the same search finds (specs/study.md, 4.12).

>>> from beholder.data.sources import open_images
>>> digits = open_images("digits")
>>> believed = np.eye(10)[digits.table["label"]] * 0.9 + 0.01
>>> believed[7] = np.eye(10)[3]  # a 7 that looks like a 3
>>> LabelErrors().curate(digits, probabilities=believed).worst()["id"].to_list()
['digits-0007']
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.registry import system

from .base import Curator, Decided, Pool, Trial

FEWEST = 5
"""Images of a class below which its labels are not judged: a model learns too little of it."""

WEAK = 0.3
"""Recall of planted errors below which the model is too weak to judge labels."""


def label_issues(labels: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """bool [N]: cleanlab's label issues that both of its prunings find.

    Args:
        labels: int [N]; probability: out-of-sample [N, C].
    """
    from cleanlab.filter import find_label_issues

    present, numbered = np.unique(labels, return_inverse=True)
    own = np.maximum(probability[:, present], 1e-12)
    own = own / own.sum(1, keepdims=True)
    return np.asarray(find_label_issues(numbered, own, filter_by="both", n_jobs=1), bool)


def judgeable(labels: np.ndarray, certain: np.ndarray) -> np.ndarray:
    """Rows with a certain label, of classes with enough of them; none unless two classes have.

    Args:
        labels: int [N]; certain: bool [N], false where there is no label.
    """
    rows = np.flatnonzero(certain)
    present, count = np.unique(labels[rows], return_counts=True)
    enough = present[count >= FEWEST]
    return rows[np.isin(labels[rows], enough)] if len(enough) > 1 else rows[:0]


def plant(
    labels: np.ndarray, rows: np.ndarray, unit: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] in which those of whole units among `rows` are another one, and the rows flipped.

    Args:
        rows: those whose label may be flipped, to any other label that these rows have.
        share: of `rows`, at least one.
    """
    rng = np.random.default_rng(seed)
    present = np.unique(labels[rows])
    wanted = max(1, round(share * len(rows)))
    planted, flipped = labels.copy(), []
    for number in rng.permutation(np.unique(unit[rows])):
        inside = rows[unit[rows] == number]
        others = present[~np.isin(present, labels[inside])]
        if not len(others):
            continue
        planted[inside] = rng.choice(others)
        flipped += inside.tolist()
        if len(flipped) >= wanted:
            break
    return planted, np.array(sorted(flipped), int)


@system(name="label_errors")
@dataclass
class LabelErrors(Curator):
    """Drops images whose label is probably wrong; proposes the label that is believed instead.

    Args:
        planted: share of the certain labels that is flipped to test the search.
    """

    planted: float = 0.05

    needs = frozenset({"labels", "probabilities"})
    score_name = "probability of the given label, by models that have not seen the image"
    cannot_see = (
        "Many flagged labels are right, and the model is wrong: look before you drop them.",
        "Not found: errors that come in a pattern which a model can learn.",
    )

    def decide(self, pool: Pool, count: int | None) -> Decided:
        assert pool.probabilities is not None
        labels, rows = pool.labels, judgeable(pool.labels, pool.certain)
        score = np.full(len(pool), np.nan)
        flagged = np.zeros(len(pool), bool)
        proposed = np.full(len(pool), -1)
        detail: list[str | None] = [None] * len(pool)
        for row in np.flatnonzero((labels >= 0) & ~pool.certain):
            detail[row] = "The label is uncertain by itself, so it is no error."
        tested: list[Trial] = []
        if len(rows):
            probability = pool.probabilities(labels)
            has = labels >= 0
            score[has] = probability[has, labels[has]]
            flagged[rows] = label_issues(labels[rows], probability[rows])
            proposed[flagged] = probability[flagged].argmax(1)
            for row in np.flatnonzero(flagged):
                given, believed = (pool.images.classes[k] for k in (labels[row], proposed[row]))
                detail[row] = (
                    f"Labelled {given} (believed to {score[row]:.0%}), looks like {believed} "
                    f"({probability[row].max():.0%})."
                )
            tested = self.self_test(pool, rows)
        frame = pl.DataFrame(
            {
                "id": pool.ids,
                "keep": ~flagged,
                "reason": np.where(flagged, "label_error", "kept"),
                "label": pl.Series(proposed).replace(-1, None),
                "detail": pl.Series(detail, dtype=pl.String),
                "score": pl.Series(score).fill_nan(None),
            }
        )
        finding = _finding(int(flagged.sum()), len(rows), tested)
        if conflicts := _conflicts(pool):
            finding += f" {conflicts:,} images are there again under another label: certain errors."
        return Decided(frame, finding, tuple(tested))

    def self_test(self, pool: Pool, rows: np.ndarray) -> list[Trial]:
        """Flips labels among `rows`, lets the models learn from them, and searches again.

        Where labels are wrong already, the planted ones come on top and are harder to find: the
        recall is then rather too low, never flattering.
        """
        assert pool.probabilities is not None
        labels, flipped = plant(pool.labels, rows, pool.data.unit, self.planted, pool.seed)
        if not len(flipped):
            return []
        probability = pool.probabilities(labels)
        flagged = rows[label_issues(labels[rows], probability[rows])]
        ranked = rows[np.argsort(probability[rows, labels[rows]], kind="stable")]
        found, lowest = (np.isin(flipped, x).sum() for x in (flagged, ranked[: len(flipped)]))
        return [
            Trial("flipped labels", len(flipped), int(found), len(flagged)),
            Trial("flipped labels among as many of lowest score", len(flipped), int(lowest)),
        ]


def _finding(flagged: int, judged: int, tested: list[Trial]) -> str:
    if not judged:
        return (
            "No label was judged: that needs two classes with certain labels of at least "
            f"{FEWEST} images each."
        )
    if not tested:
        return f"{flagged:,} of {judged:,} labels look wrong."
    planted, found = tested[0].planted, tested[0].found
    told = f"The search found {found:,} of {planted:,} planted errors"
    recall = found / planted
    if recall < WEAK:
        return f"{told}: the model is too weak to judge labels."
    most = min(1.0, flagged / recall / judged)
    review = f": review {flagged:,}" if flagged else ""
    return f"{told}; at most {most:.1%} of {judged:,} labels are wrong{review}."


def _conflicts(pool: Pool) -> int:
    """Images with the same pixels as another one that has another certain label."""
    table = pl.DataFrame({"exact": pool.facts["exact_hash"], "label": pool.labels})
    certain = table.filter(pl.Series(pool.certain))
    return int(certain.select(pl.col("label").n_unique().over("exact") > 1).to_series().sum())

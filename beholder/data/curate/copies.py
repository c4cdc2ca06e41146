"""Duplicates: of every picture that is there more than once, one stays.

The search is that of `duplicates.py` (specs/study.md, 4.13); it is ours, without a paper.

>>> from beholder.data.sources import open_images
>>> digits = open_images("digits").where(pl.col("id") < "digits-0020")
>>> Duplicates().curate(digits).kept
20
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.registry import system

from .base import Curator, Decided, Pool, Trial
from .duplicates import Copies, find_copies

PLANTED = {
    "jpeg_75": "copies as JPEG 75",
    "half_size": "copies of half the size",
    "jpeg_50": "copies as JPEG 50",
    "brightness_10": "copies 10 % brighter",
    "jpeg_30": "copies as JPEG 30",
}
"""The edits of the copies that `find_copies` makes of up to 64 images, in words."""


def best_of_group(group: np.ndarray, facts: pl.DataFrame) -> np.ndarray:
    """Row of the image that stays, for every row: most pixels, then most bytes, then least id.

    Args:
        group: [N], -1 = alone (the row itself stays).
    """
    table = facts.select("id", "file_size", area=pl.col("width") * pl.col("height"))
    best = (
        table.with_row_index("row")
        .with_columns(group=pl.Series(group))
        .filter(pl.col("group") >= 0)
        .sort("area", "file_size", "id", descending=[True, True, False])
        .unique("group", keep="first", maintain_order=True)
        .sort("group")
    )
    stays = np.arange(len(group))
    stays[group >= 0] = best["row"].to_numpy()[group[group >= 0]]
    return stays


@system(name="duplicates")
@dataclass
class Duplicates(Curator):
    """Drops exact duplicates and copies that were re-encoded, resized, mirrored or turned.

    Where all images look alike, so that a copy cannot be told from a neighbour, only exact ones.
    """

    score_name = "1 - correlation with the most similar other image"
    cannot_see = (
        "Not searched: crops, and rotations other than quarter turns.",
        "Two photographs of one thing are no copies of each other.",
    )

    def decide(self, pool: Pool, count: int | None) -> Decided:
        copies = find_copies(pool.facts, pool.images.read, pool.seed)
        ids, exact = np.array(pool.ids), pool.facts["exact_hash"].to_numpy()
        group, recall = copies.group, copies.recall
        if copies.look_alike:
            group = equal_pictures(exact)
            recall = {edit: (0, planted) for edit, (_, planted) in recall.items()}
        stays = best_of_group(group, pool.facts)
        keep = stays == np.arange(len(pool))
        kind = np.where(exact[stays] == exact, "The same picture as ", "A copy of ")
        differs = pool.labels[stays] != pool.labels
        detail = [
            None if kept else f"{what}{id}{', under another label' * bool(other)}."
            for kept, what, id, other in zip(keep, kind, ids[stays], differs, strict=True)
        ]
        frame = pl.DataFrame(
            {
                "id": ids,
                "keep": keep,
                "reason": np.where(keep, "kept", "near_duplicate"),
                "detail": pl.Series(detail, dtype=pl.String),
                "score": np.where(keep, 1 - np.clip(copies.best, 0, 1), 0.0),
                "group": pl.Series(group).replace(-1, None),
                "partner": pl.Series(np.where(keep, "", ids[stays])).replace("", None),
            }
        )
        tested = tuple(Trial(PLANTED[edit], of, found) for edit, (found, of) in recall.items())
        return Decided(frame, _finding(copies, int((~keep).sum()), differs, tested), tested)


def equal_pictures(exact: np.ndarray) -> np.ndarray:
    """Group 0.. of every row whose hash is there more than once, else -1. `exact`: [N]."""
    _, number, count = np.unique(exact, return_inverse=True, return_counts=True)
    shared = np.cumsum(count > 1) - 1
    return np.where(count[number] > 1, shared[number], -1)


def _finding(copies: Copies, dropped: int, differs: np.ndarray, tested: tuple[Trial, ...]) -> str:
    told = copies.sentence.rstrip(".") + "."
    if copies.look_alike:
        told += f" Only equal pictures are dropped: {dropped:,}."
    if differs.any():
        told += f" {int(differs.sum()):,} have another label than the one kept."
    if tested:
        found, planted = (sum(getattr(t, name) for t in tested) for name in ("found", "planted"))
        told += f" Of {planted:,} planted copies {found:,} were found."
    return told

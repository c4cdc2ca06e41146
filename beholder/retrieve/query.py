"""What is looked for, what was found, and distances between sets of patches."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from beholder.core.errors import ArgumentError

from .embed import Encoder


@dataclass(frozen=True)
class Query:
    """Parts of one question; their vectors are weighed, summed and brought to length 1.

    Attributes:
        image: RGB uint8 [H, W, 3]. text: words. vector: [D].
        negative_text: what shall not be there; subtracted.
        weights: 'image', 'text', 'vector', 'negative_text' -> weight; 1 where not named.
        where: column -> value that a row must have.
        k: at most so many hits.
    """

    image: np.ndarray | None = None
    text: str | None = None
    vector: np.ndarray | None = None
    negative_text: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    where: Mapping[str, object] = field(default_factory=dict)
    k: int = 20

    def vectors(self, encoder: Encoder) -> np.ndarray:
        """The question as one vector [D] of length 1.

        Raises:
            ArgumentError: nothing is asked, a vector of another width or without a direction.
            ModelError: text, and an encoder that has none.
        """
        parts: dict[str, np.ndarray] = {}
        if self.image is not None:
            parts["image"] = encoder.encode_image([self.image])[0].numpy()
        if self.text:
            parts["text"] = encoder.encode_text([self.text])[0].numpy()
        if self.vector is not None:
            parts["vector"] = np.asarray(self.vector, np.float32)
        if self.negative_text:
            parts["negative_text"] = -encoder.encode_text([self.negative_text])[0].numpy()
        if not set(parts) - {"negative_text"}:
            raise ArgumentError("The query is empty.", "Give an image, a text or a vector.")
        total = np.zeros(encoder.dim)
        for name, part in parts.items():
            if part.shape != (encoder.dim,):
                raise ArgumentError(f"A query of {part.shape} does not fit [{encoder.dim}].")
            total += self.weights.get(name, 1.0) * part / (np.linalg.norm(part) or 1.0)
        length = np.linalg.norm(total)
        if not np.isfinite(length) or not length:
            raise ArgumentError("The query has no direction: its parts cancel, or are no numbers.")
        return (total / length).astype(np.float32)


@dataclass(frozen=True)
class Hits:
    """What was found, nearest first: `rank` (from 1), `id`, `similarity` (cosine), then the columns
    of the index, and `distance` where images were compared patch by patch."""

    table: pl.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> list[str]:
        return self.table["id"].to_list()


def spatial_distance(query: np.ndarray, reference: np.ndarray) -> float:
    """Mean over the patches of a query of the distance to the nearest patch of a reference.

    Not symmetric, and 0 where every patch of the query is one of the reference (row 24).

    Args:
        query: [Q, D]. reference: [R, D].
    """
    return float(spatial_distances(query, np.asarray(reference)[None])[0])


def spatial_distances(query: np.ndarray, references: np.ndarray) -> np.ndarray:
    """`spatial_distance` to each of N references of equal numbers of patches: [N, R, D] -> [N]."""
    query = np.asarray(query, np.float64)
    found = np.empty(len(references))
    for number, reference in enumerate(references):
        squares = np.square(query[:, None] - np.asarray(reference, np.float64)[None]).sum(-1)
        found[number] = np.sqrt(squares).min(1).mean()
    return found


def matching(table: pl.DataFrame, where: Mapping[str, object]) -> np.ndarray:
    """Which rows have those values, bool [N].

    Raises:
        ArgumentError: a column that is not there; near names are shown.
    """
    keep = np.ones(len(table), bool)
    for column, value in where.items():
        if column not in table.columns:
            near = difflib.get_close_matches(column, table.columns, n=3) or table.columns
            raise ArgumentError(
                f"The index has no column {column!r}.", f"It has {', '.join(near)}."
            )
        same = table[column].cast(pl.String) == str(value)
        keep &= same.fill_null(False).to_numpy()
    return keep

"""Exact search: every vector is looked at. The reference for all others, and quick to 100,000.

An index is a directory: `index.json` names the generation, a pair of `vectors-N.safetensors` and
`rows-N.parquet` that were written together; a change writes the next pair and then the name, so a
killed process leaves the index as it was.

Example:
    >>> import tempfile
    >>> from beholder.data.sources import open_images
    >>> from beholder.models.open import open_vision
    >>> from beholder.retrieve.embed import VisionEncoder
    >>> encoder = VisionEncoder(open_vision("untrained:test_resnet", input_size=(32, 32)))
    >>> digits = open_images("digits")
    >>> digits = digits.where(digits.table["label"] == 3)
    >>> exact = Exact()
    >>> index = exact.index(digits, encoder, Path(tempfile.mkdtemp()) / "threes")
    >>> hits = exact.find(index, Query(image=digits.read(5), k=3), encoder)
    >>> hits.ids[0] == digits.table["id"][5]
    True
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from beholder.core.decode import Unreadable
from beholder.core.errors import ArgumentError, DataError
from beholder.core.files import write_atomic, write_bytes, write_json
from beholder.core.images import Images
from beholder.core.registry import system
from beholder.metrics.neighbours import nearest

from .base import Retriever, check_encoder
from .embed import Encoder, patches
from .query import Hits, Query, matching, spatial_distances

NAMES = "index.json"
BATCH = 32
CANDIDATES = 200
QUERY_LEVELS = 3
SKIPPED = {"id": pl.String, "reason": pl.String}


class ExactIndex:
    """Vectors [N, P, D] of length 1 (the image, then its patches) and one row for each image.

    Attributes:
        rows: id, path, label (name), split, source and any `group_NAME`.
        spatial: levels of patches; 1 = the image alone.
        skipped: id, reason of images that `insert` left out.
    """

    def __init__(
        self,
        place: Path,
        fingerprint: str,
        spatial: int,
        rows: pl.DataFrame,
        vectors: np.ndarray,
        generation: int = 0,
    ) -> None:
        self.place, self.fingerprint, self.spatial = place, fingerprint, spatial
        self.rows, self.vectors, self.generation = rows, vectors, generation
        self.skipped = pl.DataFrame(schema=SKIPPED)

    def __len__(self) -> int:
        return len(self.rows)

    def insert(self, data: Images, encoder: Encoder) -> int:
        """Add images; those whose id is there are replaced. How many were put in.

        Raises:
            ModelError: the index holds vectors of another encoder.
        """
        check_encoder(self, encoder)
        taken, found, skipped = [], [], []
        for row, vectors in _encoded(data, encoder, self.spatial):
            if isinstance(vectors, str):
                skipped.append((data.table["id"][row], vectors))
            else:
                taken.append(row)
                found.append(vectors)
        self.skipped = pl.DataFrame(skipped, schema=SKIPPED, orient="row")
        if taken:
            added = _rows(data)[taken]
            keep = ~self.rows["id"].is_in(added["id"].implode())
            self._keep(keep.to_numpy())
            self.rows = pl.concat([self.rows, added], how="diagonal_relaxed")
            self.vectors = np.concatenate([self.vectors, np.stack(found)])
            self.save()
        return len(taken)

    def delete(self, ids: list[str]) -> int:
        """Take images out; their vectors are written nowhere any more. How many there were."""
        keep = ~self.rows["id"].is_in(ids).to_numpy()
        self._keep(keep)
        self.save()
        return int((~keep).sum())

    def _keep(self, keep: np.ndarray) -> None:
        self.rows, self.vectors = (
            self.rows.filter(pl.Series(keep, dtype=pl.Boolean)),
            self.vectors[keep],
        )

    def save(self) -> None:
        """The next generation, then its name, then the last one goes."""
        before, self.generation = self._files(), self.generation + 1
        vectors, rows = self._files()
        write_bytes(vectors, save({"vectors": np.ascontiguousarray(self.vectors)}))
        write_atomic(rows, self.rows.write_parquet)
        facts = {"fingerprint": self.fingerprint, "spatial": self.spatial}
        write_json(self.place / NAMES, facts | {"generation": self.generation})
        for file in before:
            file.unlink(missing_ok=True)

    def _files(self) -> tuple[Path, Path]:
        number = self.generation
        return self.place / f"vectors-{number}.safetensors", self.place / f"rows-{number}.parquet"


@system(name="exact")
class Exact(Retriever):
    """Cosine against every image; with `spatial`, the best 200 are compared patch by patch.

    Args:
        spatial: levels of patches that are kept of every image (row 24: 4 = 30 patches); 1 = the
            image alone. An image query then has up to 3 levels.
    """

    def __init__(self, spatial: int = 1) -> None:
        if spatial < 1:
            raise ArgumentError(f"--spatial = {spatial}: level 1 is the whole image.")
        self.spatial = spatial

    def index(self, data: Images, encoder: Encoder, place: Path) -> ExactIndex:
        """A new index. Raises ArgumentError where `place` holds anything, DataError without an
        image that can be indexed."""
        if place.exists() and any(place.iterdir()):
            raise ArgumentError(f"{place} is not empty.", "Name another directory with --out.")
        shape = (0, levels_to_patches(self.spatial), encoder.dim)
        none = np.zeros(shape, np.float32)
        made = ExactIndex(place, encoder.fingerprint, self.spatial, _rows(data)[:0], none)
        if not made.insert(data, encoder):
            reasons = ", ".join(made.skipped["reason"].unique().sort())
            raise DataError(f"No image of {data.name} can be indexed.", reasons)
        return made

    def open(self, place: Path) -> ExactIndex:
        """Raises DataError where there is no index, or a damaged one."""
        try:
            facts = json.loads((place / NAMES).read_text())
            number = facts["generation"]
            vectors = load_file(place / f"vectors-{number}.safetensors")["vectors"]
            rows = pl.read_parquet(place / f"rows-{number}.parquet")
            if len(rows) != len(vectors):
                raise ValueError(f"{len(vectors)} vectors of {len(rows)} images")
            fixed = facts["fingerprint"], facts["spatial"], rows, vectors, number
        except (OSError, ValueError, KeyError, SafetensorError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"{place} holds no readable index: {error}", "Make one: beholder index DATA."
            ) from error
        return ExactIndex(place, *fixed)

    def search(self, index: Any, query: Query, encoder: Encoder) -> Hits:
        if query.k < 1:
            raise ArgumentError(f"--k = {query.k}: at least one hit must be wanted.")
        asked = query.vectors(encoder)
        keep = np.flatnonzero(matching(index.rows, query.where))
        if not len(keep):
            return Hits(_hits(index.rows[:0], np.zeros(0)))
        spatial = index.spatial > 1 and query.image is not None
        wanted = max(query.k, CANDIDATES) if spatial else query.k
        distance, place = nearest(asked[None], index.vectors[keep, 0], wanted)
        rows, similarity = keep[place[0]], 1 - distance[0]
        if not spatial:
            return Hits(_hits(index.rows[rows], similarity))
        assert query.image is not None
        parts = patches(query.image, min(QUERY_LEVELS, index.spatial))
        apart = spatial_distances(encoder.encode_image(parts).numpy(), index.vectors[rows])
        order = np.argsort(apart, kind="stable")[: query.k]
        found = _hits(index.rows[rows[order]], similarity[order])
        return Hits(found.with_columns(pl.Series("distance", apart[order])))


def levels_to_patches(levels: int) -> int:
    """1 + 4 + 9 + ... patches."""
    return sum(level**2 for level in range(1, levels + 1))


def _hits(rows: pl.DataFrame, similarity: np.ndarray) -> pl.DataFrame:
    return rows.select(
        pl.Series("rank", np.arange(1, len(rows) + 1)),
        "id",
        pl.Series("similarity", similarity.astype(np.float64)),
        pl.exclude("id"),
    )


def _rows(data: Images) -> pl.DataFrame:
    """What an index keeps of a data set, besides vectors."""
    groups = [f"group_{name}" for name in data.groups]
    names = dict(enumerate(data.classes))
    label = pl.col("label").replace_strict(names, default=None, return_dtype=pl.String)
    return data.table.select("id", "path", label, "split", "source", *groups)


def _encoded(
    data: Images, encoder: Encoder, spatial: int
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Row and vectors [P, D] of every image, or the reason why there are none."""

    def read(row: int) -> list[np.ndarray] | str:
        try:
            return patches(data.read(row), spatial)
        except Unreadable as error:
            return str(error) or error.reason
        except DataError as error:
            return error.args[0]

    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(data), BATCH):
            rows = range(start, min(start + BATCH, len(data)))
            shown = list(pool.map(read, rows))
            readable = [parts for parts in shown if not isinstance(parts, str)]
            flat = [part for parts in readable for part in parts]
            vectors = iter(())
            if flat:
                encoded = encoder.encode_image(flat).numpy()
                vectors = iter(encoded.reshape(len(readable), -1, encoded.shape[1]))
            for row, parts in zip(rows, shown, strict=True):
                yield row, parts if isinstance(parts, str) else _checked(next(vectors))


def _checked(vectors: np.ndarray) -> np.ndarray | str:
    length = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(length).all() or not length.all():
        return "its vector has no direction (zero or not a number)"
    return vectors.astype(np.float32)

"""Features: one pass of one model over one data set, done once for everything that asks.

Shards of 256 images (what a kill can cost) in the cache, each under the key of its images and of
everything that decides the numbers; float16 on disk, memory-mapped, float32 in arithmetic.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import filelock
import numpy as np
import polars as pl

from .cache import prune
from .decode import Unreadable
from .errors import ModelError, StorageError
from .files import cache_dir, key_of, storage_errors, write_atomic
from .images import Images

if TYPE_CHECKING:
    from .engines import Engine

View = Literal["image", "mirror", "copy"]
"""`copy`: the image mildly changed, to learn from (`beholder.train.harden`)."""
SHARD = 256
HALF = np.dtype(np.float16)
FOOTER = 24  # 16 bytes of BLAKE2b, 8 bytes of length


@dataclass
class Features:
    """Features of `rows` images in one or two views, read from memory-mapped shards.

    Attributes:
        layout: part of the descriptor -> its columns.
        gone: ids whose file could no longer be read when the pass came to it (their rows are 0).
    """

    views: dict[View, list[np.ndarray]]
    layout: dict[str, slice]
    dim: int
    gone: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, array: np.ndarray) -> Features:
        """An array [N, D] already in memory, in the form of features."""
        shards = [array[start : start + SHARD] for start in range(0, len(array), SHARD)]
        return cls({"image": shards}, {"all": slice(0, array.shape[1])}, array.shape[1])

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.views["image"])

    def take(
        self, rows: np.ndarray | None = None, view: View = "image", columns: slice | None = None
    ) -> np.ndarray:
        """float32 [len(rows), D] of these rows (all by default), or of some columns."""
        shards = self.views[view]
        columns = columns or slice(None)
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        out = np.empty((len(rows), len(range(self.dim)[columns])), np.float32)
        for number in np.unique(rows // SHARD):
            inside = np.flatnonzero(rows // SHARD == number)
            out[inside] = shards[number][:, columns][rows[inside] % SHARD]
        return out

    def has(self, view: View) -> bool:
        return view in self.views


def read_shard(path: Path, count: int, dim: int, dtype: np.dtype) -> np.ndarray | None:
    """The memory-mapped shard [count, dim], or None where it is missing or torn."""
    size = count * dim * dtype.itemsize
    try:
        if path.stat().st_size != size + FOOTER:
            return None
        with path.open("rb") as stream:
            data = np.memmap(stream, dtype, "r", shape=(count, dim))
            stream.seek(size)
            footer = stream.read(FOOTER)
    except OSError:
        return None
    if footer != _footer(data):
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(path)
    return data


def write_shard(path: Path, data: np.ndarray) -> None:
    """The rows, then checksum and length, atomically."""

    def write(stream: BinaryIO) -> None:
        stream.write(data.data)
        stream.write(_footer(data))

    write_atomic(path, write)


def _footer(data: np.ndarray) -> bytes:
    return hashlib.blake2b(data.data, digest_size=16).digest() + data.nbytes.to_bytes(8, "little")


def batches(
    images: Images,
    rows: Sequence[int],
    prepare: Callable[[np.ndarray], np.ndarray],
    size: tuple[int, int],
    count: int,
    workers: int,
    gone: dict[str, str],
) -> Iterator[np.ndarray]:
    """uint8 [count, H, W, 3], decoded ahead by threads; the last one is padded with zeros."""

    def load(row: int) -> np.ndarray:
        try:
            return prepare(images.read(row))
        except (OSError, Unreadable) as error:
            gone[images.table["id"][row]] = str(error)
            return np.zeros((*size, 3), np.uint8)

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting = iter(rows)
        ahead: deque[Future[np.ndarray]] = deque()
        ahead.extend(pool.submit(load, row) for row in islice(waiting, 4 * count))
        try:
            while ahead:
                batch = np.zeros((count, *size, 3), np.uint8)
                for slot in range(min(count, len(ahead))):
                    batch[slot] = ahead.popleft().result()
                    ahead.extend(pool.submit(load, row) for row in islice(waiting, 1))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def extract(
    make_engine: Callable[[], Engine],
    images: Images,
    hashes: Sequence[str],
    *,
    describe: dict[str, object],
    prepare: Callable[[np.ndarray], np.ndarray],
    size: tuple[int, int],
    layout: dict[str, slice],
    views: Sequence[View] = ("image", "mirror"),
    workers: int = 2,
    directory: Path | None = None,
    dtype: np.dtype = HALF,
    progress: Callable[[int], None] = lambda count: None,
) -> Features:
    """Features of every image in every view, from the cache or through the engine.

    Args:
        make_engine: called only when something is not cached.
        hashes: file hash per row of `images`.
        describe: what decides the numbers (model, size, normalisation; not the engine, because
            engines are verified equal).
        directory: None = the shared cache, which is then kept below its limit.
        dtype: on disk.
        progress: told how many more passes (image x view) are done, cached ones too.

    Raises:
        StorageError: the disk is full or read-only.
        ModelError: the engine gives NaN.
    """
    shared, directory = directory is None, directory or cache_dir() / "features"
    dim = max(part.stop for part in layout.values())
    result = Features({view: [] for view in views}, layout, dim)
    engine: Engine | None = None
    for start in range(0, len(images), SHARD):
        rows = range(start, min(start + SHARD, len(images)))
        content = [hashes[row] for row in rows]
        paths: dict[View, Path] = {}
        for view in views:
            key = key_of({"describe": describe, "view": view, "images": content})
            paths[view] = directory / key[:2] / f"{key}.{dtype.name}"
        found = _read(paths, len(rows), dim, dtype)
        missing: list[View] = [view for view in views if view not in found]
        if missing:
            with _locked(paths[missing[0]]):
                found |= _read({view: paths[view] for view in missing}, len(rows), dim, dtype)
                missing = [view for view in views if view not in found]
                if missing:
                    engine = engine or make_engine()
                    gone: dict[str, str] = {}
                    source = batches(images, rows, prepare, size, engine.batch, workers, gone)
                    out: dict[View, np.ndarray] = {
                        view: np.empty((len(rows), dim), dtype) for view in missing
                    }
                    _compute(engine, source, out, progress)
                    result.gone |= gone
                    for view, data in out.items():
                        _refuse_nan(data, images.table["id"][start : start + len(rows)])
                        found[view] = data if gone else _kept(paths[view], data)
        progress(len(rows) * (len(views) - len(missing)))
        for view in views:
            result.views[view].append(found[view])
    if shared and engine is not None:
        prune()
    return result


def _read(paths: dict[View, Path], count: int, dim: int, dtype: np.dtype) -> dict[View, np.ndarray]:
    """The shards that are there and whole."""
    found: dict[View, np.ndarray] = {}
    for view, path in paths.items():
        data = read_shard(path, count, dim, dtype)
        if data is not None:
            found[view] = data
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer of `path`; the lock file goes with the lock."""
    lock = filelock.FileLock(f"{path}.lock")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _refuse_nan(data: np.ndarray, ids: pl.Series) -> None:
    bad = np.flatnonzero(np.isnan(data).any(1))
    if len(bad):
        raise ModelError(
            f"The model's numbers for {ids[int(bad[0])]} are not a number (NaN).",
            "Its weights or its preprocessing are broken: look at that image and at the model.",
        )


def _kept(path: Path, data: np.ndarray) -> np.ndarray:
    """`data` written, and mapped from there."""
    write_shard(path, data)
    mapped = read_shard(path, len(data), data.shape[1], data.dtype)
    if mapped is None:
        raise StorageError(f"{path.name} was changed while it was written.")
    return mapped


def _compute(
    engine: Engine,
    source: Iterator[np.ndarray],
    out: dict[View, np.ndarray],
    progress: Callable[[int], None],
) -> None:
    """Fill `out`, [count, dim] per view; each image is decoded once for all views."""
    views = list(out)

    def seen() -> Iterator[np.ndarray]:
        for batch in source:
            for view in views:
                yield batch if view == "image" else np.ascontiguousarray(batch[:, :, ::-1])

    for number, result in enumerate(engine.run(seen())):
        start = number // len(views) * engine.batch
        part = out[views[number % len(views)]][start : start + engine.batch]
        largest = np.finfo(part.dtype).max
        part[:] = np.clip(result[: len(part)], -largest, largest)
        progress(len(part))

"""The one reading of every image: hashes, thumbnails and measures, remembered across runs.

Files are read and decoded in threads; what was found is kept in `images.sqlite` in the cache
directory (specs/study.md, section 6): a file's hash by its place, size, time and inode, an image's
facts by that hash. A second scan therefore opens no image. The cache is only a help: if it cannot
be used the scan says so and is slower, never wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from filelock import FileLock

from .decode import Unreadable, decode
from .files import cache_dir, digest
from .images import Images, read_bytes
from .pixels import luma, measures, phash, pixel_hash, thumbnail

READER = 1
"""Version of what a scan finds; to be raised when decoding or a measure changes its answer."""

FACTS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "file_hash": pl.String,  # BLAKE2b-128 of the file's bytes
    "exact_hash": pl.String,  # BLAKE2b-128 of the decoded pixels and their size
    "phash": pl.UInt64,  # 63 bits; 0 for a constant image
    "width": pl.Int32,
    "height": pl.Int32,
    "mode": pl.String,
    "format": pl.String,
    "frames": pl.Int32,
    "file_size": pl.Int64,  # bytes
    "brightness": pl.Float64,
    "contrast": pl.Float64,
    "clipped": pl.Float64,
    "sharpness": pl.Float64,
    "entropy": pl.Float64,
    "colourfulness": pl.Float64,
    "grey32": pl.Binary,  # 32 x 32 luma
    "grey96": pl.Binary,  # 96 x 96 luma
}
"""Columns of the facts of a scan."""

COMMIT_EVERY = 200
AHEAD = 4  # images under way per worker
ROWS = 1024  # rows of facts held as Python objects at once

Row = dict[str, str | int | float | bytes]


@dataclass(frozen=True)
class _Finding:
    """One image's facts, or why it cannot be read; `place` and `stat` where to remember it."""

    facts: Row | None
    notes: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""
    file_hash: str = ""
    place: str = ""
    stat: str = ""
    new_hash: bool = False
    new_facts: bool = False


def scan(
    images: Images,
    *,
    max_pixels: int,
    workers: int | None = None,
    use_cache: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Images, pl.DataFrame]:
    """Read every image once.

    Args:
        images: any dataset; its order does not matter.
        max_pixels: larger images are skipped as `too_large`.
        workers: threads; None = one per core, at most 8.
        use_cache: False neither reads nor writes `images.sqlite`.
        progress: called with the number of images done so far, after each.

    Returns:
        The dataset sorted by id without the unreadable images (they are appended to `skipped`),
        and one row of facts (`FACTS_SCHEMA`) for each remaining image in the same order.
        `notes` tell of a cache that could not be used and of what had to be done to images.
    """
    table = images.table.sort("id")
    workers = workers or min(8, os.cpu_count() or 1)
    cache = _Cache(cache_dir() / "images.sqlite" if use_cache else None, f"{READER}:{max_pixels}")
    facts: list[Row] = []
    frames: list[pl.DataFrame] = []
    keep = np.zeros(len(table), bool)
    skipped: list[tuple[str, str, str]] = []
    notes: Counter[str] = Counter()

    def look(key: str) -> _Finding:
        return _look(images, key, max_pixels, cache)

    with cache.open(), closing(_in_order(look, table["key"].to_list(), workers)) as found:
        for row, finding in enumerate(found):
            cache.remember(finding)
            if finding.facts is None:
                skipped.append((table["path"][row], finding.reason, finding.detail))
            else:
                keep[row] = True
                facts.append({**finding.facts, "id": table["id"][row]})
                notes.update(finding.notes)
            if len(facts) == ROWS or row == len(table) - 1:
                frames.append(pl.DataFrame(facts, schema=FACTS_SCHEMA, orient="row"))
                facts.clear()
            progress(row + 1)
    if cache.trouble:
        images = replace(images, notes=(*images.notes, cache.trouble))
    told = tuple(f"{note}: {_images(count)}" for note, count in sorted(notes.items()))
    remaining = replace(
        images,
        table=table.filter(pl.Series(keep)),
        skipped=pl.concat(
            [images.skipped, pl.DataFrame(skipped, schema=images.skipped.schema, orient="row")]
        ),
        notes=(*images.notes, *told),
        max_pixels=max_pixels,
    )
    return remaining, pl.concat([pl.DataFrame(schema=FACTS_SCHEMA), *frames])


def thumbnails(facts: pl.DataFrame, side: Literal[16, 32, 96]) -> np.ndarray:
    """Grey thumbnails of a scan -> uint8 [N, side, side]; 16 is the mean of 2 x 2 of the 32."""
    stored = 32 if side == 16 else side
    data = b"".join(facts[f"grey{stored}"])
    grey = np.frombuffer(data, np.uint8).reshape(len(facts), stored, stored)
    if side != 16:
        return grey
    blocks = grey.reshape(len(grey), 16, 2, 16, 2).sum((2, 4), dtype=np.uint16)
    return ((blocks + 2) // 4).astype(np.uint8)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _look(images: Images, key: str, max_pixels: int, cache: _Cache) -> _Finding:
    """One image: from the cache if its file is known, else read, else decoded."""
    status = images.store.stat(key)
    place = digest(os.fsencode(status[0])) if status else ""
    stat = " ".join(map(str, status[1:])) if status else ""
    known = cache.file_hash(place, stat) if status else None
    if known and (finding := cache.finding(known)):
        return finding
    try:
        data = read_bytes(images.store, key)
    except Unreadable as error:
        return _Finding(None, reason=error.reason, detail=error.detail)
    file_hash = hashlib.blake2b(data, digest_size=16).hexdigest()
    finding = cache.finding(file_hash)
    if finding is None:
        finding = _read(data, file_hash, max_pixels)
    return replace(finding, place=place, stat=stat, new_hash=status is not None)


def _read(data: bytes, file_hash: str, max_pixels: int) -> _Finding:
    try:
        pixels, file = decode(data, max_pixels)
    except Unreadable as error:
        lasting = not isinstance(error.__cause__, MemoryError)
        return _Finding(None, (), error.reason, error.detail, file_hash, new_facts=lasting)
    grey = luma(pixels)
    grey32 = thumbnail(grey, 32)
    facts: Row = {
        "file_hash": file_hash,
        "exact_hash": pixel_hash(pixels),
        "phash": phash(grey32),
        "width": file.width,
        "height": file.height,
        "mode": file.mode,
        "format": file.format,
        "frames": file.frames,
        "file_size": len(data),
        **measures(pixels, grey),
        "grey32": grey32.tobytes(),
        "grey96": thumbnail(grey, 96).tobytes(),
    }
    return _Finding(facts, file.notes, file_hash=file_hash, new_facts=True)


def _in_order(
    look: Callable[[str], _Finding], keys: list[str], workers: int
) -> Generator[_Finding]:
    """`look` of every key in threads, in the order of the keys, few of them under way at once."""
    waiting: deque[Future[_Finding]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="scan")
    try:
        for key in keys:
            waiting.append(pool.submit(look, key))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Cache:
    """`images.sqlite`, safe under several threads and processes.

    The first error of the database ends its use for this scan and is told in `trouble`.
    """

    def __init__(self, path: Path | None, version: str) -> None:
        self.path, self.version = path, version
        self.trouble = ""
        self._database: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._pending: list[_Finding] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open, and on leaving (also by an interrupt) write what is pending, and close."""
        if self.path is not None:
            with self._only_a_help():
                self._database = _open_database(self.path)
        try:
            yield
        finally:
            self._write()
            if self._database is not None:
                self._database.close()

    def file_hash(self, place: str, stat: str) -> str | None:
        """Hash of the file at `place` if it was seen with this size, time and inode."""
        row = self._one("SELECT hash FROM hashes WHERE place = ? AND stat = ?", (place, stat))
        return row[0] if row else None

    def finding(self, file_hash: str) -> _Finding | None:
        """What was found in the file of this hash."""
        row = self._one(
            "SELECT facts, grey32, grey96 FROM facts WHERE hash = ? AND version = ?",
            (file_hash, self.version),
        )
        if row is None:
            return None
        facts, notes, reason, detail = json.loads(row[0])
        if facts is not None:
            facts |= {"grey32": row[1], "grey96": row[2]}
        return _Finding(facts, tuple(notes), reason, detail, file_hash)

    def remember(self, finding: _Finding) -> None:
        """Keep a finding; written every `COMMIT_EVERY`."""
        if finding.new_hash or finding.new_facts:
            self._pending.append(finding)
        if len(self._pending) >= COMMIT_EVERY:
            self._write()

    def _write(self) -> None:
        pending, self._pending = self._pending, []
        if self._database is None or self.trouble or not pending:
            return
        hashes = [(f.place, f.stat, f.file_hash) for f in pending if f.new_hash]
        facts = [self._stored(f) for f in pending if f.new_facts]
        with self._only_a_help(), self._lock, self._database:
            self._database.executemany("REPLACE INTO hashes VALUES (?, ?, ?)", hashes)
            self._database.executemany("REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", facts)

    def _stored(self, finding: _Finding) -> tuple:
        facts = finding.facts and dict(finding.facts)
        greys = [facts and facts.pop(name) for name in ("grey32", "grey96")]
        text = json.dumps([facts, finding.notes, finding.reason, finding.detail])
        return finding.file_hash, self.version, text, *greys

    def _one(self, query: str, values: tuple[str, str]) -> tuple | None:
        if self._database is None or self.trouble:
            return None
        with self._only_a_help(), self._lock:
            return self._database.execute(query, values).fetchone()

    @contextmanager
    def _only_a_help(self) -> Iterator[None]:
        """Errors of the cache are told, once, and never end the scan."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.trouble = self.trouble or (
                f"The cache of scanned images cannot be used ({reason}), so reading is slower. "
                "Free some space, delete images.sqlite there, or set $BEHOLDER_CACHE to another "
                "directory."
            )


def _open_database(path: Path) -> sqlite3.Connection:
    """A connection in write-ahead mode with both tables. Raises sqlite3.Error, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=30):
        database = sqlite3.connect(path, timeout=30, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS hashes (place TEXT PRIMARY KEY, stat TEXT, hash TEXT)"
        )
        database.execute(
            "CREATE TABLE IF NOT EXISTS facts (hash TEXT, version TEXT, facts TEXT, grey32 BLOB, "
            "grey96 BLOB, PRIMARY KEY (hash, version))"
        )
        database.commit()
    return database

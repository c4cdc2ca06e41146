"""The cache on disk: how large it is, and making room."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from os import stat_result
from pathlib import Path

from .files import cache_dir

LIMIT = 20 * 2**30
FOLDERS = ("features", "engines")
"""What may be dropped piece by piece."""
FILES = ("images.*", "log.txt")


def entries() -> list[tuple[float, int, Path]]:
    """(last use, bytes, file) of what may be dropped, least recently used first."""
    found = [file for folder in FOLDERS for file in _files(f"{folder}/**/*")]
    return sorted((facts.st_mtime, facts.st_size, path) for path, facts in found)


def size() -> int:
    """Bytes in all."""
    return sum(facts.st_size for _, facts in _everything())


def prune(older_than: float | None = None, limit: int = LIMIT) -> int:
    """Drop entries unused for so many seconds, then the least recently used above `limit`.

    Returns:
        The bytes freed.
    """
    kept = entries()
    total = sum(size for _, size, _ in kept)
    freed = 0
    for used, size, path in kept:
        old = older_than is not None and time.time() - used > older_than
        if old or total - freed > limit:
            path.unlink(missing_ok=True)
            freed += size
    return freed


def clear() -> int:
    """Drop everything that is ours, whatever else lies there; returns the bytes freed."""
    freed = 0
    for path, facts in _everything():
        path.unlink(missing_ok=True)
        freed += facts.st_size
    for folder in FOLDERS:
        for path in sorted((cache_dir() / folder).rglob("*"), reverse=True):
            with suppress(OSError):
                path.rmdir()
    return freed


def _everything() -> Iterator[tuple[Path, stat_result]]:
    for pattern in (*(f"{folder}/**/*" for folder in FOLDERS), *FILES):
        yield from _files(pattern)


def _files(pattern: str) -> Iterator[tuple[Path, stat_result]]:
    """Files of the cache and their facts; another process may take some away meanwhile."""
    for path in list(cache_dir().glob(pattern)):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.stat()

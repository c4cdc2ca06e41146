"""The cache on disk: how large it is, and making room."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from .files import cache_dir

LIMIT = 20 * 2**30


def entries() -> list[tuple[float, int, Path]]:
    """(last use, bytes, file) of what may be dropped, least recently used first."""
    found = []
    for folder in ("features", "engines"):
        for path in (cache_dir() / folder).rglob("*"):
            if path.is_file():
                facts = path.stat()
                found.append((facts.st_mtime, facts.st_size, path))
    return sorted(found)


def size() -> int:
    """Bytes in all."""
    return sum(path.stat().st_size for path in cache_dir().rglob("*") if path.is_file())


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
    """Drop everything; returns the bytes freed."""
    freed = size()
    shutil.rmtree(cache_dir(), ignore_errors=True)
    return freed

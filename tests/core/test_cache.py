"""Room in the cache is made from the least recently used end, and only of what is ours."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from beholder.core import cache


@pytest.fixture
def filled(own_cache: Path) -> dict[str, Path]:
    """Three entries of 100 bytes, used 3, 2 and 1 hours ago, the table of images, a stranger."""
    files = {}
    for age, name in ((3, "features/aa/old"), (2, "engines/mid.bin"), (1, "features/bb/new")):
        path = own_cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100))
        then = time.time() - age * 3600
        os.utime(path, (then, then))
        files[path.name] = path
    for name in ("images.sqlite", "images.lock", "stranger.txt"):
        files[name] = own_cache / name
        files[name].write_bytes(bytes(10))
    return files


def there(files: dict[str, Path]) -> set[str]:
    return {name for name, path in files.items() if path.exists()}


def test_the_size_counts_what_is_ours(filled: dict[str, Path]) -> None:
    assert cache.size() == 320


def test_entries_come_least_recently_used_first(filled: dict[str, Path]) -> None:
    assert [path.name for _, _, path in cache.entries()] == ["old", "mid.bin", "new"]


def test_pruning_to_a_limit_drops_the_oldest(filled: dict[str, Path]) -> None:
    assert cache.prune(limit=150) == 200
    assert there(filled) == {"new", "images.sqlite", "images.lock", "stranger.txt"}


def test_pruning_below_the_limit_drops_nothing(filled: dict[str, Path]) -> None:
    assert cache.prune() == 0
    assert len(there(filled)) == 6


def test_pruning_by_age_keeps_what_was_used_since(filled: dict[str, Path]) -> None:
    assert cache.prune(older_than=1.5 * 3600) == 200
    assert "new" in there(filled)


def test_clearing_leaves_the_files_of_others(filled: dict[str, Path], own_cache: Path) -> None:
    assert cache.clear() == 320
    assert there(filled) == {"stranger.txt"}
    assert cache.size() == 0


def test_an_empty_or_absent_cache_has_no_size(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (cache.size(), cache.prune(), cache.clear()) == (0, 0, 0)
    monkeypatch.setenv("BEHOLDER_CACHE", str(own_cache / "nowhere"))
    assert (cache.size(), cache.prune(), cache.clear()) == (0, 0, 0)


def test_a_file_that_another_process_takes_away_is_passed_over(
    filled: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_file = Path.is_file

    def vanishing(path: Path) -> bool:
        there = is_file(path)
        if path.name == "mid.bin":
            path.unlink(missing_ok=True)
        return there

    monkeypatch.setattr(Path, "is_file", vanishing)
    assert [path.name for _, _, path in cache.entries()] == ["old", "new"]

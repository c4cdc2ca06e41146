"""What the benchmarks share: bars, clocks, an own cache, fresh processes, pieces of `solar`.

A benchmark is a module with `measure(quick) -> Measured`. Where it compares two ways of doing the
same thing, both are run in turn (A B A B), and the medians of the pairs are compared: a machine
that slows down for a while slows both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import polars as pl

from beholder.core.images import Images
from beholder.data.sources import open_images

T = TypeVar("T")

CORE = ("data", "accuracy", "groups", "confusion", "mistakes", "calibration", "method")
"""Sections of a study that ask nothing of the model but its answers."""

ROUNDS = 3
MEBIBYTE = 2**20 if sys.platform == "darwin" else 2**10  # what `ru_maxrss` counts in


class Check(TypedDict):
    """One figure against its bar. `bar` reads '>= 0.85 x'."""

    what: str
    value: float
    unit: str
    bar: str
    holds: bool


class Measured(TypedDict):
    """What `measure` returns: `figures` is everything that the checks were computed from."""

    figures: Mapping[str, object]
    checks: list[Check]
    holds: bool


def at_least(what: str, value: float, bar: float, unit: str = "x") -> Check:
    """`value` must not be below `bar`."""
    return _check(what, value, unit, f">= {bar:g}", value >= bar)


def at_most(what: str, value: float, bar: float, unit: str = "x") -> Check:
    """`value` must not be above `bar`."""
    return _check(what, value, unit, f"<= {bar:g}", value <= bar)


def _check(what: str, value: float, unit: str, bar: str, holds: bool) -> Check:
    """Plain numbers, whatever numpy made of them."""
    bar = f"{bar} {unit}".strip()
    return Check(what=what, value=float(value), unit=unit, bar=bar, holds=bool(holds))


def measured(figures: Mapping[str, object], *checks: Check) -> Measured:
    """Figures and checks; holds where every check does."""
    return Measured(
        figures=figures, checks=list(checks), holds=all(check["holds"] for check in checks)
    )


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that `work` took, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of `above` / `below` of the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@contextmanager
def fresh_cache() -> Iterator[Path]:
    """An empty `$BEHOLDER_CACHE`, here and in processes started here; gone afterwards."""
    before = os.environ.get("BEHOLDER_CACHE")
    with tempfile.TemporaryDirectory(prefix="beholder-bench-") as place:
        os.environ["BEHOLDER_CACHE"] = place
        try:
            yield Path(place)
        finally:
            if before is None:
                del os.environ["BEHOLDER_CACHE"]
            else:
                os.environ["BEHOLDER_CACHE"] = before


def run_process(command: Sequence[str]) -> tuple[float, float, str]:
    """Seconds, peak resident MiB (of it and its children, the larger), and stdout of a process.

    Raises:
        RuntimeError: it failed; with what it wrote to stderr.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{err.read().decode()}")
        return seconds, usage.ru_maxrss / MEBIBYTE, out.read().decode()


def python(*words: str) -> list[str]:
    """The command of a fresh Python of this environment."""
    return [sys.executable, *words]


def solar(count: int) -> Images:
    """`count` photographs of `solar`, in a seeded order; fewer are the first of more."""
    images = open_images("solar")
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return images.where(pl.Series(np.isin(np.arange(len(images)), chosen)))


def class_folders(images: Images, root: Path) -> Path:
    """The image files copied to `root`/CLASS/NAME; returns `root`."""
    for name in images.classes:
        (root / name).mkdir(parents=True)
    for key, path, label in images.table.select("key", "path", "label").iter_rows():
        target = root / images.classes[label] / Path(path).name
        target.write_bytes(images.store.read(key))
    return root

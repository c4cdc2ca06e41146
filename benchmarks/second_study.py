"""A second `study` of the same data against the first: features come from the cache.

Both are the command as a user gives it, imports and all, each with its own run directory. That the
second one ran no forward over the data is seen in the cache: not one shard was written anew. Then
the report is built again from the records of the run alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from beholder.evaluate.report import Report

from .base import (
    CORE,
    Measured,
    at_least,
    at_most,
    class_folders,
    fresh_cache,
    measured,
    python,
    run_process,
    solar,
    timed,
)


def shards(cache: Path) -> dict[str, int]:
    """Name -> inode; a shard written anew has another one."""
    return {path.name: path.stat().st_ino for path in (cache / "features").rglob("*.float16")}


def measure(quick: bool = False) -> Measured:
    seconds, stages, kept = [], [], []
    with fresh_cache() as cache, tempfile.TemporaryDirectory() as place:
        data = str(class_folders(solar(480), Path(place) / "solar")) if quick else "solar"
        runs = [Path(place) / "first", Path(place) / "second"]
        for run in runs:
            command = ("-m", "beholder.cli", "study", data, "--out", str(run), "--quiet")
            command += ("--sections", ",".join((*CORE, "cost")))
            seconds.append(run_process(python(*command))[0])
            stages.append(json.loads((run / "results.json").read_text())["timing"])
            kept.append(shards(cache))
        rebuilt, _ = timed(lambda: Report.load(runs[1]).save(Path(place) / "again"))
        size = (runs[1] / "report.html").stat().st_size / 1e6
    written = sum(kept[0].get(name) != inode for name, inode in kept[1].items())
    first, second = seconds
    figures = {
        "first_s": first,
        "second_s": second,
        "stages_s": {"first": stages[0], "second": stages[1]},
        "shards": len(kept[0]),
        "report_mb": size,
    }
    return measured(
        figures,
        at_most("second study", second, 60, "s"),
        at_least("faster than the first", first / second, 1),
        at_most("shards of features written by the second", written, 0, "shards"),
        at_most("report rebuilt from its records", rebuilt, 3, "s"),
    )

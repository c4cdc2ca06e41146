"""Memory and time of `study` on n and on 4 n images: constant, and in proportion.

Each study is a fresh process with a small untrained encoder, no cache and a new run directory. Its
start-up (imports, the choice of the engine) is not counted in the time.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from .base import (
    CORE,
    ROUNDS,
    Measured,
    at_most,
    class_folders,
    fresh_cache,
    measured,
    median_ratio,
    python,
    run_process,
    solar,
)

COUNTS = (400, 1600)

STUDY = """
import json, sys, time
from beholder.study import study
start = time.perf_counter()
report = study(
    sys.argv[1], "untrained:test_resnet", out=sys.argv[2],
    cache=False, budget=0, sections=sys.argv[3].split(","), quiet=True,
)
print(json.dumps({"all": time.perf_counter() - start} | report.timing))
"""


def measure(quick: bool = False) -> Measured:
    peaks: dict[int, list[float]] = {count: [] for count in COUNTS}
    stages: dict[int, list[dict[str, float]]] = {count: [] for count in COUNTS}
    with fresh_cache(), tempfile.TemporaryDirectory() as place:
        folders = {
            count: class_folders(solar(count), Path(place) / f"solar{count}") for count in COUNTS
        }
        for number in range(1 if quick else ROUNDS):
            for count, folder in folders.items():
                run = Path(place) / f"run{number}-{count}"
                _, peak, out = run_process(
                    python("-c", STUDY, str(folder), str(run), ",".join(CORE))
                )
                peaks[count].append(peak)
                stages[count].append(json.loads(out))
    few, many = COUNTS
    work = {
        count: [round["all"] - round["engines"] for round in rounds]
        for count, rounds in stages.items()
    }
    figures = {
        "encoder": "untrained:test_resnet",
        "images": list(COUNTS),
        "peak_mib": {str(count): peak for count, peak in peaks.items()},
        "stages_s": {str(count): rounds for count, rounds in stages.items()},
        "mib_per_further_image": (statistics.median(peaks[many]) - statistics.median(peaks[few]))
        / (many - few),
    }
    return measured(
        figures,
        at_most("peak memory, 4 n images against n", median_ratio(peaks[many], peaks[few]), 1.1),
        at_most("time, 4 n images against n", median_ratio(work[many], work[few]), 4.4),
    )

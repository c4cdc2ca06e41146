"""Run the benchmarks: `python -m benchmarks.run [NAME ...] [--quick]` (`make bench`: all).

Prints a table, and writes `benchmarks/results/NAME.json`: figures, bars, versions, the machine, and
how busy it was with other things meanwhile. `--quick` tries them on few images, where the bars mean
little, and writes nothing. Exit code 1 if a bar does not hold.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

from beholder.core.environment import environment, load_average, version
from beholder.core.files import write_json

from .base import Check, Measured, timed

NAMES = (
    "startup",
    "feature_pass",
    "study_overhead",
    "second_study",
    "memory",
    "metrics",
    "duplicates",
    "heads",
    "training",
    "barlow_twins",
)
RESULTS = Path(__file__).parent / "results"
OF_A_RUN = ("seed", "fingerprint", "deterministic", "load_at_start")
PEERS = ("torchvision", "torchmetrics")


def machine() -> dict[str, object]:
    """Processor, memory, versions: what `environment.json` of a run says, and the peers."""
    known = environment("cpu", torch.get_num_threads(), seed=0, fingerprint="")
    peers = {"peers": {package: version(package) for package in PEERS}}
    return {name: value for name, value in known.items() if name not in OF_A_RUN} | peers


def work_of_all() -> float:
    """Seconds of work that all cores did since the start of the machine."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


def own_work() -> float:
    """Seconds of work of this process and of its children that ended."""
    return sum(os.times()[:4])


def run(name: str, quick: bool) -> tuple[Measured, dict[str, object]]:
    """What a benchmark measured, and its record."""
    module = importlib.import_module(f"benchmarks.{name}")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    load, work, own = load_average(), work_of_all(), own_work()
    seconds, found = timed(lambda: module.measure(quick))
    others = work_of_all() - work - (own_work() - own)
    question = (module.__doc__ or "").splitlines()[0]
    record = {
        "benchmark": name,
        "question": question,
        "date": date,
        "seconds": seconds,
        "load_before": load,
        "load_after": load_average(),
        "cores_busy_with_other_work": max(0.0, others / seconds),
        "machine": machine(),
        **found,
    }
    return found, record


def line(check: Check) -> str:
    """'  import beholder                                   20.5 ms  <= 150 ms   holds'."""
    value = f"{check['value']:,.3g} {check['unit']}".strip()
    answer = "holds" if check["holds"] else "DOES NOT HOLD"
    return f"  {check['what']:<46}{value:>18}  {check['bar']:<20}{answer}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="few images; writes nothing")
    arguments = parser.parse_args()
    unknown = sorted({*arguments.names} - {*NAMES})
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    failed = []
    for name in arguments.names or NAMES:
        print(name, end="", flush=True)
        found, record = run(name, arguments.quick)
        busy = record["cores_busy_with_other_work"]
        print(f"   {record['seconds']:.0f} s, {busy:.2f} cores busy with other work")
        for check in found["checks"]:
            print(line(check), flush=True)
        failed += [] if found["holds"] else [name]
        if not arguments.quick:
            write_json(RESULTS / f"{name}.json", record)
    if failed:
        sys.exit(f"Bars that do not hold: {', '.join(failed)}.")


if __name__ == "__main__":
    main()

"""What a model costs: multiply-adds, latency, throughput, memory (specs/study.md, section 4.15)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WARM_UP = 10
RUNS = 50
SECONDS = 3.0


def macs(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-adds of one forward pass, as torch counts them (its FLOPs / 2)."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    return counter.get_total_flops() // 2


def latency(run: Callable[[], object], seconds: float = SECONDS) -> tuple[float, float]:
    """(p50, p90) in ms of 50 runs after 10 to warm up, or of what `seconds` allow (at least 3)."""
    start = time.perf_counter()
    for _ in range(WARM_UP):
        run()
        if time.perf_counter() - start > seconds / 4:
            break
    times: list[float] = []
    while len(times) < RUNS:
        before = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - before))
        if len(times) >= 3 and time.perf_counter() - start > seconds:
            break
    return float(np.quantile(times, 0.5)), float(np.quantile(times, 0.9))


def throughput(run: Callable[[], object], images: int, seconds: float = SECONDS) -> float:
    """Images per second of runs of `images` each, over about `seconds`.

    The first run is to warm up, unless it takes longer than half of the time.
    """
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if first > seconds / 2:
        return images / first
    start += first
    done = 0
    while done == 0 or time.perf_counter() - start < seconds - first:
        run()
        done += 1
    return done * images / (time.perf_counter() - start)


PEAK = """
import sys

def status(name):
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith(name))

{setup}
try:
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # the peak begins anew at what is resident now
    before = status("VmRSS")
    peak = lambda: status("VmHWM")
except OSError:
    import psutil, resource
    unit = 1024 if sys.platform == "darwin" else 1  # macOS counts bytes, others KiB
    highest = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
    imports = highest()
    before = psutil.Process().memory_info().rss // 1024
    peak = lambda: highest() if highest() > imports else sys.exit(1)
{work}
print(peak() - before)
"""
"""Prints in KiB how far the resident size rises above that after `setup`; fails where the peak of
the imports hides it."""


def peak_memory(setup: str, work: str, timeout: float = 60) -> float | None:
    """MiB that `work` adds to a fresh Python process after `setup` (imports), at its peak.

    None where the process does not end well or the system does not tell.
    """
    code = PEAK.format(setup=setup, work=work)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        return float(done.stdout.split()[-1]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None

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
        times.append(time.perf_counter() - before)
        if len(times) >= 3 and time.perf_counter() - start > seconds:
            break
    return tuple(1000 * float(q) for q in np.quantile(times, (0.5, 0.9)))  # type: ignore[return-value]


def throughput(run: Callable[[], object], images: int, seconds: float = SECONDS) -> float:
    """Images per second of runs of `images` each, after one to warm up."""
    run()
    start = time.perf_counter()
    done = 0
    while done == 0 or time.perf_counter() - start < seconds:
        run()
        done += 1
    return done * images / (time.perf_counter() - start)


def peak_memory(setup: str, work: str, timeout: float = 60) -> float | None:
    """MiB that `work` adds to a fresh Python process after `setup` (imports), at its peak.

    None where the process does not end well or the system does not tell.
    """
    code = (
        f"import resource\n{setup}\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"{work}\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        return float(done.stdout.split()[-1]) * unit / 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None

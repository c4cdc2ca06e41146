"""Barlow Twins' loss, forward and backward, against lightly's, for batches of 256.

Where lightly is not installed the peer is the paper's form: the D x D matrix, and the terms through
a mask of it. Each measurement is a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from beholder.train.objectives.barlow_twins import barlow_twins_loss

from .base import MEBIBYTE, ROUNDS, Measured, at_most, measured, median_ratio, python, run_process

BATCH = 256
LAMBDA = 0.0051
PEER = "lightly" if find_spec("lightly") else "written_out"


def ours(a: Tensor, b: Tensor) -> Tensor:
    terms = barlow_twins_loss(a, b)
    return terms["invariance"] + LAMBDA * terms["redundancy"]


def written_out(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 1 and 2 as they stand."""
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (a, b))
    difference = (a.T @ b / len(a) - torch.eye(a.shape[1])).square()
    mask = torch.eye(a.shape[1], dtype=torch.bool)
    return difference[mask].sum() + LAMBDA * difference[~mask].sum()


def lightly(a: Tensor, b: Tensor) -> Tensor:
    from lightly.loss import BarlowTwinsLoss

    return BarlowTwinsLoss(LAMBDA)(a, b)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "written_out": written_out,
    "lightly": lightly,
}


def once(loss: Callable[[Tensor, Tensor], Tensor], width: int) -> tuple[float, float]:
    """Seconds of a pass forward and back, and what the loss was."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(BATCH, width, generator=generator).requires_grad_() for _ in range(2))
    start = time.perf_counter()
    value = loss(a, b)
    value.backward()
    return time.perf_counter() - start, value.item()


def measure_here(name: str, width: int) -> tuple[float, float, float]:
    """Median seconds of three passes, MiB that they needed beyond a pass of width 8, the loss."""
    once(LOSSES[name], 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passes = [once(LOSSES[name], width) for _ in range(3)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MEBIBYTE
    return sorted(seconds for seconds, _ in passes)[1], grown, passes[0][1]


def measure(quick: bool = False) -> Measured:
    widths = (512, 1024) if quick else (2048, 8192)
    rounds = 1 if quick else ROUNDS
    figures: dict[str, object] = {"peer": PEER, "batch": BATCH}
    checks = []
    for width in widths:
        found: dict[str, list[tuple[float, float, float]]] = {"ours": [], PEER: []}
        for _ in range(rounds):
            for name, values in found.items():
                command = python("-m", "benchmarks.barlow_twins", name, str(width))
                seconds, mebibytes, loss = map(float, run_process(command)[2].split())
                values.append((seconds, mebibytes, loss))
        for name, values in found.items():
            kinds = ("s", "MiB", "loss")
            columns = zip(*values, strict=True)
            figures |= {f"{name}_{width}_{k}": c for k, c in zip(kinds, columns, strict=True)}
        (seconds, memory, loss), (peer_s, peer_memory, peer_loss) = (
            tuple(zip(*found[name], strict=True)) for name in ("ours", PEER)
        )
        checks += [
            at_most(f"loss over {PEER}'s at {width} columns", loss[0] / peer_loss[0], 1 + 1e-4),
            at_most(f"time over {PEER}'s at {width} columns", median_ratio(seconds, peer_s), 1.0),
            at_most(
                f"memory over {PEER}'s at {width} columns", median_ratio(memory, peer_memory), 0.5
            ),
        ]
    return measured(figures, *checks)


if __name__ == "__main__":
    print(*measure_here(sys.argv[1], int(sys.argv[2])))

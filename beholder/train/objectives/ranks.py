"""Sums and stacks over the processes of a run, with gradients; plain where there is one process.

`torch.distributed.all_reduce` on a tensor that requires grad drops the other processes' part of the
gradient. With these, and gradients averaged over processes, B/2 in two processes is B in one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather, all_reduce


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(x: Tensor) -> Tensor:
    """The sum over processes, of one shape in all of them."""
    return all_reduce(x) if world() > 1 else x


def gathered(x: Tensor) -> Tensor:
    """[B, ...] of every process after one another, [world * B, ...]."""
    return torch.cat(tuple(all_gather(x.contiguous()))) if world() > 1 else x

"""One of several processes: the gradient of Barlow Twins on its part of a batch.

Run as `python two_processes.py RANK WORLD PLACE`; it writes `PLACE/RANK.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from beholder.train.objectives.barlow_twins import barlow_twins_loss
from beholder.train.objectives.ranks import gathered


def gradient(views: tuple[Tensor, Tensor]) -> Tensor:
    """Of the loss through one linear layer, and of a sum over what is gathered."""
    layer = nn.Linear(3, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 12).view(4, 3))
        layer.bias.zero_()
    a, b = map(layer, views)
    terms = barlow_twins_loss(a, b)
    total = terms["invariance"] + 0.5 * terms["redundancy"] + gathered(a).prod(1).square().sum()
    return torch.autograd.grad(total, layer.weight)[0]


def views(rank: int, world: int) -> tuple[Tensor, Tensor]:
    """The rows of that process of two views [8, 3]."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64).chunk(world, 1)[rank]
    return both[0], both[1]


if __name__ == "__main__":
    rank, world, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=world
    )
    torch.save(gradient(views(rank, world)), place / f"{rank}.pt")
    dist.destroy_process_group()

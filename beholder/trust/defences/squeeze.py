"""Bit-depth squeezing: fewer grey levels, so that a small change has no room.

Xu, Evans, Qi: "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS
2018. Known to fall to an attack through it; the role's reference, and a baseline to beat.

Example:
    >>> import torch
    >>> from torch import nn
    >>> model = Squeeze(bits=1).defend(nn.Flatten())
    >>> model(torch.tensor([[[[0.2, 0.7]]]])).tolist()
    [[0.0, 1.0]]
"""

from __future__ import annotations

from torch import Tensor, nn

from beholder.core.errors import ArgumentError
from beholder.core.registry import system

from .base import Defence, Purified


class _Levels(nn.Module):
    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.levels).round() / self.levels


@system()
class Squeeze(Defence):
    """Pixels rounded to `2 ** bits` levels.

    Args:
        bits: 1 to 7.
    """

    def __init__(self, bits: int = 4) -> None:
        if not 1 <= bits <= 7:
            raise ArgumentError(f"bits = {bits} must be 1 to 7.")
        self.bits = bits

    def defend(self, model: nn.Module) -> nn.Module:
        return Purified(model, _Levels(2**self.bits - 1), differentiable=False)

"""Magnitude pruning: the smallest weights become zero, as many as the accuracy bears.

Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks",
NeurIPS 2015; no authors' repository (songhan/Deep-Compression-AlexNet holds weights only). One
threshold for all layers, not one per layer; no training in between: the share that is pruned is the
largest whose loss of accuracy, measured, is allowed. The zeros make the file smaller when it is
packed; dense kernels are no faster, and the report shows it.

Example:
    >>> import torch
    >>> weights = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([0.5, -2.0])}
    >>> _ = prune(weights, 0.5)
    >>> weights["a"].tolist(), weights["b"].tolist()
    ([3.0, 0.0], [0.0, -2.0])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel
from beholder.core.registry import system

from .base import Graded, prunable

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@torch.no_grad()
def prune(weights: Mapping[str, Tensor], share: float) -> float:
    """Set the smallest `share` of all weights to zero, in place; the largest that went, or 0."""
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    count = round(share * len(sizes))
    if not count:
        return 0.0
    threshold = sizes.kthvalue(count).values
    for weight in weights.values():
        weight[weight.abs() <= threshold] = 0
    return float(threshold)


@system(name="magnitude_prune")
class MagnitudePrune(Graded):
    """Zeros in place of the smallest weights of convolutions and linear layers.

    Args:
        shares: of the weights, ascending; each is tried.
    """

    assumptions = (
        "Zeros are stored and multiplied like other numbers: only a packed file gets smaller.",
        "The weights that are left were not trained again.",
    )

    def __init__(self, shares: tuple[float, ...] = SHARES) -> None:
        if not shares or not all(0 < share < 1 for share in shares):
            raise ArgumentError(f"Shares {shares} are not all between 0 and 1.", "Such as 0.5.")
        self.shares = tuple(sorted(shares))

    def settings(self) -> Sequence[float]:
        return self.shares

    def apply(self, model: VisionModel, setting: float) -> None:
        prune(prunable(model), setting)

    def named(self, setting: float) -> str:
        return f"{setting:.0%} pruned"

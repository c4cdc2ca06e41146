"""Cutout: a black square in every image; labels stay.

DeVries, Taylor: "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
"""

from __future__ import annotations

import numpy as np
import torch

from beholder.core.errors import ArgumentError
from beholder.core.registry import system

from .base import Mixing, MixPlan, check_prob
from .cutmix import box_masks


@system(name="cutout")
class Cutout(Mixing):
    """One square per image, its centre uniform over the pixels, so that it may be cut off.

    Args:
        side: of the square, as a share of the image's shorter side (CIFAR-10: 16 of 32 pixels).
        prob: of a square, per image.

    Example:
        >>> mixing, chance = Cutout(), torch.Generator().manual_seed(0)
        >>> images, targets = mixing.mix(torch.ones(4, 3, 32, 32), torch.arange(4), chance, 4)
        >>> torch.equal(targets, torch.eye(4)), bool((images == 0).any())
        (True, True)
    """

    def __init__(
        self,
        side: float = 0.5,
        prob: float = 1.0,
        smoothing: float = 0.0,
        sum_to_one: bool = True,
    ) -> None:
        super().__init__(smoothing=smoothing, sum_to_one=sum_to_one)
        check_prob(prob)
        if not 0 < side <= 1:
            raise ArgumentError(f"side = {side} is not in (0, 1].", "It is a share of the image.")
        self.side, self.prob = side, prob

    def draw(self, batch: int, height: int, width: int, rng: np.random.Generator) -> MixPlan:
        on = rng.random(batch) < self.prob
        length = np.where(on, round(self.side * min(height, width)), 0)
        edges = []
        for size in (height, width):
            centre = rng.integers(0, size, batch)
            start = centre - length // 2
            edges += [np.clip(start, 0, size), np.clip(start + length, 0, size)]
        mask = box_masks(edges, height, width)
        return MixPlan(torch.arange(batch), torch.ones(batch), mask, "erase")

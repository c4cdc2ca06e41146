"""Mixup: weighted means of two images and of their labels.

Zhang, Cisse, Dauphin, Lopez-Paz: "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
"""

from __future__ import annotations

import numpy as np
import torch

from beholder.core.registry import system

from .base import Mixing, MixPlan, Mode, check_draws, pairing


@system(name="mixup")
class Mixup(Mixing):
    """lam of the own image and label, 1 - lam of the partner's.

    Args:
        alpha: lam is drawn from Beta(alpha, alpha). ImageNet: 0.2; with long training 0.8.
        prob: of mixing at all: per batch, or per draw of the other modes.
        mode: one lam for the batch, for a pair, or for each sample.

    Example:
        >>> mixing, chance = Mixup(alpha=0.2), torch.Generator().manual_seed(0)
        >>> images, targets = mixing.mix(torch.rand(4, 3, 8, 8), torch.arange(4), chance, 4)
        >>> targets.shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        alpha: float = 1.0,
        prob: float = 1.0,
        mode: Mode = "batch",
        smoothing: float = 0.0,
        sum_to_one: bool = True,
    ) -> None:
        super().__init__(smoothing=smoothing, sum_to_one=sum_to_one)
        check_draws("alpha", alpha, prob, mode)
        self.alpha, self.prob = alpha, prob
        self.mode: Mode = mode

    def draw(self, batch: int, height: int, width: int, rng: np.random.Generator) -> MixPlan:
        partner, group = pairing(self.mode, batch, rng)
        draws = int(group.max()) + 1
        on = rng.random(draws) < self.prob
        if not on.any():
            return MixPlan.unmixed(batch)
        lam = np.where(on, rng.beta(self.alpha, self.alpha, draws), 1.0)
        return MixPlan(
            torch.from_numpy(partner), torch.from_numpy(lam[group]).float(), None, "blend"
        )

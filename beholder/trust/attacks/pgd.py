"""PGD: the first attack to try where gradients can be had.

Madry, Makelov, Schmidt, Tsipras, Vladu: "Towards Deep Learning Models Resistant to Adversarial
Attacks", ICLR 2018 (with one step and no random start: FGSM of Goodfellow, Shlens, Szegedy, ICLR
2015).

Example:
    >>> import torch
    >>> from torch import nn
    >>> from beholder.trust.attacks.base import Goal
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    >>> _ = nn.init.eye_(model[1].weight)
    >>> image = torch.full((1, 3, 2, 2), 0.5)
    >>> image[0, 0, 0, 0] = 0.6
    >>> found = PGD(eps=0.2).attack(model, image, Goal(labels=torch.tensor([0])))
    >>> bool(found.success_uint8), round(float(found.distance["linf"]), 3) <= 0.2
    (True, True)
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel
from beholder.core.registry import system
from beholder.train.recipes.adversarial import pgd

from .base import Attack, Goal


class Called(nn.Module):
    """Any module by the one method that `pgd` needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images)


def driven_from(goal: Goal, classes: int) -> Tensor:
    """What the cross-entropy is to be raised against: the labels, or less than nothing of the
    targets (their cross-entropy falls then)."""
    if goal.labels is not None:
        return goal.labels
    if goal.targets is None:
        raise ArgumentError("A gradient attack needs labels or targets, not a custom goal.")
    return -functional.one_hot(goal.targets, classes).float()


@system()
class PGD(Attack):
    """Steps along the gradient of the loss, projected to the ball, from a random start in it.

    Args:
        eps: radius in pixel values of [0, 1].
        step: None = 2.5 eps / steps.
    """

    random_start = True

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 20,
        step: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
    ) -> None:
        if eps <= 0 or steps < 1:
            raise ArgumentError(f"eps = {eps}, steps = {steps}: both must be above 0.")
        self.ball, self.radius = norm, eps
        self.eps, self.steps = eps, steps
        self.norm: Literal["linf", "l2"] = norm
        self.step = 2.5 * eps / steps if step is None else step

    def search(self, model: nn.Module, images: Tensor, goal: Goal, seed: int) -> Tensor:
        with torch.no_grad():
            y = driven_from(goal, model(images[:1]).shape[1])
        wrapped = cast(VisionModel, Called(model))
        start = torch.Generator().manual_seed(seed) if self.random_start else None
        return pgd(wrapped, images, y, self.eps, self.steps, self.step, self.norm, generator=start)


@system(name="fgsm")
class FGSM(PGD):
    """One step of size `eps` by the sign of the gradient.

    Args:
        eps: radius in pixel values of [0, 1].
    """

    random_start = False

    def __init__(self, eps: float = 8 / 255) -> None:
        super().__init__(eps, 1, eps)

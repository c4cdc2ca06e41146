"""PGD: the first attack to try where gradients can be had.

Madry, Makelov, Schmidt, Tsipras, Vladu: "Towards Deep Learning Models Resistant to Adversarial
Attacks", ICLR 2018 (with one step and no random start: FGSM of Goodfellow, Shlens, Szegedy, ICLR
2015). `PGDWhole` looks for pictures that a file can keep.

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

ROUNDING = 1e-4
"""Of 1/255: what float32 may lack of a whole one."""


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


def ascend_whole(
    model: nn.Module,
    images: Tensor,
    goal: Goal,
    eps: float,
    steps: int,
    start: Tensor,
    step: float | None = None,
) -> Tensor:
    """Pictures of whole 1/255 within `eps` (linf) of `images` whose margin is the highest met.

    The gradient is always that at the whole pixels, while the steps add up in between: what is
    raised is what a file keeps. An image that reaches the goal leaves the batch.

    Args:
        images: float [B, 3, H, W] in [0, 1].
        start: where to begin, as `images`.
        step: None = 2.5 eps / steps.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
        >>> _ = nn.init.eye_(model[1].weight)  # red against green
        >>> x = torch.tensor([[[[100]], [[99]], [[0]]]]) / 255
        >>> found = ascend_whole(model, x, Goal(labels=torch.tensor([0])), 1 / 255, 2, x)
        >>> (255 * found).flatten()
        tensor([ 99., 100.,   0.])
    """
    step = 2.5 * eps / steps if step is None else step
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    least, most = (255 * low - ROUNDING).ceil(), (255 * high + ROUNDING).floor()
    x, best = start.clone(), images.clone()
    top = torch.full((len(images),), -torch.inf, device=images.device)
    left = torch.arange(len(images), device=images.device)
    for turn in range(steps + 1):
        whole = (255 * x[left]).round().clamp(least[left], most[left]) / 255
        asked = turn < steps
        with torch.set_grad_enabled(asked):
            logits = model(whole.requires_grad_(asked))
            margin = goal.part(left).margin(logits)
        higher = (margin > top[left]).detach()
        best[left[higher]], top[left[higher]] = whole.detach()[higher], margin.detach()[higher]
        on = ~goal.part(left).reached(logits, whole)
        if not asked or not on.any():
            break
        (gradient,) = torch.autograd.grad(margin[on].sum(), whole)
        left = left[on]
        moved = x[left] + step * gradient[on].sign()
        x[left] = moved.clamp(low[left], high[left])
    return best


@system(name="pgd_whole")
class PGDWhole(Attack):
    """PGD by the margin, on pictures of whole 1/255; an image that is fooled is left alone.

    Args:
        eps: radius in pixel values of [0, 1].
    """

    ball = "linf"

    def __init__(self, eps: float = 8 / 255, steps: int = 20) -> None:
        if eps <= 0 or steps < 1:
            raise ArgumentError(f"eps = {eps}, steps = {steps}: both must be above 0.")
        self.eps, self.radius, self.steps = eps, eps, steps

    def search(self, model: nn.Module, images: Tensor, goal: Goal, seed: int) -> Tensor:
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
        start = (images + self.eps * (2 * noise - 1).to(images)).clamp(0, 1)
        return ascend_whole(model, images, goal, self.eps, self.steps, start)

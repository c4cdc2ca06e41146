"""Projected gradient ascent on the loss, and training against it.

Madry, Makelov, Schmidt, Tsipras, Vladu: "Towards Deep Learning Models Resistant to Adversarial
Attacks", ICLR 2018. One step is FGSM: Goodfellow, Shlens, Szegedy: "Explaining and Harnessing
Adversarial Examples", ICLR 2015. All other attacks are foolbox's.

We differ: the attack runs in eval mode, also inside of training, so that it leaves the statistics
of BatchNorm alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel
from beholder.core.registry import system
from beholder.train.objectives.classification import Classification, Kind
from beholder.train.validation import judging

Norm = Literal["linf", "l2"]
TINY = 1e-12


def pgd(
    model: VisionModel,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    step: float,
    norm: Norm = "linf",
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images within `eps` of `x` on which the cross-entropy of `model.logits` is higher.

    Args:
        x: float [B, 3, H, W] in [0, 1]; so is the answer.
        y: classes long [B], or shares [B, C], to be driven away from.
        eps: radius of the ball, in pixel values (linf) or over all values of an image (l2).
        steps, step: how many, how long each; `pgd(model, x, y, eps, 1, eps)` is FGSM.
        mask: True where pixels may change, broadcast to `x`.
        generator: start at random in the ball; None = start at `x`.

    Raises:
        ArgumentError: images outside of [0, 1] or not numbers; a radius or norm that is none.

    Example:
        >>> class Brightness(torch.nn.Module):
        ...     def logits(self, x):
        ...         mean = x.mean((1, 2, 3))
        ...         return torch.stack([-mean, mean], 1)
        >>> x = torch.full((1, 3, 4, 4), 0.5)
        >>> pgd(Brightness(), x, torch.tensor([1]), 0.1, 1, 0.1).unique()  # class 1 is bright
        tensor([0.4000])
    """
    _refuse(x, eps, steps, step, norm)
    free = torch.ones_like(x[:1]) if mask is None else mask.to(x.device, x.dtype)
    x = x.detach()
    delta = torch.zeros_like(x)
    if generator is not None:
        noise = 2 * torch.rand(x.shape, generator=generator).to(x.device, x.dtype) - 1
        delta = _inside(x, projected(eps * noise * free, eps, norm))
    with judging(model), torch.enable_grad():
        for _ in range(steps):
            delta.requires_grad_(True)
            loss = F.cross_entropy(model.logits(x + delta), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            moved = delta.detach() + step * uphill(gradient * free, norm)
            delta = _inside(x, projected(moved, eps, norm))
    return x + delta.detach()


def uphill(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 that gains most: its sign, or itself over its length; 0 where it is."""
    if norm == "linf":
        return gradient.sign()
    length = gradient.flatten(1).norm(dim=1)[:, None, None, None]
    return gradient / length.clamp_min(TINY)


def projected(delta: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest change within the ball."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    length = delta.flatten(1).norm(dim=1)[:, None, None, None]
    return delta * (eps / length.clamp_min(TINY)).clamp_max(1)


def _inside(x: Tensor, delta: Tensor) -> Tensor:
    """The change as far as the pixels stay in [0, 1]."""
    return (x + delta).clamp(0, 1) - x


def _refuse(x: Tensor, eps: float, steps: int, step: float, norm: Norm) -> None:
    if norm not in get_args(Norm):
        raise ArgumentError(f"norm = {norm!r} is not known.", "Known: linf, l2.")
    if eps < 0 or step < 0 or steps < 1:
        raise ArgumentError(
            f"eps = {eps}, steps = {steps}, step = {step}: none may be negative, one step is least."
        )
    if not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
        raise ArgumentError("The images are no floats in [0, 1].", "Divide uint8 images by 255.")


@system(name="adversarial", role="objective")
class Adversarial(Classification):
    """Classification of images that were attacked first, each step anew.

    Args:
        eps, steps, step, norm: see `pgd`; step None = 2.5 eps / steps, as Madry's.
        loss, smoothing, view: see `Classification`.

    Example:
        >>> Adversarial(eps=0.1, steps=5).step
        0.05
    """

    def __init__(
        self,
        eps: float = 4 / 255,
        steps: int = 3,
        step: float | None = None,
        norm: Norm = "linf",
        loss: Kind = "ce",
        smoothing: float = 0.0,
        view: str = "supervised",
    ) -> None:
        super().__init__(loss=loss, smoothing=smoothing, view=view)
        self.eps, self.steps = eps, steps
        self.norm: Norm = norm
        self.step = 2.5 * eps / steps if step is None else step

    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Any]:
        """As `Classification`, on the attacked images; those without a label stay as they are."""
        return super().loss(model, {**batch, "image": self.attacked(model, batch)})

    def attacked(self, model: VisionModel, batch: Mapping[str, Any]) -> Tensor:
        """[B, 3, H, W] in [0, 1]."""
        y, images = batch.get("target", batch["label"]), batch["image"]
        known = (y >= 0) if y.ndim == 1 else (y >= 0).all(1)
        found = images.clone()
        if known.any():
            found[known] = pgd(
                model, images[known], y[known], self.eps, self.steps, self.step, self.norm
            )
        return found

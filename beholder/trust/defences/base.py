"""The role of a defence: a model that is harder to fool, and what that costs.

A defence that only hides gradients is none (Athalye, Carlini, Wagner: "Obfuscated Gradients Give a
False Sense of Security", ICML 2018): `evaluate_defence` always attacks through it as well.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import polars as pl
import torch
from torch import Tensor, nn

from beholder.metrics.intervals import share
from beholder.trust.attacks.base import Attack, Goal


class Defence(abc.ABC):
    """Base of every defence."""

    role: ClassVar[str] = "defence"

    @abc.abstractmethod
    def defend(self, model: nn.Module) -> nn.Module:
        """The defended model: the same inputs and outputs."""


class Purified(nn.Module):
    """A model behind a purification of its images.

    The gradient passes straight through a purification that has none (BPDA).

    Args:
        purify: images [B, 3, H, W] in [0, 1] -> the same.
    """

    def __init__(self, model: nn.Module, purify: nn.Module, differentiable: bool) -> None:
        super().__init__()
        self.model, self.purify, self.differentiable = model, purify, differentiable

    def forward(self, images: Tensor) -> Tensor:
        clean = self.purify(images)
        return self.model(clean if self.differentiable else images + (clean - images).detach())


def evaluate_defence(
    model: nn.Module, defence: Defence, attack: Attack, images: Tensor, labels: Tensor
) -> pl.DataFrame:
    """Accuracy of the bare and the defended model: on clean images, on those that fool the bare
    model, and on those made through the defence.

    Returns:
        attacked ('no', 'bare model', 'through the defence'), bare, defended, low, high (95 % of
        `defended`); all after rounding to 8 bits.
    """
    defended = defence.defend(model)
    goal = Goal(labels=labels)
    made = {
        "no": images,
        "bare model": attack.attack(model, images, goal).images,
        "through the defence": attack.attack(defended, images, goal).images,
    }
    rows = []
    for name, found in made.items():
        saved = (found * 255).round() / 255
        with torch.no_grad():
            bare, own = ((m(saved).argmax(1) == labels).numpy() for m in (model, defended))
        value = share(own)
        rows.append((name, float(bare.mean()), value.estimate, value.low, value.high))
    columns = ("attacked", "bare", "defended", "low", "high")
    return pl.DataFrame(rows, schema=columns, orient="row")

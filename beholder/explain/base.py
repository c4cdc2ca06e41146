"""The role of an explainer: what it gets, what it must give, and all that methods share.

The base checks the images, settles what is explained, keeps the parameters out of the graph, works
in batches and says what a map cannot say itself. A method computes one batch.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from beholder.core.errors import ArgumentError, ModelError
from beholder.core.model import VisionModel
from beholder.core.predictions import Explanation
from beholder.metrics.explanation import resized

from .targets import Reader, Targets, reader

EMPTY = "no positive evidence"


@dataclass(frozen=True)
class Attribution:
    """What a method gives for a batch: maps [B, h, w] of any resolution, scores [B], attributions
    of single values [B, 3, H, W] where it has them."""

    maps: Tensor
    score: Tensor
    pixel: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Explainer(abc.ABC):
    """Base of every explainer.

    Attributes:
        needs: 'gradients', 'feature_maps' or 'blackbox'.
        completeness: the map sums to f(x) - f(baseline).
        discriminates: another target gives another map.
        caveat: what has to be said beside its maps.
    """

    role: ClassVar[str] = "explainer"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})
    completeness: ClassVar[bool] = False
    discriminates: ClassVar[bool] = True
    caveat: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """As on the command line; of an unregistered class its own."""
        entry = getattr(type(self), "entry", None)
        return entry.name if entry else type(self).__name__

    def explain(
        self,
        model: VisionModel,
        images: Tensor,
        targets: Targets = None,
        *,
        batch_size: int = 16,
    ) -> Explanation:
        """Where the score of each image comes from.

        Args:
            images: [B, 3, H, W], uint8 or float in [0, 1], of a size that the model takes.
            targets: None = the likeliest class; a class index or [B] of them; a function of an
                image's logits [C] to a scalar, or one per image; `Text`; `Neuron`.

        Raises:
            ArgumentError: images or targets that are none of this.
            ModelError: the method cannot explain this model.
        """
        images = _checked(images).to(next(model.buffers()).device)
        read = reader(model, targets, len(images))
        parts, classes = [], []
        with frozen(model):
            method = self.prepared(model, read, images)
            for start in range(0, len(images), batch_size):
                rows = slice(start, start + batch_size)
                own = read.of(rows)
                parts.append(method.attribute(model, images[rows], own))
                classes.append(own.classes(len(images[rows])))
        maps = torch.cat([part.maps.detach().float().cpu() for part in parts])
        heatmap = maps if maps.shape[1:] == images.shape[2:] else resized(maps, images.shape[2:])
        pixel = [part.pixel.detach().cpu() for part in parts if part.pixel is not None]
        return Explanation(
            heatmap,
            torch.cat(classes),
            torch.cat([part.score.detach().float().cpu() for part in parts]),
            torch.cat(pixel) if pixel else None,
            parts[0].facts | self._noted(maps),
        )

    def _noted(self, maps: Tensor) -> dict[str, Any]:
        """What `Explanation.meta` says of the maps [B, h, w]."""
        empty = [row for row, top in enumerate(maps.flatten(1).amax(1)) if top <= 0]
        notes = [self.caveat] if self.caveat else []
        if empty:
            notes.append(f"{len(empty)} of {len(maps)} maps: {EMPTY}")
        if maps[0].numel() == 1:
            notes.append("the layer has a single cell, so its map is flat: name an earlier layer")
        cells = tuple(maps.shape[1:])
        return {"method": self.name, "cells": cells, "empty": empty, "notes": notes}

    def prepared(self, model: VisionModel, read: Reader, images: Tensor) -> Self:
        """The method with what it has to find out once per model, not once per batch."""
        return self

    @abc.abstractmethod
    def attribute(self, model: VisionModel, images: Tensor, read: Reader) -> Attribution:
        """One batch. Gradients are on, parameters ask for none, the model is in eval mode."""


def _checked(images: Tensor) -> Tensor:
    """Float in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ArgumentError(
            f"Images of shape {tuple(images.shape)} cannot be explained.",
            "Give [B, 3, H, W], at least one.",
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    low, high = images.aminmax()
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ArgumentError(
            f"Images from {float(low):.3g} to {float(high):.3g} are not in [0, 1].",
            "A VisionModel normalises itself: give plain images.",
        )
    return images.detach()


@contextmanager
def frozen(model: VisionModel) -> Iterator[None]:
    """In eval mode, with gradients, but of no parameter; afterwards everything is as before."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def gradient(score: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    """Of each image's score [B] with respect to tensors [B, ...]; None where it does not depend.

    Raises:
        ModelError: the score has no gradient at all.
    """
    if not score.requires_grad:
        raise ModelError(
            "The score has no gradient.",
            "It is computed without autograd or does not depend on this layer: "
            "take another layer, or a method that needs no gradient, such as occlusion.",
        )
    return list(torch.autograd.grad(score.sum(), inputs, allow_unused=True))


def strongest(pixel: Tensor) -> Tensor:
    """The largest absolute value over the channels: [B, 3, H, W] -> [B, H, W]."""
    return pixel.abs().amax(1)

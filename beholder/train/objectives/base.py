"""The role of an objective: what a training minimises, on any backbone.

An objective owns everything that is learned or remembered except the backbone: heads, teachers,
queues, prototypes. The loop (`beholder.train.loop`) owns devices, precision, steps and files, and
knows no objective by name.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from beholder.core.model import VisionModel

Schedule = Callable[["Step"], float]


@dataclass(frozen=True)
class Step:
    """Where a training stands. `number` is 0-based and counts optimiser steps, `epoch` is exact
    (1.5 = half through the second)."""

    number: int
    total: int
    epoch: float = 0.0
    world: int = 1


@dataclass(frozen=True)
class DataInfo:
    """What an objective may know of the data before it builds its heads."""

    classes: tuple[str, ...]
    count: int
    size: tuple[int, int]


class Objective(nn.Module, abc.ABC):
    """Base of every objective.

    Attributes:
        needs: keys that a sample must have.
        requires: abilities that the backbone must have: 'tokens', 'map', 'attn_mask'.
        weights: loss term -> weight or schedule; 1 where it is not named.
        global_batch: the loss is one of the whole batch, so accumulation would change it.
        trains: False = nothing to minimise; use `fit`.
    """

    role: ClassVar[str] = "objective"
    needs: ClassVar[frozenset[str]] = frozenset({"image"})
    requires: ClassVar[frozenset[str]] = frozenset()
    weights: Mapping[str, float | Schedule] = {}
    global_batch: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def setup(self, model: VisionModel, data: DataInfo) -> None:
        """Build heads, teacher and queue; called once, seeded, before the optimiser."""

    @abc.abstractmethod
    def views(self, sample: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A sample (image uint8 [H, W, 3], label, ...) to what `loss` gets, collated.

        Runs in the loader's worker. All chance comes from `generator`, which is a function of
        (seed, epoch, id).
        """

    @abc.abstractmethod
    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Unweighted scalar terms by name. Images in `batch` are float [0, 1] [B, 3, H, W]."""

    def total(self, terms: Mapping[str, Tensor], step: Step) -> Tensor:
        """The weighted sum of the terms."""
        weights = {name: self.weights.get(name, 1.0) for name in terms}
        parts = [
            term * (weight(step) if callable(weight) else weight)
            for term, weight in zip(terms.values(), weights.values(), strict=True)
        ]
        return torch.stack(parts).sum()

    def before_step(self, model: VisionModel, step: Step) -> None:
        """Before the forward pass of an optimiser step."""

    def after_backward(self, model: VisionModel, step: Step) -> None:
        """Gradients are there, not yet clipped."""

    def after_step(self, model: VisionModel, step: Step) -> None:
        """After a real optimiser step."""

    def metric(self, name: str, value: float | Tensor) -> None:
        """Note a figure that is no loss; the loop logs and clears `self.noted`."""
        self.noted[name] = float(value)

    @property
    def noted(self) -> dict[str, float]:
        return self.__dict__.setdefault("_noted", {})

    def features(self, model: VisionModel, images: Tensor) -> Tensor:
        """What probes read: [B, D]."""
        return model.features(images)

    def fit(self, model: VisionModel, samples: Sequence[Mapping[str, Any]]) -> VisionModel:
        """For objectives with `trains = False`."""
        raise NotImplementedError

    def labels(self, samples: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Class index of every sample, [N]."""
        return np.array([sample["label"] for sample in samples], int)

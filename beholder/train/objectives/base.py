"""The role of an objective: what a training minimises, on any backbone.

An objective owns everything that is learned or remembered except the backbone: heads, teachers,
queues, prototypes. The loop (`beholder.train.loop`) owns devices, precision, steps and files, and
knows no objective by name. A term is never weighted where it is computed: `total` does that.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.core.images import Images
from beholder.core.model import Backbone, Size, VisionModel
from beholder.core.registry import make

from .views import View, seeded

Schedule = Callable[["Step"], float]

EXAMPLES = {
    "tokens": "a plain ViT, such as vit_tiny_patch16_224",
    "map": "most of timm, such as resnet18",
    "attn_mask": "a plain ViT, such as vit_tiny_patch16_224",
}
"""Ability of a backbone -> who has it."""


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
    size: Size


class Objective(nn.Module):
    """Base of every objective.

    Attributes:
        needs: keys that a sample must have; the value None stands for unknown.
        requires: abilities that the backbone must have: 'tokens', 'map', 'attn_mask'.
        weights: loss term -> weight or schedule; 1 where it is not named.
        sees: the views that `views` makes, where it is not overridden.
        classifies: the backbone's own classifier is trained, so `export` keeps it.
        global_batch: the loss is one of the whole batch, so accumulation would change it.
        trains: False = nothing to minimise; use `fit`.
        size: (H, W) of the views; that of the data from `setup` on.
    """

    role: ClassVar[str] = "objective"
    needs: ClassVar[frozenset[str]] = frozenset({"image"})
    requires: ClassVar[frozenset[str]] = frozenset()
    weights: Mapping[str, float | Schedule] = {}
    sees: Sequence[View] = ()
    classifies: ClassVar[bool] = False
    global_batch: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    size: Size = (224, 224)

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[str, float] = {}

    @property
    def name(self) -> str:
        """As on the command line."""
        entry = getattr(type(self), "entry", None)
        return entry.name if entry else type(self).__name__

    def setup(self, model: VisionModel, data: DataInfo) -> None:
        """Build heads, teacher and queue; called once, seeded, before the optimiser.

        Raises:
            ModelError: the backbone lacks an ability that `requires` names.
        """
        for missing in sorted(self.requires - abilities(model.backbone)):
            raise ModelError(
                f"{self.name} needs a backbone with {missing!r}; {model.name} has none.",
                f"It is there in {EXAMPLES[missing]}.",
            )
        self.size = data.size

    def check(self, sample: Mapping[str, Any]) -> None:
        """Raises DataError where a sample lacks a key that `needs` names."""
        for key in sorted(self.needs - sample.keys()):
            raise DataError(
                f"{self.name} needs {key!r}; a sample has only {', '.join(sorted(sample))}.",
                "Give data with it, or choose another objective.",
            )

    def views(self, sample: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A sample (image uint8 [H, W, 3], label, ...) to what `loss` gets, collated; here `views`:
        a list of float [0, 1] [3, H, W], one for each of `sees`.

        Runs in the loader's worker. All chance comes from `generator`, which is a function of
        (seed, epoch, id).
        """
        self.check(sample)
        with seeded(generator):
            return {"views": [view(sample["image"], self.size) for view in self.sees]}

    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Unweighted scalar terms by name. Images in `batch` are float [0, 1] [B, 3, H, W]."""
        raise NotImplementedError(f"{self.name} has nothing to minimise; use `fit`.")

    def total(self, terms: Mapping[str, Tensor], step: Step) -> Tensor:
        """The weighted sum of the terms."""
        weights = {name: self.weights.get(name, 1.0) for name in terms}
        parts = [
            term * (weight(step) if callable(weight) else weight)
            for term, weight in zip(terms.values(), weights.values(), strict=True)
        ]
        return torch.stack(parts).sum()

    def param_groups(self, model: VisionModel, lr: float, decay: float) -> list[dict[str, Any]]:
        """Parameters of backbone and objective for the optimiser: see `optim.param_groups`."""
        from beholder.train.optim import param_groups

        return param_groups(model, lr, decay) + param_groups(self, lr, decay)

    def before_step(self, model: VisionModel, step: Step) -> None:
        """Before the forward pass of an optimiser step."""

    def after_backward(self, model: VisionModel, step: Step) -> None:
        """Gradients are there, not yet clipped."""

    def after_step(self, model: VisionModel, step: Step) -> None:
        """After a real optimiser step."""

    def metric(self, name: str, value: float | Tensor) -> None:
        """Note a figure that is no loss; the loop logs and clears `self.noted`."""
        self.noted[name] = float(value)

    def features(self, model: VisionModel, images: Tensor) -> Tensor:
        """What probes read: [B, D]."""
        return model.features(images)

    def export(self, model: VisionModel) -> VisionModel:
        """The trained model on its own: a copy, without the classifier where that was not
        trained."""
        backbone = copy.deepcopy(model.backbone)
        if not self.classifies:
            backbone.reset_classifier(0)
        return VisionModel(
            backbone,
            model.name,
            classes=model.classes if self.classifies else (),
            input_size=model.input_size,
            crop=model.crop,
        )

    def fit(self, model: VisionModel, samples: Sequence[Mapping[str, Any]] | Images) -> VisionModel:
        """For objectives with `trains = False`."""
        raise NotImplementedError(f"{self.name} is trained by steps.")


class Combine(Objective):
    """Several objectives on one backbone, in one step.

    Keys of a sample's views and names of terms and figures are `child/key`.

    Args:
        shares: name of an objective -> its weight or schedule.
        made: objectives with options of their own, by the same names; the others are made by name.
    """

    def __init__(
        self,
        shares: Mapping[str, float | Schedule],
        made: Mapping[str, Objective] | None = None,
    ) -> None:
        super().__init__()
        if not shares:
            raise ArgumentError("There is no objective to combine.")
        self.weights = dict(shares)
        made = made or {}
        parts = {name: made.get(name) or make("objective", name) for name in shares}
        for name in (name for name, part in parts.items() if not part.trains):
            raise ArgumentError(f"{name} is not trained by steps, so it cannot be combined.")
        self.parts = nn.ModuleDict(parts)
        for key in ("needs", "requires"):
            setattr(self, key, frozenset().union(*(getattr(part, key) for part in parts.values())))
        for key in ("classifies", "global_batch"):
            setattr(self, key, any(getattr(part, key) for part in parts.values()))

    @property
    def name(self) -> str:
        return "+".join(self.weights)

    @property
    def objectives(self) -> dict[str, Objective]:
        return dict(self.parts.items())  # type: ignore[arg-type]

    def setup(self, model: VisionModel, data: DataInfo) -> None:
        super().setup(model, data)
        for part in self.objectives.values():
            part.setup(model, data)

    def views(self, sample: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        return {
            f"{name}/{key}": value
            for name, part in self.objectives.items()
            for key, value in part.views(sample, generator).items()
        }

    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for name, part in self.objectives.items():
            found = part.loss(model, _of(name, batch))
            terms |= {f"{name}/{key}": term for key, term in found.items()}
            self.noted |= {f"{name}/{key}": value for key, value in part.noted.items()}
            part.noted.clear()
        return terms

    def total(self, terms: Mapping[str, Tensor], step: Step) -> Tensor:
        grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, term in terms.items():
            child, _, key = name.partition("/")
            grouped[child][key] = term
        parts = self.objectives
        return super().total(
            {name: parts[name].total(x, step) for name, x in grouped.items()}, step
        )

    def before_step(self, model: VisionModel, step: Step) -> None:
        for part in self.objectives.values():
            part.before_step(model, step)

    def after_backward(self, model: VisionModel, step: Step) -> None:
        for part in self.objectives.values():
            part.after_backward(model, step)

    def after_step(self, model: VisionModel, step: Step) -> None:
        for part in self.objectives.values():
            part.after_step(model, step)


def _of(name: str, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch is that child's: its own keys, and those that belong to no child."""
    own = {
        key.removeprefix(f"{name}/"): x for key, x in batch.items() if key.startswith(f"{name}/")
    }
    return {key: x for key, x in batch.items() if "/" not in key} | own


def MLP(*widths: int) -> nn.Sequential:
    """Projector [B, widths[0]] -> [B, widths[-1]]: linear layers without bias, BatchNorm and ReLU
    after all but the last."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside), nn.ReLU(True)]
    return nn.Sequential(*layers[:-2])


def abilities(backbone: Backbone) -> frozenset[str]:
    """What a backbone can do, by the names of `Objective.requires`."""
    parts = ("patch_embed", "pos_embed", "blocks", "norm")
    found = (
        {"tokens"} if all(getattr(backbone, part, None) is not None for part in parts) else set()
    )
    if hasattr(backbone, "forward_intermediates"):
        found.add("map")
    if "attn_mask" in inspect.signature(backbone.forward_features).parameters:
        found.add("attn_mask")
    return frozenset(found)

"""An encoder cut in two before stride 16: what stays as it is, and what is trained on its maps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from beholder.core.errors import ModelError
from beholder.core.features import Features
from beholder.core.model import Backbone, VisionModel
from beholder.data.augment.cutmix import CutMix

from .data import seed_of
from .objectives.classification import classification_loss
from .optim import make_optimiser, param_groups, rate, set_rates
from .tuning import LAST, Recipe


def boundary(backbone: Backbone) -> str:
    """Name of the last module before stride 16.

    Raises:
        ModelError: the encoder has no such stage.
    """
    info = list(getattr(backbone, "feature_info", None) or [])
    early = [stage["module"] for stage in info if stage["reduction"] < 16]
    if not early or len(early) == len(info):
        raise ModelError(
            "Fine-tuning on a CPU needs an encoder of stages, such as EfficientNet or ResNet.",
            "Leave out --finetune, or use a GPU: --device cuda.",
        )
    return early[-1]


def parts_until(backbone: Backbone, last: str, images: Tensor) -> list[str]:
    """Names of the modules that run up to and with `last`, in the order in which they run.

    Args:
        images: normalised [B, 3, H, W], to watch one pass.
    """
    names = [name for name, _ in backbone.named_children()]
    while last not in names:
        (outer,) = [name for name in names if last.startswith(f"{name}.")]
        at, inside = names.index(outer), backbone.get_submodule(outer).named_children()
        names[at : at + 1] = [f"{outer}.{name}" for name, _ in inside]
    ran: list[str] = []
    hooks = [
        backbone.get_submodule(name).register_forward_hook(
            lambda *_, name=name: None if name in ran else ran.append(name)
        )
        for name in names
    ]
    try:
        with torch.inference_mode():
            backbone.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[: ran.index(last) + 1]


class Trunk(nn.Module):
    """What stays as it is: images in [0, 1] [B, 3, H, W] to maps, flattened [B, C h w]."""

    def __init__(self, vision: VisionModel, names: Sequence[str]) -> None:
        super().__init__()
        self.vision, self.names = vision, list(names)

    def maps(self, images: Tensor) -> Tensor:
        x = self.vision.normalise(images)
        for name in self.names:
            x = self.vision.backbone.get_submodule(name)(x)
        return x

    def flat(self, images: Tensor) -> Tensor:
        return self.maps(images).flatten(1)


class Tail(nn.Module):
    """What is trained: maps of the trunk to logits [B, C]. BatchNorm keeps its statistics."""

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).eval()
        for name in names:
            self.backbone.set_submodule(name, nn.Identity())
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(True)

    def forward(self, maps: Tensor) -> Tensor:
        return self.backbone.forward_head(self.backbone.forward_features(maps))

    @torch.no_grad()
    def to_backbone(self, backbone: Backbone) -> None:
        """Its weights into the whole encoder."""
        backbone.load_state_dict(self.backbone.state_dict(), strict=False)


def cut(vision: VisionModel) -> tuple[Trunk, Tail, torch.Size]:
    """Trunk and tail of an encoder with a classifier, and the shape [C, h, w] between them.

    Raises:
        ModelError: one after the other they do not give what the encoder gives.
    """
    vision.eval()
    images = torch.rand(2, 3, *vision.input_size, generator=torch.Generator().manual_seed(0))
    images = images.to(vision._mean.device)
    backbone = vision.backbone
    names = parts_until(backbone, boundary(backbone), vision.normalise(images))
    trunk, tail = Trunk(vision, names), Tail(backbone, names)
    with torch.inference_mode():
        maps = trunk.maps(images)
        whole = backbone.forward_head(backbone.forward_features(vision.normalise(images)))
        if not torch.allclose(tail(maps), whole, rtol=1e-3, atol=1e-4):
            raise ModelError(
                f"{vision.name} does more between its stages than can be cached.",
                "Fine-tune it on a GPU (--device cuda), or leave out --finetune.",
            )
    return trunk, tail, maps.shape[1:]


@dataclass(frozen=True)
class Taught:
    """What a tail learns from: maps of n images, their shape [C, h, w], label distributions
    `targets` [n, classes], `weights` [n]."""

    maps: Features
    shape: tuple[int, ...]
    targets: np.ndarray
    weights: np.ndarray

    def batch(self, rows: np.ndarray, mirrored: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Maps [B, C, h, w], targets and weights; of the mirror image where `mirrored` [B]."""
        found = np.empty((len(rows), int(np.prod(self.shape))), np.float32)
        found[~mirrored] = self.maps.take(rows[~mirrored])
        if mirrored.any():
            found[mirrored] = self.maps.take(rows[mirrored], "mirror")
        maps = torch.from_numpy(found).unflatten(1, self.shape)
        return maps, torch.from_numpy(self.targets[rows]), torch.from_numpy(self.weights[rows])


def learn(tail: Tail, taught: Taught, recipe: Recipe, epochs: int, seed: int) -> Iterator[int]:
    """Train `tail`, one optimiser step per number yielded; at the end it holds the mean of the
    weights after each of the last three epochs. CutMix (of maps) pauses in these."""
    classifier = tail.backbone.pretrained_cfg["classifier"]
    scales = {f"*{classifier}.*": recipe.head_lr / recipe.lr}
    groups = param_groups(tail, recipe.lr, recipe.weight_decay, scales=scales)
    optimiser = make_optimiser("adamw", groups)
    mixing, count = CutMix(prob=0.5), len(taught.targets)
    device = next(tail.parameters()).device
    steps = -(-count // recipe.batch)
    sums: dict[str, Tensor] = {}
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        order, flips = rng.permutation(count), rng.random(count) < 0.5
        if not taught.maps.has("mirror"):
            flips[:] = False
        for step in range(steps):
            number = epoch * steps + step
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            maps, targets, weights = (x.to(device) for x in taught.batch(rows, flips[rows]))
            if epoch < epochs - LAST:
                generator = torch.Generator().manual_seed(seed_of(seed, "mixing", number))
                height, width = maps.shape[2:]
                plan = mixing.plan(len(maps), height, width, generator)
                maps, targets = mixing.apply(maps, plan), mixing.targets(targets, plan)
            set_rates(optimiser, rate(number, epochs * steps, warmup=steps))
            optimiser.zero_grad()
            classification_loss(tail(maps), targets, weight=weights).backward()
            optimiser.step()
            yield number
        if epoch >= epochs - LAST:
            for name, parameter in tail.named_parameters():
                sums[name] = sums.get(name, 0) + parameter.detach()
    with torch.no_grad():
        for name, parameter in tail.named_parameters():
            parameter.copy_(sums[name] / min(LAST, epochs))

"""A small space: residual networks of four stages, with depths and widths to choose.

Example:
    >>> space = ResNets()
    >>> space.size(), str(space.sample(np.random.default_rng(0)))
    (1296, 'd3.2.2.1-w8.16.32.64')
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import cast

import numpy as np
import timm
import torch

from beholder.core.errors import ArgumentError
from beholder.core.images import Images
from beholder.core.model import Backbone, VisionModel
from beholder.metrics.cost import macs
from beholder.train.config import TrainConfig
from beholder.train.data import own_chance, seed_of
from beholder.train.loop import fit
from beholder.train.objectives.classification import Classification
from beholder.train.validation import accuracy_of, answers

from .base import Arch, Evaluator, SearchSpace

DEPTHS = (1, 2, 3)
WIDTHS = ((8, 16), (16, 32), (32, 48), (64, 96))
MARKS = ("d", *[r"\."] * 3, "-w", *[r"\."] * 3)
"""Before every number of the text."""


@dataclass(frozen=True)
class ResNetArch:
    """Blocks and channels of four stages, 'd1.2.1.1-w8.16.32.64'."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]

    def __str__(self) -> str:
        depths, widths = (".".join(map(str, x)) for x in (self.depths, self.widths))
        return f"d{depths}-w{widths}"

    @classmethod
    def parse(cls, text: str) -> ResNetArch:
        numbers, place = [], 0
        for mark in MARKS:
            match = re.compile(rf"{mark}(\d+)").match(text, place)
            if match is None:
                raise _no_sense(text, place)
            numbers.append(int(match[1]))
            place = match.end()
        if place < len(text):
            raise _no_sense(text, place)
        return cls(tuple(numbers[:4]), tuple(numbers[4:]))


def _no_sense(text: str, place: int) -> ArgumentError:
    return ArgumentError(
        f"{text!r} makes no sense from character {place} on.", "Such as d1.2.1.1-w8.16.32.64."
    )


class ResNets(SearchSpace):
    """Residual networks of basic blocks: 1 to 3 blocks and one of two widths per stage."""

    def sample(self, rng: np.random.Generator) -> ResNetArch:
        depths = rng.choice(DEPTHS, len(WIDTHS))
        widths = [pair[rng.integers(2)] for pair in WIDTHS]
        return ResNetArch(tuple(depths.tolist()), tuple(widths))

    def neighbours(self, arch: Arch) -> list[Arch]:
        own = _own(arch)
        deeper = [
            ResNetArch(_with(own.depths, stage, depth), own.widths)
            for stage in range(len(WIDTHS))
            for depth in DEPTHS
        ]
        wider = [
            ResNetArch(own.depths, _with(own.widths, stage, width))
            for stage, pair in enumerate(WIDTHS)
            for width in pair
        ]
        return [other for other in (*deeper, *wider) if other != own]

    def encode(self, arch: Arch) -> np.ndarray:
        own = _own(arch)
        return np.array([*own.depths, *own.widths], float)

    def decode(self, vector: np.ndarray) -> ResNetArch:
        numbers = tuple(int(x) for x in np.rint(vector))
        return ResNetArch(numbers[:4], numbers[4:])

    def size(self) -> int:
        return len(DEPTHS) ** len(WIDTHS) * math.prod(map(len, WIDTHS))

    def build(self, arch: Arch, classes: int) -> Backbone:
        own = _own(arch)
        network = timm.create_model(
            "resnet18",
            layers=own.depths,
            channels=own.widths,
            stem_width=own.widths[0],
            num_classes=classes,
        )
        return cast(Backbone, network)

    def parse(self, text: str) -> ResNetArch:
        return ResNetArch.parse(text)


class Size(Evaluator):
    """Costs alone; the smaller, the better."""

    def __init__(self, side: int = 64, classes: int = 10) -> None:
        self.side, self.classes = side, classes

    def score(self, space: SearchSpace, arch: Arch) -> dict[str, float]:
        network = space.build(arch, self.classes)
        count = sum(p.numel() for p in network.parameters())
        done = macs(network.eval(), torch.zeros(1, 3, self.side, self.side))
        return {"score": -float(count), "parameters": float(count), "macs": float(done)}


class ShortTraining(Evaluator):
    """Accuracy on `judged` after a short training on `learned`.

    Every architecture has its own stream of chance, so that the order of a search changes nothing.

    Args:
        view: how training images are seen, a name in `train.objectives.views.VIEWS`.
        side: of the input, in pixels.
    """

    def __init__(
        self,
        learned: Images,
        judged: Images,
        config: TrainConfig,
        *,
        view: str = "supervised",
        side: int = 32,
        seed: int = 0,
    ) -> None:
        self.learned, self.judged, self.config = learned, judged, config
        self.view, self.side, self.seed = view, side, seed

    def score(self, space: SearchSpace, arch: Arch) -> dict[str, float]:
        with own_chance(seed_of(self.seed, str(arch))):
            network = space.build(arch, len(self.learned.classes))
        size = (self.side, self.side)
        model = VisionModel(network, str(arch), classes=self.learned.classes, input_size=size)
        model = fit(Classification(view=self.view), model, self.learned, self.config).model
        logits, seen = answers(model, self.judged)
        label = self.judged.table["label"].to_numpy()
        count = float(model.parameters_count)
        accuracy = accuracy_of(logits[seen], label[seen])["accuracy"]
        return {"score": accuracy, "parameters": count}


def _own(arch: Arch) -> ResNetArch:
    if not isinstance(arch, ResNetArch):
        raise ArgumentError(f"{arch} is no architecture of this space.", "Use its `parse`.")
    return arch


def _with(numbers: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*numbers[:place], value, *numbers[place + 1 :])

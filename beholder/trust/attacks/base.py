"""The role of an attack: images that a model gets wrong, found on purpose.

An attack sees pixels in [0, 1] and calls the model as it is deployed, normalisation and all. What
counts is success after rounding to 8 bits: what dies in the file is no attack.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from beholder.core.errors import ArgumentError

Norm = Literal["linf", "l2", "l1"]
Reached = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Goal:
    """What an attack wants: `labels` [B] no longer answered, or `targets` [B] answered, or
    `custom(logits, images)` -> bool [B]."""

    labels: Tensor | None = None
    targets: Tensor | None = None
    custom: Reached | None = None

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.labels, self.targets, self.custom)) != 1:
            raise ArgumentError("A goal is one of labels, targets and custom.")

    def reached(self, logits: Tensor, images: Tensor) -> Tensor:
        """bool [B]."""
        if self.custom is not None:
            return self.custom(logits, images)
        if self.targets is not None:
            return logits.argmax(1) == self.targets
        return logits.argmax(1) != self.labels

    def margin(self, logits: Tensor) -> Tensor:
        """What an attack raises, [B]: from below 0 (not reached) to above it.

        max_{j != y} z_j - z_y away from labels, z_t - max_{j != t} z_j towards targets. Unlike the
        cross-entropy it does not vanish where the soft max is sure.

        Raises:
            ArgumentError: a custom goal has none.
        """
        classes = self.labels if self.targets is None else self.targets
        if classes is None:
            raise ArgumentError("This attack needs labels or targets, not a custom goal.")
        own = logits.gather(1, classes[:, None])[:, 0]
        others = logits.scatter(1, classes[:, None], -torch.inf).max(1).values
        return own - others if self.labels is None else others - own

    def part(self, rows: Tensor) -> Goal:
        """The goal of these rows of the batch."""
        if self.custom is not None:
            return self
        if self.targets is not None:
            return Goal(targets=self.targets[rows])
        assert self.labels is not None
        return Goal(labels=self.labels[rows])


@dataclass(frozen=True)
class AttackResult:
    """Attacked images [B, 3, H, W] in [0, 1], and what became of them.

    Attributes:
        success, success_uint8: bool [B], of the pixels as they are and as a PNG keeps them.
        distance: norm -> [B], to the images that were given.
        queries: forward passes per image.
    """

    images: Tensor
    success: Tensor
    success_uint8: Tensor
    distance: dict[Norm, Tensor]
    queries: int


class Attack(abc.ABC):
    """Base of every attack.

    Attributes:
        ball, radius: norm and size of what an image may change; None = anywhere in [0, 1].
    """

    role: ClassVar[str] = "attack"
    ball: Norm | None = None
    radius: float | None = None

    @abc.abstractmethod
    def search(self, model: nn.Module, images: Tensor, goal: Goal, seed: int) -> Tensor:
        """The attacked images; the base checks, freezes, clips and judges."""

    def attack(self, model: nn.Module, images: Tensor, goal: Goal, seed: int = 0) -> AttackResult:
        """Attack every image.

        Args:
            model: images float [0, 1] [B, 3, H, W] -> logits [B, C]; a `VisionModel` or a module.
            images: float in [0, 1].
            seed: of everything that is drawn.

        Raises:
            ArgumentError: pixels that are no numbers or outside [0, 1].
        """
        if not torch.isfinite(images).all() or images.min() < 0 or images.max() > 1:
            raise ArgumentError("Images to attack must be numbers from 0 to 1.")
        with frozen(model), counted(model) as calls:
            found = self.search(model, images, goal, seed).detach().clamp(0, 1)
            queries = calls[0]
        with torch.no_grad():
            saved = (found * 255).round() / 255
            success = goal.reached(model(found), found)
            success_uint8 = goal.reached(model(saved), saved)
        return AttackResult(found, success, success_uint8, distances(images, found), queries)


def distances(before: Tensor, after: Tensor) -> dict[Norm, Tensor]:
    """Norm -> size of the change, [B] each."""
    change = (after - before).flatten(1)
    return {
        "linf": change.abs().amax(1),
        "l2": change.norm(dim=1),
        "l1": change.abs().sum(1),
    }


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient to parameters; both as before when it ends."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, want in wanted.items():
            parameter.requires_grad_(want)


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """A one-element list: forward passes so far."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    handle = model.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()

"""The smallest change that fools: one attack at ever larger sizes, and how much chance would do.

Every picture is of 8 bits. What is fooled at one size counts as fooled at all larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Goal
from .pgd import ascend_whole
from .square import Square

Seed = Callable[[int, str], int]
Attempt = Callable[[Tensor, int, Tensor, int], Tensor]
"""(rows, size, their best pictures so far, restart) -> pictures of these rows."""


@dataclass
class Ladder:
    """Attacks on images [N, 3, H, W] of whole 1/255 that `model` answers by their `labels` [N].

    Attributes:
        model: images -> logits [B, C], frozen (see `base.frozen`).
        sizes: largest changes of a value, of 255, rising (linf).
        seed: (row, use) -> a seed of its own, so that no image depends on its neighbours.
        restarts: tries at each size.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    sizes: Sequence[int]
    seed: Seed
    restarts: int = 1

    def noise(self) -> Tensor:
        """Smallest size [N] of random signs that fools, 0 = none.

        The largest goes first: what it does not fool is not tried with less of the same signs.
        """
        rows = torch.arange(len(self.labels), device=self.labels.device)
        signs, smallest = self._uniform(rows, "noise").sign(), torch.zeros_like(self.labels)
        for size in reversed(self.sizes):
            if len(rows):
                noisy = (self.images[rows] + size / 255 * signs[rows]).clamp(0, 1)
                rows = rows[self.fooled(rows, noisy)]
                smallest[rows] = size
        return smallest

    def fgsm(self, gradient: Tensor) -> Tensor:
        """Smallest size [N] of one step by the sign of the gradient [N, 3, H, W], 0 = none."""

        def step(rows: Tensor, size: int, _: Tensor, __: int) -> Tensor:
            return (self.images[rows] + size / 255 * gradient[rows].sign()).clamp(0, 1)

        return self._climb(step, 1)[0]

    def pgd(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Smallest sizes [N], 0 = none, pictures, and the answers [N] to these.

        A larger size goes on from the best of the smaller one.
        """

        def search(rows: Tensor, size: int, best: Tensor, restart: int) -> Tensor:
            if restart or size == self.sizes[0]:
                best = self._start(rows, size, f"pgd {size} {restart}")
            return self._ascend(rows, size, steps, best)

        return self._climb(search, self.restarts)

    def square(self, queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `pgd`, without gradients."""

        def search(rows: Tensor, size: int, _: Tensor, restart: int) -> Tensor:
            seed = self.seed(int(rows[0]), f"square {size} {restart}")
            goal = Goal(labels=self.labels[rows])
            attack = Square(size / 255, queries)
            return attack.search(self.model, self.images[rows], goal, seed)

        return self._climb(search, self.restarts)

    def at(self, rows: Tensor, size: int, steps: int) -> Tensor:
        """Which of the rows PGD from a new start fools at this size: bool [rows]."""
        if not len(rows):
            return torch.zeros_like(rows, dtype=torch.bool)
        start = self._start(rows, size, f"at {size} {steps}")
        return self.fooled(rows, self._ascend(rows, size, steps, start))

    def fooled(self, rows: Tensor, pictures: Tensor) -> Tensor:
        """Whether the pictures of these rows get another answer: bool [rows]."""
        return self.answers(pictures) != self.labels[rows]

    @torch.no_grad()
    def answers(self, pictures: Tensor) -> Tensor:
        return self.model(pictures).argmax(1)

    def _climb(self, attempt: Attempt, restarts: int) -> tuple[Tensor, Tensor, Tensor]:
        smallest, pictures = torch.zeros_like(self.labels), self.images.clone()
        answers = self.labels.clone()
        for size in self.sizes:
            for restart in range(restarts):
                rows = (smallest == 0).nonzero()[:, 0]
                if not len(rows):
                    break
                found = attempt(rows, size, pictures[rows], restart)
                answered = self.answers(found)
                fooled = answered != self.labels[rows]
                kept = fooled if restart else torch.ones_like(fooled)
                pictures[rows[kept]], answers[rows[kept]] = found[kept], answered[kept]
                smallest[rows[fooled]] = size
        return smallest, pictures, answers

    def _ascend(self, rows: Tensor, size: int, steps: int, start: Tensor) -> Tensor:
        goal = Goal(labels=self.labels[rows])
        return ascend_whole(self.model, self.images[rows], goal, size / 255, steps, start)

    def _start(self, rows: Tensor, size: int, use: str) -> Tensor:
        return (self.images[rows] + size / 255 * self._uniform(rows, use)).clamp(0, 1)

    def _uniform(self, rows: Tensor, use: str) -> Tensor:
        """-1..1 for each value of these rows."""
        shape = self.images.shape[1:]
        drawn = [
            torch.rand(shape, generator=torch.Generator().manual_seed(self.seed(row, use)))
            for row in rows.tolist()
        ]
        return (2 * torch.stack(drawn) - 1).to(self.images)

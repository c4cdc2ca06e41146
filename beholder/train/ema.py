"""The moving average of the weights: smoother than the last step, and what is judged and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of the trainable parameters of some modules.

    a <- d a + (1 - d) w after every optimiser step, d = min(decay, (1 + t) / (10 + t)) at the t-th.
    Buffers (BatchNorm statistics) are those of the current model: they are averages already.

    Args:
        modules: prefix of the names -> module.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.modules, self.decay, self.updates = dict(modules), decay, 0
        self.average = {
            name: p.detach().clone(memory_format=torch.preserve_format)
            for name, p in self._parameters()
        }

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield f"{prefix}.{name}", parameter

    @torch.no_grad()
    def update(self) -> None:
        """After an optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = {name: p.detach() for name, p in self._parameters()}
        fresh = now.keys() - self.average.keys()  # unfrozen since
        self.average |= {name: now[name].clone() for name in fresh}
        for name, weight in now.items():
            self.average[name].lerp_(weight, 1 - decay)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The modules have the average inside, their own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def to_modules(self) -> None:
        """Put the average into the modules."""
        for name, parameter in self._parameters():
            if name in self.average:
                parameter.copy_(self.average[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters():
            if name in self.average:
                kept = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(kept)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping) -> None:
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name] = value.to(self.average[name]) if name in self.average else value

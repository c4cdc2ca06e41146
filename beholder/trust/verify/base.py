"""The role of a verifier: whether any image of a region is answered otherwise, proved.

`Proved` is never said where a search could find a counterexample; `Unknown` is an honest answer.
"""

from __future__ import annotations

import abc
import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from beholder.core.errors import ArgumentError


@dataclass(frozen=True)
class Region:
    """A box of images around `centre` [3, H, W], inside [0, 1].

    Attributes:
        lower, upper: bounds of every pixel.
    """

    centre: Tensor
    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if not (self.lower <= self.centre).all() or not (self.centre <= self.upper).all():
            raise ArgumentError("The centre of a region must lie between its bounds.")

    @classmethod
    def linf(cls, centre: Tensor, eps: float, mask: Tensor | None = None) -> Region:
        """All images whose pixels differ by at most `eps`; only those of `mask` are free."""
        free = eps if mask is None else eps * mask
        return cls(centre, (centre - free).clamp(0, 1), (centre + free).clamp(0, 1))

    def holds(self, image: Tensor) -> bool:
        return bool((image >= self.lower).all() and (image <= self.upper).all())


@dataclass(frozen=True)
class Proved:
    """Every image of the region is answered as the centre. `margin`: by which logit distance."""

    method: str
    margin: float
    seconds: float


@dataclass(frozen=True)
class Counterexample:
    """An image of the region that is answered otherwise."""

    image: Tensor
    label: int
    seconds: float


@dataclass(frozen=True)
class Unknown:
    """Neither was found."""

    reason: str
    seconds: float


Verdict = Proved | Counterexample | Unknown


class Verifier(abc.ABC):
    """Base of every verifier."""

    role: ClassVar[str] = "verifier"

    @abc.abstractmethod
    def verify(self, model: nn.Module, region: Region, timeout: float = 60) -> Verdict:
        """Args: `model`: [B, 3, H, W] in [0, 1] -> logits [B, C]. `timeout`: seconds."""


def answer(model: nn.Module, image: Tensor) -> int:
    """Class of one image [3, H, W], in float64."""
    exact = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        return int(exact(image.double()[None]).argmax(1))

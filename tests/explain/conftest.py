"""Small models to be explained, each made once."""

from __future__ import annotations

import functools
from typing import Any, cast

import pytest
import timm
import torch

from beholder.core.model import Backbone, VisionModel

CLASSES = 6


@functools.cache
def small(name: str, size: tuple[int, int] = (96, 96), **options: Any) -> VisionModel:
    """A timm model of random weights with six classes and a classifier that is not 0.

    Weights are one seed's; the same object each time, so it must not be changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = cast(Backbone, timm.create_model(name, num_classes=CLASSES, **options))
        for key, weight in backbone.named_parameters():
            if key.startswith("head") and weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.05)
    return VisionModel(backbone, name, classes=list("abcdef"), input_size=size)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))

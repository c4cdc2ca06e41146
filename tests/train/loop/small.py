"""Small worlds for the training loop: coloured squares in memory, and the smallest backbones."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import polars as pl
import timm
import torch
from torch import Tensor, nn

from beholder.core.images import TABLE_SCHEMA, Images
from beholder.core.model import Backbone, VisionModel
from beholder.data.sources.stores import ArrayStore
from beholder.train.loop import TrainConfig, TrainRun, fit
from beholder.train.objectives.classification import Classification

SIDE = 32


def squares(count: int = 22, classes: int = 3, side: int = SIDE, first: int = 0) -> Images:
    """Grey pictures; the class says where the bright square lies."""
    rng = np.random.default_rng(first)
    label = np.arange(count) % classes
    pictures = rng.integers(0, 90, (count, side, side))
    step = side // classes
    for picture, c in zip(pictures, label, strict=True):
        picture[c * step : (c + 1) * step, side // 4 : side // 2] += 140
    names = [f"{first + number:03d}" for number in range(count)]
    given = {"id": names, "key": [str(n) for n in range(count)], "path": names, "label": label}
    table = pl.DataFrame(
        {name: given.get(name, [None] * count) for name in TABLE_SCHEMA}, schema=TABLE_SCHEMA
    )
    classes_ = tuple("abcdefgh"[:classes])
    return Images("squares", classes_, table, ArrayStore(pictures.astype(np.uint8)), "x", "classes")


def model(name: str = "test_vit", side: int = SIDE, **options: Any) -> VisionModel:
    """A timm model with the same random weights every time."""
    if name == "test_vit":
        options |= {"img_size": side}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = cast(Backbone, timm.create_model(name, num_classes=3, **options))
    return VisionModel(backbone, name, classes=("a", "b", "c"), input_size=(side, side))


def settings(**changes: Any) -> TrainConfig:
    """Two epochs of three batches."""
    plain: dict[str, Any] = {
        **{"epochs": 2, "batch_size": 8, "lr": 1e-3, "warmup": 0, "device": "cpu", "workers": 0},
        **{"log_every": 1, "checkpoint_every": 1e6},
    }
    return TrainConfig(**plain | changes)


def trained(images: Images | None = None, **changes: Any) -> TrainRun:
    """A finished run on `squares`, of pictures as they are."""
    return fit(Classification(view="raw"), model(), images or squares(), settings(**changes))


def weights(run: TrainRun) -> Tensor:
    """All parameters in one row."""
    return nn.utils.parameters_to_vector(run.model.parameters()).detach()

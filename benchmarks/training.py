"""The training loop against a bare one: same images, loader, model, loss and optimiser.

The bare loop is forward, cross-entropy, backward, AdamW step and the loss as a number. What ours
adds is checks for finite losses, seeds, schedules, metrics, hooks and `lightning` itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import cast

import timm
import torch

from beholder.core.images import Images
from beholder.core.model import Backbone, VisionModel
from beholder.train.data import ALONE, Draws, EpochSampler, Plan, Samples, loader, seed_of
from beholder.train.loop import TrainConfig, fit
from beholder.train.objectives.base import DataInfo
from beholder.train.objectives.classification import Classification
from beholder.train.optim import make_optimiser, param_groups

from .base import ROUNDS, Measured, at_least, measured, median_ratio, solar

SIDE, BATCH = 96, 32


def fresh(classes: tuple[str, ...]) -> VisionModel:
    """ResNet-18 with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = cast(Backbone, timm.create_model("resnet18", num_classes=len(classes)))
    return VisionModel(backbone, "resnet18", classes=classes, input_size=(SIDE, SIDE))


def ours(images: Images, epochs: int) -> float:
    """Images per second from the first step to the last."""
    ticks: list[float] = []

    def tick(done: int, total: int, figures: Mapping[str, float]) -> None:
        ticks.append(time.perf_counter())

    config = TrainConfig(epochs=epochs, batch_size=BATCH, device="cpu", workers=0)
    fit(Classification(view="raw"), fresh(images.classes), images, config, on_progress=tick)
    return BATCH * (len(ticks) - 1) / (ticks[-1] - ticks[0])


def bare(images: Images, epochs: int) -> float:
    """The same of a loop of ten lines."""
    model, objective = fresh(images.classes), Classification(view="raw")
    objective.setup(model, DataInfo(images.classes, len(images), (SIDE, SIDE)))
    plan = Plan({ALONE: EpochSampler(len(images), seed_of(0, ALONE))}, BATCH, epochs)
    optimiser = make_optimiser("adamw", param_groups(model, 1e-3, 0.05))
    model.train()
    ticks = []
    for batch in loader(Samples({ALONE: images}, objective), Draws(plan), 0, pin=False):
        loss = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
        ticks.append(time.perf_counter())
    return BATCH * (len(ticks) - 1) / (ticks[-1] - ticks[0])


def measure(quick: bool = False) -> Measured:
    images, epochs = solar(BATCH * (4 if quick else 20)), 2
    rates = [(ours(images, epochs), bare(images, epochs)) for _ in range(1 if quick else ROUNDS)]
    beholder, torch_alone = zip(*rates, strict=True)
    figures = {
        "model": "resnet18",
        "side": SIDE,
        "batch": BATCH,
        "beholder_images_per_s": list(beholder),
        "bare_images_per_s": list(torch_alone),
    }
    ratio = median_ratio(beholder, torch_alone)
    return measured(figures, at_least("throughput of a bare torch loop", ratio, 0.9))

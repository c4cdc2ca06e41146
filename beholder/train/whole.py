"""Fine-tuning of every layer, in the loop of `beholder train`: what a GPU has the time for."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torchvision.transforms import v2

from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.data.augment.cutmix import CutMix

from .answers import Labelled
from .config import TrainConfig
from .loop import fit
from .objectives.classification import Classification
from .objectives.views import seeded
from .optim import param_groups
from .passes import FeaturePass
from .tuning import LAST, PILOT, WARM, Recipe, affordable, weights_of


class Slight(Classification):
    """Classification of images that are slightly moved, turned and recoloured, then RandAugment
    (two of its changes at strength 6).

    Args:
        mirror: half of them are mirrored too.
        head_lr: rate of the classifier, as a multiple of the encoder's.
    """

    def __init__(self, mirror: bool, head_lr: float) -> None:
        super().__init__()
        self.mirror, self.head_lr = mirror, head_lr

    def views(self, sample: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        self.check(sample)
        change = v2.Compose(
            [
                v2.Resize(list(self.size), v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(0.5 * self.mirror),
                v2.RandomAffine((-5, 5), translate=(0.06, 0.06)),
                v2.ColorJitter(0.2, 0.2),
                v2.RandAugment(2, 6),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        with seeded(generator):
            image = change(torch.from_numpy(np.array(sample["image"])).permute(2, 0, 1))
        weight = torch.tensor(float(sample["weight"]))
        return {"image": image, "label": self._target(sample), "weight": weight}

    def param_groups(self, model: VisionModel, lr: float, decay: float) -> list[dict[str, Any]]:
        classifier = model.backbone.pretrained_cfg["classifier"]
        return param_groups(model, lr, decay, scales={f"*{classifier}.*": self.head_lr})


def train_all(
    tuned: VisionModel,
    data: Labelled,
    rows: np.ndarray,
    recipe: Recipe,
    passed: FeaturePass,
    end: float,
) -> int:
    """Train every layer, in the loop of `beholder train`; the epochs that there was time for."""
    images = passed.data.images
    weight = np.zeros(len(images), np.float32)
    weight[rows] = weights_of(data.label[rows])
    table = images.table.with_columns(pl.Series("weight", weight))
    images = replace(images, table=table[rows.tolist()])
    settings = TrainConfig(
        epochs=1,
        batch_size=recipe.batch,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        layer_decay=0.75,
        ema=0.999,
        mixing=CutMix(prob=0.5),
        no_mixing=LAST,
        seed=passed.seed,
        device=passed.device,
        warmup=1.0,
    )

    def run(
        model: VisionModel, some: Images, epochs: int, done: Callable[..., None]
    ) -> VisionModel:
        objective = Slight(tuned.mirror, recipe.head_lr / recipe.lr)
        config = replace(settings, epochs=epochs)
        return fit(objective, model, some, config, on_progress=done).model

    begun: list[float] = []
    few = images.where(pl.int_range(pl.len()) < recipe.batch * (WARM + PILOT))
    run(copy.deepcopy(tuned), few, 1, lambda *_: begun.append(time.monotonic()))
    steps = -(-len(rows) // recipe.batch)
    timed = begun[min(WARM, len(begun) - 1) :]
    price = (timed[-1] - timed[0]) / max(len(timed) - 1, 1) * steps
    epochs = affordable(price, end - time.monotonic(), recipe.epochs)
    with passed.stage("finetune", epochs * steps, f"{epochs} epochs") as stage:
        trained = run(tuned, images, epochs, lambda *_: stage.advance(1))
    tuned.backbone = trained.backbone
    return epochs

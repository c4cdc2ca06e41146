"""Barlow Twins: does the redundancy term prevent collapse, and do wide outputs help?"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.data.sources import open_images
from beholder.metrics.features import collapse, effective_rank
from beholder.metrics.neighbours import knn_predict
from beholder.train.config import TrainConfig
from beholder.train.loop import fit
from beholder.train.objectives.barlow_twins import BarlowTwins
from beholder.train.objectives.views import BARLOW_A, BARLOW_B
from claims.models import small_cnn
from claims.verdict import Measures, Part, difference, per_image, reported

ROW = 47
CLAIM = (
    "Barlow Twins does not collapse although its two branches are alike: the redundancy term "
    "prevents it, and the features it learns serve to classify. Wider outputs help."
)
SETTING = (
    "mnist5k at 28 px: 1,000 digits to learn from without labels, 1,000 others to judge. ResNet-10 "
    "of width 8, batch 128, 20 epochs (140 steps) of AdamW; views as the paper's, without mirror "
    "images and colour, the crop of at least 0.3 of the area. Outputs: 256; without redundancy "
    "(lambda 0): 256; narrow: 32; wide: 2,048. k-NN (k = 20) on the backbone's features."
)
SEEDS = (0, 1, 2)

COUNT, SIZE = 1000, 28
HIDDEN = 256
ARMS: dict[str, tuple[int, float]] = {
    "full": (256, 0.0051),
    "without": (256, 0.0),
    "narrow": (32, 0.0051),
    "wide": (2048, 0.0051),
}
"""Name -> width of the outputs, lambda."""


class Digits(BarlowTwins):
    """With views that suit grey digits, made once for all arms of a seed."""

    sees = tuple(
        replace(view, scale=(0.3, 1.0), flip=0.0, grey=0.0, jitter=(0.4, 0.4, 0.0, 0.0))
        for view in (BARLOW_A, BARLOW_B)
    )
    made: dict[tuple[str, int], list[Tensor]] = {}  # noqa: RUF012

    def views(self, sample: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        key = sample["id"], generator.initial_seed()
        if key not in self.made:
            self.made[key] = super().views(sample, generator)["views"]
        return {"views": self.made[key]}


def parted() -> tuple[Images, Images]:
    """Digits to learn from, and others to judge on."""
    images = open_images("mnist5k")
    order = np.random.default_rng(0).permutation(len(images))
    place = np.empty(len(images), int)
    place[order] = np.arange(len(images))
    learned = images.where(pl.Series(place < COUNT))
    return learned, images.where(pl.Series((place >= COUNT) & (place < 2 * COUNT)))


@torch.no_grad()
def features(model: VisionModel, images: Images) -> np.ndarray:
    """[N, D] of the backbone, in eval mode."""
    pixels = np.stack([model.prepare(images.read(row)) for row in range(len(images))])
    batches = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(250)
    return torch.cat([model.eval().features(batch) for batch in batches]).numpy()


def judged(model: VisionModel, learned: Images, others: Images) -> tuple[list[float], float]:
    """Whether the neighbours name each of the others rightly, and the effective rank."""
    bank, queries = features(model, learned), features(model, others)
    answers = knn_predict(queries, bank, learned.table["label"].to_numpy()).argmax(1)
    right = (answers == others.table["label"].to_numpy()).astype(float)
    return right.tolist(), effective_rank(queries)


def run(seed: int) -> dict[str, Any]:
    Digits.made.clear()
    learned, others = parted()
    start = small_cnn(size=SIZE, width=8, seed=seed)
    config = TrainConfig(
        epochs=20, batch_size=128, lr=2e-3, weight_decay=1e-4, warmup=1, seed=seed, device="cpu"
    )
    found: dict[str, Any] = {}
    found["right_untrained"], found["rank_untrained"] = judged(start, learned, others)
    for arm, (width, lambd) in ARMS.items():
        objective = Digits((HIDDEN, HIDDEN, width), lambd)
        model = fit(objective, copy.deepcopy(start), learned, config).model
        found[f"right_{arm}"], found[f"rank_{arm}"] = judged(model, learned, others)
        with torch.no_grad():
            outputs = objective.projector(torch.from_numpy(features(model, others)))
        std, found[f"output_rank_{arm}"], _ = collapse(outputs.numpy())
        found[f"output_std_{arm}"] = std
    return found


def parts(results: Sequence[Measures]) -> list[Part]:
    return [
        difference(
            "The outputs span more directions with the redundancy term than without (rank).",
            results,
            *("output_rank_full", "output_rank_without"),
            unit="",
        ),
        difference(
            "So do the backbone's features (rank).",
            results,
            *("rank_full", "rank_without"),
            unit="",
        ),
        per_image(
            "k-NN is better on its features than on those of the untrained network.",
            results,
            *("right_full", "right_untrained"),
        ),
        per_image(
            "k-NN is better than after training without the redundancy term.",
            results,
            *("right_full", "right_without"),
        ),
        *(
            reported(f"Effective rank of the outputs: {arm}.", results, f"output_rank_{arm}", "")
            for arm in ARMS
        ),
        *(
            reported(f"k-NN accuracy: {arm}.", shares(results), f"right_{arm}")
            for arm in ("untrained", "narrow", "full", "wide")
        ),
    ]


def shares(results: Sequence[Measures]) -> list[dict[str, float]]:
    """The mean of what was measured per image."""
    return [{name: float(np.mean(x)) for name, x in result.items()} for result in results]

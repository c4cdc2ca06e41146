"""Row 20, Grad-CAM: does it point at the object, and at what the model uses?

First measured at 64 px with objects of 0.35 to 0.7 of the side: the last map has 4 x 4 cells there,
and the middle of the image lies in 90 % of the boxes. Pointing game 0.81 (plain gradient 0.96,
centre 0.89), overlap 0.35 (0.55, 0.23), deletion 0.22 (moved maps 0.52), heat in the quadrant 0.68:
it did not hold. The setting below was then chosen once, for a finer map and smaller objects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.data.sources.stores import ArrayStore
from beholder.data.synthesize.scenes import Placed, Scenes
from beholder.explain.attribution.captum_methods import Saliency
from beholder.explain.attribution.gradcam import GradCAM
from beholder.metrics.explanation import (
    auc,
    centred,
    deletion,
    permuted,
    pointing_game,
    wsl_iou,
)
from beholder.train.config import TrainConfig
from beholder.train.loop import fit
from beholder.train.objectives.classification import Classification
from claims.models import small_cnn
from claims.verdict import Part, above, per_image, reported

ROW = 20
CLAIM = (
    "Grad-CAM finds the object of the class better than the plain gradient does, and what it marks "
    "is what the model uses."
)
SETTING = (
    "Scenes of one drawing out of 10, of 0.2 to 0.45 of the side, anywhere on photographs of "
    "128 px, 600 training images, ResNet-10 of width 16, 10 epochs; 200 test images with exact "
    "boxes, maps (8 x 8 cells) of the true class; pointing game with 9 px of tolerance (15 at "
    "224 px), box at 15 % of the maximum; deletion in 16 steps, against the same map with its "
    "cells in other places. Chosen after a first setting in which it did not hold (see the file)."
)
SEEDS = (0, 1, 2)

CLASSES, SIZE, STEPS = 10, 128, 16
TOLERANCE = 15 * SIZE / 224


def run(seed: int) -> dict[str, Any]:
    """Per image: `point_...`, `iou_...`, `deletion_...` of each map; `quadrant`, `accuracy`."""
    train = Scenes(600, SIZE, CLASSES, layout=anywhere, seed=2 * seed)
    model = small_cnn(train.classes, SIZE, width=16, seed=seed)
    config = TrainConfig(epochs=10, batch_size=32, lr=3e-3, seed=seed, device="cpu")
    fit(Classification(view="raw"), model, in_memory(train), config)

    samples = list(Scenes(200, SIZE, CLASSES, layout=anywhere, seed=2 * seed + 1))
    images, labels = batch(samples), torch.tensor([sample["label"] for sample in samples])
    boxes = [torch.from_numpy(sample["boxes"]) for sample in samples]
    cam = GradCAM().explain(model, images, labels, batch_size=50)
    maps = {
        "gradcam": cam.heatmap,
        "saliency": Saliency().explain(model, images, labels, batch_size=50).heatmap,
        "centre": centred(SIZE, SIZE).expand(len(images), -1, -1),
    }
    found: dict[str, Any] = {"ids": [f"{seed}-{row}" for row in range(len(images))]}
    for name, heatmaps in maps.items():
        found[f"point_{name}"] = pointing_game(heatmaps, boxes, TOLERANCE).tolist()
        found[f"iou_{name}"] = wsl_iou(heatmaps, boxes).tolist()
    generator = torch.Generator().manual_seed(seed)
    moved = torch.stack([permuted(x, cam.meta["cells"], generator) for x in cam.heatmap])
    found["deletion_gradcam"] = deleted(model, images, labels, cam.heatmap, seed)
    found["deletion_moved"] = deleted(model, images, labels, moved, seed)
    with torch.no_grad():
        found["accuracy"] = float((model.logits(images).argmax(1) == labels).float().mean())
    return found | {"quadrant": in_quadrant(model, seed)}


def parts(results: list[dict[str, Any]]) -> list[Part]:
    made = []
    for measure, called in (("point", "pointing game"), ("iou", "overlap with the box")):
        for rival, of in (("saliency", "the plain gradient"), ("centre", "a map of the centre")):
            text = f"{called}: above {of}"
            made.append(
                per_image(text, results, f"{measure}_gradcam", f"{measure}_{rival}", ids="ids")
            )
    text = "deletion: the answer is lost sooner than by a map moved elsewhere"
    made.append(per_image(text, results, "deletion_moved", "deletion_gradcam", ids="ids"))
    made.append(
        above("share of the heat in the quadrant that holds the object", results, "quadrant", 0.8)
    )
    return [*made, reported("top-1 accuracy of the model", results, "accuracy")]


def deleted(
    model: VisionModel, images: Tensor, labels: Tensor, heatmaps: Tensor, seed: int
) -> list[float]:
    """Area under the deletion curve of every image."""
    areas = []
    for image, label, heatmap in zip(images, labels.tolist(), heatmaps, strict=True):

        def score(changed: Tensor, label: int = label) -> Tensor:
            return model.logits(changed).softmax(1)[:, label]

        areas.append(auc(deletion(score, image, heatmap, steps=STEPS, seed=seed)))
    return areas


def in_quadrant(model: VisionModel, seed: int) -> float:
    """Share of the heat in the upper right quarter, where 100 drawings stand."""
    samples = list(Scenes(100, SIZE, CLASSES, layout=upper_right, seed=1_000 + seed))
    labels = torch.tensor([sample["label"] for sample in samples])
    heat = GradCAM().explain(model, batch(samples), labels, batch_size=50).heatmap
    heat = heat[heat.flatten(1).amax(1) > 0]
    own = heat[:, : SIZE // 2, SIZE // 2 :].sum((1, 2)) / heat.sum((1, 2))
    return float(own.mean())


def anywhere(rng: np.random.Generator) -> list[Placed]:
    """One drawing, wholly inside."""
    scale = rng.uniform(0.2, 0.45)
    x, y = rng.uniform(scale / 2, 1 - scale / 2, 2)
    return [(int(rng.integers(CLASSES)), x, y, scale)]


def upper_right(rng: np.random.Generator) -> list[Placed]:
    """One drawing, wholly in the upper right quarter."""
    x, y = rng.uniform(0.2, 0.3, 2)
    return [(int(rng.integers(CLASSES)), 0.5 + x, y, 0.35)]


def in_memory(drawn: Scenes) -> Images:
    """The scenes composed once, instead of in every epoch."""
    pictures = np.stack([sample["image"] for sample in drawn])
    return replace(drawn.images(), store=ArrayStore(pictures))


def batch(samples: list[dict]) -> Tensor:
    """float [N, 3, H, W] in [0, 1]."""
    pixels = np.stack([sample["image"] for sample in samples])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

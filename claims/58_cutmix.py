"""Row 58, CutMix: does pasting boxes help accuracy, localisation and the knowledge of limits?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.data.augment.base import Mixing
from beholder.data.augment.cutmix import CutMix
from beholder.data.augment.cutout import Cutout
from beholder.data.augment.mixup import Mixup
from beholder.data.sources.stores import ArrayStore
from beholder.data.synthesize.scenes import Scenes
from beholder.data.synthesize.sprites import drawings
from beholder.explain.attribution.gradcam import GradCAM
from beholder.metrics.detection import auroc
from beholder.metrics.explanation import wsl_iou
from beholder.train.config import TrainConfig
from beholder.train.loop import fit
from beholder.train.objectives.classification import Classification
from beholder.train.validation import judging
from claims.models import small_cnn
from claims.verdict import Part, difference, reported

ROW = 58
CLAIM = (
    "Training with CutMix gives better accuracy, better weak localisation and better detection of "
    "unknown images than training without, with Mixup or with Cutout."
)
SETTING = (
    "Scenes of one drawing out of 30 on photographs, 64 px, 15 training images per class, 600 test "
    "images; ResNet-10 of width 16, 16 epochs; unknown: 150 backgrounds without a drawing and 150 "
    "scenes of 30 other drawings, by the largest softmax; localisation: Grad-CAM of the true "
    "class, IoU >= 0.5 at the threshold that serves the whole set best."
)
SEEDS = (0, 1, 2)

CLASSES, SIZE = 30, 64
ARMS: dict[str, Mixing | None] = {
    "none": None,
    "mixup": Mixup(alpha=1.0),
    "cutout": Cutout(side=0.5),
    "cutmix": CutMix(prob=0.5),
}
MEASURES = {"top1": "top-1 accuracy", "loc": "GT-known localisation", "auroc": "AUROC on unknown"}


def run(seed: int) -> dict[str, float]:
    """Measure of every arm, and of the best of the other three ('rest')."""
    train = in_memory(scenes(450, 3 * seed))
    test = scenes(600, 3 * seed + 1)
    unknown = [
        scenes(150, 3 * seed + 2, sprites=(0, 0)),
        scenes(150, 3 * seed + 2, classes=drawings(CLASSES, skip=CLASSES)),
    ]
    found: dict[str, float] = {}
    for arm, mixing in ARMS.items():
        model = small_cnn(train.classes, SIZE, width=16, seed=seed)
        config = TrainConfig(
            epochs=16, batch_size=32, lr=3e-3, mixing=mixing, seed=seed, device="cpu"
        )
        fit(Classification(view="raw"), model, train, config)
        found |= {f"{name}_{arm}": x for name, x in judged(model, test, unknown).items()}
    for name in MEASURES:
        found[f"{name}_rest"] = max(found[f"{name}_{arm}"] for arm in ARMS if arm != "cutmix")
    return found


def parts(results: list[dict[str, float]]) -> list[Part]:
    made = []
    for name, called in MEASURES.items():
        made += [
            difference(f"{called}: above no mixing", results, f"{name}_cutmix", f"{name}_none"),
            difference(
                f"{called}: above the best other", results, f"{name}_cutmix", f"{name}_rest"
            ),
        ]
        made += [reported(f"{called}, {arm}", results, f"{name}_{arm}") for arm in ARMS]
    return made


def scenes(
    count: int,
    seed: int,
    sprites: tuple[int, int] = (1, 1),
    classes: int | list[str] = CLASSES,
) -> Scenes:
    return Scenes(count, SIZE, classes, sprites=sprites, seed=seed)


def in_memory(drawn: Scenes) -> Images:
    """The scenes composed once, instead of in every epoch."""
    pictures = np.stack([sample["image"] for sample in drawn])
    return replace(drawn.images(), store=ArrayStore(pictures))


def judged(model: VisionModel, test: Scenes, unknown: list[Scenes]) -> dict[str, float]:
    samples = list(test)
    images, label = batch(samples), torch.tensor([sample["label"] for sample in samples])
    boxes = [torch.from_numpy(sample["boxes"]) for sample in samples]
    maps = GradCAM().explain(model, images, targets=label, batch_size=50).heatmap
    known = shares(model, images)
    other = shares(model, torch.cat([batch(list(part)) for part in unknown]))
    found = [
        float((wsl_iou(maps, boxes, threshold) >= 0.5).float().mean())
        for threshold in np.arange(0.05, 0.96, 0.05)
    ]
    return {
        "top1": float((known.argmax(1) == label).float().mean()),
        "loc": max(found),
        "auroc": auroc(-known.amax(1).numpy(), -other.amax(1).numpy()),
    }


def batch(samples: list[dict]) -> Tensor:
    """float [N, 3, H, W] in [0, 1]."""
    pixels = np.stack([sample["image"] for sample in samples])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def shares(model: VisionModel, images: Tensor) -> Tensor:
    """Softmax [N, C]."""
    with judging(model):
        return torch.cat([model.logits(part).softmax(1) for part in images.split(100)])

"""Grad-CAM on a batch of ResNet-18 at 224 px against pytorch-grad-cam, or captum where that is not
installed.

The peers' maps must be the same. Memory is what one call adds to the peak of a fresh process; the
peer that it is compared with is the one that was timed.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable
from typing import cast

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from beholder.core.model import Backbone, VisionModel
from beholder.explain.attribution.gradcam import GradCAM

from .base import (
    ROUNDS,
    Measured,
    at_most,
    measured,
    median_ratio,
    python,
    run_process,
    timed,
)

BATCH, CLASS, LAYER = 32, 7, "layer4"
PEER = "pytorch_grad_cam" if importlib.util.find_spec("pytorch_grad_cam") else "captum"


def problem(count: int) -> tuple[VisionModel, Tensor]:
    """The model with random weights, and images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = cast(Backbone, timm.create_model("resnet18", num_classes=10))
    model = VisionModel(backbone, "resnet18", classes=[str(i) for i in range(10)])
    return model, torch.rand(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def ours(model: VisionModel, images: Tensor) -> Tensor:
    found = GradCAM(LAYER).explain(model, images, CLASS, batch_size=len(images))
    return found.normalised()


def theirs(model: VisionModel, images: Tensor) -> Tensor:
    """The peer's maps, scaled to 0..1."""
    if PEER == "captum":
        from captum.attr import LayerAttribution, LayerGradCam

        cam = LayerGradCam(model, model.backbone.layer4)  # type: ignore[attr-defined]
        maps = cam.attribute(images, target=CLASS, relu_attributions=True)
        large = LayerAttribution.interpolate(maps, images.shape[2:], "bilinear")[:, 0].detach()
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        return (large - low) / (high - low).clamp_min(1e-12)
    from pytorch_grad_cam import GradCAM as Peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with Peer(model=model, target_layers=[model.backbone.layer4]) as cam:  # type: ignore[attr-defined]
        targets = [ClassifierOutputTarget(CLASS)] * len(images)
        return torch.from_numpy(cam(input_tensor=images, targets=targets))


WAYS: dict[str, Callable[[VisionModel, Tensor], Tensor]] = {"ours": ours, "theirs": theirs}


def likeness(a: Tensor, b: Tensor) -> float:
    """Smallest correlation of two maps of an image, at the resolution of the layer (the peers
    enlarge in different ways); maps without evidence are left out."""
    a, b = (F.adaptive_avg_pool2d(x[:, None], 7).flatten(1) for x in (a, b))
    kept = (a.amax(1) > 0) & (b.amax(1) > 0)
    pairs = zip(a[kept], b[kept], strict=True)
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)


def peak_mib(way: str, count: int) -> float:
    """What one call adds to the peak of a fresh process."""
    with_call = run_process(python("-m", "benchmarks.gradcam", way, str(count)))[1]
    without = run_process(python("-m", "benchmarks.gradcam", way, "0"))[1]
    return with_call - without


def measure(quick: bool = False) -> Measured:
    count = 4 if quick else BATCH
    model, images = problem(count)
    first = {name: way(model, images) for name, way in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(1 if quick else ROUNDS):
        for name, way in WAYS.items():
            times[name].append(timed(lambda way=way: way(model, images))[0])
    memory = {name: peak_mib(name, count) for name in WAYS}
    figures = {
        "peer": PEER,
        "images": count,
        "ours_s": statistics.median(times["ours"]),
        "theirs_s": statistics.median(times["theirs"]),
        "ours_mib": memory["ours"],
        "theirs_mib": memory["theirs"],
        "likeness": likeness(first["ours"], first["theirs"]),
    }
    return measured(
        figures,
        at_most(f"time of {PEER}", median_ratio(times["ours"], times["theirs"]), 1),
        at_most(f"memory of {PEER}", memory["ours"] / max(memory["theirs"], 1), 1),
        at_most("1 - correlation of the maps", 1 - figures["likeness"], 0.02, ""),
    )


if __name__ == "__main__":
    problem_model, problem_images = problem(max(int(sys.argv[2]), 1))
    if int(sys.argv[2]):
        WAYS[sys.argv[1]](problem_model, problem_images)

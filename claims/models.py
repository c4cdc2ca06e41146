"""Networks that two cores can train: `VisionModel`s with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from beholder.core.model import VisionModel


def small_cnn(
    classes: Sequence[str] = (), size: int = 64, width: int = 32, seed: int = 0
) -> VisionModel:
    """A ResNet-10 without its pooling stem: four basic blocks of `width` to 8 x `width` channels
    at strides 2 to 16, 1.2 M parameters at width 32."""
    channels = tuple(width * 2**stage for stage in range(4))
    model = _seeded("resnet18", len(classes), seed, layers=(1, 1, 1, 1), channels=channels)
    model.maxpool = nn.Identity()
    for stage in model.feature_info[1:]:
        stage["reduction"] //= 2
    return _wrapped(model, "small_cnn", classes, size)


def tiny_vit(
    classes: Sequence[str] = (), size: int = 64, patch: int = 8, seed: int = 0
) -> VisionModel:
    """A ViT with a class token: width 96, six blocks of three heads, 0.7 M parameters."""
    shape = {"img_size": size, "patch_size": patch, "embed_dim": 96, "depth": 6, "num_heads": 3}
    model = _seeded("vit_tiny_patch16_224", len(classes), seed, **shape)
    return _wrapped(model, "tiny_vit", classes, size)


def _seeded(name: str, classes: int, seed: int, **shape: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False, num_classes=classes, **shape)


def _wrapped(model: Any, name: str, classes: Sequence[str], size: int) -> VisionModel:
    model.pretrained_cfg = model.pretrained_cfg | {
        "input_size": (3, size, size),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    return VisionModel(model, name, classes=classes)

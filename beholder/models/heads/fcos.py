"""FCOS: boxes without anchors, the head to start with.

Tian, Shen, Chen, He: "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, in
torchvision's implementation (centre sampling 1.5, GIoU, centreness); ours is the shell around it.

Example:
    >>> from beholder.core.model import VisionModel
    >>> from beholder.models.encoder import create_encoder
    >>> from beholder.models.heads.base import DetectionModel
    >>> from beholder.models.heads.pyramid import Pyramid
    >>> import torch
    >>> encoder = VisionModel(create_encoder("untrained:test_resnet")[0], "tiny")
    >>> pyramid = Pyramid(encoder, FCOS.levels, channels=32)
    >>> model = DetectionModel(encoder, pyramid, FCOS(classes=3, channels=32)).eval()
    >>> [len(found.boxes) == len(found.labels) for found in model.predict(torch.rand(2, 3, 64, 96))]
    [True, True]
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS as TorchvisionFCOS
from torchvision.models.detection.image_list import ImageList

from beholder.core.predictions import Detections
from beholder.core.registry import system

from .base import Head, Maps, Targets


class _NoBackbone(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


@system()
class FCOS(Head):
    """Args: `score`: lowest score that is told. `most`: boxes per image."""

    def __init__(
        self, classes: int, channels: int = 64, score: float = 0.05, most: int = 100
    ) -> None:
        super().__init__()
        anchors = AnchorGenerator(
            tuple((2 ** (level + 2),) for level in self.levels), ((1.0,),) * len(self.levels)
        )
        self.fcos = TorchvisionFCOS(
            _NoBackbone(channels),
            classes,
            anchor_generator=anchors,
            score_thresh=score,
            detections_per_img=most,
        )

    def loss(self, features: Maps, targets: Targets, size: tuple[int, int]) -> dict[str, Tensor]:
        maps, anchors, found = self._outputs(features, size)
        own = [{"boxes": t["boxes"].float(), "labels": t["labels"]} for t in targets]
        counts = [x.shape[-2] * x.shape[-1] for x in maps]
        return self.fcos.compute_loss(own, found, anchors, counts)

    def predict(self, features: Maps, size: tuple[int, int]) -> list[Detections]:
        maps, anchors, found = self._outputs(features, size)
        counts = [x.shape[-2] * x.shape[-1] for x in maps]
        by_level = {name: list(x.split(counts, 1)) for name, x in found.items()}
        split = [list(a.split(counts)) for a in anchors]
        return [
            Detections(one["boxes"], one["scores"], one["labels"])
            for one in self.fcos.postprocess_detections(by_level, split, [size] * len(anchors))
        ]

    def _outputs(
        self, features: OrderedDict[str, Tensor], size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        maps = list(features.values())
        count = len(maps[0])
        blank = ImageList(torch.empty(count, 3, *size, device=maps[0].device), [size] * count)
        anchors = cast(list[Tensor], self.fcos.anchor_generator(blank, maps))
        return maps, anchors, self.fcos.head(maps)

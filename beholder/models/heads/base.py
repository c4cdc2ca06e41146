"""The role of a head: boxes (masks, tracks) from a pyramid of feature maps, on any backbone.

Boxes are xyxy in pixels with x2 - x1 = width; labels are 0 .. C - 1, there is no background class.
"""

from __future__ import annotations

import abc
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from beholder.core.errors import DataError
from beholder.core.model import VisionModel
from beholder.core.predictions import Detections

from .pyramid import Pyramid

Maps = OrderedDict[str, Tensor]
Targets = Sequence[Mapping[str, Tensor]]


class Head(nn.Module, abc.ABC):
    """Base of every head.

    Attributes:
        levels: of the pyramid that it reads; level l has stride 2 ** l.
        weights: loss term -> weight, 1 where it is not named.
    """

    role: ClassVar[str] = "head"
    levels: ClassVar[tuple[int, ...]] = (3, 4, 5, 6, 7)
    weights: Mapping[str, float] = {}

    @abc.abstractmethod
    def loss(self, features: Maps, targets: Targets, size: tuple[int, int]) -> dict[str, Tensor]:
        """Unweighted scalar terms.

        Args:
            features: level -> [B, C, h, w].
            targets: per image `boxes` [N, 4] and `labels` [N].
            size: (H, W) of the images.
        """

    @abc.abstractmethod
    def predict(self, features: Maps, size: tuple[int, int]) -> list[Detections]:
        """What was found, one per image."""


class DetectionModel(nn.Module):
    """Encoder, pyramid and head: images float [0, 1] [B, 3, H, W] of any size.

    Args:
        model: gives feature maps; its preprocessing is inside.
        head: made for `pyramid.channels` channels.
    """

    def __init__(self, model: VisionModel, pyramid: Pyramid, head: Head) -> None:
        super().__init__()
        self.model, self.pyramid, self.head = model, pyramid, head

    def features(self, images: Tensor) -> tuple[Maps, tuple[int, int]]:
        """Pyramid of images padded to whole strides, and the padded size.

        They are at least so wide that the coarsest map has two cells: group norms refuse one.
        """
        step, coarsest = self.pyramid.stride, 2 ** self.pyramid.levels[-1]
        height, width = images.shape[-2:]
        wide = max(width, coarsest + 1)
        images = functional.pad(images, (0, wide + -wide % step - width, 0, -height % step))
        padded = (images.shape[-2], images.shape[-1])
        return self.pyramid(self.model.feature_maps(images)), padded

    def loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Unweighted terms.

        Raises:
            DataError: a box that is none, or a label out of range; names image and box.
        """
        check(targets, images.shape[-2:])
        maps, size = self.features(images)
        return self.head.loss(maps, targets, size)

    @torch.no_grad()
    def predict(self, images: Tensor) -> list[Detections]:
        """Boxes inside the images, best first."""
        maps, size = self.features(images)
        height, width = images.shape[-2:]
        limit = torch.tensor([width, height, width, height], device=images.device)
        return [
            Detections(found.boxes.clamp_min(0).minimum(limit), found.scores, found.labels)
            for found in self.head.predict(maps, size)
        ]


def check(targets: Targets, size: Sequence[int]) -> None:
    """Raises `DataError` for the first box that cannot be."""
    height, width = size
    for image, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if len(boxes) != len(labels):
            raise DataError(f"Image {image} has {len(boxes)} boxes and {len(labels)} labels.")
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            x1, y1, x2, y2 = box
            inside = x1 >= -1 and y1 >= -1 and x2 <= width + 1 and y2 <= height + 1
            if not (x1 < x2 and y1 < y2 and inside) or label < 0:
                raise DataError(
                    f"Image {image}: box {box} of class {label} cannot be.",
                    f"Boxes are x1, y1, x2, y2 inside {width} x {height}; drop or mend it.",
                )

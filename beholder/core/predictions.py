"""What models answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Scale = Literal["minmax", "sym", "percentile99"]

WARM = np.array([[213, 62, 0], [255, 128, 14], [255, 224, 96]], float)
COLD = np.array([[0, 90, 178], [40, 140, 220], [150, 215, 255]], float)
"""Colours of evidence for and against, weak to strong."""


@dataclass(frozen=True)
class Predictions:
    """`probability` [N, C] over `classes`."""

    classes: tuple[str, ...]
    probability: np.ndarray

    def __len__(self) -> int:
        return len(self.probability)

    @property
    def predicted(self) -> np.ndarray:
        """Index of the likeliest class, [N]."""
        return self.probability.argmax(1)

    @property
    def labels(self) -> list[str]:
        """Name of the likeliest class, one per image."""
        return [self.classes[i] for i in self.predicted]

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the likeliest class, [N]."""
        return self.probability.max(1)


@dataclass(frozen=True)
class Explanation:
    """Where in each image the score of a model comes from.

    Attributes:
        heatmap: float32 [B, H, W], unscaled; below 0 where a signed method finds evidence against.
        target: [B] index of the class; -1 where the target is no class.
        score: [B] what was explained, by default the logit of that class.
        pixel: [B, 3, H, W] attribution of each value, of the methods that have it.
        meta: method, layer, cells (h, w) of the map before it was enlarged, `empty` (rows whose
            map holds no positive evidence), `notes`.
    """

    heatmap: Tensor
    target: Tensor
    score: Tensor
    pixel: Tensor | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.heatmap)

    def normalised(self, scale: Scale = "minmax") -> Tensor:
        """The maps scaled one by one, to be looked at, never to be measured; flat ones become 0.

        'minmax' to 0..1; 'sym' divides by the largest absolute value, to -1..1; 'percentile99' by
        the 99th percentile of the absolute values, cut at -1 and 1.
        """
        maps, flat = self.heatmap, self.heatmap.flatten(1)
        if scale == "minmax":
            low, high = flat.amin(1), flat.amax(1)
            return (maps - low[:, None, None]) / _divisor(high - low)
        if scale == "sym":
            return maps / _divisor(flat.abs().amax(1))
        rank = max(1, round(0.99 * flat.shape[1]))
        return (maps / _divisor(flat.abs().kthvalue(rank).values)).clamp(-1, 1)

    def overlay(self, images: Tensor) -> np.ndarray:
        """The maps as colours on greyed images: warm = evidence for, blue = against.

        `images`: [B, 3, H, W], uint8 or in [0, 1]. Returns uint8 [B, H, W, 3].
        """
        pixels = images.cpu().float() / (255 if images.dtype == torch.uint8 else 1)
        grey = 255 * (0.35 * pixels + 0.45 * pixels.mean(1, keepdim=True)).permute(0, 2, 3, 1)
        heat = self.normalised("percentile99").numpy()[..., None]
        strength = np.abs(heat)
        colour = np.where(heat > 0, _ramp(WARM, strength), _ramp(COLD, strength))
        opacity = 0.85 * strength**0.8
        return ((1 - opacity) * grey.numpy() + opacity * colour).clip(0, 255).astype(np.uint8)


def _divisor(size: Tensor) -> Tensor:
    """[B] to [B, 1, 1], infinite where it is 0."""
    return torch.where(size > 0, size, torch.inf)[:, None, None]


def _ramp(colours: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """[..., 1] in 0..1 to RGB [..., 3]."""
    places = np.linspace(0, 1, len(colours))
    return np.concatenate([np.interp(strength, places, channel) for channel in colours.T], -1)


@dataclass(frozen=True)
class TeacherOutputs:
    """What a student learns from: `logits` [B, C] (None without classes), pooled `features` [B, D],
    `tokens` [B, N, D] of the final map (None where they are not kept)."""

    logits: Tensor | None
    features: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image: none is `boxes` [0, 4].

    Attributes:
        boxes: float32 [K, 4], xyxy in pixels, x2 - x1 = width.
        scores: [K] in [0, 1], descending. labels: int64 [K], 0 .. C - 1.
        masks: bool [K, H, W]. tracks: int64 [K], identity within a clip.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    tracks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

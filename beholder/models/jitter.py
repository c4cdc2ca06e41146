"""Versions of an image whose decisions are averaged: whole, crops, rotations, each mirrored."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 0.75
ANGLE = 10.0
CROPS = tuple((SIDE, x, y, 0.0) for x, y in ((0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)))
WARPS = (*CROPS, (1.0, 0, 0, -ANGLE), (1.0, 0, 0, ANGLE))
"""Beside the whole image: (share of the side, horizontal and vertical corner, degrees)."""


def versions(images: Tensor) -> list[Tensor]:
    """16 versions of images [B, 3, H, W] (uint8, or float in [0, 1]), each float of that shape.

    The image itself, its centre and four corners at three quarters of the side, two rotations by
    10 degrees (mirrored at the border, so no black corners), and the mirror images of all these.
    """
    if images.dtype == torch.uint8:
        images = images.float() / 255
    found = [images, *(_warped(images, *warp) for warp in WARPS)]
    return [*found, *(version.flip(-1) for version in found)]


def _warped(images: Tensor, side: float, x: float, y: float, degrees: float) -> Tensor:
    height, width = images.shape[-2:]
    angle, room = math.radians(degrees), 1 - side
    cos, sin = side * math.cos(angle), side * math.sin(angle)
    rows = [[cos, -sin * height / width, x * room], [sin * width / height, cos, y * room]]
    matrix = torch.tensor(rows, dtype=images.dtype, device=images.device)
    shape = [len(images), *images.shape[1:]]
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

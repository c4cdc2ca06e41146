"""Defects planted into good images, so that a search for defects can be tested without any.

The cut-and-pasted patch is that of Li, Sohn, Yoon, Pfister: "CutPaste: Self-Supervised Learning for
Anomaly Detection and Localization", CVPR 2021, but cut from another image; the other kinds are ours
(specs/study.md, section 5).

>>> grey = np.full((40, 40, 3), 100, np.uint8)
>>> planted = plant("brightness", grey, np.random.default_rng(0), grey)
>>> np.unique(planted.image[planted.mask]).tolist()
[60]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from beholder.core.decode import resize
from beholder.core.pixels import luma
from beholder.data.curate.outliers import shuffled

AREA = (0.02, 0.10)
"""Share of the image that a local defect covers, at least and at most."""

CHANGE = 0.4  # of the brightness
BLUR = 0.03  # of the shorter side: standard deviation
LENGTH = (0.3, 0.8)  # of a scratch, of the shorter side
WIDTH = 0.01  # of a scratch, of the shorter side


class Planted(NamedTuple):
    """uint8 [H, W, 3], and where it was changed: bool [H, W]."""

    image: np.ndarray
    mask: np.ndarray


Defect = Callable[[np.ndarray, np.random.Generator, np.ndarray], Planted]


def box(
    size: tuple[int, int], rng: np.random.Generator, share: float | None = None
) -> tuple[slice, slice]:
    """Rows and columns of a rectangle anywhere that covers `share` of (H, W), 2 to 10 % by chance;
    one side is up to twice the other."""
    height, width = size
    area = (rng.uniform(*AREA) if share is None else share) * height * width
    rows = min(max(round((area * 2 ** rng.uniform(-1, 1)) ** 0.5), 1), height)
    columns = min(max(round(area / rows), 1), width)
    top, left = (int(rng.integers(0, n + 1)) for n in (height - rows, width - columns))
    return slice(top, top + rows), slice(left, left + columns)


def cut_paste(
    image: np.ndarray, rng: np.random.Generator, other: np.ndarray, share: float | None = None
) -> Planted:
    """A piece of `other`, from anywhere in it, is laid over `image`; `share` as of `box`.

    It is turned by a quarter: in an even texture a piece that is not turned is no defect.
    """
    size = image.shape[0], image.shape[1]
    there = box(size, rng, share)
    rows, columns = (part.stop - part.start for part in there)
    turned = np.rot90(resize(other, size[::-1]), int(rng.choice([1, 3])))
    top = int(rng.integers(0, size[0] - rows + 1))
    left = int(rng.integers(0, size[1] - columns + 1))
    changed = image.copy()
    changed[there] = turned[top : top + rows, left : left + columns]
    return Planted(changed, _mask(size, there))


def scratch(image: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> Planted:
    """A thin straight line, white where the image is dark and black where it is bright."""
    height, width = image.shape[:2]
    side = min(height, width)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    angle = np.arctan2(height / 2 - y, width / 2 - x) + rng.uniform(-1, 1)  # into the image
    length = rng.uniform(*LENGTH) * side
    end = x + length * np.cos(angle), y + length * np.sin(angle)
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).line([(x, y), end], fill=1, width=max(1, round(WIDTH * side)))
    mask = np.asarray(canvas).astype(bool)
    mask[min(int(y), height - 1), min(int(x), width - 1)] = True
    changed = image.copy()
    changed[mask] = 0 if luma(image)[mask].mean() > 127.5 else 255
    return Planted(changed, mask)


def blur(image: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> Planted:
    """A rectangle is out of focus."""
    size = image.shape[0], image.shape[1]
    there = box(size, rng)
    sigma = max(1.0, BLUR * min(size))
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))
    changed = image.copy()
    changed[there] = np.rint(smooth[there])
    return Planted(changed, _mask(size, there))


def brightness(image: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> Planted:
    """A rectangle is 40 % brighter or darker."""
    size = image.shape[0], image.shape[1]
    there = box(size, rng)
    factor = 1 + CHANGE * rng.choice([-1, 1])
    changed = image.copy()
    changed[there] = np.rint(image[there].astype(np.float32) * factor).clip(0, 255)
    return Planted(changed, _mask(size, there))


def tiles(image: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> Planted:
    """The whole image in 4 x 4 tiles, shuffled."""
    changed = shuffled(image, rng)
    return Planted(changed, np.ones(changed.shape[:2], bool))


DEFECTS: dict[str, Defect] = {
    "patch": cut_paste,
    "scratch": scratch,
    "blur": blur,
    "brightness": brightness,
    "tiles": tiles,
}


def plant(kind: str, image: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> Planted:
    """One of `DEFECTS` in a copy of `image` uint8 [H, W, 3]; `other`: what a patch is cut from."""
    return DEFECTS[kind](image, rng, other)


def _mask(size: tuple[int, int], there: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[there] = True
    return mask

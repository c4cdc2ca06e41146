"""What one image's pixels say: thumbnails, hashes and simple measures (specs/study.md, 4.13, 4.14).

All functions are pure, take uint8 arrays and may run in many threads at once. Luma is ITU-R BT.601
as Pillow rounds it. Colourfulness: Hasler and Suesstrunk, "Measuring colourfulness in natural
images", Human Vision and Electronic Imaging 2003, the third metric. Perceptual hash: the signs of
low discrete-cosine frequencies against their median (the pHash of Zauner, 2010).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from PIL import Image

SHARPNESS_SIDE = 256
"""Longest side, in pixels, at which sharpness is measured."""

HASH_SIDE = 32
"""Side of the thumbnail from which `phash` is made."""

LEVELS = np.arange(256, dtype=np.float64)
FLAT = 1e-3
"""Smallest variance whose logarithm is taken: that of a constant image is 0."""

BLOCK = 1 << 18  # pixels whose colours are held as float64 at once


def luma(image: np.ndarray) -> np.ndarray:
    """Luma 0..255 of `image` uint8 [H, W, 3] -> uint8 [H, W]."""
    return np.asarray(Image.fromarray(image).convert("L"))


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Grey thumbnail, squashed by Lanczos. `image`: uint8 [H, W, 3], or its luma [H, W], so that
    several thumbnails share one conversion -> uint8 [side, side]."""
    grey = image if image.ndim == 2 else luma(image)
    small = Image.fromarray(grey).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def pixel_hash(image: np.ndarray) -> str:
    """BLAKE2b-128 of the size and the pixels, in hexadecimal: equal only for equal pictures."""
    state = hashlib.blake2b(f"{image.shape[0]}x{image.shape[1]}:".encode(), digest_size=16)
    state.update(np.ascontiguousarray(image).data)
    return state.hexdigest()


def _cosines(rows: int, n: int) -> np.ndarray:
    """The first `rows` rows of the orthonormal DCT-II matrix of size n -> [rows, n]."""
    k, x = np.arange(rows)[:, None], np.arange(n)[None, :]
    matrix = np.cos(np.pi * k * (2 * x + 1) / (2 * n)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


COSINES = _cosines(8, HASH_SIDE)
WEIGHTS = np.left_shift(np.uint64(1), np.arange(63, dtype=np.uint64))


def low_frequencies(grey32: np.ndarray) -> np.ndarray:
    """Lowest 8 x 8 coefficients of the orthonormal DCT-II. `grey32`: [..., 32, 32] -> [..., 8, 8].

    The mean is taken out first, which changes only the first coefficient and makes those of a
    constant image exactly 0.
    """
    grey = grey32.astype(np.float64)
    return COSINES @ (grey - grey.mean((-2, -1), keepdims=True)) @ COSINES.T


def hash_bits(coefficients: np.ndarray) -> np.ndarray:
    """63-bit hashes of `coefficients` [..., 8, 8] -> uint64 [...].

    Bit k - 1 is set where coefficient k (row by row, without the first) is above the median of the
    63. A constant image gives 0.
    """
    low = coefficients.reshape(*coefficients.shape[:-2], 64)[..., 1:]
    above = low > np.median(low, axis=-1, keepdims=True)
    return (above * WEIGHTS).sum(-1, dtype=np.uint64)


def phash(grey32: np.ndarray) -> int:
    """Perceptual hash of a thumbnail uint8 [32, 32]: 63 bits, 0 for a constant image."""
    return int(hash_bits(low_frequencies(grey32)))


def _colourfulness(image: np.ndarray) -> float:
    """sqrt(var rg + var yb) + .3 sqrt(mean rg ^ 2 + mean yb ^ 2).

    Opponent colours rg = R - G, yb = (R + G) / 2 - B of `image` uint8 [H, W, 3].
    """
    flat = image.reshape(-1, 3)
    sums = np.zeros((2, 2))
    for start in range(0, len(flat), BLOCK):
        red, green, blue = flat[start : start + BLOCK].T.astype(np.float64)
        for row, opponent in zip(sums, (red - green, (red + green) / 2 - blue), strict=True):
            row += opponent.sum(), opponent @ opponent
    mean, square = (sums / len(flat)).T
    variance = np.maximum(square - mean**2, 0)
    return float(math.sqrt(variance.sum()) + 0.3 * math.sqrt(mean @ mean))


def _sharpness(grey: np.ndarray) -> float:
    """Natural logarithm of the variance of the 4-neighbour Laplacian, longest side at 256 px."""
    height, width = grey.shape
    scale = SHARPNESS_SIDE / max(height, width)
    size = max(3, round(width * scale)), max(3, round(height * scale))
    x = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR), np.float32)
    laplacian = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    return math.log(max(float(laplacian.var()), FLAT))


def measures(image: np.ndarray, grey: np.ndarray | None = None) -> dict[str, float]:
    """Simple facts of a picture. `image`: uint8 [H, W, 3]; `grey`: its luma, if already there.

    Returns:
        brightness (mean luma, 0..255), contrast (its standard deviation), clipped (share of pixels
        with luma 0 or 255), entropy (of the 256-bin luma, bits 0..8), sharpness (see `_sharpness`;
        at least log .001), colourfulness (0 for grey, about 60 for a vivid photograph).
    """
    grey = luma(image) if grey is None else grey
    share = np.array(Image.fromarray(grey).histogram(), np.float64) / grey.size
    brightness = float(share @ LEVELS)
    present = share[share > 0]
    return {
        "brightness": brightness,
        "contrast": math.sqrt(float(share @ (LEVELS - brightness) ** 2)),
        "clipped": float(share[0] + share[255]),
        "sharpness": _sharpness(grey),
        "entropy": abs(float(present @ np.log2(present))),
        "colourfulness": _colourfulness(image),
    }

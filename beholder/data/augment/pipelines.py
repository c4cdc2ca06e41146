"""What another camera, program or server does to an image that nobody would call damaged.

`PIPELINES` are mild changes that must not cost accuracy; `EDITS` change how the picture lies, so
that only the same answer can be asked for (specs/study.md, 4.9). All take and give uint8
[H, W, 3] of one size.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

Change = Callable[[np.ndarray], np.ndarray]
BILINEAR, LANCZOS = Image.Resampling.BILINEAR, Image.Resampling.LANCZOS


def saved(pixels: np.ndarray, form: Literal["JPEG", "WEBP"], quality: int) -> np.ndarray:
    """Written as a file and read again."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def halved(pixels: np.ndarray, filter: Image.Resampling) -> np.ndarray:
    """Half the size and back."""
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((max(width // 2, 1), max(height // 2, 1)), filter)
    return np.asarray(small.resize((width, height), filter))


def brighter(pixels: np.ndarray, factor: float) -> np.ndarray:
    return _rounded(pixels * np.float32(factor))


def contrasted(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Each channel spread about its mean."""
    mean = pixels.mean((0, 1), dtype=np.float32)
    return _rounded((pixels - mean) * np.float32(factor) + mean)


def gamma(pixels: np.ndarray, exponent: float) -> np.ndarray:
    curve = _rounded(255 * (np.arange(256) / 255) ** exponent)
    return curve[pixels]


def moved(pixels: np.ndarray, down: float, right: float) -> np.ndarray:
    """By shares of its sides; the border is repeated."""
    height, width = pixels.shape[:2]
    rows = (np.arange(height) - round(down * height)).clip(0, height - 1)
    columns = (np.arange(width) - round(right * width)).clip(0, width - 1)
    return pixels[rows][:, columns]


def turned(pixels: np.ndarray, quarters: int) -> np.ndarray:
    """Counter-clockwise; brought back to its size where the sides differ."""
    height, width = pixels.shape[:2]
    found = np.ascontiguousarray(np.rot90(pixels, quarters))
    if found.shape == pixels.shape:
        return found
    return np.asarray(Image.fromarray(found).resize((width, height), BILINEAR))


def mirrored(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[:, ::-1])


def squeezed(pixels: np.ndarray, share: float = 0.75) -> np.ndarray:
    """Made so much narrower; what is then missing at the sides is mirrored."""
    height, width = pixels.shape[:2]
    narrow = max(round(share * width), 1)
    found = np.asarray(Image.fromarray(pixels).resize((narrow, height), BILINEAR))
    left = (width - narrow) // 2
    return np.pad(found, ((0, 0), (left, width - narrow - left), (0, 0)), "symmetric")


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


STEPS = (-10, -5, 5, 10)

PIPELINES: dict[str, Change] = {
    **{f"JPEG {quality}": partial(saved, form="JPEG", quality=quality) for quality in (95, 90, 75)},
    "WebP 80": partial(saved, form="WEBP", quality=80),
    "half size, bilinear": partial(halved, filter=BILINEAR),
    "half size, Lanczos": partial(halved, filter=LANCZOS),
    **{f"brightness {by:+d} %": partial(brighter, factor=1 + by / 100) for by in STEPS},
    **{f"contrast {by:+d} %": partial(contrasted, factor=1 + by / 100) for by in STEPS},
    **{f"gamma {exponent}": partial(gamma, exponent=exponent) for exponent in (0.9, 1.1)},
    "shift 2 %": partial(moved, down=0.02, right=0.02),
}

DECIDING = (
    *("JPEG 90", "half size, bilinear", "half size, Lanczos"),
    *("brightness -10 %", "brightness +10 %"),
)
"""Those that nobody can avoid: what they cost decides whether there is something to be done."""

EDITS: dict[str, Change] = {
    **{f"turned by {90 * quarters}°": partial(turned, quarters=quarters) for quarters in (1, 2, 3)},
    "mirrored": mirrored,
    "squeezed to 4:3": squeezed,
}

"""The search for copies in 20,000 images, of which one in a hundred is a planted copy.

Each image is a random field with the spectrum of photographs (amplitude 1 / frequency). Reading and
thumbnails belong to the scan and are not counted.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from beholder.core.pixels import hash_bits, low_frequencies
from beholder.data.curate.duplicates import find_copies

from .base import Measured, at_least, at_most, measured, timed

SIDE = 96
CHUNK = 1000
ONE_COPY_IN = 100


def fields(count: int, rng: np.random.Generator) -> np.ndarray:
    """Grey random fields, uint8 [count, 96, 96]."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((count, SIDE, SIDE), np.float32)) / frequency
    field = np.fft.irfft2(noise, s=(SIDE, SIDE))
    field /= field.std((1, 2), keepdims=True)
    return np.clip(128 + 48 * field, 0, 255).astype(np.uint8)


def thumbnails(count: int) -> np.ndarray:
    """uint8 [count, 96, 96]; every hundredth is the one before it, slightly noisier."""
    rng = np.random.default_rng(0)
    grey = np.concatenate([fields(min(CHUNK, count - i), rng) for i in range(0, count, CHUNK)])
    copies = np.arange(1, count, ONE_COPY_IN)
    noise = rng.integers(-1, 2, (len(copies), SIDE, SIDE))
    grey[copies] = np.clip(grey[copies - 1] + noise, 0, 255)
    return grey


def facts(grey: np.ndarray) -> pl.DataFrame:
    """What a scan would have found in these images."""
    small = grey.reshape(len(grey), 32, 3, 32, 3).mean((2, 4)).round().astype(np.uint8)
    return pl.DataFrame(
        {
            "exact_hash": [f"{row:032x}" for row in range(len(grey))],
            "phash": hash_bits(low_frequencies(small)),
            "width": [SIDE] * len(grey),
            "height": [SIDE] * len(grey),
            "grey32": [thumbnail.tobytes() for thumbnail in small],
            "grey96": [thumbnail.tobytes() for thumbnail in grey],
        }
    )


def measure(quick: bool = False) -> Measured:
    grey = thumbnails(2_000 if quick else 20_000)
    frame = facts(grey)
    seconds, copies = timed(
        lambda: find_copies(frame, lambda row: np.repeat(grey[row][:, :, None], 3, 2))
    )
    planted = np.arange(1, len(grey), ONE_COPY_IN)
    found = (copies.group[planted] >= 0) & (copies.group[planted] == copies.group[planted - 1])
    figures = {
        "thumbnails": len(grey),
        "planted": len(planted),
        "found": int(found.sum()),
        "pairs": len(copies.pairs),
        "threshold": copies.threshold,
    }
    return measured(
        figures,
        at_most(f"search of {len(grey):,} thumbnails", seconds, 60, "s"),
        at_least("planted copies found", 100 * float(found.mean()), 90, "%"),
    )

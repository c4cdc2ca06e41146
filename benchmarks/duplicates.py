"""The search for copies in 20,000 images: of all kinds, and all alike (which has more candidates).

Of all kinds: random fields with the spectrum of photographs (amplitude 1 / frequency). Alike: each
the blend of two solar cells. One in a hundred is a planted copy of the one before it, slightly
noisier. Reading and thumbnails belong to the scan and are not counted.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from beholder.core.pixels import hash_bits, low_frequencies, luma, thumbnail
from beholder.data.curate.duplicates import Copies, find_copies

from .base import Measured, at_least, at_most, measured, solar, timed

SIDE = 96
CHUNK = 1000
CELLS = 1000
ONE_COPY_IN = 100


def fields(count: int, rng: np.random.Generator) -> np.ndarray:
    """Grey random fields, uint8 [count, 96, 96]."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((count, SIDE, SIDE), np.float32)) / frequency
    field = np.fft.irfft2(noise, s=(SIDE, SIDE))
    field /= field.std((1, 2), keepdims=True)
    return np.clip(128 + 48 * field, 0, 255).astype(np.uint8)


def blends(count: int, rng: np.random.Generator) -> np.ndarray:
    """Grey blends of two solar cells each, uint8 [count, 96, 96]."""
    images = solar(CELLS)
    cells = np.stack([thumbnail(luma(images.read(row)), SIDE) for row in range(CELLS)])
    one, other = rng.integers(0, CELLS, (2, count))
    share = rng.uniform(0.3, 0.7, (count, 1, 1)).astype(np.float32)
    return (share * cells[one] + (1 - share) * cells[other]).astype(np.uint8)


def plant(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every hundredth becomes a copy of the one before it; the rows of these copies."""
    copies = np.arange(1, len(grey), ONE_COPY_IN)
    noise = rng.integers(-1, 2, (len(copies), SIDE, SIDE))
    grey[copies] = np.clip(grey[copies - 1] + noise, 0, 255)
    return copies


def facts(grey: np.ndarray) -> pl.DataFrame:
    """What a scan would have found in these images."""
    small = grey.reshape(len(grey), 32, 3, 32, 3).mean((2, 4)).round().astype(np.uint8)
    return pl.DataFrame(
        {
            "exact_hash": [f"{row:032x}" for row in range(len(grey))],
            "phash": hash_bits(low_frequencies(small)),
            "width": [SIDE] * len(grey),
            "height": [SIDE] * len(grey),
            "grey32": [image.tobytes() for image in small],
            "grey96": [image.tobytes() for image in grey],
        }
    )


def search(grey: np.ndarray) -> tuple[float, Copies]:
    """Seconds, and what was found."""
    frame = facts(grey)
    return timed(lambda: find_copies(frame, lambda row: np.repeat(grey[row][:, :, None], 3, 2)))


def measure(quick: bool = False) -> Measured:
    count = 2_000 if quick else 20_000
    rng = np.random.default_rng(0)
    kinds = np.concatenate([fields(CHUNK, rng) for _ in range(count // CHUNK)])
    planted = plant(kinds, rng)
    seconds, copies = search(kinds)
    found = (copies.group[planted] >= 0) & (copies.group[planted] == copies.group[planted - 1])

    alike = blends(count, rng)
    plant(alike, rng)
    seconds_alike, copies_alike = search(alike)
    figures = {
        "thumbnails": count,
        "planted": len(planted),
        "found": int(found.sum()),
        "pairs": len(copies.pairs),
        "pairs_alike": len(copies_alike.pairs),
        "told_to_be_alike": copies_alike.look_alike,
    }
    return measured(
        figures,
        at_most(f"search of {count:,} thumbnails of all kinds", seconds, 60, "s"),
        at_most(f"search of {count:,} thumbnails all alike", seconds_alike, 60, "s"),
        at_least("planted copies found", 100 * float(found.mean()), 90, "%"),
    )

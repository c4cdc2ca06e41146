"""Hardening: the head also learns from a mildly changed copy of every image.

What it brings, in % on `solar` (lite0 at 300 px, head as selected, mean of 3 splits; before =
without the floor of `heads.Design`, which is what mends most and costs nothing):

|          | clean | JPEG 75 | JPEG 90 | half size | bright +10 / -10 % | contrast +10 / -10 % |
|----------|-------|---------|---------|-----------|--------------------|----------------------|
| before   | 86.7  | 59.6    | 84.9    | 70.8      | 86.0 / 87.2        | 86.8 / 86.7          |
| floor    | 87.9  | 86.1    | 87.8    | 80.5      | 87.0 / 87.4        | 87.7 / 87.3          |
| 1 copy   | 87.4  | 87.7    | 87.4    | 85.9      | 87.2 / 87.3        | 87.6 / 87.0          |
| 2 copies | 86.9  | 86.6    | 87.3    | 83.8      | 86.6 / 86.7        | 86.8 / 86.3          |

So one copy: one more pass (half of what image and mirror cost) and 1.6 times the time for heads.
With it logistic alone gives 86.7 clean, 86.6 as JPEG 75, 84.7 at half size; kernel alone 87.6,
87.8, 86.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np

from beholder.core.engines import Engine
from beholder.core.errors import BudgetError
from beholder.core.features import Features, extract
from beholder.core.files import digest, key_of
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.data.augment.pipelines import (
    BILINEAR,
    LANCZOS,
    brighter,
    contrasted,
    gamma,
    halved,
    moved,
    saved,
)

from .made import choose_engine
from .passes import FeaturePass

CHANGES = 1
"""Number of the recipe of `changed`: another one is another cache entry."""


def changed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What another camera, program or server does to an image that nobody would call damaged.

    Half of the images are moved by up to 2 %; then brightness, contrast or gamma changes by up to
    10 %; then 30 % are halved and brought back, and 80 % saved as JPEG or WebP of quality 50 to 95.

    Args:
        pixels: uint8 [H, W, 3].
    """
    if rng.random() < 0.5:
        pixels = moved(pixels, *rng.uniform(-0.02, 0.02, 2))
    tone = (brighter, contrasted, gamma)[rng.integers(3)]
    pixels = tone(pixels, rng.uniform(0.9, 1.1))
    kind = rng.random()
    if kind < 0.3:
        pixels = halved(pixels, (BILINEAR, LANCZOS)[rng.integers(2)])
    if kind > 0.2:
        form = "JPEG" if rng.random() < 0.75 else "WEBP"
        pixels = saved(pixels, form, int(rng.integers(50, 96)))
    return pixels


def changed_copy(pixels: np.ndarray, id: str, seed: int) -> np.ndarray:
    """`changed` by what blake2b(seed, id) draws."""
    return changed(pixels, np.random.default_rng(int(digest(str(seed), id), 16)))


@dataclass(frozen=True)
class Copies(Images):
    """The same images, changed as they are read. `change`: (pixels, id) -> pixels."""

    change: Callable[[np.ndarray, str], np.ndarray] = field(kw_only=True)

    def read(self, row: int) -> np.ndarray:
        return self.change(super().read(row), self.table["id"][row])


def add_copies(
    passed: FeaturePass, vision: VisionModel, features: Features, seconds: Callable[[], float]
) -> None:
    """Give `features` the view `copy`, from the cache or within `seconds`; else `given_up` says so.

    Changed is the image at the model's size, so that the change does not depend on the raw one.
    """
    data, seed = passed.data, passed.seed

    def engine() -> Engine:
        found, price, _ = choose_engine(vision, data.images, passed.device)
        if price * len(data) > seconds():
            raise BudgetError(f"Changed copies need {price * len(data):,.0f} s.")
        return found

    own = {part.name: getattr(data.images, part.name) for part in fields(Images)}
    copies = Copies(**own, change=lambda pixels, id: changed_copy(vision.prepare(pixels), id, seed))
    keys = [
        key_of({"file": hash, "id": id})
        for hash, id in zip(data.hashes, data.images.table["id"], strict=True)
    ]
    try:
        with passed.stage("harden", len(data), "mildly changed copies") as stage:
            found = extract(
                engine,
                copies,
                keys,
                describe=vision.describe() | {"changes": CHANGES, "seed": seed},
                prepare=np.asarray,
                size=vision.input_size,
                layout=vision.layout,
                views=("image",),
                workers=passed.workers,
                directory=passed.place,
                progress=stage.advance,
            )
    except BudgetError:
        passed.given_up.append("no hardening")
        return
    if found.gone:
        passed.given_up.append("no hardening, as images vanished")
        return
    features.views["copy"] = found.views["image"]

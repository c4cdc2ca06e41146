"""Images that a model must refuse: foreign ones, and its own made unusable (specs/study.md, 4.11).

Foreign images would be told by their file alone (format, size, colour), and then nothing would be
known of what they show. So all are written as the files of the data at hand are, and read back.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from PIL import Image, JpegImagePlugin

from beholder.core.decode import Unreadable, decode, resize
from beholder.core.errors import MissingExtraError
from beholder.core.images import Images, read_bytes
from beholder.core.pixels import luma
from beholder.data.curate.outliers import shuffled
from beholder.data.sources import open_images

FOREIGN = ("photos", "openmoji", "digits", "textile", "solar")
"""Embedded sets."""

KIN = {"mnist5k": ("digits",)}
"""Embedded sets that show the same things as another."""

GREY = 1.0
"""Colourfulness below which an image is grey."""


@dataclass(frozen=True)
class FileForm:
    """What the files of a data set have in common.

    Attributes:
        format: Pillow's name; `options` of its writer.
        size: (height, width) of the median image.
        grey: whether most images are.
    """

    format: str
    options: dict[str, Any]
    size: tuple[int, int]
    grey: bool

    @classmethod
    def of(cls, images: Images, facts: pl.DataFrame) -> Self:
        """Of data whose scan gave `facts` (one row per image)."""
        format = str(facts["format"].drop_nulls().mode().sort()[0])
        options: dict[str, Any] = {}
        if format == "JPEG":
            options = _tables(images, int((facts["format"] == format).arg_max() or 0))
        elif format == "WEBP":
            options = {"lossless": True}
        elif format not in ("PNG", "BMP", "TIFF"):
            format = "PNG"
        side = [round(float(np.median(facts[name].to_numpy()))) for name in ("height", "width")]
        grey = bool(np.mean(facts["colourfulness"].to_numpy() < GREY) > 0.5)
        return cls(format, options, (side[0], side[1]), grey)

    def sized(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] to the median size."""
        return resize(image, self.size)

    def written(self, image: np.ndarray) -> np.ndarray:
        """`image` as a file of this form gives it back: uint8 [H, W, 3]."""
        return _read_back(luma(image) if self.grey else image, self.format, self.options)


def _read_back(image: np.ndarray, format: str, options: dict[str, Any]) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format, **options)
    return decode(stream.getvalue())[0]


def _tables(images: Images, row: int) -> dict[str, Any]:
    """How the JPEG file of this row was written."""
    try:
        with Image.open(io.BytesIO(read_bytes(images.store, images.table["key"][row]))) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            sampling = JpegImagePlugin.get_sampling(image)
            tables = {"qtables": image.quantization}
            return tables | ({"subsampling": sampling} if sampling >= 0 else {})
    except Unreadable:
        return {"quality": 90}


def foreign(
    name: str, hashes: Collection[str], count: int, seed: int
) -> Iterator[tuple[str, list[tuple[str, np.ndarray]]]]:
    """Embedded sets that are installed and are not the data at hand, each as `some` of it.

    Args:
        name: of the data at hand. hashes: of its files (`FACTS_SCHEMA`); a set that shares one
            with it is left out.
    """
    known = set(hashes)
    for other in FOREIGN:
        if other == name or other in KIN.get(name, ()):
            continue
        try:
            images = open_images(other, format="builtin")
        except MissingExtraError:
            continue
        drawn = some(images, count, seed)
        if drawn and not known & {content for content, _ in drawn}:
            yield other, drawn


def some(images: Images, count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Up to `count` readable images, by chance: hash of the file, uint8 [H, W, 3]."""
    order = np.random.default_rng(seed).permutation(len(images))
    found: list[tuple[str, np.ndarray]] = []
    for row in order:
        if len(found) == count:
            break
        try:
            data = read_bytes(images.store, images.table["key"][int(row)])
            pixels, _ = decode(data, images.max_pixels)
        except Unreadable:
            continue
        found.append((hashlib.blake2b(data, digest_size=16).hexdigest(), pixels))
    return found


Broken = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def negative(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """255 - image."""
    return 255 - image


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every value 0 to 255 by chance."""
    return rng.integers(0, 256, image.shape, np.uint8)


def blank(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean colour everywhere."""
    return np.broadcast_to(np.rint(image.mean((0, 1))).astype(np.uint8), image.shape).copy()


def half_black(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One half black: the left, right, upper or lower one."""
    height, width = (side // 2 for side in image.shape[:2])
    halves = (np.s_[:, :width], np.s_[:, width:], np.s_[:height], np.s_[height:])
    changed = image.copy()
    changed[halves[int(rng.integers(4))]] = 0
    return changed


BROKEN: dict[str, Broken] = {
    "shuffled tiles": shuffled,
    "negative": negative,
    "noise": noise,
    "blank": blank,
    "half black": half_black,
}
"""Own images, made unusable."""


def resaved(image: np.ndarray) -> np.ndarray:
    """As JPEG of quality 90."""
    return _read_back(image, "JPEG", {"quality": 90})


def brighter(image: np.ndarray) -> np.ndarray:
    """5 % brighter."""
    return np.rint(image.astype(np.float32) * 1.05).clip(0, 255).astype(np.uint8)


BENIGN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "re-saved as JPEG 90": resaved,
    "5 % brighter": brighter,
}
"""Own images as another camera or programme might give them: not to be refused."""

"""Images of any kind that a detector takes, behind one reader; odd ones are refused at the door."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beholder.core.decode import Unreadable, decode
from beholder.core.errors import BeholderError
from beholder.core.files import digest
from beholder.core.images import Images, read_bytes

Picture = str | Path | Image.Image | np.ndarray


class DetectorError(BeholderError):
    """Images or options that a detector cannot use."""

    exit_code = 2


class _Reader(Protocol):
    def __len__(self) -> int: ...
    def read(self, row: int) -> Tensor: ...
    def content(self, row: int) -> bytes: ...


@dataclass(frozen=True)
class Pictures:
    """Images by row.

    Attributes:
        images: the data set that they came from; None where they came otherwise.
        ids: one per image; those of images without names are digests of their content.
        units: what must not be parted (source, copies).
        labels: class index per image, [N]; None without labels.
    """

    reader: _Reader
    ids: list[str]
    units: list[str]
    labels: np.ndarray | None = None
    images: Images | None = None

    @classmethod
    def of(cls, given: Given) -> Pictures:
        """Any of `Given`.

        Raises:
            DetectorError: nothing in it, or a kind of image that cannot be used.
        """
        if isinstance(given, Pictures):
            return given
        if isinstance(given, Images):
            return cls._of_images(given)
        if isinstance(given, str | Path | Image.Image | np.ndarray):
            raise DetectorError(
                f"{type(given).__name__} is one image, or the name of a data set.",
                "Give a list of images, a tensor [B, 3, H, W], or open_images(DATA).",
            )
        reader = _TensorReader(given) if isinstance(given, Tensor) else _ListReader(list(given))
        if not len(reader):
            raise DetectorError("There are no images.", "Give at least one.")
        hashes = [digest(reader.content(row)) for row in range(len(reader))]
        return cls(reader, hashes, hashes)

    @classmethod
    def _of_images(cls, images: Images) -> Pictures:
        if not len(images):
            raise DetectorError(f"{images.name} holds no images.", "Give at least one.")
        table = images.table
        units = table.select(table["source"].fill_null(table["id"]))["source"].to_list()
        whole = table["label"].null_count() == 0
        labels = table["label"].to_numpy().astype(int) if whole else None
        return cls(_ImagesReader(images), table["id"].to_list(), units, labels, images)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Tensor:
        """uint8 [3, H, W], or float in [0, 1].

        Raises:
            DetectorError: it cannot be read.
        """
        return self.reader.read(row)

    def take(self, rows: Sequence[int] | np.ndarray) -> Pictures:
        """Only these rows, in this order."""
        rows = [int(row) for row in rows]
        if self.images is not None:
            return Pictures._of_images(replace(self.images, table=self.images.table[rows]))
        labels = None if self.labels is None else self.labels[rows]
        ids, units = [self.ids[row] for row in rows], [self.units[row] for row in rows]
        return Pictures(_Some(self.reader, rows), ids, units, labels)

    @cached_property
    def hashes(self) -> list[str]:
        """A digest of each image's content."""
        return [digest(self.reader.content(row)) for row in range(len(self))]

    @property
    def fingerprint(self) -> str:
        """Of the set; its order does not matter."""
        return digest(*sorted(self.hashes))

    def batches(self, size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Rows and float [b, 3, H, W] in [0, 1] of one size and at most `size` images each."""
        waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for row in range(len(self)):
            image = as_float(self[row])
            group = waiting.setdefault(tuple(image.shape), [])
            group.append((row, image))
            if len(group) == size:
                yield _stacked(waiting.pop(tuple(image.shape)))
        for group in waiting.values():
            yield _stacked(group)


Given = Images | Sequence[Picture] | Tensor | Pictures
"""What detectors take: a data set, paths, PIL images, arrays [H, W(, 1, 3, 4)] (uint8, or float in
[0, 1]), or a tensor [B, 3, H, W] (uint8, or float in [0, 1])."""


def varied(pictures: Pictures, seed: int) -> Pictures:
    """The same in mild augmentation: a crop of 90 to 100 % a side, contrast and brightness within
    5 %. What an image becomes depends on the seed and its id."""
    ids = [digest(str(seed), id) for id in pictures.ids]
    return Pictures(_VariedReader(pictures, ids), ids, pictures.units, pictures.labels)


def _stacked(group: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    return [row for row, _ in group], torch.stack([image for _, image in group])


def as_float(image: Tensor) -> Tensor:
    """uint8 to float in [0, 1]; float as it is."""
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


@dataclass(frozen=True)
class _ImagesReader:
    images: Images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> Tensor:
        try:
            return _channels_first(self.images.read(row))
        except Unreadable as error:
            raise _unreadable(self.images.table["path"][row], error) from error

    def content(self, row: int) -> bytes:
        try:
            return read_bytes(self.images.store, self.images.table["key"][row])
        except Unreadable as error:
            raise _unreadable(self.images.table["path"][row], error) from error


@dataclass(frozen=True)
class _Some:
    whole: _Reader
    rows: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Tensor:
        return self.whole.read(self.rows[row])

    def content(self, row: int) -> bytes:
        return self.whole.content(self.rows[row])


@dataclass(frozen=True)
class _VariedReader:
    whole: Pictures
    ids: list[str]

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, row: int) -> Tensor:
        image = as_float(self.whole[row])
        rng = np.random.default_rng(int(self.ids[row], 16))
        sides = [max(1, round(side * rng.uniform(0.9, 1))) for side in image.shape[1:]]
        top, left = (
            int(rng.integers(whole - side + 1))
            for whole, side in zip(image.shape[1:], sides, strict=True)
        )
        image = image[:, top : top + sides[0], left : left + sides[1]]
        contrast, brightness = rng.uniform(0.95, 1.05), rng.uniform(-0.05, 0.05)
        changed = (image - image.mean()) * contrast + image.mean() + brightness
        return (changed.clamp(0, 1) * 255).round().to(torch.uint8)

    def content(self, row: int) -> bytes:
        return self.ids[row].encode()


class _TensorReader:
    """[B, 3, H, W], uint8 or float in [0, 1]; one channel is repeated."""

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
            raise DetectorError(
                f"A tensor of shape {list(images.shape)} is no batch of images.",
                "Give [B, 3, H, W] (or [B, 1, H, W]).",
            )
        self.images = _checked(images.detach().cpu()).expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> Tensor:
        return self.images[row]

    def content(self, row: int) -> bytes:
        image = self.images[row].contiguous().numpy()
        return f"{image.dtype}{image.shape}".encode() + image.tobytes()


class _ListReader:
    """Paths, PIL images, arrays; decoded when read."""

    def __init__(self, items: list[Any]) -> None:
        for item in items:
            if not isinstance(item, str | Path | Image.Image | np.ndarray):
                raise DetectorError(
                    f"{type(item).__name__} is no image.",
                    "Give paths, PIL images or arrays [H, W, 3]; or one tensor [B, 3, H, W].",
                )
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def read(self, row: int) -> Tensor:
        item = self.items[row]
        if isinstance(item, np.ndarray) and np.issubdtype(item.dtype, np.floating):
            return _float_array(item)
        try:
            return _channels_first(decode(self.content(row))[0])
        except Unreadable as error:
            raise _unreadable(item if isinstance(item, str | Path) else row, error) from error

    def content(self, row: int) -> bytes:
        """The bytes of an image file (of float numbers: theirs)."""
        item = self.items[row]
        if isinstance(item, str | Path):
            try:
                return Path(item).read_bytes()
            except OSError as error:
                raise DetectorError(f"{item} cannot be read: {error.strerror}.") from error
        if isinstance(item, Image.Image):
            return _png(item)
        if np.issubdtype(item.dtype, np.floating):
            return f"{item.dtype}{item.shape}".encode() + item.tobytes()
        return _png(_pil(item))


def _png(image: Image.Image) -> bytes:
    kept = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else None
    stream = io.BytesIO()
    (kept or image.convert("RGB")).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def _pil(array: np.ndarray) -> Image.Image:
    """uint8 or uint16 [H, W], uint8 [H, W, 1 or 3 or 4]."""
    plain = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    grey16 = plain.dtype == np.uint16 and plain.ndim == 2
    colour = plain.ndim == 2 or (plain.ndim == 3 and plain.shape[2] in (3, 4))
    if 0 in array.shape or not (grey16 or (array.dtype == np.uint8 and colour)):
        raise DetectorError(
            f"An array {array.dtype} {list(array.shape)} is no image.",
            "Give uint8 [H, W, 3] (0 to 255) or float [H, W, 3] (0 to 1).",
        )
    return Image.fromarray(plain)


def _float_array(array: np.ndarray) -> Tensor:
    image = array[:, :, None] if array.ndim == 2 else array
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise DetectorError(
            f"An array {array.dtype} {list(array.shape)} is no image.", "Give [H, W, 3]."
        )
    return _checked(_channels_first(image).float()).expand(3, -1, -1)


def _channels_first(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)


def _checked(images: Tensor) -> Tensor:
    """uint8, or float in [0, 1]."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DetectorError(
            f"Images of type {str(images.dtype).removeprefix('torch.')} are not taken.",
            "Give uint8 (0 to 255) or float (0 to 1).",
        )
    if not images.isfinite().all():
        raise DetectorError("There are images with numbers that are not finite (NaN, infinity).")
    low, high = (float(x) for x in images.aminmax()) if images.numel() else (0.0, 0.0)
    if low < 0 or high > 1:
        raise DetectorError(
            f"Float images must lie in 0 to 1; these lie in {low:g} to {high:g}.",
            "Divide by 255, or give uint8; do not normalise.",
        )
    return images.float()


def _unreadable(name: object, error: Unreadable) -> DetectorError:
    return DetectorError(f"Image {name} cannot be read: {error}.", "Mend it, or leave it out.")

"""Scenes: drawings composed on photographs, so that boxes, masks and colours are known exactly."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from PIL import Image

from beholder.core.errors import ArgumentError
from beholder.core.images import Images
from beholder.data.sources import open_images
from beholder.data.sources.draft import Choices, Draft
from beholder.data.sources.labels import named, unlabelled

from .sprites import resolve, sprite, tinted

Colour = tuple[int, int, int]
Placed = tuple[int, float, float, float]
"""Class, centre x, centre y, longer side; the last three as shares of the image's side."""
Layout = Callable[[np.random.Generator], Sequence[Placed]]
Classes = int | Sequence[str] | Mapping[str, Sequence[str]]

TRIES = 20
OVERLAP = 0.1
"""At most so much of the smaller of two boxes is covered in the default layout."""

PHOTO_SIDE = 256
"""Photographs are kept with this shorter side (or that of a larger scene)."""


class Scenes(Sequence[dict[str, Any]]):
    """`n` square pictures, each a function of (seed, index) alone.

    A sample is `image` uint8 [H, W, 3]; `label`, the class of the first sprite (-1 without any);
    `boxes` float32 [N, 4] xyxy in pixels around what is visible, the far edges exclusive;
    `box_labels` int64 [N]; `masks` bool [N, H, W], disjoint; `attributes` with `sprites` (names),
    `colours` (of `tint`) and `background`; `id`. A sprite that others hide wholly is left out.

    Args:
        size: side in pixels.
        classes: a number of drawings (always the same ones: see `sprites.drawings`), names of
            drawings or of OpenMoji groups, or class -> names of its drawings.
        sprites: fewest and most per scene; (0, 0) gives backgrounds. The classes of the first
            sprite take turns, so every class is there equally often.
        layout: `layout(rng) -> [(class, x, y, scale)]`, painted in that order; None = at random,
            hardly overlapping.
        tint: name -> RGB; each sprite is drawn in shades of one of them. None = as drawn.
        background: 'photos' (random crops of 21 photographs), 'plain' (one light colour), or
            pictures uint8 [h, w, 3] to crop from.

    Example:
        >>> scenes = Scenes(100, size=64, classes=5, sprites=(2, 2), seed=1)
        >>> sample = scenes[7]
        >>> sample["image"].shape, sample["boxes"].shape, sample["masks"].shape
        ((64, 64, 3), (2, 4), (2, 64, 64))
        >>> sample["label"], scenes.classes[sample["label"]] == sample["attributes"]["sprites"][0]
        (2, True)
    """

    def __init__(
        self,
        n: int,
        size: int = 64,
        classes: Classes = 10,
        sprites: tuple[int, int] = (1, 3),
        layout: Layout | None = None,
        tint: Mapping[str, Colour] | None = None,
        background: Literal["photos", "plain"] | Sequence[np.ndarray] = "photos",
        seed: int = 0,
    ) -> None:
        if n < 1 or size < 8:
            raise ArgumentError(
                f"n = {n}, size = {size}: at least 1 scene of 8 pixels.", "For example Scenes(100)."
            )
        if not 0 <= sprites[0] <= sprites[1]:
            raise ArgumentError(f"sprites = {sprites}: the fewest, then the most of a scene.")
        if isinstance(background, str) and background not in ("photos", "plain"):
            raise ArgumentError(
                f"background = {background!r} is not known.", "Known: photos, plain."
            )
        self.members = resolve(classes)
        self.classes = tuple(self.members)
        self.n, self.size, self.sprites, self.seed = n, size, sprites, seed
        self.layout, self.tint, self.background = layout, dict(tint or {}), background
        self.name = "scenes"

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._compose(i) for i in range(*index.indices(self.n))]
        if not -self.n <= index < self.n:
            raise IndexError(index)
        return self._compose(int(index) % self.n)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._compose(index) for index in range(self.n))

    def images(self) -> Images:
        """The pictures and labels as `Images`, drawn when they are read."""
        ids = [self._id(index) for index in range(self.n)]
        keys = [str(index) for index in range(self.n)]
        placed = [self._placed(index, self._rng(index)) for index in range(self.n)]
        labels = [self.classes[sprites[0][0]] if sprites else None for sprites in placed]
        known = named(labels, self.classes) if any(labels) else unlabelled(self.n)
        draft = Draft(ids, keys, ids, known)
        return draft.images(self.name, SceneStore(self), "builtin", Choices())

    def _id(self, index: int) -> str:
        return f"scene-{self.seed}-{index:06d}"

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index])

    def _placed(self, index: int, rng: np.random.Generator) -> Sequence[Placed]:
        if self.layout is None:
            return scattered(rng, index % len(self.classes), len(self.classes), self.sprites)
        placed = self.layout(rng)
        for number, *_ in placed:
            if not 0 <= number < len(self.classes):
                raise ArgumentError(f"layout places class {number} of {len(self.classes)}.")
        return placed

    def _compose(self, index: int) -> dict[str, Any]:
        rng = self._rng(index)
        placed = self._placed(index, rng)
        image, background = self._backdrop(rng)
        owner = np.full((self.size, self.size), -1)
        names: list[str] = []
        colours: list[str] = []
        for number, (label, x, y, scale) in enumerate(placed):
            members = self.members[self.classes[label]]
            names.append(members[int(rng.integers(len(members)))])
            drawing = sprite(names[-1], max(round(scale * self.size), 1))
            if self.tint:
                colours.append(list(self.tint)[int(rng.integers(len(self.tint)))])
                drawing = tinted(drawing, self.tint[colours[-1]])
            paste(image, owner, number, drawing, x * self.size, y * self.size)
        masks = owner == np.arange(len(placed))[:, None, None]
        seen = [row for row, mask in enumerate(masks) if mask.any()]
        masks = masks[seen]
        return {
            "image": image,
            "label": int(placed[0][0]) if placed else -1,
            "boxes": boxes_of(masks),
            "box_labels": np.array([placed[row][0] for row in seen], np.int64),
            "masks": masks,
            "attributes": {
                "sprites": [names[row] for row in seen],
                "colours": [colours[row] for row in seen] if self.tint else [],
                "background": background,
            },
            "id": self._id(index),
        }

    def _backdrop(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """A square picture uint8 [size, size, 3], and what it is of."""
        if isinstance(self.background, str) and self.background == "plain":
            colour = rng.integers(160, 256, 3).astype(np.uint8)
            return np.tile(colour, (self.size, self.size, 1)), "plain"
        if isinstance(self.background, str):
            photos = _photos(max(PHOTO_SIDE, self.size))
            name, photo = photos[int(rng.integers(len(photos)))]
        else:
            row = int(rng.integers(len(self.background)))
            name, photo = str(row), Image.fromarray(self.background[row])
        short = min(photo.size)
        side = rng.uniform(min(self.size, short), short)
        left, top = (rng.uniform(0, length - side) for length in photo.size)
        crop = photo.resize(
            (self.size, self.size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
        picture = np.array(crop)
        return (picture[:, ::-1].copy() if rng.random() < 0.5 else picture), name


@dataclass(frozen=True)
class SceneStore:
    """Scenes as PNG files; a key is the index."""

    scenes: Scenes

    def read(self, key: str) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(self.scenes[int(key)]["image"]).save(stream, "PNG")
        return stream.getvalue()

    def stat(self, key: str) -> None:
        return None


def scattered(
    rng: np.random.Generator, first: int, classes: int, sprites: tuple[int, int]
) -> list[Placed]:
    """Sprites at random, wholly inside; the first is of class `first`. One that finds no room in
    `TRIES` tries is left out, never the first."""
    count = int(rng.integers(sprites[0], sprites[1] + 1))
    placed: list[Placed] = []
    for number in range(count):
        label = first if number == 0 else int(rng.integers(classes))
        for _ in range(TRIES):
            scale = float(rng.uniform(0.35, 0.7) / np.sqrt(max(sprites[1], 1)))
            x, y = map(float, rng.uniform(scale / 2, 1 - scale / 2, 2))
            if all(_covered((x, y, scale), other[1:]) <= OVERLAP for other in placed):
                placed.append((label, x, y, scale))
                break
    return placed


def _covered(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Share of the smaller of two squares (centre, side) that the other covers."""
    sides = [
        max(min(a[i] + a[2] / 2, b[i] + b[2] / 2) - max(a[i] - a[2] / 2, b[i] - b[2] / 2), 0)
        for i in (0, 1)
    ]
    return sides[0] * sides[1] / min(a[2], b[2]) ** 2


def paste(
    image: np.ndarray, owner: np.ndarray, number: int, drawing: np.ndarray, x: float, y: float
) -> None:
    """Blend `drawing` [h, w, 4] over `image` [H, W, 3], centred at (x, y) pixels, in place.

    `owner` [H, W] becomes `number` where the drawing is at least half as opaque as it can be.
    """
    height, width = drawing.shape[:2]
    left, top = round(x - width / 2), round(y - height / 2)
    inside = (
        slice(max(top, 0), max(min(top + height, len(image)), 0)),
        slice(max(left, 0), max(min(left + width, image.shape[1]), 0)),
    )
    part = drawing[
        inside[0].start - top : max(inside[0].stop - top, 0),
        inside[1].start - left : max(inside[1].stop - left, 0),
    ]
    opacity = part[..., 3:].astype(np.float32) / 255
    blend = part[..., :3] * opacity + image[inside] * (1 - opacity)
    image[inside] = np.rint(blend).astype(np.uint8)
    owner[inside][part[..., 3] >= max(drawing[..., 3].max(), 1) / 2] = number


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Tight boxes float32 [N, 4] xyxy of non-empty masks bool [N, H, W]; far edges exclusive."""
    if not len(masks):
        return np.zeros((0, 4), np.float32)
    spans = []
    for axis in (1, 2):  # rows of x-projections, then of y-projections
        line = np.any(masks, axis=axis)
        spans += [line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)]
    return np.stack([spans[0], spans[2], spans[1], spans[3]], 1).astype(np.float32)


@functools.cache
def _photos(side: int) -> list[tuple[str, Image.Image]]:
    """(name, picture) of the built-in photographs, the shorter side at most `side`."""
    images = open_images("photos")
    found = []
    for row, name in enumerate(images.table["id"]):
        photo = Image.fromarray(images.read(row))
        scale = min(side / min(photo.size), 1)
        width, height = (round(length * scale) for length in photo.size)
        found.append((name, photo.resize((width, height), Image.Resampling.LANCZOS)))
    return found

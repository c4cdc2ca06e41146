"""Thumbnails for the report: made once, and made smaller where the file would grow too large."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from beholder.core.decode import Unreadable
from beholder.core.sections import Picture, Section

SIDE, LARGE = 192, 384
QUALITY = 72
MOST_PICTURES = 240

Pictures = dict[str, dict[int, bytes]]
"""Image id -> longest side in pixels -> bytes of a WebP file."""


def encode(image: Image.Image, side: int, quality: int = QUALITY) -> bytes:
    """WebP of the RGB or RGBA image, its longest side at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=quality, alpha_quality=quality, method=4)
    return stream.getvalue()


def render_pictures(read: Callable[[str], np.ndarray], ids: Mapping[str, bool]) -> Pictures:
    """Thumbnails of 192 pixels, and of 384 pixels for those that may be enlarged.

    Args:
        read: image id -> RGB or RGBA, uint8 [H, W, 3 or 4]; raises OSError or `Unreadable` where
            the file has vanished since: that picture is left out (the report counts and says it).
        ids: image id -> whether it is also wanted large.
    """
    pictures: Pictures = {}
    for id, large in ids.items():
        try:
            image = Image.fromarray(read(id))
        except (OSError, Unreadable):
            continue
        sides = (SIDE, LARGE) if large else (SIDE,)
        pictures[id] = {side: encode(image, side) for side in sides}
    return pictures


def wanted_pictures(sections: Sequence[Section]) -> dict[str, bool]:
    """Ids of all pictures of the sections, overlays too, at most 240, and whether each is wanted
    large."""
    wanted: dict[str, bool] = {}
    for section in sections:
        for picture in shown(section):
            for id, large in ((picture.id, picture.large), (picture.overlay, False)):
                if id and (id in wanted or len(wanted) < MOST_PICTURES):
                    wanted[id] = wanted.get(id, False) or large
    return wanted


def shown(section: Section) -> Iterator[Picture]:
    """The pictures of a section, each followed by those beside it."""
    for picture in section.pictures:
        yield picture
        yield from picture.beside


def recoded(pictures: Pictures, scale: float, quality: int) -> Pictures:
    """The same pictures at another quality, their sides multiplied by `scale`."""
    return {
        id: {round(side * scale): _again(data, round(side * scale), quality) for side, data in item}
        for id, item in ((id, sizes.items()) for id, sizes in pictures.items())
    }


def _again(data: bytes, side: int, quality: int) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return encode(image, side, quality)


def reductions(pictures: Pictures) -> Iterator[tuple[Pictures, int, str]]:
    """Ever smaller ways to show the pictures: (pictures, most per section, what was done)."""
    yield pictures, MOST_PICTURES, ""
    lower = recoded(pictures, 1.0, 60)
    yield lower, MOST_PICTURES, "Pictures at quality 60, to keep the file small."
    lower = recoded(lower, 160 / SIDE, 60)
    yield lower, MOST_PICTURES, "Pictures at 160 pixels and quality 60, to keep the file small."
    for most in (12, 6, 3, 1, 0):
        yield lower, most, f"At most {most} pictures per section, to keep the file small."

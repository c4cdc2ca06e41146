"""Bytes of an image file to upright RGB, once and wholly, or `Unreadable` with a reason.

What is done to odd modes, transparency, orientation and oversize: specs/study.md section 2,
'Readable or not'. Nothing here changes a global setting of Pillow: the size is checked on the
header by ourselves, so Pillow's own bomb warning never comes up.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFile

MAX_PIXELS = 178_956_970

REASONS = (
    "empty_file",
    "not_an_image",
    "truncated",
    "zero_size",
    "too_large",
    "decode_error",
    "missing_file",
    "permission",
    "cycle",
    "animated_extra",
    "duplicate_row",
    "label_missing",
)
"""Every reason why an image is left out (`animated_extra`: read, further frames ignored)."""

DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError),
    *(AttributeError, AssertionError, RuntimeError, BufferError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's drivers let through on broken files (found by flipping bits), nothing wider."""

COMMON = ("PNG", "JPEG", "GIF", "BMP", "PPM")
SIGNED = {"PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PSD", "ICNS", "QOI"}
"""Formats whose first bytes are proof: a failure after them is damage, not another format."""
REFUSED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
"""Drivers that only recognise, or that start an external program (EPS: Ghostscript)."""

EXIF_KEYS = {"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"}
ORIENTATION = 0x0112

QUIET = threading.Lock()

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]


class Unreadable(Exception):
    """An image that cannot be used: `reason` (one of `REASONS`) and `detail` for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str]]:
        return Unreadable, (self.reason, self.detail)


@dataclass(frozen=True)
class Facts:
    """What the file said of itself.

    Attributes:
        width, height: in pixels, after the orientation was applied.
        mode: Pillow's mode before conversion to RGB.
        format: Pillow's name of the file format.
        frames: 1, or more in animations and multi-page files (only the first is read).
        notes: what had to be done, in words.
    """

    width: int
    height: int
    mode: str
    format: str
    frames: int = 1
    notes: tuple[str, ...] = ()


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, Facts]:
    """RGB uint8 [H, W, 3], upright, first frame, transparency on white; and the file's facts.

    Args:
        data: a whole encoded image file.
        max_pixels: larger headers are refused before a pixel is decoded.

    Raises:
        Unreadable: with one of `REASONS`; no other exception for any bytes.
    """
    if not data:
        raise Unreadable("empty_file")
    try:
        return _decode(data, max_pixels)
    except Warning:  # only where the process turns warnings into errors
        with QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, max_pixels)


def _decode(data: bytes, max_pixels: int) -> tuple[np.ndarray, Facts]:
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable("too_large", f"{width} x {height} pixels, at most {max_pixels:,}")
    try:
        image.load()
        mode = image.mode
        pixels, notes = _rgb(image)
    except DECODER_ERRORS as error:
        raise _damaged(data, error) from error
    orientation, unreadable_exif = _orientation(image)
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    if orientation != 1:
        notes.append(f"turned upright (EXIF orientation {orientation})")
    if unreadable_exif:
        notes.append("EXIF cannot be read")
    frames = _frames(image)
    facts = Facts(pixels.shape[1], pixels.shape[0], mode, image.format or "", frames, tuple(notes))
    return pixels, facts


def resize(
    image: np.ndarray,
    side: int | tuple[int, int],
    crop: Literal["squash", "center"] = "squash",
    interpolation: Interpolation = "bicubic",
) -> np.ndarray:
    """`image` uint8 [H, W, 3] to [h, w, 3], antialiased by Pillow.

    Args:
        side: of the square wanted, or (height, width).
        crop: `squash` keeps the whole image and gives up its aspect; `center` takes the largest
            central part of the wanted aspect.
    """
    height, width = (side, side) if isinstance(side, int) else side
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    box = (0.0, 0.0, float(columns), float(rows))
    if crop == "center":
        scale = min(rows / height, columns / width)
        left, top = (columns - width * scale) / 2, (rows - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
    resized = Image.fromarray(image).resize((width, height), RESAMPLING[interpolation], box)
    return np.array(resized)


def _open(data: bytes) -> ImageFile.ImageFile:
    """The header read by the first driver that knows it. Raises `Unreadable`.

    Pillow's `open` would also check the size against its global limit and warn, which cannot be
    silenced for one thread alone; the drivers are therefore called as it calls them.
    """
    stream, prefix = io.BytesIO(data), data[:16]
    Image.preinit()
    for name in COMMON:
        if image := _try_driver(name, stream, prefix, data):
            return image
    Image.init()
    for name in [name for name in Image.ID if name not in COMMON and name not in REFUSED]:
        if image := _try_driver(name, stream, prefix, data):
            return image
    raise Unreadable("not_an_image", "no known image format")


def _try_driver(
    name: str, stream: io.BytesIO, prefix: bytes, data: bytes
) -> ImageFile.ImageFile | None:
    factory, accepts = Image.OPEN[name]
    try:
        if accepts is not None and accepts(prefix) is not True:
            return None
        stream.seek(0)
        return factory(stream, "")  # pyright: ignore[reportReturnType]
    except DECODER_ERRORS as error:
        if name not in SIGNED:
            return None
        if 0 in (_declared_size(data) or (1,)):
            raise Unreadable("zero_size", "the header says 0 pixels") from error
        raise _damaged(data, error) from error


def _declared_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in a PNG or GIF header: Pillow hides it when one of them is 0."""
    if data.startswith(b"\x89PNG") and len(data) >= 24:
        return struct.unpack(">II", data[16:24])
    if data.startswith(b"GIF8") and len(data) >= 10:
        return struct.unpack("<HH", data[6:10])
    return None


def _damaged(data: bytes, error: BaseException) -> Unreadable:
    """`truncated` where the file visibly ends too early, else `decode_error`."""
    detail = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return Unreadable("too_large", detail)
    lowered = detail.lower()
    ended = isinstance(error, EOFError) or any(
        word in lowered
        for word in ("truncat", "not enough data", "unexpected end", "requires a buf")
    )
    if data[:4] == b"RIFF" and len(data) >= 8:
        ended |= int.from_bytes(data[4:8], "little") + 8 > len(data)
    elif data[:4] == b"\x89PNG":
        ended |= b"IEND" not in data[-12:] and "broken png" in lowered
    return Unreadable("truncated" if ended else "decode_error", detail)


def _rgb(image: ImageFile.ImageFile) -> tuple[np.ndarray, list[str]]:
    """A loaded image of any mode as uint8 [H, W, 3] (writable), and what was done."""
    mode, transparency = image.mode, image.info.get("transparency")
    if mode == "L" and transparency is None:
        return np.repeat(np.asarray(image)[:, :, None], 3, axis=2), []
    if mode == "RGB" and transparency is None:
        return np.array(image), []
    if mode.startswith("I;16"):
        return _grey16(np.asarray(image), transparency), ["16 bits divided by 257"]
    if mode in ("I", "F"):
        return _grey_of_numbers(np.asarray(image), mode)
    if transparency is not None or mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        base = image.convert("LA") if mode == "La" else image
        layers = np.asarray(base.convert("RGBA"))
        if int(layers[:, :, 3].min(initial=255)) == 255:
            return np.array(layers[:, :, :3]), []
        return _on_white(layers), ["transparency put on white"]
    return np.array(image.convert("RGB")), []


def _on_white(layers: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] to [H, W, 3]: c a + 255 (1 - a), rounded to nearest."""
    colour, alpha = layers[:, :, :3].astype(np.uint16), layers[:, :, 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _grey16(values: np.ndarray, transparency: object) -> np.ndarray:
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if isinstance(transparency, int):
        grey[values == transparency] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)


def _grey_of_numbers(values: np.ndarray, mode: str) -> tuple[np.ndarray, list[str]]:
    """32-bit integers or floats [H, W].

    Integers within 0..65535 are 16-bit pictures in a wide box; floats within 0..1 use the whole
    range of their type. Everything else is stretched from its own minimum to its maximum.
    """
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    if mode == "I" and low >= 0 and high <= 65535:
        low, high, note = 0.0, 65535.0, "16 bits divided by 257"
    elif mode == "F" and low >= 0 and high <= 1:
        low, high, note = 0.0, 1.0, "numbers of 0 to 1 stretched to 0 to 255"
    else:
        note = f"numbers of {low:g} to {high:g} stretched to 0 to 255"
    span = (high - low) or 1.0
    unit = np.where(finite, (np.where(finite, values, low) - low) / span, 0.0)
    grey = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    notes = [note] if finite.all() else [note, "numbers that are not finite shown black"]
    return np.repeat(grey[:, :, None], 3, axis=2), notes


def _orientation(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """EXIF orientation 1..8 (1 where none is given), and whether EXIF could not be read."""
    if not EXIF_KEYS & image.info.keys():
        return 1, False
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1, True
    return (value if isinstance(value, int) and 1 <= value <= 8 else 1), False


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, 3] as it was meant to be seen (EXIF 2.32, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _frames(image: ImageFile.ImageFile) -> int:
    """How many; damage after the first frame does not count against it."""
    try:
        return max(1, int(getattr(image, "n_frames", 1)))
    except DECODER_ERRORS:
        return 1

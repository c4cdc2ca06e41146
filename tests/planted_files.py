"""A folder of mangled, odd and merely unusual image files, with what must become of each."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def picture(side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Seeded noise uint8 [side, side, 3]: compresses badly, so that cuts fall into the pixels."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    """An image file in memory."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of any claimed size, grey, with no pixels worth speaking of: about 70 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b"")


def oriented(pixels: np.ndarray, orientation: int, format: str = "JPEG") -> bytes:
    """`pixels` with an EXIF orientation 1..8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {}
    return encoded(pixels, format, exif=exif, **options)


def mangled(directory: Path) -> dict[str, str]:
    """Write the files into `directory` (made if need be).

    Returns:
        path relative to `directory` -> reason code, or 'read'. A file that is no image by its name
        (`array.npy`) is there too, but not in the answer: opening ignores it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    noise = picture()
    png, jpeg = encoded(noise, "PNG"), encoded(noise, "JPEG", quality=95)
    grey = Image.fromarray(noise[:, :, 0])
    wide = noise[:, :, 0].astype(np.uint16) * 257
    palette = Image.fromarray(noise).quantize(8)
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    more = {"save_all": True, "append_images": frames[1:]}
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    files: dict[str, tuple[bytes, str]] = {
        "empty.png": (b"", "empty_file"),
        "one_byte.png": (b"\x89", "not_an_image"),
        "cut_at_10.png": (png[: len(png) // 10], "truncated"),
        "cut_at_50.png": (png[: len(png) // 2], "truncated"),
        "cut_at_99.png": (png[: len(png) * 99 // 100], "truncated"),
        "without_end.jpg": (jpeg[: len(jpeg) * 3 // 4], "truncated"),
        "text.jpg": (b"These are words, and no picture.\n", "not_an_image"),
        "png_inside.jpg": (png, "read"),
        "width_0.png": (png_header(0, 5), "zero_size"),
        "bomb.png": (png_header(50_000, 50_000), "too_large"),
        "grey_16_bits.png": (encoded(Image.fromarray(wide), "PNG"), "read"),
        "palette_transparent.png": (encoded(palette, "PNG", transparency=0), "read"),
        "cmyk.jpg": (encoded(Image.fromarray(noise).convert("CMYK"), "JPEG"), "read"),
        "grey_alpha.png": (encoded(grey.convert("LA"), "PNG"), "read"),
        "one_bit.png": (encoded(grey.convert("1"), "PNG"), "read"),
        "float.tif": (encoded(noise[:, :, 0].astype(np.float32) * 7 - 40, "TIFF"), "read"),
        "pages.tif": (encoded(frames[0], "TIFF", **more), "read"),
        "animated.gif": (encoded(frames[0], "GIF", **more), "read"),
        "animated.webp": (encoded(frames[0], "WEBP", **more), "read"),
        "exif_cut.jpg": (encoded(noise, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01"), "read"),
        "icc_broken.png": (encoded(noise, "PNG", icc_profile=b"no profile at all"), "read"),
        "line\nfeed.png": (png, "read"),
        "100%.png": (png, "read"),
        f"{'n' * 251}.png": (png, "read"),
        "e\u0301te\u0301.png": (png, "read"),
        "\u0635\u0648\u0631\u0629.png": (png, "read"),
        "phone.heic": (heic, "not_an_image"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        "a.jpg/inside.png": (png, "read"),
        **{f"orientation_{n}.jpg": (oriented(noise, n), "read") for n in range(1, 9)},
    }
    (directory / "a.jpg").mkdir(exist_ok=True)
    for name, (data, _) in files.items():
        (directory / name).write_bytes(data)
    np.save(directory / "array.npy", noise)
    expected = {name: reason for name, (_, reason) in files.items()}
    if os.geteuid():
        (directory / "forbidden.png").write_bytes(png)
        (directory / "forbidden.png").chmod(0)
        expected["forbidden.png"] = "permission"
    for link, target, reason in (
        ("itself.png", "itself.png", "cycle"),
        ("up", ".", "cycle"),
        ("dangling.png", "nowhere.png", "missing_file"),
    ):
        (directory / link).symlink_to(target)
        expected[link] = reason
    return expected

"""What a file tells of an image beside its pixels: by which a model could guess the label.

A table with a row per image, made from the scan and one pass over file headers: size and shape,
colour mode, JPEG tables, camera and hour of day from EXIF, words of the path, place in the folder,
and, of the pixels, no more than mean brightness and colourfulness (specs/study.md, 4.13).
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from PIL import Image

from beholder.core.decode import DECODER_ERRORS, EXIF_KEYS, Unreadable
from beholder.core.files import digest
from beholder.core.images import Images, read_bytes

HEADERS = {"JPEG", "PNG", "TIFF", "WEBP"}
"""Formats whose header tells more than the scan kept; files of several JPEGs (MPO) count too. PNGs
are only read where they are files: those that a store makes when asked have no camera."""

MAKE, MODEL, EXIF, TAKEN, CHANGED = 0x010F, 0x0110, 0x8769, 0x9003, 0x0132
WORDS = 32
"""Words of paths, or values of a name, that are looked at at most."""
SHARE = 0.01
"""Of the images: rarer words and values are not looked at."""

ORDER = "order in the folder"
NUMBERS = (
    *("file size", "width", "height", "aspect", "brightness", "colourfulness", "hour"),
    ORDER,
)
NAMES = ("mode", "file format", "JPEG tables", "camera")


def metadata(
    images: Images, facts: pl.DataFrame, progress: Callable[[int], None] = lambda done: None
) -> pl.DataFrame:
    """One row per image.

    Args:
        images: [N]; facts: of their scan, in the same order.

    Returns:
        id; `NUMBERS` as Float64 (file size in logarithms, hour 0..23, order in the folder 0..1);
        `NAMES` as String; null where unknown; `words`: List(String) of the path without the class
        folder and class names.
    """
    told = []
    forms = facts["format"].replace("MPO", "JPEG")
    for key, form in zip(images.table["key"], forms, strict=True):
        telling = form in HEADERS and (form != "PNG" or images.store.stat(key) is not None)
        told.append(header(images, key, form) if telling else (None, None, None))
        progress(1)
    headers = pl.DataFrame(
        told,
        {"JPEG tables": pl.String, "camera": pl.String, "hour": pl.Float64},
        orient="row",
    )
    words = [neutral(path, images.classes) for path in images.table["path"]]
    size = facts.select(
        "id",
        pl.col("file_size").log1p().alias("file size"),
        pl.col("width").cast(pl.Float64),
        pl.col("height").cast(pl.Float64),
        (pl.col("width") / pl.col("height")).alias("aspect"),
        "brightness",
        "colourfulness",
        "mode",
        pl.col("format").alias("file format"),
    )
    return pl.concat([size, headers], how="horizontal").with_columns(
        pl.Series(ORDER, order(images.table["path"].to_list(), words)),
        pl.Series("words", [sorted(set(own)) for own in words], pl.List(pl.String)),
    )


def header(images: Images, key: str, form: str) -> tuple[str | None, str | None, float | None]:
    """Hash of the JPEG tables, camera and hour of day of a file; None where it says nothing."""
    try:
        data = read_bytes(images.store, key)
        Image.preinit()
        if form not in Image.OPEN:
            Image.init()
        image = Image.OPEN[form][0](io.BytesIO(data), "")  # as `decode` does: without its warnings
    except (Unreadable, *DECODER_ERRORS):
        return None, None, None
    quantization = getattr(image, "quantization", None) or {}
    tables = None
    if quantization:
        tables = digest(
            *(bytes(np.array(quantization[k], np.uint16)) for k in sorted(quantization))
        )
    return tables, *_exif(image)


def _exif(image: Image.Image) -> tuple[str | None, float | None]:
    """Camera and hour of day."""
    if not EXIF_KEYS & image.info.keys():
        return None, None
    try:
        told = image.getexif()
        parts = [str(told.get(tag) or "").strip("\0 ") for tag in (MAKE, MODEL)]
        taken = told.get_ifd(EXIF).get(TAKEN) or told.get(CHANGED) or ""
    except DECODER_ERRORS:
        return None, None
    hour = re.search(r"[ T](\d\d):\d\d", str(taken))
    camera = " ".join(part for part in parts if part)
    return camera or None, float(hour[1]) if hour else None


def neutral(path: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Words and numbers of a path, without its class folder and without the names of classes."""
    names = {name.casefold() for name in classes}
    folders = [part for part in path.casefold().split("/") if part not in names]
    text = "/".join(folders)
    for name in sorted(names, key=len, reverse=True):
        if len(name) > 2:
            text = text.replace(name, " ")
    return tuple(word for word in re.findall(r"[^\W\d_]+|\d+", text) if word not in names)


def order(paths: Sequence[str], words: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Place of each file in its folder, 0..1, numbers counted as numbers; class names aside."""
    folders: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        folders.setdefault(path.rpartition("/")[0], []).append(row)
    place = np.zeros(len(paths))

    def key(row: int) -> tuple[list[tuple[bool, int, str]], str]:
        parts = [(w.isdecimal(), int(w) if w.isdecimal() else 0, w) for w in words[row]]
        return parts, paths[row]

    for rows in folders.values():
        for rank, row in enumerate(sorted(rows, key=key)):
            place[row] = rank / max(len(rows) - 1, 1)
    return place


def columns(table: pl.DataFrame) -> tuple[np.ndarray, list[str]]:
    """The table in numbers, and the feature that each column tells of; constant ones are left out.

    Names and words become one column per value that at least 1 % of the images have; unknown
    numbers become the median, and a column says where.

    Returns:
        float64 [N, K] and K names.
    """
    if not len(table):
        return np.zeros((0, 0)), []
    found: list[tuple[str, np.ndarray]] = []
    for name in NUMBERS:
        values = table[name].fill_nan(None)
        found.append((name, values.fill_null(values.median() or 0.0).to_numpy()))  # pyright: ignore[reportArgumentType]
        found.append((name, values.is_null().to_numpy().astype(float)))
    for name in NAMES:
        values = table[name].fill_null("")
        found += [(name, (values == value).to_numpy().astype(float)) for value in _common(values)]
    sets = [set(words) for words in table["words"].to_list()]
    counts = Counter(word for words in sets for word in words)
    even = sorted(counts, key=lambda word: (abs(2 * counts[word] - len(sets)), word))
    for word in even[:WORDS]:
        if SHARE * len(sets) <= counts[word]:
            found.append(("path", np.array([word in words for words in sets], float)))
    varying = [(name, values) for name, values in found if np.ptp(values) > 0]
    if not varying:
        return np.zeros((len(table), 0)), []
    return np.stack([values for _, values in varying], 1), [name for name, _ in varying]


def _common(values: pl.Series) -> list[str]:
    counts = values.value_counts(sort=True).filter(pl.col("count") >= SHARE * len(values))
    return sorted(counts[values.name].to_list())[:WORDS]

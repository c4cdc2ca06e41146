"""Opening data: any of the forms of specs/study.md section 2 to one `Images`.

Opening decodes nothing: what proves unreadable is found by the scan that follows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from beholder.core.decode import MAX_PIXELS
from beholder.core.errors import ArgumentError, DataError
from beholder.core.images import Images

from .builtin import BUILTIN, read_builtin
from .coco import is_coco, load_json, read_coco
from .draft import Choices
from .folders import READERS, layout, read_folders
from .hf import read_hf
from .parquet import read_parquet
from .tables import SUFFIXES, read_table, refuse_disagreement, table_in
from .walk import IMAGE_SUFFIXES, Listing, walk
from .webdataset import read_webdataset

__all__ = ["BUILTIN", "open_images"]

PREFIXES = {"coco": "coco", "wds": "webdataset", "parquet": "parquet", "hf": "datasets"}
"""Prefix -> format."""

FORMATS = (*READERS, "table", *PREFIXES.values(), "builtin")
PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9_+-]+):(.*)", re.DOTALL)


def open_images(
    data: str | Path,
    *,
    format: str | None = None,
    label_column: str | None = None,
    source_column: str | None = None,
    split_column: str | None = None,
    classes: Sequence[str] | None = None,
    root: str | Path | None = None,
    bins: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Images:
    """A dataset from a path, `prefix:PLACE` or the name of built-in data; first form that fits.

    Args:
        format: one of `FORMATS`; skips the detection.
        label_column, source_column, split_column: columns of a table, where not called so.
        classes: names in their order; for a column `probability` the two that it tells apart.
        root: folder that the paths of a table are relative to; its own folder if None.
        bins: cut a label that is a measurement into so many classes of equal size.
        max_pixels: larger images are not decoded.

    Raises:
        DataError: nothing there, nothing of use in it, or a cell that cannot be.
        AmbiguousDataError: two readings; names both and the option that picks one.
        ArgumentError: an option that does not apply, an unknown prefix or format.
        MissingExtraError: the form needs a package that is not installed.
    """
    choices = Choices(
        *(label_column, source_column, split_column),
        None if classes is None else tuple(classes),
        None if root is None else Path(root).expanduser(),
        *(bins, max_pixels),
    )
    text = str(data)
    if not text.strip():
        raise DataError("DATA is empty.", "Name a folder, for example . for this one.")
    if format is not None and format not in FORMATS:
        raise ArgumentError(f"--format {format} is not known.", f"Known are {', '.join(FORMATS)}.")
    path = Path(text).expanduser()
    match = PREFIX.fullmatch(text)
    if match and (match[1] in PREFIXES or not path.exists()):
        prefix, place = match.groups()
        if prefix not in PREFIXES:
            known = ", ".join(f"{known}:" for known in PREFIXES)
            raise ArgumentError(f"The prefix {prefix}: is not known.", f"Known are {known}.")
        if format not in (None, PREFIXES[prefix]):
            raise ArgumentError(f"--format {format} contradicts the prefix {prefix}:.")
        return _open_as(PREFIXES[prefix], place, choices)
    if format == "builtin" or (text in BUILTIN and format is None and not path.exists()):
        if text not in BUILTIN:
            raise ArgumentError(f"{text} is no built-in data.", f"There is {', '.join(BUILTIN)}.")
        return read_builtin(text, choices)
    images = _open_as(format, text, choices) if format else _detect(text, choices)
    if text in BUILTIN:
        note = f"the path ./{text} is read; --format builtin is the built-in data of that name"
        images = replace(images, notes=(note, *images.notes))
    return images


def _detect(text: str, choices: Choices) -> Images:
    """The first form that fits a path."""
    path = Path(text).expanduser()
    if "{" in text and text.endswith(".tar") and not path.exists():
        return _open_as("webdataset", text, choices)
    if not path.exists():
        raise DataError(f"There is no {text}.", _near_names(text))
    if path.is_dir():
        return _detect_folder(path, choices)
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".arrow"):
        return _open_as("parquet", text, choices)
    if suffix in SUFFIXES:
        return _open_as("table", text, choices)
    if suffix == ".tar":
        return _open_as("webdataset", text, choices)
    if suffix == ".json" and is_coco(load_json(path)):
        return _open_as("coco", text, choices)
    if suffix in IMAGE_SUFFIXES:
        raise DataError(f"{path.name} is one image.", "Give the folder that holds it.")
    raise DataError(
        f"{path.name} is no data set that beholder knows.",
        f"Known are folders of images, {', '.join(SUFFIXES)}, COCO .json and .tar.",
    )


def _detect_folder(path: Path, choices: Choices) -> Images:
    listing = walk(path)
    if not listing.images and set(listing.others) == {".tar"}:
        return _open_as("webdataset", str(path), choices)
    table = table_in(listing)
    if table is None:
        return read_folders(listing, layout(listing), _name(path), choices)
    images = read_table(table, choices, _name(path))
    if choices.root is None:
        refuse_disagreement(images, listing)
    return _with_left_out(images, listing)


def _with_left_out(images: Images, listing: Listing) -> Images:
    """A note on images in the folder that its table does not name."""
    left_out = len(set(listing.images) - set(images.table["path"]) - set(images.skipped["path"]))
    if not left_out:
        return images
    return replace(images, notes=(*images.notes, f"{left_out:,} images are not in the table"))


def _open_as(format: str, place: str, choices: Choices) -> Images:
    """Open `place` as `format`, whatever it looks like."""
    path = Path(place).expanduser()
    if format == "datasets":
        return read_hf(place, choices, _name(path))
    if format == "webdataset":
        return read_webdataset(place, choices, _name(path))
    if not path.exists():
        raise DataError(f"There is no {place}.", _near_names(place))
    if format == "coco":
        return read_coco(path, choices, _name(path))
    if format == "parquet":
        return read_parquet(path, choices, _name(path))
    if format == "table":
        table = table_in(walk(path)) if path.is_dir() else path
        if table is None:
            raise DataError(f"{path.name} holds no table.", "Call it labels.csv or metadata.csv.")
        return read_table(table, choices, _name(path))
    if not path.is_dir():
        raise DataError(f"{path.name} is not a folder, so it cannot be read as {format}.")
    return read_folders(walk(path), format, _name(path), choices)


def _name(path: Path) -> str:
    """The last part of a path, without suffix for files."""
    resolved = path.absolute() if path.name in ("", "..") else path
    name = resolved.resolve().name if path.name in ("", "..") else path.name
    return name if path.is_dir() else name.split(".")[0] or name


def _near_names(text: str) -> str:
    """What could have been meant."""
    path = Path(text).expanduser()
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*BUILTIN, *beside], n=3, cutoff=0.6)
    built_in = f"Built-in data: {', '.join(BUILTIN)}."
    return f"Did you mean {', '.join(near)}? {built_in}" if near else built_in

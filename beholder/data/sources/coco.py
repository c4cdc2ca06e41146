"""COCO annotations read as classification (form 4)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import polars as pl

from beholder.core.errors import DataError
from beholder.core.images import Images

from .draft import Choices
from .tables import from_frame

KEYS = {"images", "annotations", "categories"}


def read_coco(path: Path, choices: Choices, name: str) -> Images:
    """Open a COCO file, or the only one in a folder; images lie beside it or below `choices.root`.

    The label of an image is its one category; if any image has several, all are sets of labels.

    Raises:
        DataError: no such file, not COCO, or most images missing.
    """
    choices.refuse("COCO", "label_column", "source_column", "split_column", "bins")
    path = _only_file(path) if path.is_dir() else path
    content = load_json(path)
    if not is_coco(content):
        raise DataError(
            f"{path.name} is no COCO file.", f"It must have the keys {', '.join(sorted(KEYS))}."
        )
    try:
        titles = {entry["id"]: entry["name"] for entry in content["categories"]}
        found: dict[int, list[str]] = {entry["id"]: [] for entry in content["images"]}
        boxes = 0
        for entry in content["annotations"]:
            found[entry["image_id"]].append(titles[entry["category_id"]])
            boxes += bool(entry.get("bbox"))
        files = [entry["file_name"] for entry in content["images"]]
        sets = [list(dict.fromkeys(found[entry["id"]])) for entry in content["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path.name} is no COCO file: {error} is missing or wrong.") from error
    multiple = any(len(names) > 1 for names in sets)
    labels = (
        pl.Series("labels", sets, dtype=pl.List(pl.String))
        if multiple
        else pl.Series("label", [names[0] if names else None for names in sets], dtype=pl.String)
    )
    frame = pl.DataFrame([pl.Series("path", files, dtype=pl.String), labels])
    images = from_frame(frame, path, choices, name)
    notes = list(images.notes)
    if boxes:
        notes.append(f"{boxes:,} boxes are there: only the classes of the images are judged")
    if unused := sorted(set(titles.values()) - set(images.classes)):
        notes.append(f"{len(unused):,} categories have no image: {', '.join(unused[:5])}")
    return replace(images, format="coco", notes=tuple(notes))


def is_coco(content: object) -> TypeGuard[dict[str, list[dict]]]:
    """Whether a parsed JSON file has the three lists of COCO."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)


def load_json(path: Path) -> object:
    """Parsed JSON. Raises `DataError`."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read as JSON: {error}.") from error


def _only_file(folder: Path) -> Path:
    candidates = sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    if len(candidates) != 1:
        named = ", ".join(str(path.relative_to(folder)) for path in candidates[:5]) or "none"
        raise DataError(
            f"{folder.name} holds {len(candidates)} JSON files ({named}).",
            "Give one: coco:PATH/TO/FILE.json, with --root for the images.",
        )
    return candidates[0]

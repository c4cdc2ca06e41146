"""Parquet and Arrow files: images inside as bytes, or a column of paths (forms 1 and 3)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from beholder.core.errors import DataError
from beholder.core.images import Images

from .columns import find_roles
from .draft import Choices
from .names import SPLIT_WORDS, natural_key
from .stores import BytesStore, read_arrow
from .tables import described, from_frame

SPLIT_PREFIX = re.compile(r"[a-z]+", re.IGNORECASE)


def read_parquet(path: Path, choices: Choices, name: str) -> Images:
    """Open one file, or all `*.parquet` of a folder (`train-00000-of-00002.parquet` is a split).

    A column of bytes or of {bytes, path} holds the images; without one, a column of paths names
    them. Names of integer labels are taken from the file where `datasets` wrote them.

    Raises:
        DataError: not such files, different columns, no images.
    """
    files = _files(path)
    schemas = [_schema(file) for file in files]
    if differing := [
        f.name for f, s in zip(files, schemas, strict=True) if not s.equals(schemas[0])
    ]:
        raise DataError(f"{differing[0]} has other columns than {files[0].name}.")
    schema = schemas[0]
    image = image_column(schema)
    names = class_names(schema)
    frame = pl.concat([_columns(file, schema, image) for file in files], rechunk=False)
    if image is None:
        images = from_frame(frame, files[0], choices, name, names)
        return replace(images, format="parquet") if path.suffix != ".arrow" else images
    choices.refuse("images inside a table", "root")
    keys = [f"{n}:{row}" for n, file in enumerate(files) for row in range(_rows(file))]
    ids = [f"{files[int(n)].stem}/{row}" for n, row in (key.split(":") for key in keys)]
    if not keys:
        raise DataError(f"{name} has no rows.")
    roles = find_roles(frame.schema, choices)
    draft = described(frame, roles, choices, range(1, len(keys) + 1), names)
    draft.keys, draft.ids = keys, draft.ids if roles.id else ids
    draft.paths = ids
    splits = [SPLIT_WORDS.get(_first_word(file.stem)) for file in files]
    if draft.splits is None and len(set(splits)) > 1 and all(splits):
        draft.splits = [splits[int(key.split(":")[0])] for key in keys]
    return draft.images(name, BytesStore(files, image), "parquet", choices)


def image_column(schema: pa.Schema) -> str | None:
    """The column of encoded images: bytes, or a struct with `bytes`; `image`, `img` first.

    Raises:
        DataError: several, and none is called so.
    """
    found = [column.name for column in schema if _holds_bytes(column.type)]
    named = [
        column for column in found if column.casefold() in ("image", "img", "bytes", "jpg", "png")
    ]
    if len(found) > 1 and not named:
        raise DataError(
            f"Several columns hold bytes: {', '.join(found)}.", "Call that of the images image."
        )
    return (named or found or [None])[0]


def class_names(schema: pa.Schema) -> Mapping[str, list[str]]:
    """Column -> names of its integers, from the metadata that the `datasets` library writes."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return {}
    features = json.loads(metadata).get("info", {}).get("features", {})
    found: dict[str, list[str]] = {}
    for column, feature in features.items():
        feature = feature[0] if isinstance(feature, list) and feature else feature
        feature = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(feature, dict) and feature.get("names"):
            found[column] = feature["names"]
    return found


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field(names.index("bytes")).type)
    return (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _files(path: Path) -> list[Path]:
    files = [path]
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"), key=lambda file: natural_key(str(file)))
    if not files or not path.exists():
        raise DataError(f"There are no Parquet files at {path}.")
    return files


def _schema(file: Path) -> pa.Schema:
    try:
        return read_arrow(file).schema if file.suffix == ".arrow" else pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.name} is no {file.suffix[1:]} file: {error}.") from error


def _columns(file: Path, schema: pa.Schema, image: str | None) -> pl.DataFrame:
    """All but the images, and nothing nested but lists."""
    wanted = [
        column.name
        for column in schema
        if column.name != image and not pa.types.is_struct(column.type)
    ]
    if file.suffix == ".arrow":
        table = read_arrow(file).select(wanted)
    else:
        with pq.ParquetFile(file) as parquet:
            table = parquet.read(columns=wanted)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _rows(file: Path) -> int:
    return len(read_arrow(file)) if file.suffix == ".arrow" else pq.read_metadata(file).num_rows


def _first_word(stem: str) -> str:
    match = SPLIT_PREFIX.match(stem)
    return match.group().casefold() if match else ""

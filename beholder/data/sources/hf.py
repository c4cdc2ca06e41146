"""Hugging Face datasets: a directory of `save_to_disk`, or a name on the hub (form 1, `hf:`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from beholder.core.errors import DataError, MissingExtraError
from beholder.core.images import Images

from .columns import find_roles
from .draft import Choices
from .names import SPLIT_WORDS
from .tables import described

if TYPE_CHECKING:
    from datasets import Dataset

WHOLE = ""


@dataclass(frozen=True)
class DatasetStore:
    """Rows of datasets by part; a key is 'PART:ROW'. The image column is not decoded."""

    parts: Mapping[str, Dataset]
    column: str

    def read(self, key: str) -> bytes:
        part, _, row = key.rpartition(":")
        cell = self.parts[part][int(row)][self.column]
        if cell is None:
            raise FileNotFoundError(f"row {row} holds no image")
        return cell["bytes"] or Path(cell["path"] or "").read_bytes()

    def stat(self, key: str) -> None:
        return None


def read_hf(place: str, choices: Choices, name: str) -> Images:
    """Open a local directory, else the dataset of that name on the hub.

    Parts named as a split (train, validation, test, ...) give the split.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: no such dataset, the hub does not answer, or no column of images.
    """
    choices.refuse("a Hugging Face dataset", "root")
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", "scale") from error
    try:
        if Path(place).expanduser().exists():
            loaded = datasets.load_from_disk(str(Path(place).expanduser()))
        else:
            loaded = datasets.load_dataset(place)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"hf:{place} cannot be opened: {reason}.",
            "Give a directory made by save_to_disk, or the name of a dataset on the hub.",
        ) from error
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {WHOLE: loaded}
    features = next(iter(parts.values())).features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise DataError(f"hf:{place} has no column of images.", f"Columns: {', '.join(features)}.")
    raw = {
        str(part): dataset.cast_column(images[0], datasets.Image(decode=False))
        for part, dataset in parts.items()
    }
    keys = [f"{part}:{row}" for part, dataset in raw.items() for row in range(len(dataset))]
    if not keys:
        raise DataError(f"hf:{place} has no rows.")
    frame = pl.concat(
        [_columns(dataset, images) for dataset in raw.values()], how="diagonal_relaxed"
    )
    names = {
        column: kind.names
        for column, kind in features.items()
        if isinstance(kind, datasets.ClassLabel)
    }
    roles = find_roles(frame.schema, choices)
    draft = described(frame, roles, choices, range(1, len(keys) + 1), names)
    draft.keys = keys
    draft.paths = [key.replace(":", "/").lstrip("/") for key in keys]
    draft.ids = draft.ids if roles.id else draft.paths
    if draft.splits is None and len(raw) > 1:
        draft.splits = [SPLIT_WORDS.get(key.rpartition(":")[0].casefold()) for key in keys]
    if len(images) > 1:
        draft.notes.append(f"of the image columns {', '.join(images)} the first is read")
    if not roles.labelled and names:
        draft.notes.append(f"no label column; --label-column could be {', '.join(names)}")
    return draft.images(name, DatasetStore(raw, images[0]), "datasets", choices)


def _columns(dataset: Dataset, images: list[str]) -> pl.DataFrame:
    """All but the images, and nothing nested but lists."""
    import pyarrow as pa

    plain = [
        field.name
        for field in dataset.features.arrow_schema
        if field.name not in images and not pa.types.is_struct(field.type)
    ]
    frame = dataset.select_columns(plain).with_format("polars")[:]
    assert isinstance(frame, pl.DataFrame)
    return frame

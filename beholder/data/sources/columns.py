"""Columns by their roles, whatever file the table came in (study.md section 2, 'Columns')."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from beholder.core.errors import AmbiguousDataError, ArgumentError, DataError

from .draft import Choices
from .labels import Labels, judged_as_classes, named, second_class, several, uncertain, unlabelled
from .names import class_order, normal, split_role

PATH = ("path", "file", "file_name", "filename", "image", "image_path")
LABEL = ("label", "class", "target", "category")
SOURCE_LIKE = ("patient", "subject", "device", "session", "module")


@dataclass(frozen=True)
class Roles:
    """Column names by what they mean; None or empty where there is none."""

    path: str | None = None
    label: str | None = None
    labels: str | None = None
    probability: str | None = None
    shares: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    split: str | None = None
    weight: str | None = None
    id: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        return bool(self.label or self.labels or self.probability or self.shares)


def find_roles(schema: Mapping[str, pl.DataType], choices: Choices) -> Roles:
    """Roles of the columns, by name in any case.

    Raises:
        ArgumentError: a column that the user named is not there.
        AmbiguousDataError: two columns of the same name, or two that could be the label.
    """
    known: dict[str, str] = {}
    for column in schema:
        plain = column.strip().casefold()
        if plain in known:
            raise AmbiguousDataError(
                f"Two columns are called the same: {known[plain]!r} and {column!r}.", "Rename one."
            )
        known[plain] = column
    notes = []
    path = [known[alias] for alias in PATH if alias in known]
    if len(path) > 1:
        notes.append(f"column {path[0]} is taken as the path, {', '.join(path[1:])} is not used")
    source = _chosen(known, choices.source_column, "--source-column") or known.get("source")
    like = [known[alias] for alias in SOURCE_LIKE if alias in known]
    if like and source is None:
        notes.append(
            f"column {like[0]} is not used; if one {like[0]}'s images must stay together:"
            f" --source-column {like[0]}"
        )
    return replace(
        _find_label(known, schema, choices),
        path=path[0] if path else None,
        groups={
            ("group" if plain == "group" else column.strip()[6:]): column
            for plain, column in known.items()
            if plain == "group" or (plain.startswith("group_") and len(plain) > 6)
        },
        source=source,
        split=_chosen(known, choices.split_column, "--split-column") or known.get("split"),
        weight=known.get("weight"),
        id=known.get("id"),
        notes=tuple(notes),
    )


def _find_label(
    known: Mapping[str, str], schema: Mapping[str, pl.DataType], choices: Choices
) -> Roles:
    """Only the column of the label, in one of its four forms."""
    shares = tuple(column for plain, column in known.items() if re.match("p_.", plain))
    wanted = choices.label_column
    if wanted is not None and wanted.strip().casefold() == "p_*" and len(shares) > 1:
        return Roles(shares=shares)
    column = _chosen(known, wanted, "--label-column")
    if column is None:
        aliases = ["label"] if "label" in known else [alias for alias in LABEL if alias in known]
        others = [plain for plain in ("labels", "probability") if plain in known]
        readings = [known[plain] for plain in (*aliases, *others)]
        if len(readings) > 1:
            raise AmbiguousDataError(
                f"Both {readings[0]!r} and {readings[1]!r} could be the label.",
                f"Choose: --label-column {readings[0]} or --label-column {readings[1]}.",
            )
        if not readings:
            return Roles(shares=shares if len(shares) > 1 else ())
        column = readings[0]
    plain = column.strip().casefold()
    if plain == "labels" or schema[column].base_type() in (pl.List, pl.Array):
        return Roles(labels=column)
    return Roles(probability=column) if plain == "probability" else Roles(label=column)


def _chosen(known: Mapping[str, str], wanted: str | None, option: str) -> str | None:
    if wanted is None:
        return None
    column = known.get(wanted.strip().casefold())
    if column is None:
        raise ArgumentError(
            f"{option} {wanted}: there is no such column.",
            f"The columns are {', '.join(known.values())}.",
        )
    return column


def read_labels(
    frame: pl.DataFrame,
    roles: Roles,
    choices: Choices,
    rows: Sequence[int],
    class_names: Mapping[str, Sequence[str]],
) -> Labels:
    """The labels of `frame`, in whichever form its columns give them.

    Args:
        rows: number of each row, for messages.
        class_names: column -> names of its integers, where the file tells them.
    """
    if roles.labels:
        sets = label_sets(frame[roles.labels], class_names.get(roles.labels))
        return several(sets, choices.classes)
    if roles.probability:
        numbers = read_numbers(frame[roles.probability], roles.probability, rows)
        return second_class(numbers, choices.classes, rows)
    if roles.shares:
        return _share_columns(frame, roles.shares, choices, rows)
    if roles.label is None:
        choices.refuse("a table without labels", "classes", "bins")
        return unlabelled(len(frame))
    texts = read_texts(frame[roles.label])
    if names := class_names.get(roles.label):
        texts = [None if text is None else _name_of(text, names) for text in texts]
    found, notes = judged_as_classes(texts, roles.label, choices.bins)
    labels = named(found, choices.classes)
    return Labels(labels.kind, labels.classes, labels.label, labels.q, labels.sets, notes)


def read_texts(series: pl.Series) -> list[str | None]:
    """Cells as text: NFC, trimmed; whole numbers without a point; empty cells and NaN are None."""
    if series.dtype.is_float():
        return [_float_text(value) for value in series]
    texts = series.cast(pl.String).to_list()
    return [None if text is None else normal(text) or None for text in texts]


def _float_text(value: float | None) -> str | None:
    if value is None or math.isnan(value):
        return None
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)


def read_numbers(series: pl.Series, column: str, rows: Sequence[int]) -> list[float | None]:
    """Cells as finite numbers, None where empty; a decimal comma is understood.

    Raises:
        DataError: names the row whose cell is none.
    """
    found: list[float | None] = []
    for row, text in zip(rows, read_texts(series), strict=True):
        if text is None:
            found.append(None)
            continue
        try:
            number = float(text.replace(",", ".") if "." not in text else text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"Row {row}: {column} is {text!r}, which is not a number.")
        found.append(number)
    return found


def read_weights(series: pl.Series, column: str, rows: Sequence[int]) -> list[float | None]:
    """Weights >= 0; an empty cell counts 1. Raises `DataError`: one is negative, or all are 0."""
    numbers = read_numbers(series, column, rows)
    for row, number in zip(rows, numbers, strict=True):
        if number is not None and number < 0:
            raise DataError(f"Row {row}: the weight {number:g} is negative.", "Weights are >= 0.")
    if numbers and not any(number is None or number > 0 for number in numbers):
        raise DataError(f"Every {column} is 0, so no image counts.", "Some must be above 0.")
    return [1.0 if number is None else number for number in numbers]


def read_splits(series: pl.Series, rows: Sequence[int]) -> list[str | None]:
    """Roles. Raises `DataError` that names the row and lists the known words."""
    return [
        None if text is None else split_role(text, f"Row {row}")
        for row, text in zip(rows, read_texts(series), strict=True)
    ]


def label_sets(series: pl.Series, names: Sequence[str] | None) -> list[list[str]]:
    """Lists, or texts 'a|b'. An empty cell is the empty set: none of the classes applies."""
    if series.dtype.base_type() in (pl.List, pl.Array):
        cells = [[] if cell is None else read_texts(pl.Series(cell)) for cell in series]
    else:
        cells = [(text or "").split("|") for text in series.cast(pl.String)]
        cells = [[normal(part) for part in cell] for cell in cells]
    present = [[text for text in dict.fromkeys(cell) if text] for cell in cells]
    if names is None:
        return present
    named_cells = [[_name_of(text, names) for text in cell] for cell in present]
    return [[name for name in cell if name] for cell in named_cells]


def _share_columns(
    frame: pl.DataFrame, columns: Sequence[str], choices: Choices, rows: Sequence[int]
) -> Labels:
    by_name = {normal(column.strip()[2:]): column for column in columns}
    order = choices.classes or class_order(by_name)
    if missing := [name for name in order if name not in by_name]:
        raise ArgumentError(
            f"--classes names {missing[0]!r}, but there is no column p_{missing[0]}.",
            f"The columns are {', '.join(columns)}.",
        )
    numbers = [read_numbers(frame[by_name[name]], by_name[name], rows) for name in order]
    shares: list[list[float] | None] = []
    for row, values in zip(rows, zip(*numbers, strict=True), strict=True):
        present = [value for value in values if value is not None]
        if present and len(present) < len(values):
            raise DataError(f"Row {row}: some of {', '.join(columns)} are empty, others are not.")
        shares.append(present or None)
    return uncertain(shares, order, rows)


def _name_of(text: str, names: Sequence[str]) -> str | None:
    """The class name of an integer label; -1 is 'none' by the custom of `datasets`."""
    index = int(text)
    return normal(names[index]) if 0 <= index < len(names) else None

"""Tables for reading: intervals joined to their figure, shares as per cent, names in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from beholder.core.sections import Unit

from .anonymous import is_name_column
from .text import capital, middle, number_text, p_text, spoken, visible, without_unit

MOST_ROWS = 500
SHARE_NAMES = {
    *("share", "accuracy", "recall", "precision", "f1", "auroc", "raw", "estimate", "coverage"),
    *("risk", "confidence", "retained", "refused", "false", "fpr95", "gap", "equal", "difference"),
}
CELL = 44  # characters of a name before it is shortened in the middle
SENTENCE = 400  # characters of prose, which ends with a full stop


@dataclass(frozen=True)
class Head:
    """A column's heading, and whether its cells are numbers."""

    title: str
    numeric: bool


@dataclass(frozen=True)
class Cell:
    """What is shown, the whole text where that was shortened, and the number to sort by."""

    text: str
    whole: str = ""
    value: str = ""


@dataclass(frozen=True)
class TableView:
    """At most 500 rows of a table; `total` counts them all."""

    caption: str
    heads: list[Head]
    rows: list[list[Cell]]
    total: int


@dataclass(frozen=True)
class _Column:
    name: str
    unit: Unit
    low: str | None = None
    high: str | None = None


def view(caption: str, frame: pl.DataFrame, units: Mapping[str, Unit] | None = None) -> TableView:
    """The table as it is read: `x`, `x_low`, `x_high` become one column.

    Args:
        units: of the columns that have one; well-known names within [-1, 1] are shares anyway.
    """
    columns = _columns(frame, units or {})
    heads = [_head(column, frame.schema[column.name]) for column in columns]
    rows = [
        [_cell(column, row) for column in columns]
        for row in frame.head(MOST_ROWS).iter_rows(named=True)
    ]
    return TableView(capital(spoken(caption)), heads, rows, frame.height)


def _columns(frame: pl.DataFrame, units: Mapping[str, Unit]) -> list[_Column]:
    names = frame.columns
    ends: dict[str, tuple[str, str]] = {}
    for name in names:
        if f"{name}_low" in names and f"{name}_high" in names:
            ends[name] = (f"{name}_low", f"{name}_high")
    if "low" in names and "high" in names and (at := names.index("low")) > 0:
        before = names[at - 1]
        if before not in ends and frame.schema[before].is_numeric():
            ends[before] = ("low", "high")
    inside = {end for pair in ends.values() for end in pair}
    return [
        _Column(name, units.get(name) or _guess(frame, name), *ends.get(name, (None, None)))
        for name in names
        if name not in inside
    ]


def _guess(frame: pl.DataFrame, name: str) -> Unit:
    """The unit of a float column by its name, checked on its values."""
    if not frame.schema[name].is_float() or name.split("_")[0] not in SHARE_NAMES:
        return ""
    values = [value for value in frame[name].to_list() if value is not None]
    return "share" if all(-1.0 <= value <= 1.0 for value in values) else ""


def _head(column: _Column, kind: pl.DataType) -> Head:
    unit = {"share": "%", "count": "", "": ""}.get(column.unit, column.unit)
    title = capital(spoken(without_unit(column.name, column.unit)))
    return Head(f"{title} ({unit})" if unit else title, kind.is_numeric())


def _is_p(name: str) -> bool:
    return name == "p" or name.startswith(("p_holm", "p_value"))


def _cell(column: _Column, row: Mapping[str, object]) -> Cell:
    value = row[column.name]
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Cell("–")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int | float):
        return Cell(_number(column, float(value), row, isinstance(value, int)), value=repr(value))
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    text = visible(str(value))
    limit = 32 if is_name_column(column.name) else SENTENCE if text.endswith(".") else CELL
    short = middle(text, limit)
    return Cell(short, text if short != text else "")


def _number(column: _Column, value: float, row: Mapping[str, object], whole: bool) -> str:
    if _is_p(column.name):
        return p_text(value)
    if whole and not column.unit:
        return f"{value:,.0f}"
    low = row[column.low] if column.low else None
    high = row[column.high] if column.high else None
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return number_text(value, column.unit)
    width = float(high - low)
    ends = [number_text(float(end), column.unit, width) for end in (low, high)]
    return f"{number_text(value, column.unit, width)} ({ends[0]} to {ends[1]})"

"""Charts with one row per label: bars, dots with intervals, forest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from beholder.core.sections import Figure

from .canvas import FORMS, Canvas, Scale, interval_text, paint, series_paint
from .text import shortened, text_width, visible

MOST_ROWS = 500
LANE = 22.0  # height of one mark's lane
ABOVE = 23.0  # height of a label above its lanes


@dataclass
class Mark:
    """A value with its interval, drawn in the lane of its series."""

    value: float | None
    low: float | None = None
    high: float | None = None
    series: int = 0
    raw: float | None = None
    reference: float | None = None


@dataclass
class Row:
    """A label, its marks, and how many images stand behind them."""

    label: str
    marks: list[Mark] = field(default_factory=list)
    n: int | None = None


def numbers(frame: pl.DataFrame, *columns: str) -> list[float]:
    """All finite numbers of those columns that are there."""
    there = [name for name in columns if name in frame.columns]
    values = (frame[name].cast(pl.Float64, strict=False) for name in there)
    return [value for column in values for value in column.to_list() if finite(value)]


def finite(value: float | None) -> bool:
    return value is not None and abs(value) < float("inf")


def are_shares(values: Sequence[float], counts_too: bool = False) -> bool:
    """All in [0, 1], and (where counts are possible) not all whole numbers."""
    inside = bool(values) and all(-1e-9 <= value <= 1 + 1e-9 for value in values)
    return inside and not (counts_too and all(float(value).is_integer() for value in values))


def rows_of(frame: pl.DataFrame) -> tuple[list[Row], list[str]]:
    """Rows in the order of their first appearance, and the names of the series."""
    series = (
        [str(name) for name in frame["series"].unique(maintain_order=True)]
        if "series" in frame.columns
        else []
    )
    rows: dict[str, Row] = {}
    for item in frame.iter_rows(named=True):
        label = str(item["label"])
        row = rows.setdefault(label, Row(label))
        row.n = item.get("n")
        values = {
            key: float(item[key]) if finite(item.get(key)) else None
            for key in ("value", "low", "high", "raw", "reference")
        }
        row.marks.append(Mark(**values, series=series.index(str(item["series"])) if series else 0))
    return list(rows.values()), series


def domain(values: list[float], shares: bool, from_zero: bool) -> tuple[float, float]:
    """What the axis shows: from zero, or cropped to the data with a margin."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
        margin = 0.0
    else:
        margin = max(0.05 * (high - low), 0.02 if shares else 0.05 * abs(high) or 0.5)
    low, high = low - margin, high + margin
    if shares:
        low = low if from_zero else math.floor(20 * low) / 20
        low, high = max(0.0, low), min(1.0, high)
    return (low, high) if high > low else (low, low + 1.0)


def draw_rows(figure: Figure, width: float, narrow: bool) -> Canvas:
    """Bars, dots or forest. Labels stand left of the marks, above them where it is narrow."""
    frame = figure.data.head(MOST_ROWS)
    rows, series = rows_of(frame)
    values = numbers(frame, "value", "low", "high", "raw", "reference")
    bars = figure.kind == "bars"
    shares = are_shares(values, counts_too=bars)
    stacked = bars and len(series) > 1 and not numbers(frame, "low", "high")
    if stacked:
        values = [sum(mark.value or 0.0 for mark in row.marks) for row in rows]
    canvas = Canvas(width)
    y = canvas.legend(_legend(figure, series, frame), 14.0)
    texts = [_row_text(row, shares, stacked) for row in rows]
    place = _narrow_place if narrow else _wide_place
    label_room, n_room, start, end = place(rows, texts, width)
    scale = Scale(*domain(values, shares, from_zero=bars), start, end, shares)
    above, below = (ABOVE, 8.0) if narrow else (2.0, 2.0)

    for row, lines in zip(rows, texts, strict=True):
        first = y + above
        bottom = first + LANE * (1 if stacked else len(row.marks))
        for tick, _ in scale.labels():
            canvas.line(scale(tick), first if narrow else y, scale(tick), bottom + below)
        if narrow:
            _label_above(canvas, row, lines, first - 7)
        else:
            centre = (first + bottom) / 2 + 4.5
            canvas.text(label_room, centre, row.label, "end", room=label_room)
            if row.n is not None:
                canvas.text(label_room + n_room, centre, _n_text(row), "end", "muted")
        if stacked:
            _stack(canvas, row, series, scale, first, shares)
        for lane, mark in enumerate([] if stacked else row.marks):
            _mark(canvas, figure, row, mark, scale, first + lane * LANE, shares)
        if not narrow or len(lines) > 1:
            for lane, line in enumerate(lines):
                canvas.text(width, first + (lane + 0.5) * LANE + 4.5, line, "end", "muted")
        y = bottom + below
    for tick, label in scale.labels():
        canvas.text(_inside(scale(tick), label, width), y + 16, label, "middle", "muted")
    canvas.height = _axis_note(canvas, figure, y + 35, scale, frame, bars)
    return canvas


def _wide_place(
    rows: list[Row], texts: list[list[str]], width: float
) -> tuple[float, float, float, float]:
    """Room for the labels and for n; start and end of the marks. Values stand right of them."""
    label = min(max(text_width(visible(row.label)) for row in rows) + 2, 0.30 * width)
    n = max((text_width(_n_text(row)) + 14 for row in rows if row.n is not None), default=0.0)
    value = max(text_width(line) for lines in texts for line in lines) + 2
    return label, n, label + n + 14, width - value - 14


def _narrow_place(
    rows: list[Row], texts: list[list[str]], width: float
) -> tuple[float, float, float, float]:
    """As `_wide_place`; the values of rows with several marks keep their room at the right."""
    several = [line for lines in texts if len(lines) > 1 for line in lines]
    value = max((text_width(line) + 12 for line in several), default=0.0)
    return 0.0, 0.0, 8.0, width - value - 8.0


def _label_above(canvas: Canvas, row: Row, lines: list[str], y: float) -> None:
    parts = [_n_text(row)] if row.n is not None else []
    note = "  ·  ".join(parts + (lines if len(lines) == 1 else []))
    canvas.text(canvas.width, y, note, "end", "muted")
    canvas.text(0, y, row.label, room=canvas.width - text_width(note) - 10)


def _inside(x: float, label: str, width: float) -> float:
    half = text_width(label) / 2
    return min(width - half, max(half, x))


def _n_text(row: Row) -> str:
    return f"n {row.n:,}"


def _row_text(row: Row, shares: bool, stacked: bool) -> list[str]:
    """What stands right of the lanes: one text per lane."""
    if stacked:
        total = sum(mark.value or 0.0 for mark in row.marks)
        return [interval_text(total, None, None, shares)]
    return [interval_text(mark.value, mark.low, mark.high, shares) for mark in row.marks]


def _legend(
    figure: Figure, series: list[str], frame: pl.DataFrame
) -> list[tuple[str, str, bool, str]]:
    if len(series) > 1:
        forms = ("square",) * len(series) if figure.kind == "bars" else FORMS
        return [
            (forms[index % len(forms)], series_paint(index), False, name)
            for index, name in enumerate(series)
        ]
    entries = []
    if figure.kind == "forest":
        entries.append(("disc", paint("s1"), False, "estimate, 95 % interval"))
        if numbers(frame, "raw"):
            entries.append(("diamond", paint("s2"), True, "raw"))
    if figure.kind == "dots" and numbers(frame, "reference"):
        entries.append(("disc", paint("s1"), False, "value, 95 % interval"))
        entries.append(("bar", paint("s2"), False, "reference"))
    return entries


def _mark(
    canvas: Canvas, figure: Figure, row: Row, mark: Mark, scale: Scale, top: float, shares: bool
) -> None:
    if mark.value is None:
        return
    colour = series_paint(mark.series)
    centre = top + LANE / 2
    tip = f"{row.label}: {interval_text(mark.value, mark.low, mark.high, shares, unit=True)}"
    whole = mark.low is not None and mark.high is not None
    if figure.kind == "bars":
        zero, end = scale(0.0), scale(mark.value)
        canvas.rect(min(zero, end), top + 4, max(1.0, abs(end - zero)), LANE - 8, colour, tip)
        if whole:
            canvas.whisker(scale(mark.low or 0.0), scale(mark.high or 0.0), centre, paint("text"))
        return
    if whole:
        canvas.whisker(scale(mark.low or 0.0), scale(mark.high or 0.0), centre, colour)
    if mark.reference is not None:
        canvas.marker("bar", scale(mark.reference), centre, paint("s2"), "reference")
    if mark.raw is not None:
        raw = f"{row.label}: raw {interval_text(mark.raw, None, None, shares, unit=True)}"
        canvas.marker("diamond", scale(mark.raw), centre, paint("s2"), raw, hollow=True)
    canvas.marker(FORMS[mark.series % len(FORMS)], scale(mark.value), centre, colour, tip)


def _stack(
    canvas: Canvas, row: Row, series: list[str], scale: Scale, top: float, shares: bool
) -> None:
    at = 0.0
    for mark in row.marks:
        value = mark.value or 0.0
        x1, x2 = scale(at), scale(at + value)
        text = interval_text(value, None, None, shares, unit=True)
        canvas.rect(
            x1, top + 4, x2 - x1 - 1, LANE - 8, series_paint(mark.series),
            f"{row.label}, {series[mark.series]}: {text}",
        )  # fmt: skip
        at += value


def _axis_note(
    canvas: Canvas, figure: Figure, y: float, scale: Scale, frame: pl.DataFrame, bars: bool
) -> float:
    """Name of the axis and what a reader must know of it. Returns the height used."""
    notes = [figure.x or figure.y]
    # the legend or the figure's own note may have said what the whiskers are
    told = figure.kind == "forest" or numbers(frame, "reference") or "whisker" in figure.note
    if numbers(frame, "low", "high") and not told:
        notes.append("whiskers: 95 % intervals")
    if not bars and scale.low > 0:
        notes.append(f"axis starts at {scale.label(scale.low, 0.01)}")
    if figure.data.height > MOST_ROWS:
        notes.append(f"first {MOST_ROWS} of {figure.data.height:,} rows")
    centre = (scale.start + scale.end) / 2
    room = 2 * min(centre, canvas.width - centre)
    for line in wrapped([note for note in notes if note], room):
        canvas.text(centre, y, line, "middle", "muted")
        y += 18
    return y - 8


def wrapped(parts: list[str], width: float) -> list[str]:
    """Parts joined by a middle dot into lines no wider than `width`; a longer part is shortened."""
    lines: list[str] = []
    for part in parts:
        shown = shortened(visible(part), width)
        joined = f"{lines[-1]}  ·  {shown}" if lines else ""
        if joined and text_width(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(shown)
    return lines

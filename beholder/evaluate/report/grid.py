"""A table of cells whose lightness shows a number that is also written in them."""

from __future__ import annotations

import math

from beholder.core.sections import Figure

from .canvas import Canvas, ramp
from .rows import numbers
from .text import text_width, visible

LINE = 16.0


def draw_grid(figure: Figure, width: float, narrow: bool) -> Canvas:
    """Cells [rows, columns]; wider than `width` where they must be: then their box scrolls."""
    frame = figure.data
    rows = [str(name) for name in frame["row"].unique(maintain_order=True)]
    columns = [str(name) for name in frame["column"].unique(maintain_order=True)]
    values = numbers(frame, "value")
    low, high = min([0.0, *values]), max(values, default=0.0)
    cells = {
        (str(item["row"]), str(item["column"])): (item["value"], str(item["text"] or ""))
        for item in frame.iter_rows(named=True)
    }
    label_room = max((text_width(visible(name)) for name in rows), default=0.0) + 10
    label_room = min(label_room, max(0.3 * width, width - 60.0 * len(columns)))
    room = (width - label_room) / max(1, len(columns))
    stacked = any(text_width(visible(text)) + 18 > room for _, text in cells.values())
    lines = {key: _lines(text, stacked) for key, (_, text) in cells.items()}
    text_room = max((text_width(line) for part in lines.values() for line in part), default=0.0)
    deep = max((len(part) for part in lines.values()), default=1)
    names_room = max((text_width(visible(name)) for name in columns), default=0.0)
    cell = max(text_room + 18, 36.0, min(room, 120.0, names_room + 14))
    turned = names_room + 8 > cell
    head = min(names_room, 140.0) + 10 if turned else 24.0
    tall = max(28.0, deep * LINE + 10)

    canvas = Canvas(max(label_room + cell * len(columns) + 1, min(width, 200.0)))
    top = 0.0
    if figure.y or figure.x:
        axes = " / ".join(
            part for part in (figure.y and f"↓ {figure.y}", figure.x and f"→ {figure.x}") if part
        )
        canvas.text(0, 14, axes, fill="muted", room=max(canvas.width, 120.0))
        top = 20.0
    for index, name in enumerate(columns):
        x = label_room + (index + 0.5) * cell
        if turned:
            canvas.text(x + 4.5, top + head - 6, name, room=140, turned=True)
        else:
            canvas.text(x, top + head - 8, name, "middle", room=cell - 4)
    for line, row in enumerate(rows):
        y = top + head + line * tall
        canvas.text(label_room - 8, y + tall / 2 + 4.5, row, "end", room=label_room - 10)
        for index, column in enumerate(columns):
            if (row, column) not in cells:
                continue
            value, text = cells[row, column]
            known = value if value is not None and math.isfinite(value) else low
            share = (known - low) / (high - low) if high > low else 0.0
            fill, ink = ramp(share)
            x = label_room + index * cell
            canvas.rect(x + 1, y + 1, cell - 2, tall - 2, fill, f"{row}, {column}: {text}")
            part = lines[row, column]
            first = y + tall / 2 + 4.5 - (len(part) - 1) * LINE / 2
            for depth, shown in enumerate(part):
                canvas.text(x + cell / 2, first + depth * LINE, shown, "middle", ink)
    canvas.height = top + head + len(rows) * tall + 2
    return canvas


def _lines(text: str, stacked: bool) -> list[str]:
    """The lines of a cell's text; '52 (88 %)' becomes two where it would not fit in one."""
    parts = text.split("\n")
    if stacked and len(parts) == 1 and " (" in text:
        parts = text.replace(" (", "\n(", 1).split("\n")
    return [visible(part) for part in parts if part]

"""Charts as inline SVG, drawn from a `Figure` (specs/study.md, section 8).

No script, no library: a chart is text that prints, that a screen reader reads, and that follows the
page's light or dark colours. Eight kinds, each with a variant for narrow screens.
"""

from __future__ import annotations

from collections.abc import Callable

from beholder.core.sections import Figure, FigureKind

from .canvas import Canvas, coordinate, svg_text
from .grid import draw_grid
from .planes import draw_histogram, draw_lines, draw_reliability, draw_scatter
from .rows import draw_rows

WIDE = 800.0
NARROW = 358.0  # a page of 390 pixels less its margins

DRAW: dict[FigureKind, Callable[[Figure, float, bool], Canvas]] = {
    "bars": draw_rows,
    "dots": draw_rows,
    "forest": draw_rows,
    "grid": draw_grid,
    "lines": draw_lines,
    "histogram": draw_histogram,
    "reliability": draw_reliability,
    "scatter": draw_scatter,
}


def draw(figure: Figure, narrow: bool = False, width: float | None = None) -> str:
    """The figure as an `<svg>` element with title, description and intervals.

    Args:
        figure: data and kind; no rows give a chart that says so.
        narrow: labels above the marks, for a page of 390 pixels; text stays 13 pixels.
        width: natural width in pixels; it is never drawn larger. 800, narrow 358.
    """
    width = width or (NARROW if narrow else WIDE)
    if figure.data.height:
        canvas = DRAW[figure.kind](figure, width, narrow)
    else:
        canvas = Canvas(width, 40.0)
        canvas.text(0, 24, "No data.", fill="muted")
    size = f"{coordinate(canvas.width)} {coordinate(canvas.height)}"
    wide, high = size.split(" ")
    scrolls = ' data-scroll=""' if canvas.width > width else ""  # then it is never drawn smaller
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
        f'width="{wide}" height="{high}" role="img"{scrolls} font-family="system-ui,sans-serif">'
        f"<title>{svg_text(figure.title)}</title><desc>{svg_text(description(figure))}</desc>"
        f"{''.join(canvas.parts)}</svg>"
    )


def description(figure: Figure) -> str:
    """What a reader who cannot see the chart is told; the numbers follow in its table."""
    kinds = {
        "bars": "Bars",
        "dots": "Points with intervals",
        "forest": "Forest plot: estimates with intervals, raw shares beside them",
        "grid": "Grid of numbers",
        "lines": "Lines",
        "histogram": "Histogram",
        "reliability": "Accuracy against confidence",
        "scatter": "Points",
    }
    rows = figure.data.height
    parts = [f"{kinds[figure.kind]}, {rows:,} {'row' if rows == 1 else 'rows'}."]
    if figure.x:
        parts.append(f"Along: {figure.x}.")
    if figure.y:
        parts.append(f"Up: {figure.y}.")
    return " ".join([*parts, figure.note]).strip()

"""What charts are drawn with: a list of SVG elements, scales, ticks, markers.

Colours are CSS custom properties with the light value behind them, so a chart follows the page's
theme and still shows when it stands alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from beholder.core.sections import share_text

from .text import number_text, shortened, text_width, visible

TEXT = 13.0  # pixels; charts are drawn at most at their natural width

PALETTE = {
    "text": "#1b1f24",
    "muted": "#57606a",
    "line": "#d8dbdf",
    "ground": "#ffffff",
    "s1": "#0072b2",
    "s2": "#d55e00",
    "s3": "#009e73",
    "s4": "#cc79a7",
}
RAMP = ("#f4f7f9", "#dce8f1", "#bdd6e7", "#94bedb", "#5b97c2", "#2f74a6", "#185886", "#0c3f66")
RAMP_TEXT = ("#1b1f24",) * 4 + ("#101418",) + ("#ffffff",) * 3

FORMS = ("disc", "square", "triangle", "diamond", "cross", "plus", "down", "bar")
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)],
    "triangle": [(0, -4.8), (4.6, 3.4), (-4.6, 3.4)],
    "down": [(0, 4.8), (4.6, -3.4), (-4.6, -3.4)],
    "diamond": [(0, -5), (5, 0), (0, 5), (-5, 0)],
    "bar": [(-1.6, -5), (1.6, -5), (1.6, 5), (-1.6, 5)],
    "plus": [
        *[(-1.2, -5), (1.2, -5), (1.2, -1.2), (5, -1.2), (5, 1.2), (1.2, 1.2)],
        *[(1.2, 5), (-1.2, 5), (-1.2, 1.2), (-5, 1.2), (-5, -1.2), (-1.2, -1.2)],
    ],
    "cross": [
        *[(-4.4, -2.8), (-2.8, -4.4), (0, -1.6), (2.8, -4.4), (4.4, -2.8), (1.6, 0)],
        *[(4.4, 2.8), (2.8, 4.4), (0, 1.6), (-2.8, 4.4), (-4.4, 2.8), (-1.6, 0)],
    ],
}
"""Corners of the markers around their centre; `disc` is a circle."""

DASHES = ("", "6 4", "2 3", "8 3 2 3")


def paint(name: str) -> str:
    """A colour of the palette, by its name."""
    return f"var(--{name},{PALETTE[name]})"


def series_paint(index: int) -> str:
    """Colour of the series of that index; four colours, told apart by `FORMS` beyond."""
    return paint(f"s{index % 4 + 1}")


def ramp(share: float) -> tuple[str, str]:
    """Colours of a cell and of the text on it, for a value of 0..1."""
    step = min(len(RAMP) - 1, max(0, int(share * len(RAMP))))
    return f"var(--r{step},{RAMP[step]})", f"var(--q{step},{RAMP_TEXT[step]})"


def svg_text(text: str) -> str:
    """The text, safe inside SVG: invisible characters shown, markup escaped."""
    return html.escape(visible(text))


def coordinate(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers inside [low, high], about as many as wanted."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True)
class Scale:
    """A linear map from [low, high] of the data to [start, end] of the page."""

    low: float
    high: float
    start: float
    end: float
    share: bool = False
    at: tuple[float, ...] = ()  # where the ticks stand, if not at round numbers

    def __call__(self, value: float) -> float:
        at = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + min(1.0, max(0.0, at)) * (self.end - self.start)

    def ticks(self) -> list[float]:
        across = self.end > self.start
        room = abs(self.end - self.start)
        return list(self.at) or ticks(
            self.low, self.high, max(2, int(room / (90 if across else 44)))
        )

    def label(self, tick: float, step: float = 1.0) -> str:
        if self.share:
            return share_text(tick, 1.0 if step >= 0.01 else 0.0)
        if step >= 1:
            return f"{tick:,.0f}"
        return f"{tick:.{min(6, max(0, -math.floor(math.log10(step) + 1e-9)))}f}"

    def labels(self) -> list[tuple[float, str]]:
        at = self.ticks()
        gaps = [after - before for before, after in pairwise(at)]
        step = min(gaps, default=abs(at[0]) or 1.0)
        return [(tick, self.label(tick, step)) for tick in at]


@dataclass
class Canvas:
    """SVG elements in the order in which they are drawn."""

    width: float
    height: float = 0.0
    parts: list[str] = field(default_factory=list)

    def line(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        stroke: str = "line",
        width: float = 1.0,
        dash: str = "",
    ) -> None:
        start = f'x1="{coordinate(x1)}" y1="{coordinate(y1)}"'
        at = f'{start} x2="{coordinate(x2)}" y2="{coordinate(y2)}"'
        colour = paint(stroke) if stroke in PALETTE else stroke
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line {at} stroke="{colour}" stroke-width="{width:g}"{dashed}/>')

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        tip: str = "",
        opacity: float = 1.0,
    ) -> None:
        at = f'x="{coordinate(x)}" y="{coordinate(y)}"'
        size = f'width="{coordinate(max(0.0, width))}" height="{coordinate(max(0.0, height))}"'
        faded = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        self._add("rect", f'{at} {size} fill="{fill}"{faded}', tip)

    def path(
        self,
        points: Sequence[tuple[float, float]],
        fill: str = "none",
        stroke: str = "none",
        width: float = 2.0,
        dash: str = "",
        opacity: float = 1.0,
        close: bool = False,
    ) -> None:
        d = "M" + "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        faded = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        ends = (
            "" if stroke == "none" else f' stroke-width="{width:g}" stroke-linejoin="round"{dashed}'
        )
        self.parts.append(
            f'<path d="{d}{"Z" if close else ""}" fill="{fill}" stroke="{stroke}"{ends}{faded}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str = "start",
        fill: str = "text",
        room: float = math.inf,
        turned: bool = False,
        bold: bool = False,
    ) -> None:
        """One line; shortened in the middle to `room` pixels, with the whole text as its title."""
        shown = visible(text)
        fitted = shortened(shown, room) if room < math.inf else shown
        colour = paint(fill) if fill in PALETTE else fill
        turn = f' transform="rotate(-90 {coordinate(x)} {coordinate(y)})"' if turned else ""
        weight = ' font-weight="600"' if bold else ""
        whole = f"<title>{html.escape(shown)}</title>" if fitted != shown else ""
        self.parts.append(
            f'<text x="{coordinate(x)}" y="{coordinate(y)}" font-size="{TEXT:g}" '
            f'text-anchor="{anchor}" fill="{colour}"{weight}{turn}>'
            f"{whole}{html.escape(fitted)}</text>"
        )

    def marker(
        self, form: str, x: float, y: float, colour: str, tip: str = "", hollow: bool = False
    ) -> None:
        """A mark of about 9 pixels; `hollow` shows the ground inside."""
        fill = paint("ground") if hollow else colour
        edge = f'fill="{fill}" stroke="{colour}" stroke-width="1.6"'
        if form == "disc":
            at = f'cx="{coordinate(x)}" cy="{coordinate(y)}"'
            self._add("circle", f'{at} r="4" {edge}', tip)
            return
        d = "M" + "L".join(
            f"{coordinate(x + dx)} {coordinate(y + dy)}" for dx, dy in OUTLINES[form]
        )
        self._add("path", f'd="{d}Z" {edge}', tip)

    def whisker(self, x1: float, x2: float, y: float, colour: str) -> None:
        """A horizontal interval with ends."""
        self.line(x1, y, x2, y, colour, 2.0)
        for x in (x1, x2):
            self.line(x, y - 4, x, y + 4, colour, 2.0)

    def whisker_up(self, x: float, y1: float, y2: float, colour: str) -> None:
        """A vertical interval with ends."""
        self.line(x, y1, x, y2, colour, 1.6)
        for y in (y1, y2):
            self.line(x - 3, y, x + 3, y, colour, 1.6)

    def legend(self, entries: Sequence[tuple[str, str, bool, str]], y: float) -> float:
        """Markers with their names, wrapped: (form, colour, hollow, name). Returns the next y."""
        x = 6.0
        for form, colour, hollow, name in entries:
            room = min(text_width(visible(name)), self.width - 24)
            if x > 6 and x + 12 + room > self.width:
                x, y = 6.0, y + 20
            self.marker(form, x, y - 4.5, colour, hollow=hollow)
            self.text(x + 11, y, name, room=room + 1)
            x += 12 + room + 20
        return y + 20 if entries else y

    def _add(self, tag: str, attributes: str, tip: str) -> None:
        title = f"<title>{svg_text(tip)}</title>" if tip else ""
        self.parts.append(
            f"<{tag} {attributes}>{title}</{tag}>" if tip else f"<{tag} {attributes}/>"
        )


def interval_text(
    value: float | None, low: float | None, high: float | None, share: bool, unit: bool = False
) -> str:
    """'86.2 (83.9 to 88.4)' with as many digits as the interval deserves."""
    if value is None:
        return "not measured"
    width = high - low if low is not None and high is not None else 0.0
    kind = "share" if share else ""
    suffix = " %" if share and unit else ""
    shown = number_text(value, kind, width) + suffix
    if low is None or high is None:
        return shown
    return f"{shown} ({number_text(low, kind, width)} to {number_text(high, kind, width)})"

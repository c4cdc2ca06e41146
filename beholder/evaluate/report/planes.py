"""Charts on two axes: lines, histogram, reliability, scatter."""

from __future__ import annotations

import polars as pl

from beholder.core.sections import Figure

from .canvas import DASHES, FORMS, Canvas, Scale, interval_text, paint, series_paint
from .rows import are_shares, domain, finite, numbers, wrapped
from .text import number_text, shortened, text_width, visible

MOST_POINTS = 2000
BINS = 200


def series_of(frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The rows of each series, in the order of first appearance."""
    if "series" not in frame.columns:
        return {"": frame}
    names = frame["series"].unique(maintain_order=True)
    return {str(name): frame.filter(pl.col("series").eq_missing(name)) for name in names}


def binned(frame: pl.DataFrame, low: float, high: float) -> pl.DataFrame:
    """Means of at most `BINS` equal bins of x over [low, high]."""
    step = (high - low) / BINS
    place = ((pl.col("x") - low) / step).floor().clip(0, BINS - 1)
    numeric = [name for name in ("x", "y", "low", "high") if name in frame.columns]
    return frame.group_by(place.alias("bin")).agg(pl.col(numeric).mean()).sort("bin").drop("bin")


def plane(canvas: Canvas, figure: Figure, x: Scale, y: Scale, top: float, notes: list[str]) -> None:
    """Grid, axis labels and names around an area whose upper edge is `top`."""
    left, right, bottom = x.start, x.end, y.start
    if figure.y:
        canvas.text(0, top - 12, figure.y, fill="muted", room=canvas.width)
    for tick, label in y.labels():
        at = y(tick)
        canvas.line(left, at, right, at)
        canvas.text(left - 8, at + 4.5, label, "end", "muted")
    taken = -1e9
    for tick, label in x.labels():
        half = text_width(label) / 2
        at = min(canvas.width - half, x(tick))
        canvas.line(x(tick), bottom, x(tick), bottom + 4, "muted")
        if at - half > taken + 6:
            canvas.text(at, bottom + 19, label, "middle", "muted")
            taken = at + half
    canvas.line(left, bottom, right, bottom, "muted")
    height = bottom + 39
    for line in wrapped([note for note in [figure.x, *notes] if note], canvas.width):
        canvas.text((left + right) / 2, height, line, "middle", "muted")
        height += 18
    canvas.height = height - 8


def left_room(scale: Scale) -> float:
    return max(text_width(label) for _, label in scale.labels()) + 12


def top_of(figure: Figure, canvas: Canvas, legend: list[tuple[str, str, bool, str]]) -> float:
    """Draw the legend and return the upper edge of the plane."""
    y = canvas.legend(legend, 14.0)
    return y + (16 if figure.y else 0) if legend or figure.y else 10.0


def crop_note(axis: str, scale: Scale) -> list[str]:
    shown = number_text(scale.low, "share", 1.0) + " %" if scale.share else number_text(scale.low)
    return [f"{axis} axis starts at {shown}"] if scale.low > 0 else []


def draw_lines(figure: Figure, width: float, narrow: bool) -> Canvas:
    """Lines through points, with bands for intervals, each named at its end."""
    frame = figure.data.filter(pl.col("x").is_not_null() & pl.col("y").is_not_null())
    xs, ys = numbers(frame, "x"), numbers(frame, "y", "low", "high")
    groups = series_of(frame)
    canvas = Canvas(width)
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    notes: list[str] = []
    if frame.height > MOST_POINTS:
        groups = {name: binned(group, x_low, x_high) for name, group in groups.items()}
        notes.append(f"{frame.height:,} points in {BINS} bins")
    named = [name for name in groups if name]
    at_end = not narrow and 1 < len(named) <= 8
    legend = [
        (FORMS[index % 8], series_paint(index), False, name)
        for index, name in enumerate(named)
        if len(named) > 1 and not at_end
    ]
    shares_y = are_shares(ys)
    low, high = domain(ys, shares_y, from_zero=False)
    if low < 0.25 * high:
        low = min(0.0, low)
    top = top_of(figure, canvas, legend)
    bottom = top + (220 if narrow else 260)
    y = Scale(low, high, bottom, top, shares_y)
    end_room = min(max(text_width(visible(name)) for name in named), 0.28 * width) if at_end else 0
    x = Scale(
        x_low, x_high, left_room(y), width - (end_room + 18 if at_end else 8),
        are_shares(xs, counts_too=True),
        tuple(sorted(set(xs))) if len(set(xs)) <= 6 else (),
    )  # fmt: skip
    if numbers(frame, "low", "high"):
        notes.append("bands: 95 % intervals")
    plane(canvas, figure, x, y, top, notes + crop_note("upright", y))
    ends: list[tuple[float, float, int, str]] = []
    for index, (name, group) in enumerate(groups.items()):
        points = _one_series(canvas, group.sort("x"), x, y, index, name)
        if at_end and len(points) == 1:
            canvas.text(points[0][0] + 8, points[0][1] + 17, shortened(visible(name), end_room))
        elif at_end and points:
            ends.append((points[-1][1], points[-1][0], index, name))
    _end_labels(canvas, ends, end_room, top, bottom)
    return canvas


def _one_series(
    canvas: Canvas, group: pl.DataFrame, x: Scale, y: Scale, index: int, name: str
) -> list[tuple[float, float]]:
    colour = series_paint(index)
    rows = [row for row in group.iter_rows(named=True) if finite(row["x"]) and finite(row["y"])]
    whole = [row for row in rows if finite(row.get("low")) and finite(row.get("high"))]
    if len(whole) > 1:
        upper = [(x(row["x"]), y(row["high"])) for row in whole]
        lower = [(x(row["x"]), y(row["low"])) for row in reversed(whole)]
        canvas.path(upper + lower, fill=colour, opacity=0.16, close=True)
    points = [(x(row["x"]), y(row["y"])) for row in rows]
    if len(points) > 1:
        canvas.path(points, stroke=colour, dash=DASHES[index // 4 % 4])
    if len(points) <= 24:
        for row, (px, py) in zip(rows, points, strict=True):
            if finite(row.get("low")) and finite(row.get("high")):
                canvas.whisker_up(px, y(row["low"]), y(row["high"]), colour)
            value = interval_text(row["y"], row.get("low"), row.get("high"), y.share, unit=True)
            tip = f"{name}: {value}" if name else value
            canvas.marker(FORMS[index % 8], px, py, colour, f"{tip} at {number_text(row['x'])}")
    else:
        for px, py in points[:: max(1, len(points) // 6)]:
            canvas.marker(FORMS[index % 8], px, py, colour, name)
    return points


def _end_labels(
    canvas: Canvas,
    ends: list[tuple[float, float, int, str]],
    room: float,
    top: float,
    bottom: float,
) -> None:
    """Names at the lines' ends, moved apart so that none covers another."""
    ends.sort()
    taken = top - 17
    spare = bottom - top - 17 * len(ends)
    for order, (py, px, index, name) in enumerate(ends):
        latest = bottom - 17 * (len(ends) - 1 - order)
        at = max(taken + 17, min(py, latest)) if spare > 0 else taken + 17
        if abs(at - py) > 2:
            canvas.line(px + 6, py, px + 14, at, series_paint(index), 1.0)
        canvas.text(px + 16, at + 4.5, shortened(visible(name), room))
        taken = at


def draw_histogram(figure: Figure, width: float, narrow: bool) -> Canvas:
    """Counts per bin; several series as outlines over each other; `mark` as an upright line."""
    frame = figure.data.filter(pl.col("left").is_not_null() & pl.col("right").is_not_null())
    canvas = Canvas(width)
    groups = series_of(frame)
    named = [name for name in groups if name]
    legend = [
        ("square", series_paint(index), False, name)
        for index, name in enumerate(named)
        if len(named) > 1
    ]
    edges, counts = numbers(frame, "left", "right"), numbers(frame, "count")
    marks = sorted(set(numbers(frame, "mark")))
    low, high = (min(edges + marks), max(edges + marks)) if edges else (0.0, 1.0)
    top = top_of(figure, canvas, legend) + (18 if marks else 0)
    bottom = top + (180 if narrow else 220)
    most = max(counts, default=0.0)
    y = Scale(0.0, most or 1.0, bottom, top, are_shares(counts, counts_too=True))
    x = Scale(low, high if high > low else low + 1.0, left_room(y), width - 8)
    plane(canvas, figure, x, y, top - (18 if marks else 0), [])
    for index, (name, group) in enumerate(groups.items()):
        colour = series_paint(index)
        outline: list[tuple[float, float]] = []
        for row in group.sort("left").iter_rows(named=True):
            x1, x2, edge = x(row["left"]), x(row["right"]), y(row["count"] or 0.0)
            between = f"{number_text(row['left'])} to {number_text(row['right'])}"
            tip = f"{name + ', ' if name else ''}{between}: {number_text(row['count'])}"
            gap = 1 if len(groups) == 1 and x2 - x1 > 4 else 0
            canvas.rect(
                x1, edge, x2 - x1 - gap, bottom - edge, colour, tip,
                1.0 if len(groups) == 1 else 0.22,
            )  # fmt: skip
            if not outline or outline[-1][0] != x1:
                outline.append((x1, bottom if not outline else outline[-1][1]))
            outline += [(x1, edge), (x2, edge)]
        if len(groups) > 1 and outline:
            canvas.path([*outline, (outline[-1][0], bottom)], stroke=colour, width=1.8)
    for at in marks:
        canvas.line(x(at), top - 6, x(at), bottom, "text", 1.6, "5 3")
        label = number_text(at)
        half = text_width(label) / 2
        canvas.text(min(width - half, max(half, x(at))), top - 10, label, "middle", bold=True)
    return canvas


def draw_reliability(figure: Figure, width: float, narrow: bool) -> Canvas:
    """Accuracy against confidence with intervals, and the diagonal of a calibrated model."""
    frame = figure.data.filter(pl.col("confidence").is_not_null())
    size = width if narrow else min(width, 460.0)
    canvas = Canvas(size)
    confidences, all_values = (
        numbers(frame, "confidence"),
        numbers(frame, "accuracy", "low", "high"),
    )
    tenth = [int(10 * min(values)) / 10 for values in (confidences, all_values) if values]
    x_low = min(0.9, tenth[0]) if tenth else 0.0
    y_low = min(0.9, *tenth) if len(tenth) > 1 else x_low
    top = top_of(figure, canvas, [])
    left = text_width("100 %") + 12
    side = size - left - 14
    x = Scale(x_low, 1.0, left, left + side, True)
    y = Scale(y_low, 1.0, top + side, top, True)
    notes = ["whiskers: 95 % intervals", "dashed: perfectly calibrated"]
    plane(canvas, figure, x, y, top, notes)
    start = max(x_low, y_low)
    canvas.line(x(start), y(start), x(1.0), y(1.0), "muted", 1.4, "5 4")
    for row in frame.sort("confidence").iter_rows(named=True):
        if not finite(row["accuracy"]):
            continue
        px, py = x(row["confidence"]), y(row["accuracy"])
        if finite(row["low"]) and finite(row["high"]):
            canvas.whisker_up(px, y(row["low"]), y(row["high"]), paint("s1"))
        right = interval_text(row["accuracy"], row["low"], row["high"], True, unit=True)
        confidence = number_text(row["confidence"], "share")
        tip = f"confidence {confidence} %: right {right}, n {row['n']:,}"
        canvas.marker("disc", px, py, paint("s1"), tip)
    return canvas


def draw_scatter(figure: Figure, width: float, narrow: bool) -> Canvas:
    """Points with their series' marker; above 2,000 points the centres of 60 x 40 cells."""
    frame = figure.data.filter(pl.col("x").is_not_null() & pl.col("y").is_not_null())
    canvas = Canvas(width)
    groups = series_of(frame)
    named = [name for name in groups if name]
    legend = [
        (FORMS[index % 8], series_paint(index), False, name) for index, name in enumerate(named)
    ]
    xs, ys = numbers(frame, "x"), numbers(frame, "y")
    top = top_of(figure, canvas, legend)
    bottom = top + (260 if narrow else 320)
    y = Scale(*domain(ys, are_shares(ys), from_zero=False), bottom, top, are_shares(ys))
    x_domain = domain(xs, are_shares(xs), from_zero=False)
    x = Scale(*x_domain, left_room(y), width - 8, are_shares(xs))
    many = frame.height > MOST_POINTS
    plane(canvas, figure, x, y, top, [f"{frame.height:,} points in cells"] if many else [])
    for index, (name, group) in enumerate(groups.items()):
        if many:
            group = _cells(group, x, y)
        for row in group.iter_rows(named=True):
            if finite(row["x"]) and finite(row["y"]):
                label = str(row.get("label") or name)
                canvas.marker(
                    FORMS[index % 8], x(row["x"]), y(row["y"]), series_paint(index), label,
                    hollow=True,
                )  # fmt: skip
    return canvas


def _cells(group: pl.DataFrame, x: Scale, y: Scale) -> pl.DataFrame:
    wide, high = (x.high - x.low) / 60, (y.high - y.low) / 40
    cells = group.with_columns(
        ((pl.col("x") / wide).floor() + 0.5) * wide, ((pl.col("y") / high).floor() + 0.5) * high
    )
    counted = cells.group_by("x", "y").len().sort("x", "y")
    return counted.select("x", "y", label=pl.format("{} points", "len"))

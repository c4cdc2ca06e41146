"""Charts: every kind, with nothing, one row and far too many rows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report import fake

from beholder.core.sections import Figure
from beholder.evaluate.report import canvas, svg

SVG = "{http://www.w3.org/2000/svg}"
ROWS = {
    "bars": {"label": "a", "value": 3.0},
    "dots": {"label": "a", "value": 0.8, "low": 0.7, "high": 0.9},
    "forest": {"label": "a", "value": 0.8, "low": 0.7, "high": 0.9, "raw": 0.75, "n": 40},
    "grid": {"row": "a", "column": "b", "value": 0.5, "text": "12 (50 %)"},
    "lines": {"x": 0.5, "y": 0.8, "low": 0.7, "high": 0.9, "series": "s"},
    "histogram": {"left": 0.0, "right": 1.0, "count": 5, "series": "s", "mark": 0.4},
    "reliability": {"confidence": 0.9, "accuracy": 0.8, "low": 0.7, "high": 0.9, "n": 44},
    "scatter": {"x": 1.0, "y": 2.0, "series": "s", "label": "a"},
}


def figure(kind: str, rows: int) -> Figure:
    data = pl.DataFrame([ROWS[kind]] * max(1, rows)).head(rows)
    return Figure(kind=kind, data=data, title="A title", x="along", y="up")


def draw(drawn: Figure, narrow: bool = False) -> ET.Element:
    return ET.fromstring(svg.draw(drawn, narrow=narrow))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_draws_nothing_and_one_row(kind: str, rows: int, narrow: bool) -> None:
    root = draw(figure(kind, rows), narrow)
    assert root.get("role") == "img"
    assert root[0].tag == f"{SVG}title"
    assert root[0].text == "A title"
    assert root[1].tag == f"{SVG}desc"
    assert "nan" not in ET.tostring(root, "unicode")


@pytest.mark.parametrize("kind", ["bars", "dots", "forest", "lines", "reliability", "grid"])
def test_a_missing_value_is_no_error(kind: str) -> None:
    row = {key: None if isinstance(value, float) else value for key, value in ROWS[kind].items()}
    data = pl.DataFrame([ROWS[kind], row], schema=figure(kind, 1).data.schema)
    draw(Figure(kind=kind, data=data, title="t"))


@pytest.mark.parametrize("kind", ROWS)
def test_text_is_at_least_eleven_pixels_at_390(kind: str) -> None:
    page = 390 - 2 * 16 - 2 * 9  # margins of the page, of a scrolling box
    root = draw(figure(kind, 1), narrow=True)
    width = float(root.get("width", "0"))
    scale = 1.0 if "data-scroll" in root.attrib else min(1.0, page / width)
    sizes = {float(text.get("font-size", "0")) for text in root.iter(f"{SVG}text")}
    assert min(sizes) * scale >= 11


def test_narrow_charts_are_as_wide_as_a_phone_and_wide_ones_below_960() -> None:
    for section in fake.report(pictures=False).sections:
        for drawn in section.figures.values():
            if drawn.kind == "grid":
                continue
            assert float(draw(drawn, narrow=True).get("width", "0")) <= svg.NARROW
            assert float(draw(drawn).get("width", "0")) <= 960


def test_intervals_are_drawn() -> None:
    for kind in ("dots", "forest", "reliability", "lines", "bars"):
        row = ROWS[kind] | {"low": 0.7, "high": 0.9, "value": 0.8}
        plain = {key: value for key, value in row.items() if key not in ("low", "high")}
        with_ends = svg.draw(Figure(kind=kind, data=pl.DataFrame([row]), title="t"))
        without = {**plain, **({"low": None, "high": None} if kind == "reliability" else {})}
        bare = svg.draw(Figure(kind=kind, data=pl.DataFrame([without]), title="t"))
        thick = re.compile(r'<line [^>]*stroke-width="(?:2|1.6)"')
        assert len(thick.findall(with_ends)) == len(thick.findall(bare)) + 3, kind


def test_a_share_is_written_as_per_cent_with_the_digits_of_its_interval() -> None:
    row = {"label": "a", "value": 0.8624, "low": 0.839, "high": 0.884}
    wide = row | {"low": 0.7, "high": 0.95}
    assert "86.2 (83.9 to 88.4)" in svg.draw(
        Figure(kind="dots", data=pl.DataFrame([row]), title="t")
    )
    assert "86 (70 to 95)" in svg.draw(Figure(kind="dots", data=pl.DataFrame([wide]), title="t"))


def test_bars_start_at_zero_and_a_cropped_axis_says_so() -> None:
    rows = pl.DataFrame([{"label": "a", "value": 0.8, "low": 0.75, "high": 0.85}])
    assert "axis starts" not in svg.draw(Figure(kind="bars", data=rows, title="t"))
    assert "axis starts at 70 %" in svg.draw(Figure(kind="dots", data=rows, title="t"))


def test_more_than_two_thousand_points_are_binned() -> None:
    points = pl.DataFrame(
        {
            "x": [i / 5000 for i in range(5000)],
            "y": [(i % 97) / 97 for i in range(5000)],
            "series": ["s"] * 5000,
            "label": ["p"] * 5000,
        }
    )
    lines = svg.draw(Figure(kind="lines", data=points, title="t"))
    assert "5,000 points in 200 bins" in lines
    assert len(lines) < 20_000
    scatter = svg.draw(Figure(kind="scatter", data=points, title="t"))
    assert "5,000 points in cells" in scatter
    assert scatter.count("<circle") <= 61 * 41


def test_a_grid_of_many_classes_scrolls_at_its_own_size() -> None:
    names = [f"class {i}" for i in range(30)]
    rows = [
        {"row": a, "column": b, "value": 1.0, "text": "12 (88 %)"} for a in names for b in names
    ]
    root = draw(Figure(kind="grid", data=pl.DataFrame(rows), title="t"), narrow=True)
    assert "data-scroll" in root.attrib
    assert float(root.get("width", "0")) > 1000


def test_series_have_their_own_markers_and_names() -> None:
    rows = [{"x": x, "y": float(s + x), "series": f"s{s}"} for s in range(3) for x in (0, 1)]
    text = svg.draw(Figure(kind="lines", data=pl.DataFrame(rows), title="t"))
    assert all(f">s{s}</text>" in text for s in range(3))
    assert len(set(re.findall(r'<(?:circle|path d="M[^"]+Z")', text))) >= 3
    assert len({canvas.FORMS[i] for i in range(8)}) == 8


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.text(max_size=60))
def test_any_name_gives_well_formed_svg(name: str) -> None:
    row = {"label": name, "value": 0.8, "low": 0.7, "high": 0.9}
    for narrow in (False, True):
        draw(Figure(kind="dots", data=pl.DataFrame([row]), title=name, x=name), narrow)
    cell = {"row": name, "column": name, "value": 1.0, "text": name}
    draw(Figure(kind="grid", data=pl.DataFrame([cell]), title=name))


def test_hidden_characters_are_shown() -> None:
    assert canvas.svg_text("a\u202eb\x00<") == "a\\u202eb\\x00&lt;"

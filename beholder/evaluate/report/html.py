"""`report.html`: one file that opens anywhere, asks for nothing and runs only our own script.

specs/study.md, section 8. Strings reach the page through jinja2's escaping, after `visible` has
shown what hides in them; charts come as SVG that `svg_text` has escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from beholder.core.sections import Figure, Picture, Section, Unit, Value

from . import method
from .markdown import STATUS_WORDS, markdown
from .pictures import MOST_PICTURES, Pictures, reductions
from .report import Report
from .results import VALUE_NAMES
from .rows import are_shares, numbers
from .tables import TableView, view
from .text import capital, csv_text, middle, spoken, tied, visible, without_unit
from .tiles import tiles_of

TEMPLATES = Path(__file__).with_name("templates")
LIMIT = 10_000_000  # bytes of report.html
NOTEBOOK_LIMIT = 200_000
CSV_ROWS = 2000
FIRST_ROWS = 12
WORDS = {"good": "Good", "look": "Look", "act": "Act", "none": ""}
LONG_TEXT = 2000  # characters of a sentence in a notebook or a card


@dataclass(frozen=True)
class FigureView:
    """A chart in both widths, its data as a table and as a link to CSV."""

    title: str
    note: str
    wide: Markup
    narrow: Markup
    tall: bool
    data: TableView
    csv: str
    file: str
    csv_rows: int


@dataclass(frozen=True)
class PictureView:
    """A picture as data: URLs, with its size in pixels; `heat`: whether its overlay is on first."""

    src: str
    large: str
    width: int
    height: int
    alt: str
    caption: str
    facts: dict[str, str]
    overlay: str
    heat: bool
    beside: list[PictureView]


@dataclass(frozen=True)
class SectionView:
    """A section ready to be set."""

    section: Section
    anchor: str
    word: str
    status: str
    shown: bool
    values: list[tuple[str, str, str]]
    figures: list[FigureView]
    tables: list[TableView]
    buckets: list[tuple[str, list[PictureView]]]
    overlaid: bool
    missing: int
    test: str
    shortened: str


def environment() -> Environment:
    """Escaping on, undefined names are errors, every string made visible first."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: visible(x) if isinstance(x, str) and not isinstance(x, Markup) else x,
    )
    made.filters |= {"middle": middle, "capital": capital, "tied": tied}
    return made


ENVIRONMENT = environment()


def asset(name: str) -> str:
    return (TEMPLATES / name).read_text()


def script_hash(script: str) -> str:
    """The source expression by which a Content-Security-Policy lets exactly this script run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def script_json(value: object) -> Markup:
    """JSON for a `<script type="application/json">`: no `<` can end it."""
    return Markup(json.dumps(value, ensure_ascii=True).replace("<", "\\u003c"))


def anchor(id: str) -> str:
    """A section's id as the page's anchor."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", id)


def figure_view(name: str, figure: Figure) -> FigureView:
    """A figure drawn twice, with its data."""
    frame = figure.data.head(CSV_ROWS)
    text = csv_text(frame.columns, frame.iter_rows())
    labels = next((column for column in ("label", "row") if column in frame.columns), None)
    rows = frame[labels].n_unique() if labels and figure.kind != "scatter" else 0
    return FigureView(
        title=figure.title,
        note=figure.note,
        wide=Markup(figure.to_svg()),
        narrow=Markup(figure.to_svg(narrow=True)),
        tall=rows > (25 if figure.kind == "grid" else 12),
        data=view(figure.title, figure.data, share_units(figure)),
        csv="data:text/csv;charset=utf-8," + quote(text),
        file=f"{anchor(name)}.csv",
        csv_rows=frame.height,
    )


def share_units(figure: Figure) -> dict[str, Unit]:
    """Unit of the columns that the chart draws as shares."""
    drawn = [name for name in ("value", "y", "accuracy") if name in figure.data.columns]
    values = numbers(figure.data, *drawn, "low", "high", "raw", "reference")
    if figure.kind == "grid" or not are_shares(values, counts_too=figure.kind == "bars"):
        return {}
    return dict.fromkeys((*drawn, "low", "high", "raw", "reference", "confidence"), "share")


def picture_view(picture: Picture, pictures: Pictures, heat: bool = False) -> PictureView | None:
    """None where the picture's file had vanished, or no room was left for it."""
    sizes = pictures.get(picture.id)
    if not sizes:
        return None
    small, large = min(sizes), max(sizes)
    over = pictures.get(picture.overlay)
    with Image.open(io.BytesIO(sizes[small])) as image:
        width, height = image.size
    return PictureView(
        src=_url(sizes[small]),
        large=_url(sizes[large]) if picture.large and large != small else "",
        width=width,
        height=height,
        alt=picture.alt,
        caption=picture.caption,
        facts=picture.facts,
        overlay=_url(over[min(over)]) if over else "",
        heat=heat,
        beside=[seen for other in picture.beside if (seen := picture_view(other, pictures, True))],
    )


def _url(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def section_view(section: Section, pictures: Pictures, most: int = MOST_PICTURES) -> SectionView:
    """A section set for the page; at most `most` of its pictures."""
    seen = [picture_view(picture, pictures) for picture in section.pictures[:most]]
    buckets: dict[str, list[PictureView]] = {}
    for picture, shown in zip(section.pictures, seen, strict=False):
        if shown:
            buckets.setdefault(picture.bucket, []).append(shown)
    test, spent = section.self_test, section.budget
    return SectionView(
        section=section,
        anchor=anchor(section.id),
        word=WORDS[section.severity],
        status=STATUS_WORDS[section.status],
        shown=section.status in ("measured", "reduced"),
        values=[
            (value_words(section.id, name, value.unit), *value_texts(value))
            for name, value in section.values.items()
        ],
        figures=[
            figure_view(f"{section.id}-{name}", figure)
            for name, figure in section.figures.items()
            if figure.data.height
        ],
        tables=[
            view(name, table.frame, table.units)
            for name, table in section.tables.items()
            if table.frame.height
        ],
        buckets=list(buckets.items()),
        overlaid=any(x.overlay for item in seen if item for x in (item, *item.beside)),
        missing=sum(shown is None for shown in seen),
        test=f"Self-test: of {test.planted:,} planted faults the search found {test.found:,}, "
        f"{test.recall.text()}." if test else "",
        shortened=f"on {spent.used:,} of {spent.wanted:,} {spent.what} (budget)"
        if section.status == "reduced" else "",
    )  # fmt: skip


def value_words(section: str, name: str, unit: Unit) -> str:
    """How a value is called on the page."""
    return VALUE_NAMES.get(section, {}).get(name) or capital(spoken(without_unit(name, unit)))


def value_texts(value: Value) -> tuple[str, str]:
    """The figure, and its interval; a dash and the reason where there is no figure."""
    if value.estimate is None:
        return "–", value.why or "not measured"
    number = value.text(interval=False)
    return number, value.text().removeprefix(number).strip(" ()")


def report_html(report: Report, limit: int = LIMIT) -> str:
    """The page, with its pictures reduced until it holds at most `limit` bytes."""
    page = ""
    for pictures, most, note in reductions(report.pictures):
        page = _page(report, pictures, most, note)
        if len(page.encode()) <= limit:
            break
    return page


def _page(report: Report, pictures: Pictures, most: int, note: str) -> str:
    script = asset("report.js")
    measured = [section for section in report.sections if section.id != "method"]
    own = next((section for section in report.sections if section.id == "method"), None)
    return ENVIRONMENT.get_template("report.html").render(
        report=report,
        word=WORDS[report.severity],
        tiles=tiles_of(report),
        views=[section_view(section, pictures, most) for section in measured],
        own=section_view(own, {}) if own else None,
        notes=[note] if note else [],
        facts=method.facts(report),
        effort=view("effort per section", method.effort(report)),
        files=method.files(report),
        shortened=_shortened(report),
        first_rows=FIRST_ROWS,
        css=Markup(asset("report.css")),
        js=Markup(script),
        script_hash=script_hash(script),
        data=script_json({"markdown": markdown(report)}),
    )  # fmt: skip


def _shortened(report: Report) -> str:
    """'3 sections were shortened, 1 was skipped by the budget.', or nothing."""
    short, left = len(report.budget.shortened), len(report.budget.skipped)
    parts = [
        f"{count} {'section was' if count == 1 else 'sections were'} {what}"
        for count, what in ((short, "shortened"), (left, "skipped"))
        if count
    ]
    return f"{' and '.join(parts)} to keep within the budget." if parts else ""


def notebook_html(report: Report) -> str:
    """Verdict, tiles and findings for a notebook: no script, its own style, at most 200 kB."""
    for most in (len(report.sections), 100, 20):
        page = ENVIRONMENT.get_template("notebook.html").render(
            report=report,
            word=WORDS[report.severity],
            tiles=tiles_of(report),
            sections=report.sections[:most],
            words=WORDS,
            status=STATUS_WORDS,
            limit=LONG_TEXT if most > 20 else 200,
            css=Markup(asset("notebook.css")),
        )  # fmt: skip
        if len(page.encode()) <= NOTEBOOK_LIMIT:
            return page
    return page


def section_html(section: Section) -> str:
    """One section for a notebook: finding, values, figures, the first rows of its tables."""
    return ENVIRONMENT.get_template("notebook_section.html").render(
        view=section_view(section, {}),
        first_rows=FIRST_ROWS,
        css=Markup(asset("notebook.css")),
    )  # fmt: skip

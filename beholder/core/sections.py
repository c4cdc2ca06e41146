"""What every evaluation returns: values with intervals, tables, figures, pictures, one finding.

A `Section` is plain data. The report, the JSON, the terminal table and the notebook all draw the
same object, so a new benchmark appears in all of them without further code.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

Severity = Literal["good", "look", "act", "none"]
Status = Literal["measured", "reduced", "not_applicable", "skipped_budget", "failed"]
Unit = Literal["share", "points", "ms", "images/s", "MiB", "count", ""]
Method = Literal["wilson", "bootstrap", "clopper-pearson", "beta", "t", "exact", "none"]
FigureKind = Literal[
    "bars", "dots", "forest", "grid", "lines", "histogram", "reliability", "scatter"
]

SEVERITIES: tuple[Severity, ...] = ("none", "good", "look", "act")


def worst(*severities: Severity) -> Severity:
    """The gravest of them; 'none' of nothing."""
    return SEVERITIES[max(map(SEVERITIES.index, severities), default=0)]


def share_text(share: float, width: float = 0.0, unit: bool = True) -> str:
    """A share as per cent: one decimal, or none where the interval is wider than ten points."""
    return f"{100 * share:.{0 if width > 0.10 else 1}f}" + (" %" if unit else "")


def _dump_frame(frame: pl.DataFrame) -> dict[str, Any]:
    return {
        "columns": [{"name": name, "type": str(kind)} for name, kind in frame.schema.items()],
        "rows": [[_plain(cell) for cell in row] for row in frame.iter_rows()],
    }


def _plain(cell: Any) -> Any:
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    return [_plain(x) for x in cell] if isinstance(cell, list) else cell


def _load_frame(value: Any) -> pl.DataFrame:
    if isinstance(value, pl.DataFrame):
        return value
    schema = {column["name"]: _dtype(column["type"]) for column in value["columns"]}
    return pl.DataFrame(value["rows"], schema=schema, orient="row")


def _dtype(text: str) -> Any:
    if text.startswith("List("):
        return pl.List(_dtype(text[5:-1]))
    return getattr(pl, text, pl.String)


Frame = Annotated[
    pl.DataFrame,
    BeforeValidator(_load_frame),
    PlainSerializer(_dump_frame, return_type=dict),
    WithJsonSchema(
        {
            "type": "object",
            "required": ["columns", "rows"],
            "properties": {
                "columns": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "type"],
                        "properties": {"name": {"type": "string"}, "type": {"type": "string"}},
                    },
                },
                "rows": {"type": "array", "items": {"type": "array"}},
            },
        }
    ),
]


class Noun(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")


class Value(Noun):
    """A measured figure with its interval. `estimate` is None, with a `why`, where undefined.

    Shares, and points (differences of shares), are 0..1. `n` counts the judged images (or units)
    it rests on.
    """

    estimate: float | None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    n: int = 0
    unit: Unit = "share"
    higher_is_better: bool | None = True
    method: Method = "none"
    resamples: int | None = None
    why: str | None = None

    def model_post_init(self, context: Any) -> None:
        for name in ("estimate", "low", "high"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                setattr(self, name, None)
                self.why = self.why or f"{name} is {value}"

    @classmethod
    def undefined(cls, why: str, n: int = 0, unit: Unit = "share") -> Value:
        return cls(estimate=None, why=why, n=n, unit=unit)

    @property
    def width(self) -> float:
        return 0.0 if self.low is None or self.high is None else self.high - self.low

    def text(self, interval: bool = True) -> str:
        """For people: '86.2 % (83.9 to 88.4)'; the reason where there is no figure."""
        if self.estimate is None:
            return self.why or "not measured"
        numbers = [self.estimate, self.low, self.high]
        if self.unit in ("share", "points"):
            texts = [None if x is None else share_text(x, self.width, unit=False) for x in numbers]
            suffix = " %" if self.unit == "share" else " points"
        elif self.unit == "count":
            texts = [None if x is None else f"{x:,.0f}" for x in numbers]
            suffix = ""
        else:
            texts = [None if x is None else f"{x:.3g}" for x in numbers]
            suffix = f" {self.unit}" if self.unit else ""
        shown = f"{texts[0]}{suffix}"
        bounded = interval and texts[1] is not None and texts[2] is not None
        return f"{shown} ({texts[1]} to {texts[2]})" if bounded else shown


class Figure(Noun):
    """Data to be drawn. Columns of `data` by kind:

    bars (label, value, low?, high?, series?), dots (label, value, low, high, reference?),
    forest (label, value, low, high, raw, n), grid (row, column, value, text),
    lines (x, y, low?, high?, series), histogram (left, right, count, series, mark?),
    reliability (confidence, accuracy, low, high, n), scatter (x, y, series, label; <= 500 rows).
    """

    kind: FigureKind
    data: Frame
    title: str
    x: str = ""
    y: str = ""
    note: str = ""

    def to_svg(self, narrow: bool = False) -> str:
        """Inline SVG; needs `beholder.evaluate`, imported here because core stands above it."""
        import importlib

        return importlib.import_module("beholder.evaluate.report.svg").draw(self, narrow=narrow)


class Table(Noun):
    """A polars frame, and the unit of those columns that have one."""

    frame: Frame
    units: dict[str, Unit] = Field(default_factory=dict)


class Picture(Noun):
    """An image to be shown, by id: the report reads the pixels.

    Attributes:
        overlay: id of a made RGBA picture that can be laid over this one; '' = none.
        beside: others next to it; their overlays are on from the start.
    """

    id: str
    caption: str
    alt: str
    bucket: str = ""
    facts: dict[str, str] = Field(default_factory=dict)
    large: bool = False
    overlay: str = ""
    beside: list[Picture] = Field(default_factory=list)


class SelfTest(Noun):
    """A search run on faults that were planted first."""

    planted: int
    found: int
    recall: Value
    precision: Value | None = None


class Spent(Noun):
    """What a section wanted to use, what the budget allowed, and the seconds it took."""

    wanted: int = 0
    used: int = 0
    what: str = "images"
    seconds: float = 0.0


class Section(Noun):
    """One part of a report."""

    id: str
    title: str
    finding: str
    status: Status = "measured"
    severity: Severity = "none"
    version: int = 1
    n: int = 0
    unit: Literal["image", "source", "copy_group"] = "image"
    values: dict[str, Value] = Field(default_factory=dict)
    tables: dict[str, Table] = Field(default_factory=dict)
    figures: dict[str, Figure] = Field(default_factory=dict)
    pictures: list[Picture] = Field(default_factory=list)
    method: list[str] = Field(default_factory=list)
    files: list[str] = Field(default_factory=list)
    assumptions: list[str] = Field(default_factory=list)
    self_test: SelfTest | None = None
    budget: Spent = Field(default_factory=Spent)

    def frame(self, name: str) -> pl.DataFrame:
        """The table of that name."""
        return self.tables[name].frame

    def to_dict(self) -> dict[str, Any]:
        """Plain data, figures included."""
        return self.model_dump(mode="json")

    def _repr_html_(self) -> str:
        """For notebooks; drawn by `beholder.evaluate`, as `Figure.to_svg` is."""
        import importlib

        return importlib.import_module("beholder.evaluate.report.html").section_html(self)

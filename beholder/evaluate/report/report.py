"""The report of a run as plain data: what `study` returns, what every output is drawn from."""

from __future__ import annotations

import io
import json
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from beholder.core.errors import ArgumentError, DataError
from beholder.core.files import write_bytes, write_json
from beholder.core.sections import Section, Severity

from .anonymous import alias, anonymised
from .pictures import Pictures
from .results import (
    Against,
    BudgetFacts,
    DataFacts,
    Headline,
    ModelFacts,
    Results,
    SplitFacts,
    Verdict,
    section_record,
    to_json,
)

if TYPE_CHECKING:
    from beholder.core.model import VisionModel

PICTURE_SCHEMA = {"id": pl.String, "side": pl.Int32, "webp": pl.Binary}


@dataclass(eq=False)
class Report:
    """Everything that a run found.

    Nothing in it changes after it was made, but for the directory that the first `save` names. It
    can be pickled; an `open_model` must then be a function of a module, or a partial of one.

    Sections are reached by id: `report["accuracy"]`, or `report.accuracy` where no field has that
    name.

    Attributes:
        created: ISO 8601, UTC.
        command: the words of the command line.
        directory: where the run lies on disk; `predictions` and `open` need it.
        pictures: image id -> longest side -> WebP bytes.
        open_model: opens the judged model when `report.model` is asked for.
        anonymous: `save` and the HTML show short hashes in place of file names.
    """

    verdict: Verdict
    headline: Headline
    data: DataFacts
    split: SplitFacts
    model_facts: ModelFacts
    sections: list[Section]
    created: str
    command: list[str] = field(default_factory=list)
    budget: BudgetFacts = field(default_factory=BudgetFacts)
    timing: dict[str, float] = field(default_factory=dict)
    against: Against | None = None
    directory: Path | None = None
    pictures: Pictures = field(default_factory=dict, repr=False)
    open_model: Callable[[], VisionModel] | None = field(default=None, repr=False)
    anonymous: bool = False
    beholder: str = field(default_factory=lambda: version("beholder"))

    def __post_init__(self) -> None:
        """Plain dicts, as sections' helpers make them, become the parts they stand for."""
        self.verdict = Verdict.model_validate(self.verdict)
        self.headline = Headline.model_validate(self.headline)
        self.data = DataFacts.model_validate(self.data)
        self.split = SplitFacts.model_validate(self.split)
        self.model_facts = ModelFacts.model_validate(self.model_facts)
        self.budget = BudgetFacts.model_validate(self.budget)

    @property
    def severity(self) -> Severity:
        """How bad it is on the whole."""
        return self.verdict.severity

    def __getitem__(self, id: str) -> Section:
        """The section of that id. Raises `KeyError` that names those there are."""
        for section in self.sections:
            if section.id == id:
                return section
        known = ", ".join(section.id for section in self.sections)
        raise KeyError(f"no section {id!r}; there are: {known}")

    def __contains__(self, id: str) -> bool:
        return any(section.id == id for section in self.sections)

    def __getattr__(self, name: str) -> Section:
        # only reached where no field has that name; `sections` is absent while unpickling
        for section in self.__dict__.get("sections", ()):
            if section.id == name:
                return section
        raise AttributeError(f"Report has neither a field nor a section {name!r}")

    @property
    def predictions(self) -> pl.DataFrame:
        """`predictions.parquet`: one row per readable image. Raises `DataError` if not there."""
        path = None if self.directory is None else self.directory / "predictions.parquet"
        if path is None or not path.exists():
            raise DataError("This report has no predictions.parquet.", "Open a run directory.")
        return pl.read_parquet(path)

    @property
    def model(self) -> VisionModel:
        """The judged model, opened now. Raises `DataError` where the report does not know it."""
        if self.open_model is None:
            raise DataError("This report does not hold its model.", "Use beholder.load(run).")
        return self.open_model()

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` holds."""
        results = Results(
            created=self.created,
            beholder=self.beholder,
            command=self.command,
            verdict=self.verdict,
            headline=self.headline,
            data=self.data,
            split=self.split,
            model=self.model_facts,
            sections=[section_record(section) for section in self.sections],
            against=self.against,
            budget=self.budget,
            timing=self.timing,
        )
        return to_json(results)

    def to_markdown(self) -> str:
        """Verdict, tiles as a table, what to do next, the finding of every section."""
        from .markdown import markdown

        return markdown(self.public())

    def to_html(self) -> str:
        """One file that needs nothing else: no network, no script of others, below 10 MB."""
        from .html import report_html

        return report_html(self.public())

    def _repr_html_(self) -> str:
        from .html import notebook_html

        return notebook_html(self.public())

    def public(self) -> Report:
        """The report as others may see it: itself, or without file names if `anonymous`."""
        if not self.anonymous:
            return self
        sections, verdict = anonymised(self.sections, self.verdict)
        pictures = {alias(id): sizes for id, sizes in self.pictures.items()}
        return replace(self, sections=sections, verdict=verdict, pictures=pictures, anonymous=False)

    def save(self, directory: Path | str) -> None:
        """Write results.json, report.html, report.md and records/, each whole or not at all.

        Raises:
            StorageError: disk full or read-only.
        """
        directory = Path(directory)
        self.directory = self.directory or directory
        shown = self.public()
        records = directory / "records"
        for section in shown.sections:
            # not `write_json`: the order of values, tables and figures is that of the page
            text = json.dumps(section.to_dict(), ensure_ascii=False, allow_nan=False)
            write_bytes(records / f"{section.id}.json", text.encode())
        rows = [
            (id, side, webp) for id, sizes in shown.pictures.items() for side, webp in sizes.items()
        ]
        frame = pl.DataFrame(rows, schema=PICTURE_SCHEMA, orient="row")
        stream = io.BytesIO()
        frame.write_parquet(stream, compression="uncompressed")
        write_bytes(records / "pictures.parquet", stream.getvalue())
        write_bytes(directory / "report.md", shown.to_markdown().encode())
        page = shown.to_html().encode()
        write_bytes(directory / "report.html", page)
        write_json(directory / "results.json", shown.to_dict())

    @classmethod
    def load(
        cls, directory: Path | str, open_model: Callable[[], VisionModel] | None = None
    ) -> Report:
        """The report of a run directory, from results.json and records alone.

        Raises:
            DataError: no results.json there, or a record of it is missing.
        """
        directory = Path(directory)
        path = directory / "results.json"
        if not path.exists():
            raise DataError(f"There is no results.json in {directory}.", "Name a run directory.")
        results = Results.model_validate_json(path.read_bytes())
        sections = []
        for item in results.sections:
            record = directory / "records" / f"{item.id}.json"
            if not record.exists():
                raise DataError(f"{record.name} is missing in {record.parent}.", "Run study again.")
            sections.append(Section.model_validate(json.loads(record.read_bytes())))
        pictures: Pictures = {}
        for id, side, webp in pl.read_parquet(
            directory / "records" / "pictures.parquet"
        ).iter_rows():
            pictures.setdefault(id, {})[side] = webp
        return cls(
            verdict=results.verdict,
            headline=results.headline,
            data=results.data,
            split=results.split,
            model_facts=results.model,
            sections=sections,
            created=results.created,
            command=results.command,
            budget=results.budget,
            timing=results.timing,
            against=results.against,
            directory=directory,
            pictures=pictures,
            open_model=open_model,
            beholder=results.beholder,
        )

    def compare(self, other: Report) -> Section:
        """This run against another, image by image: what both were judged on. Raises `DataError`
        where one of them is not on disk."""
        from beholder.evaluate.against import compare
        from beholder.evaluate.pairs import Side

        name = other.directory.name if other.directory else other.model_facts.name
        sides = Side.of(self, "this model"), Side.of(other, name)
        return compare(*sides, self.split.seed)[1]

    def open(self) -> None:
        """Show report.html in the browser. Raises `ArgumentError` if it was not saved."""
        path = None if self.directory is None else self.directory / "report.html"
        if path is None or not path.exists():
            raise ArgumentError("This report is not on disk.", "Call report.save(directory) first.")
        webbrowser.open(path.resolve().as_uri())

"""What a section of the study is: a pure function of the evidence."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from beholder.core.images import DataKind
from beholder.core.options import Options
from beholder.core.sections import Section, Severity, Spent, Status

if TYPE_CHECKING:
    from beholder.evaluate.subject import Subject


@dataclass
class Evidence:
    """All that sections are computed from.

    Attributes:
        name: of the data set.
        classes: names, in order.
        frame: one row per readable image, sorted by id: the columns of `predictions.parquet`
            (specs/study.md, section 7) and of the scan (`file_size`, `mode`, `colourfulness`,
            `phash`, ...). `split` is train, val or test; `label` null = not judged.
            `probability` [C] is calibrated and out of sample for every labelled image: of the
            model for test images, cross-fitted for the others; null where there is none.
            `logits` [C] are those before calibration. `predicted`, `confidence` follow from
            `probability`; `correct` is null where `label` is.
        embeddings: [N, D] final features of the same rows (image only, no mirror), or None.
        repeats: test images of every split seed: seed, id, correct (bool).
        baselines: test images of the first split: name ("majority", "thumbnail", "reference",
            "portable"), id, predicted (int).
        learning: head refitted on a share of the training units: share, draw, id, correct.
        cost: rows of `cost.measure`.
        records: section -> name -> what was measured for it (see `Records`).
        unmeasured: section -> why there are no records: status and sentence.
        skipped: path, reason, detail.
        data: dict for `results.json: data`; split, model likewise.
        method: lines for the method section.
    """

    name: str
    kind: DataKind
    classes: tuple[str, ...]
    frame: pl.DataFrame
    skipped: pl.DataFrame
    embeddings: np.ndarray | None = None
    repeats: pl.DataFrame | None = None
    baselines: pl.DataFrame | None = None
    learning: pl.DataFrame | None = None
    cost: pl.DataFrame | None = None
    records: dict[str, dict[str, pl.DataFrame]] = field(default_factory=dict)
    spent: dict[str, Spent] = field(default_factory=dict)
    unmeasured: dict[str, tuple[Status, str]] = field(default_factory=dict)
    source_given: bool = False
    weighted: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def judged(self) -> pl.DataFrame:
        """Rows with a label that the model answered without having seen them: the test part."""
        return self.frame.filter(
            (pl.col("split") == "test")
            & pl.col("label").is_not_null()
            & pl.col("correct").is_not_null()
        )

    @property
    def has_labels(self) -> bool:
        return self.kind == "classes" and len(self.classes) >= 2

    def matrix(self, column: str, frame: pl.DataFrame | None = None) -> np.ndarray:
        """A list column without nulls as float64 [rows, C]."""
        frame = self.frame if frame is None else frame
        if not len(frame):
            return np.zeros((0, len(self.classes)))
        return frame[column].explode().to_numpy().astype(np.float64).reshape(len(frame), -1)


@dataclass
class Records:
    """What a section measured, apart from what it says of it.

    Attributes:
        frames: name -> rows. `images` (id and further columns, one row per image that has them)
            also joins `Evidence.frame` and `predictions.parquet`.
        spent: images (or what it counts) wanted and used; fewer used = the section is 'reduced'.
        pictures: id -> uint8 [h, w, 3], or [h, w, 4] to be laid over another, made by the section
            for its `Section.pictures`; ids begin with the section's own.
    """

    frames: dict[str, pl.DataFrame]
    spent: Spent = field(default_factory=Spent)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


Uses = Literal["data", "features", "answers"]


@dataclass(frozen=True)
class SectionSpec:
    """A registered section.

    Attributes:
        needs: None, or the sentence why it does not apply.
        summarise: a pure function of the evidence.
        measure: asks the model anew; its records are then in the evidence. None = all is there.
        uses: what has to be made first.
        share: of the budget, for `measure`.
        reads: a file in the run directory that people write into: `measure` reads it again.
        only: kind of data without which the report has no line of it, unless it is asked for.
    """

    id: str
    title: str
    needs: Callable[[Evidence], str | None]
    summarise: Callable[[Evidence, Options], Section]
    measure: Callable[[Subject], Records] | None = None
    uses: Uses = "answers"
    share: float = 0.0
    reads: str = ""
    only: DataKind | None = None

    def run(self, evidence: Evidence, options: Options) -> tuple[Section, str | None]:
        """The section, and the traceback where it failed."""
        if why := self.needs(evidence):
            return Section(id=self.id, title=self.title, finding=why, status="not_applicable"), None
        if self.id in evidence.unmeasured:
            status, why = evidence.unmeasured[self.id]
            return Section(id=self.id, title=self.title, finding=why, status=status), None
        start = time.monotonic()
        try:
            section = self.summarise(evidence, options)
        except Exception as error:  # a failing section must not end the study
            finding = f"This section failed: {type(error).__name__}: {error}"
            failed = Section(id=self.id, title=self.title, finding=finding, status="failed")
            return failed, traceback.format_exc()
        spent = evidence.spent.get(self.id, section.budget)
        section.budget = Spent(
            wanted=spent.wanted or section.n,
            used=spent.used or section.n,
            what=spent.what,
            seconds=round(spent.seconds + time.monotonic() - start, 3),
        )
        if section.budget.used < section.budget.wanted and section.status == "measured":
            section.status = "reduced"
        return section, None


SECTIONS: dict[str, SectionSpec] = {}


def section(
    id: str,
    title: str,
    needs: Callable[[Evidence], str | None] = lambda evidence: None,
    *,
    measure: Callable[[Subject], Records] | None = None,
    uses: Uses = "answers",
    share: float = 0.0,
    reads: str = "",
    only: DataKind | None = None,
) -> Callable[[Callable[[Evidence, Options], Section]], Callable[[Evidence, Options], Section]]:
    """Register `summarise(evidence, options) -> Section` under `id`; see `SectionSpec`."""

    def register(
        summarise: Callable[[Evidence, Options], Section],
    ) -> Callable[[Evidence, Options], Section]:
        SECTIONS[id] = SectionSpec(id, title, needs, summarise, measure, uses, share, reads, only)
        return summarise

    return register


def capped(severity: Severity, n: int) -> Severity:
    """Below 30 judged images nothing is worse (or better) than `look`."""
    return "look" if n < 30 and severity != "none" else severity


def judged_or_why(evidence: Evidence) -> str | None:
    """The sentence for data on which nothing can be judged, else None."""
    if evidence.kind == "unlabelled":
        return "No labels, so nothing can be called right or wrong."
    if evidence.kind == "one_class" or len(evidence.classes) == 1:
        return "Only one class: see unknown inputs."
    if evidence.kind == "multilabel":
        return "Several labels per image: accuracy of one answer does not apply."
    if not len(evidence.judged):
        few = "too few images, or sources, to hold some back"
        return f"No image could be judged: every class has {few}."
    return None


def limited(severity: Severity, sentence: str, n: int) -> tuple[Severity, str]:
    """The finding as it may be said about `n` images: capped, and with its size said first."""
    if n >= 30:
        return severity, sentence
    return capped(severity, n), f"With only {plural(n, 'image')}, take this as a hint: {sentence}"


def without_size(sentence: str) -> str:
    """The sentence of `limited` without its beginning."""
    return re.sub(r"^With only \d+ images?, take this as a hint: ", "", sentence)


def unit_of(evidence: Evidence) -> Literal["image", "source", "copy_group"]:
    """What is resampled: the given source, else groups of copies, else the image."""
    if evidence.source_given:
        return "source"
    copies = evidence.frame["unit"].n_unique() < len(evidence.frame)
    return "copy_group" if copies else "image"


def weights_of(evidence: Evidence, frame: pl.DataFrame) -> np.ndarray | None:
    """The given weights [rows], or None where every image counts the same."""
    return frame["weight"].to_numpy().astype(np.float64) if evidence.weighted else None


def scores_or_why(evidence: Evidence) -> str | None:
    """The sentence for data that is not judged, or judged by bare labels, else None."""
    if why := judged_or_why(evidence):
        return why
    return "The model gives no scores." if evidence.judged["probability"].null_count() else None


def errors_or_why(evidence: Evidence) -> str | None:
    """As `judged_or_why`, or the sentence that there is no error to look at."""
    if why := judged_or_why(evidence):
        return why
    judged = evidence.judged
    return f"No errors on {len(judged):,} images." if judged["correct"].all() else None


def plural(n: int, noun: str) -> str:
    """'1 image', '2,624 images'; 'class' gets its 'es'."""
    return f"{n:,} {noun}" + ("" if n == 1 else "es" if noun.endswith("s") else "s")

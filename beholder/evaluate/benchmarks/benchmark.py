"""The role of a benchmark: a model and data in, one `Section` out.

What is measured per unit (`records`) is kept apart from what is said of it (`summarise`): a report
is drawn again, intervals are recomputed and two models are compared image by image without running
a model. The sections of a study have their own, older form: `base.section`.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import polars as pl

from beholder.core.errors import ArgumentError
from beholder.core.sections import Section, Value
from beholder.metrics.bootstrap import paired


class Benchmark(abc.ABC):
    """Base of every benchmark. Options of a benchmark are arguments of its constructor.

    `model` is a VisionModel, a detector, a mapping of either, or None; `data` an `Images` or a
    mapping of such. Each benchmark says in its docstring what it takes.
    """

    role: ClassVar[str] = "benchmark"
    title: ClassVar[str] = ""

    def can_run(self, model: Any, data: Any) -> str | None:
        """None, or one plain sentence why it does not apply (shown; nothing fails)."""
        return None

    @abc.abstractmethod
    def records(self, model: Any, data: Any, *, seed: int, limit: int | None) -> pl.DataFrame:
        """One row per scored unit. Columns that `compare` reads: `id`, `score` (float, higher is
        better), and `unit` where several rows were not drawn independently.

        Args:
            limit: at most so many images, chosen by `seed`.
        """

    @abc.abstractmethod
    def summarise(self, records: pl.DataFrame) -> Section:
        """A pure function of the records: no model, no image."""

    def run(self, model: Any, data: Any, *, seed: int = 0, limit: int | None = None) -> Section:
        """The records, summarised; a section 'not applicable' where it cannot run."""
        return self.measure(model, data, seed=seed, limit=limit)[0]

    def measure(
        self, model: Any, data: Any, *, seed: int = 0, limit: int | None = None
    ) -> tuple[Section, pl.DataFrame]:
        """As `run`, with the records (empty where it cannot run)."""
        if why := self.can_run(model, data):
            return self.section(why, status="not_applicable"), pl.DataFrame()
        records = self.records(model, data, seed=seed, limit=limit)
        return self.summarise(records), records

    def differences(self, ours: pl.DataFrame, theirs: pl.DataFrame) -> dict[str, Value]:
        """Measure -> ours minus theirs, paired, from the records of two models."""
        return {"score": compare(ours, theirs)}

    def section(self, finding: str, **parts: Any) -> Section:
        """A section under this benchmark's name and title."""
        entry = getattr(self, "entry", None)
        id = entry.name if entry else type(self).__name__.lower()
        title = self.title or id.replace("_", " ").capitalize()
        return Section(id=id, title=title, finding=finding, **parts)


def compare(ours: pl.DataFrame, theirs: pl.DataFrame) -> Value:
    """Mean score of `ours` minus `theirs` over the images that both have, in points.

    Args:
        ours, theirs: records of one benchmark, of two models; one row per id.

    Raises:
        ArgumentError: they share no row.
    """
    both = ours.join(theirs.select("id", "score"), on="id", suffix="_theirs")
    if not len(both):
        raise ArgumentError("The two models were not asked about any common image.")
    unit = both["unit" if "unit" in both.columns else "id"].to_numpy()
    a, b = (both[name].cast(pl.Float64).to_numpy() for name in ("score", "score_theirs"))
    return paired(a, b, unit, unit="points")

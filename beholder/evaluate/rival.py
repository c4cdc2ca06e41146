"""The other run of a comparison: its report, and its model where it lies beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from beholder.core.errors import ArgumentError
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.models.given import open_model
from beholder.models.given_model import GivenModel
from beholder.models.run import is_run, load

from .given import Judged
from .pairs import Side
from .report import Report
from .report.results import SCHEMA


@dataclass(frozen=True)
class Rival:
    """A run of `study` (`report`), or of `train`, which has a model only.

    Attributes:
        path: its directory; the last part is its name.
    """

    path: Path
    report: Report | None

    @classmethod
    def open(cls, path: Path) -> Rival:
        """Raises `ArgumentError` where there is neither a report nor a model."""
        try:
            whole = json.loads((path / "results.json").read_bytes())
        except (OSError, ValueError):
            whole = {}
        report = Report.load(path) if whole.get("schema") == SCHEMA else None
        if report is None and not is_run(path):
            raise ArgumentError(
                f"--against {path} holds no run: neither results.json of a study nor a model.",
                "Name a directory that beholder study or beholder train wrote.",
            )
        return cls(path, report)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def has_model(self) -> bool:
        return is_run(self.path)

    def model(self) -> VisionModel | GivenModel:
        """With its full head; one trained whole answers by its own classifier."""
        if (self.path / "head.json").is_file():
            return load(self.path)
        return open_model(f"local-dir:{self.path}")

    def side(self) -> Side:
        """What it answered in its own study; nothing where it has none."""
        if self.report is not None:
            return Side.of(self.report, self.name)
        nothing = {"id": pl.String, "exact_hash": pl.String, "split": pl.String}
        return Side(self.name, pl.DataFrame(schema=nothing), ())

    def answering(self, judged: Judged, images: Images, facts: pl.DataFrame) -> Side:
        """What its model answers to other images (rows of `facts` are theirs)."""
        answered = judged.answered
        there = np.isfinite(answered.probability.sum(1))
        table = images.table.select("id", "label").with_columns(
            facts["exact_hash"],
            pl.Series("split", answered.roles.tolist(), pl.String),
            pl.col("label")
            .replace_strict(dict(enumerate(images.classes)), default=None, return_dtype=pl.String)
            .alias("label_name"),
            pl.Series("predicted", answered.probability.argmax(1).astype(np.int32)),
            pl.Series("probability", answered.probability.tolist(), pl.List(pl.Float32)),
        )
        gone = pl.col("id").is_in(list(judged.gone))
        return Side(self.name, table.filter(pl.Series(there), ~gone), answered.classes)


def same_encoder(one: VisionModel, other: VisionModel | None) -> bool:
    """Whether the descriptors of one serve the other."""
    return other is not None and one.describe() == other.describe()

"""What sections measure anew, each within its share of the budget; what is done is kept on disk."""

from __future__ import annotations

import io
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from beholder.core.files import digest, key_of, write_atomic, write_json
from beholder.core.sections import Spent

from .benchmarks import MEASURED, SECTIONS
from .benchmarks.base import Evidence, Records, SectionSpec
from .evidence import add
from .subject import Allowance, Subject, TooLittleTimeError

MOST = 2.0
"""Times its share that a section may take where others left time over."""
RESERVE = 0.06
"""Of the budget, for cost, report and what was misjudged."""


@dataclass
class Plan:
    """Shares out what is left of the budget among the sections that measure.

    Attributes:
        limit: seconds of the whole study; 0 = no limit.
        left: seconds of it that are left.
    """

    limit: float
    left: Callable[[], float]

    def allowance(self, spec: SectionSpec, later: Sequence[SectionSpec]) -> Allowance:
        """For `spec`, when those of `later` are still to come."""
        if not self.limit:
            return Allowance(float("inf"))
        shares = spec.share + sum(other.share for other in later)
        free = self.left() - RESERVE * self.limit
        return Allowance(min(free * spec.share / shares, MOST * spec.share * self.limit))


@dataclass
class Measuring:
    """Runs `measure` of the sections that have one.

    Attributes:
        directory: of the run; records are kept under `records/measured`.
        key: of everything that decides them but the section.
        stage: see `train.passes.Stage`.
        pictures: id -> pixels, of all sections.
        tracebacks: of those that failed.
    """

    directory: Path
    key: str
    plan: Plan
    stage: Callable[..., Any]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    tracebacks: list[str] = field(default_factory=list)

    def run(
        self, wanted: Sequence[str], evidence: Evidence, make: Callable[[Allowance], Subject]
    ) -> None:
        """Measure those of `wanted` that apply; their records are then in the evidence.

        Args:
            make: the subject for a section with this allowance.
        """
        waiting = [SECTIONS[id] for id in MEASURED if id in wanted]
        while waiting:
            spec = waiting.pop(0)
            if spec.needs(evidence):
                continue
            records = self._kept(spec)
            if records is None:
                records = self._measured(spec, evidence, make, waiting)
            if records is not None:
                add(evidence, spec.id, records)
                self.pictures |= records.pictures

    def _measured(
        self,
        spec: SectionSpec,
        evidence: Evidence,
        make: Callable[[Allowance], Subject],
        later: Sequence[SectionSpec],
    ) -> Records | None:
        assert spec.measure is not None
        allowance = self.plan.allowance(spec, later)
        start = time.monotonic()
        with self.stage(spec.id, 0, "") as stage:
            subject = make(allowance)
            subject.progress = stage.advance
            subject.expect = lambda total: setattr(stage, "total", total)
            try:
                records = spec.measure(subject)
            except TooLittleTimeError as error:
                minutes = self._minutes(error.needs - error.left)
                evidence.unmeasured[spec.id] = (
                    "skipped_budget",
                    f"Skipped: {error}. Run again with --budget {minutes} (everything done so far "
                    "is kept).",
                )
                stage.note("skipped: too little time")
                return None
            except Exception as error:  # a failing section must not end the study
                finding = f"This section failed: {type(error).__name__}: {error}"
                evidence.unmeasured[spec.id] = ("failed", finding)
                self.tracebacks.append(traceback.format_exc())
                stage.note("failed")
                return None
            records.spent.seconds = round(time.monotonic() - start, 3)
            if records.spent.used < records.spent.wanted:
                stage.note(f"{records.spent.used:,} of {records.spent.wanted:,} (budget)")
        self._keep(spec, records)
        return records

    def _minutes(self, more: float) -> int:
        """A budget with so many seconds more for one section, in whole minutes."""
        return int(-(-(self.plan.limit + 2 * more) // 60)) + 1

    def _place(self, id: str) -> Path:
        return self.directory / "records" / "measured" / id

    def _key(self, spec: SectionSpec) -> str:
        """Of the records: what decides all of them, the section, and what people wrote for it."""
        written = self.directory / spec.reads
        read = digest(written.read_bytes()) if spec.reads and written.is_file() else ""
        return key_of({"of": self.key, "section": spec.id, "read": read})

    def _keep(self, spec: SectionSpec, records: Records) -> None:
        place = self._place(spec.id)
        for name, frame in records.frames.items():
            write_atomic(place / f"{name}.parquet", lambda out, f=frame: f.write_parquet(out))
        rows = [(name, _png(pixels)) for name, pixels in records.pictures.items()]
        pictures = pl.DataFrame(rows, {"id": pl.String, "png": pl.Binary}, orient="row")
        write_atomic(place / "pictures", lambda out: pictures.write_parquet(out))
        write_json(
            place / "records.json",
            {
                "key": self._key(spec),
                "frames": list(records.frames),
                "spent": records.spent.model_dump(),
            },
        )

    def _kept(self, spec: SectionSpec) -> Records | None:
        """The records of an earlier run of the same command, if it came so far."""
        place = self._place(spec.id)
        try:
            known = json.loads((place / "records.json").read_text())
            if known["key"] != self._key(spec):
                return None
            frames = {name: pl.read_parquet(place / f"{name}.parquet") for name in known["frames"]}
            rows = pl.read_parquet(place / "pictures").iter_rows()
        except (OSError, ValueError, LookupError, pl.exceptions.PolarsError):
            return None
        pictures = {name: np.asarray(Image.open(io.BytesIO(png))) for name, png in rows}
        return Records(frames, Spent.model_validate(known["spent"]), pictures)


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()

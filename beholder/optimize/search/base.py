"""The role of a searcher: architectures of any space, judged by any evaluator.

A search writes every evaluation down. One that was killed goes on with the same stream of chance
and ends with the same result; an architecture that was judged before is answered from the history.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import polars as pl
from scipy.stats import kendalltau

from beholder.core.errors import ArgumentError, DataError
from beholder.core.files import write_atomic
from beholder.core.model import Backbone
from beholder.core.registry import Entry
from beholder.core.sections import Value
from beholder.metrics.bootstrap import resample_counts

HISTORY = "history.jsonl"
RESAMPLES = 2000
FEWEST = 20
"""Architectures that a rank correlation needs."""


@runtime_checkable
class Arch(Protocol):
    """An architecture: hashable, and its text says it all (`parse(str(arch)) == arch`)."""

    def __str__(self) -> str: ...

    def __hash__(self) -> int: ...

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ArgumentError that names the place where the text makes no sense."""
        ...


class SearchSpace(ABC):
    """Architectures to choose from."""

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Arch:
        """One by chance; each equally likely."""

    @abstractmethod
    def neighbours(self, arch: Arch) -> list[Arch]:
        """Those that differ in one choice."""

    @abstractmethod
    def encode(self, arch: Arch) -> np.ndarray:
        """[D] numbers, for predictors and optimisers."""

    @abstractmethod
    def decode(self, vector: np.ndarray) -> Arch:
        """`decode(encode(arch)) == arch`."""

    @abstractmethod
    def size(self) -> int:
        """How many there are."""

    @abstractmethod
    def build(self, arch: Arch, classes: int) -> Backbone:
        """The network, with random weights of torch's current stream."""

    @abstractmethod
    def parse(self, text: str) -> Arch:
        """The architecture of that text."""


class Evaluator(ABC):
    """Judges an architecture; `score` is what a search maximises."""

    @abstractmethod
    def score(self, space: SearchSpace, arch: Arch) -> dict[str, float]:
        """`score`, and whatever else was measured. NaN = it could not be judged."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        history: order, arch, score, bad (why it could not be judged, or null), and one column per
            further measure; one row per architecture that was judged.
        space: that was searched.
    """

    history: pl.DataFrame
    space: SearchSpace

    @property
    def ranked(self) -> list[Arch]:
        """Architectures that could be judged, best first; ties in the order of the search."""
        judged = self.history.filter(pl.col("bad").is_null())
        ordered = judged.sort(pl.col("score"), "order", descending=[True, False])
        return [self.space.parse(text) for text in ordered["arch"]]

    @property
    def best(self) -> Arch:
        """Raises DataError if none could be judged."""
        ranked = self.ranked
        if not ranked:
            raise DataError("No architecture could be judged.", str(self.history["bad"][0]))
        return ranked[0]

    def pareto(self, cost: str) -> pl.DataFrame:
        """Rows of the history that no other beats in score at lower or equal `cost`."""
        judged = self.history.filter(pl.col("bad").is_null())
        ordered = judged.sort(cost, pl.col("score"), descending=[False, True])
        before = pl.col("score").cum_max().shift(1).fill_null(-math.inf)
        return ordered.filter(pl.col("score") > before)


class Searcher(ABC):
    """Base of every searcher; its file holds `proposals`."""

    role: ClassVar[str] = "searcher"
    entry: ClassVar[Entry]

    @abstractmethod
    def proposals(
        self, space: SearchSpace, known: Mapping[Arch, float], rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Architectures to judge, one after another.

        Args:
            known: score of everything judged so far, in order; it grows between two proposals.
                What could not be judged has -infinity.
        """

    def search(
        self,
        space: SearchSpace,
        evaluator: Evaluator,
        budget: int,
        seed: int = 0,
        *,
        out: Path | None = None,
    ) -> SearchResult:
        """Judge `budget` different architectures, or all of the space.

        Args:
            out: directory of the history; the same search goes on where it stopped.

        Raises:
            ArgumentError: a budget below 1, or `out` holds another search.
        """
        if budget < 1:
            raise ArgumentError(f"A budget of {budget} judges nothing.", "Give 1 or more.")
        budget = min(budget, space.size())
        identity = {
            "searcher": self.entry.name,
            "space": type(space).__name__,
            "evaluator": type(evaluator).__name__,
            "seed": seed,
        }
        history = _History(out, identity)
        known: dict[Arch, float] = {}
        rows: list[dict] = []
        for arch in self.proposals(space, known, np.random.default_rng(seed)):
            if arch in known:
                continue
            row = history.find(str(arch)) or _judged(space, evaluator, arch)
            row = {"order": len(rows), **row}
            rows.append(row)
            history.add(row)
            known[arch] = -math.inf if row["bad"] else row["score"]
            if len(known) >= budget:
                break
        frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(
            pl.col("bad").cast(pl.String), pl.col("score").cast(pl.Float64)
        )
        if out is not None:
            write_atomic(out / "history.parquet", lambda stream: frame.write_parquet(stream))
        return SearchResult(frame, space)


def _judged(space: SearchSpace, evaluator: Evaluator, arch: Arch) -> dict:
    found = evaluator.score(space, arch)
    wrong = [name for name, value in found.items() if not math.isfinite(value)]
    bad = f"{wrong[0]} is {found[wrong[0]]}" if wrong else None
    plain = {name: value if math.isfinite(value) else None for name, value in found.items()}
    return {"arch": str(arch), "bad": bad, **plain}


class _History:
    """One line of JSON per evaluation, the search itself in the first."""

    def __init__(self, place: Path | None, identity: dict) -> None:
        self.path = None if place is None else place / HISTORY
        self.rows: dict[str, dict] = {}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.read_bytes() if self.path.exists() else b""
        lines = whole[: whole.rfind(b"\n") + 1].splitlines()  # a kill may tear the last line
        if lines and json.loads(lines[0]) != identity:
            raise ArgumentError(
                f"{self.path.parent} holds another search: {lines[0].decode()}.",
                "Use another --out.",
            )
        for line in lines[1:]:
            row = json.loads(line)
            self.rows[row["arch"]] = {k: v for k, v in row.items() if k != "order"}
        text = b"".join(line + b"\n" for line in lines) or json.dumps(identity).encode() + b"\n"
        write_atomic(self.path, lambda out: out.write(text))

    def find(self, arch: str) -> dict | None:
        return self.rows.get(arch)

    def add(self, row: dict) -> None:
        if self.path is None or row["arch"] in self.rows:
            return
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def rank_quality(proxy: np.ndarray, truth: np.ndarray, seed: int = 0) -> Value:
    """Kendall's tau-b of two judgements of the same architectures [N], with its interval.

    >>> rank_quality(np.arange(30.0), np.arange(30.0) ** 2).estimate
    1.0
    """
    if len(proxy) < FEWEST:
        return Value.undefined(f"needs {FEWEST} architectures, there are {len(proxy)}", unit="")
    drawn = [
        _tau(proxy[rows], truth[rows])
        for counts in resample_counts(np.arange(len(proxy)), RESAMPLES, seed, None)
        for rows in (np.repeat(np.arange(len(proxy)), count.astype(int)) for count in counts)
    ]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Value(
        estimate=_tau(proxy, truth),
        low=float(low),
        high=float(high),
        n=len(proxy),
        unit="",
        method="bootstrap",
        resamples=RESAMPLES,
    )


def _tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(kendalltau(a, b)[0])  # type: ignore[arg-type]

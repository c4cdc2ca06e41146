"""The directory of a training: what it belongs to, how far it came, its checkpoints and metrics."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch

from beholder.core.errors import ArgumentError, StorageError
from beholder.core.files import key_of, storage_errors, write_atomic, write_bytes, write_json

STATE, LAST, KEPT = "state.json", "last.ckpt", 2
METRICS: dict[str, Any] = {
    "step": pl.Int64,  # optimiser steps done
    "epoch": pl.Float64,  # passes done
    "part": pl.String,  # train, validation, probe, machine (the only ones that a clock decides)
    "name": pl.String,
    "value": pl.Float64,
}
"""Columns of `metrics.parquet`."""


@dataclass
class Log:
    """Figures of a run, one row each, and the sums of those whose row is not full yet."""

    rows: list[tuple[int, float, str, str, float]] = field(default_factory=list)
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, figures: Mapping[str, float]) -> None:
        """Of one micro-batch."""
        for name, value in figures.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)

    def close_row(self, step: int, epoch: float) -> None:
        """The means since the last row."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.write(step, epoch, "train", means)
        self.sums = {}

    def write(self, step: int, epoch: float, part: str, figures: Mapping[str, float]) -> None:
        self.rows += [(step, epoch, part, name, float(value)) for name, value in figures.items()]

    def frame(self) -> pl.DataFrame:
        """Columns `METRICS`."""
        return pl.DataFrame(self.rows, METRICS, orient="row")


class Directory:
    """Where a training writes; None = nowhere.

    Args:
        identity: what decides what the run comes to. The same one goes on where it stopped.

    Raises:
        ArgumentError: the place holds another run, or something that is no run.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path, self.identity, self.key = path, dict(identity), key_of(identity)
        self.written = time.monotonic()
        self.best: dict[str, Any] | None = None  # where there is no place to write it
        state = self._state()
        if state is not None and state.get("key") != self.key:
            before, now = state.get("identity", {}), json.loads(json.dumps(self.identity))
            other = next((k for k in now if now[k] != before.get(k)), "data")
            raise ArgumentError(
                f"{path} holds another training: {other} = {before.get(other)!r} there, "
                f"{now.get(other)!r} here.",
                "Use another --out, or repeat its command to go on with it.",
            )
        self.finished = bool(state and state["finished"])
        if path and state is None:
            if path.exists() and any(p.name[0] != "." for p in path.iterdir()):
                raise ArgumentError(
                    f"--out {path} is not empty and holds no training.", "Name another directory."
                )
            with storage_errors(path):
                (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self.mark(finished=False)

    def _state(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.path / STATE).read_text()) if self.path else None
        except (OSError, ValueError):
            return None

    def mark(self, finished: bool) -> None:
        """Write down whether the training is through."""
        self.finished = finished
        if self.path:
            what = {"key": self.key, "identity": self.identity, "finished": finished}
            write_json(self.path / STATE, what)

    def save(self, state: dict[str, Any], log: Log) -> None:
        """A checkpoint, and the metrics up to it; the two last checkpoints stay."""
        self.written = time.monotonic()
        if self.path is None:
            return
        self.save_metrics(log)
        place = self.path / "checkpoints"
        name = f"step-{state['step']:08d}.{state['micro']}.pt"
        write_atomic(place / name, lambda stream: torch.save(state, stream))
        write_bytes(place / LAST, f"{name}\n".encode())
        for old in sorted(place.glob("step-*.pt"))[:-KEPT]:
            old.unlink(missing_ok=True)

    def save_metrics(self, log: Log) -> None:
        if self.path is not None:
            frame = log.frame()
            write_atomic(self.path / "metrics.parquet", lambda stream: frame.write_parquet(stream))

    def save_best(self, state: dict[str, Any]) -> None:
        if self.path is None:
            self.best = copy.deepcopy(state)
        else:
            write_atomic(
                self.path / "checkpoints" / "best.pt", lambda stream: torch.save(state, stream)
            )

    def load(self) -> tuple[dict[str, Any], Log] | None:
        """The last checkpoint and the metrics up to it; the one before where it is damaged."""
        if self.path is None:
            return None
        place = self.path / "checkpoints"
        names = sorted((p.name for p in place.glob("step-*.pt")), reverse=True)
        for name in names:
            try:
                state = torch.load(place / name, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, ValueError, KeyError):
                continue
            frame = pl.read_parquet(self.path / "metrics.parquet")
            before = frame.filter(pl.col("step") <= state["step"])
            sums = {name: (total, int(count)) for name, (total, count) in state["sums"].items()}
            return state, Log(before.rows(), sums)
        if names:
            raise StorageError(
                f"No checkpoint in {place} can be read.", "Delete the run and train again."
            )
        return None

    def load_best(self) -> dict[str, Any] | None:
        place = self.path / "checkpoints" / "best.pt" if self.path else None
        if place is None or not place.exists():
            return self.best
        return torch.load(place, map_location="cpu", weights_only=True)

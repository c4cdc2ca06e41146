"""Two processes do what one does with the batches of both."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from train.loop.small import model, settings, squares, weights

from beholder.core.errors import ArgumentError
from beholder.train.loop import TrainRun, fit
from beholder.train.objectives.classification import Classification


def go(place: Path, batch: int, devices: int, limit: float | None = None) -> TrainRun:
    config = settings(
        max_time=limit,
        **{"epochs": 2, "batch_size": batch, "devices": devices, "accumulate": 2, "ema": 0.9},
        **{"optimiser": "sgd", "lr": 0.1, "checkpoint_every": 0},
    )
    held_out = squares(9, first=100)
    objective = Classification(view="raw")
    return fit(objective, model(), squares(39), config, out=place, validation=held_out)


def test_two_processes_with_half_the_batch_equal_one(tmp_path: Path) -> None:
    """39 images are four batches of 8 and one of 7, which two processes part into 4 and 3."""
    one, begun = go(tmp_path / "one", 8, 1), go(tmp_path / "two", 4, 2, limit=1e-9)
    assert (begun.steps, begun.finished) == (1, False)
    two = go(tmp_path / "two", 4, 2)
    assert two.resumed_from == 1
    assert one.steps == two.steps == 6
    assert torch.allclose(weights(one), weights(two), atol=1e-6)
    validation = [run.metrics.filter(pl.col("part") == "validation") for run in (one, two)]
    assert validation[0]["name"].to_list() == validation[1]["name"].to_list()
    assert validation[0]["value"].to_list() == pytest.approx(validation[1]["value"].to_list(), 1e-4)
    names = {p.name for p in (tmp_path / "one").rglob("*")}
    assert names == {p.name for p in (tmp_path / "two").rglob("*")}
    (tmp_path / "two" / "model.safetensors").unlink()
    with pytest.raises(ArgumentError, match="settings"):
        go(tmp_path / "two", 8, 1)  # other batches


def test_a_run_of_two_processes_does_not_go_on_with_one(tmp_path: Path) -> None:
    config = settings(epochs=1, checkpoint_every=0, max_time=1e-9)
    fit(Classification(), model(), squares(), config, out=tmp_path / "r")
    with pytest.raises(ArgumentError, match="begun by 1 processes, --devices is 2"):
        fit(Classification(), model(), squares(), settings(epochs=1, devices=2), out=tmp_path / "r")

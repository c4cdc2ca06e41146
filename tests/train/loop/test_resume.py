"""A run that was killed goes on, and ends as one that was not: bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import polars as pl
import pytest
import torch
from train.loop.interrupted import ended, run
from train.loop.small import model, settings, squares

from beholder.core.errors import ArgumentError
from beholder.train.loop import fit
from beholder.train.objectives.classification import Classification


def checkpoint(directory: Path) -> dict:
    name = (directory / "checkpoints" / "last.ckpt").read_text().strip()
    return torch.load(directory / "checkpoints" / name, weights_only=True)


def same(one: object, other: object) -> bool:
    """Equal to the last bit, tensors inside too."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and list(one) == list(other)
            and all(same(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def figures(directory: Path) -> pl.DataFrame:
    """The metrics without those of the clock."""
    return pl.read_parquet(directory / "metrics.parquet").filter(pl.col("part") != "machine")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    run(directory, workers=0)
    return directory


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_in_mid_epoch_ends_as_one_that_was_not(
    workers: int, uninterrupted: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    assert ended(directory, workers, signal.SIGKILL, step=5) == -signal.SIGKILL
    assert checkpoint(directory)["step"] == 4  # an epoch has three
    assert run(directory, workers).resumed_from == 4
    assert same(checkpoint(directory), checkpoint(uninterrupted))
    assert figures(directory).equals(figures(uninterrupted))
    saved = [(d / "model.safetensors").read_bytes() for d in (directory, uninterrupted)]
    assert saved[0] == saved[1]


def test_ctrl_c_leaves_a_checkpoint_of_the_step_under_way(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert ended(directory, 0, signal.SIGINT, step=2) == 130
    assert run(directory, 0).resumed_from == 2


def test_a_finished_run_does_nothing_again(uninterrupted: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*.safetensors")}
    again = run(uninterrupted, workers=0)
    assert again.resumed_from == again.steps == 9
    assert before == {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*.safetensors")}


def test_a_damaged_last_checkpoint_costs_one_step_not_the_run(tmp_path: Path) -> None:
    def go(epochs_time: float | None) -> int:
        config = settings(checkpoint_every=0, max_time=epochs_time)
        return fit(Classification(), model(), squares(), config, out=tmp_path / "r").resumed_from

    go(1e-9)
    go(1e-9)
    last = sorted((tmp_path / "r" / "checkpoints").glob("step-*.pt"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    assert go(None) == 1


def test_a_time_limit_ends_the_call_and_not_the_path(tmp_path: Path) -> None:
    def go(limit: float | None, place: str):
        config = settings(max_time=limit, ema=0.9)
        return fit(Classification(), model(), squares(), config, out=tmp_path / place)

    whole = go(None, "whole")
    parts = [go(1e-9, "parts") for _ in range(6)]
    assert [part.steps for part in parts] == [1, 2, 3, 4, 5, 6]
    assert [part.finished for part in parts] == [False] * 5 + [True]
    state, other = whole.model.state_dict(), parts[-1].model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_another_training_is_not_written_over(tmp_path: Path) -> None:
    fit(Classification(), model(), squares(), settings(epochs=1), out=tmp_path / "r")
    with pytest.raises(ArgumentError, match=r"settings"):
        fit(Classification(), model(), squares(), settings(epochs=3), out=tmp_path / "r")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ArgumentError, match="holds no training"):
        fit(Classification(), model(), squares(), settings(), out=tmp_path / "full")

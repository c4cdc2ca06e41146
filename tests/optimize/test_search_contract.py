"""What every searcher and every space promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimize.trained import CONFIG
from scipy.stats import kendalltau

from beholder.core.errors import ArgumentError, DataError
from beholder.core.images import Images
from beholder.core.registry import make, systems
from beholder.optimize.search import resnets
from beholder.optimize.search.base import (
    Arch,
    Evaluator,
    SearchSpace,
    rank_quality,
)
from beholder.optimize.search.resnets import ResNetArch, ResNets, ShortTraining, Size
from beholder.train.config import TrainConfig

every_searcher = pytest.mark.parametrize("name", [e.name for e in systems("searcher")])
every_space = pytest.mark.parametrize("space", [ResNets()])


class Depth(Evaluator):
    """Deeper is better; it counts what it judges, and may be killed."""

    def __init__(self, dies_at: int = 0, bad: str = "") -> None:
        self.judged: list[str] = []
        self.dies_at, self.bad = dies_at, bad

    def score(self, space: SearchSpace, arch: Arch) -> dict[str, float]:
        self.judged.append(str(arch))
        if len(self.judged) == self.dies_at:
            raise KeyboardInterrupt
        encoded = space.encode(arch)
        score = math.nan if self.bad in str(arch) and self.bad else float(encoded[:4].sum())
        return {"score": score, "width": float(encoded[4:].sum())}


@every_searcher
def test_a_budget_is_kept_and_nothing_is_judged_twice(name: str) -> None:
    evaluator = Depth()
    found = make("searcher", name).search(ResNets(), evaluator, 25)
    assert len(found.history) == len(evaluator.judged) == len(set(evaluator.judged)) == 25
    assert found.history["order"].to_list() == list(range(25))
    with pytest.raises(ArgumentError, match="judges nothing"):
        make("searcher", name).search(ResNets(), evaluator, 0)


@every_searcher
def test_a_search_of_all_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnets, "DEPTHS", (1,))
    found = make("searcher", name).search(ResNets(), Depth(), 100)
    assert len(found.history) == ResNets().size() == 16


@every_searcher
def test_the_best_comes_first_and_the_seed_repeats(name: str) -> None:
    one, again, other = (
        make("searcher", name).search(ResNets(), Depth(), 20, s) for s in (0, 0, 1)
    )
    assert one.history.equals(again.history)
    assert not one.history.equals(other.history)
    depth = [sum(arch.depths) for arch in one.ranked]
    assert depth == sorted(depth, reverse=True)
    assert one.best == one.ranked[0]


@every_searcher
@pytest.mark.parametrize("killed", [1, 7, 12])
def test_a_killed_search_goes_on_to_the_same_end(name: str, killed: int, tmp_path: Path) -> None:
    whole = make("searcher", name).search(ResNets(), Depth(), 12, 3)
    with pytest.raises(KeyboardInterrupt):
        make("searcher", name).search(ResNets(), Depth(killed), 12, 3, out=tmp_path)
    lines = (tmp_path / "history.jsonl").read_bytes()
    (tmp_path / "history.jsonl").write_bytes(lines + b'{"arch": "d1.1')
    rest = Depth()
    found = make("searcher", name).search(ResNets(), rest, 12, 3, out=tmp_path)
    assert found.history.equals(whole.history)
    assert len(rest.judged) == 12 - (killed - 1)
    assert pl.read_parquet(tmp_path / "history.parquet").equals(whole.history)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 13


@every_searcher
def test_another_search_is_not_written_over(name: str, tmp_path: Path) -> None:
    make("searcher", name).search(ResNets(), Depth(), 3, 0, out=tmp_path)
    with pytest.raises(ArgumentError, match="holds another search"):
        make("searcher", name).search(ResNets(), Depth(), 3, 1, out=tmp_path)


@every_searcher
def test_what_cannot_be_judged_is_marked_and_not_dropped(name: str) -> None:
    found = make("searcher", name).search(ResNets(), Depth(bad="d1"), 30)
    bad = found.history.filter(pl.col("bad").is_not_null())
    assert 0 < len(bad) < 30
    assert bad["bad"].unique().to_list() == ["score is nan"]
    assert bad["score"].null_count() == len(bad)
    assert len(found.ranked) == 30 - len(bad)
    with pytest.raises(DataError, match="No architecture could be judged"):
        _ = make("searcher", name).search(ResNets(), Depth(bad="d"), 3).best


def test_the_pareto_front_by_hand() -> None:
    found = make("searcher", "random").search(ResNets(), Depth(), 60)
    front = found.pareto("width")
    rows = found.history.select("width", "score").rows()
    for width, score in front.select("width", "score").iter_rows():
        assert not any((w <= width and s > score) or (w < width and s >= score) for w, s in rows)
    assert front["score"].is_sorted()
    assert front["score"].max() == found.history["score"].max()


@every_space
def test_encodings_and_texts_come_back(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        arch = space.sample(rng)
        assert space.decode(space.encode(arch)) == arch
        assert space.parse(str(arch)) == arch
        assert len({arch, space.parse(str(arch))}) == 1


@every_space
def test_neighbours_differ_in_one_choice(space: SearchSpace) -> None:
    arch = space.sample(np.random.default_rng(0))
    near = space.neighbours(arch)
    assert len(set(near)) == len(near) == 12
    for other in near:
        assert (space.encode(other) != space.encode(arch)).sum() == 1
        assert arch in space.neighbours(other)


@every_space
def test_what_is_built_learns(space: SearchSpace) -> None:
    rng = np.random.default_rng(1)
    for _ in range(2):
        network = space.build(space.sample(rng), 5)
        answer = network(torch.rand(2, 3, 32, 32))
        assert answer.shape == (2, 5)
        answer.square().sum().backward()
        grads = [p.grad for p in network.parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_the_size_is_that_of_an_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnets, "DEPTHS", (1, 2))
    rng = np.random.default_rng(0)
    space = ResNets()
    assert len({space.sample(rng) for _ in range(4_000)}) == space.size() == 256


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 0),
        ("x1", 0),
        ("d1.2.1-w8", 6),
        ("d1.2.1.1-w8.16.32", 17),
        ("d1.2.1.1-w8.16.32.64!", 20),
    ],
)
def test_a_text_that_makes_no_sense_is_told_where(text: str, place: int) -> None:
    with pytest.raises(ArgumentError, match=f"from character {place} on"):
        ResNetArch.parse(text)


def test_size_counts_the_parameters_that_are_there() -> None:
    arch = ResNetArch((1, 1, 1, 1), (8, 16, 32, 64))
    found = Size(classes=3).score(ResNets(), arch)
    network = ResNets().build(arch, 3)
    assert found["parameters"] == -found["score"] == sum(p.numel() for p in network.parameters())
    assert found["macs"] > 0


def test_short_training_tells_accuracy_whatever_was_judged_before(digits: Images) -> None:
    learned, judged = (digits.where(pl.col("id").str.contains(x)) for x in ("-0[0-5]", "-17"))
    config = TrainConfig(**{**CONFIG.__dict__, "epochs": 2})
    evaluator = ShortTraining(learned, judged, config, view="upright")
    one, other = ResNetArch((1,) * 4, (8, 16, 32, 64)), ResNetArch((1,) * 4, (16, 32, 48, 96))
    first = evaluator.score(ResNets(), one)
    evaluator.score(ResNets(), other)
    assert evaluator.score(ResNets(), one) == first
    assert 0.2 < first["score"] <= 1


def test_rank_quality_is_kendalls_with_an_interval() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    proxy = truth + rng.normal(size=40)
    found = rank_quality(proxy, truth)
    assert found.estimate == pytest.approx(kendalltau(proxy, truth).statistic)
    assert 0 < found.low < found.estimate < found.high < 1
    assert rank_quality(proxy[:19], truth[:19]).estimate is None


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_every_search_by_chance_writes_what_can_be_read(seed: int) -> None:
    found = make("searcher", "random").search(ResNets(), Depth(), 5, seed)
    assert json.loads(json.dumps(found.history.to_dicts())) == found.history.to_dicts()
    assert all(str(arch) in set(found.history["arch"]) for arch in found.ranked)

"""What every compressor promises, and magnitude pruning by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from optimize.conftest import Trained

import beholder
from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.core.model import encoder_state
from beholder.core.registry import make, systems
from beholder.models.run import save_model
from beholder.optimize.compress.base import (
    Budget,
    Compressed,
    alternating,
    halves,
    nonzero,
    prunable,
)
from beholder.optimize.compress.magnitude_prune import MagnitudePrune, prune

Made = Callable[[str], Compressed]
every_compressor = pytest.mark.parametrize("name", [e.name for e in systems("compressor")])


@pytest.fixture(autouse=True, scope="module")
def few_passes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beholder.optimize.compress.base.RUNS", 2)
        yield


@pytest.fixture(scope="module")
def compressed(trained: Trained) -> Made:
    """What each compressor makes of the same model with a drop of 0.02, made once."""

    def made(name: str) -> Compressed:
        budget = Budget(max_drop=0.02)
        return make("compressor", name).compress(trained.model, trained.unseen, budget=budget)

    return cache(made)


@every_compressor
def test_it_gets_smaller_within_the_drop_and_the_given_model_stays(
    trained: Trained, compressed: Made, name: str
) -> None:
    before = trained.model.weights_hash
    found = compressed(name)
    assert trained.model.weights_hash == before != found.model.weights_hash
    assert found.after.packed_bytes < found.before.packed_bytes
    assert found.before.accuracy.estimate > 0.8
    assert found.after.accuracy.estimate > found.before.accuracy.estimate - 0.06
    assert len(found.before.right) == len(found.after.right) == -(-len(trained.unseen) // 2)
    chosen = found.tried.filter("chosen")
    assert chosen["setting"].to_list() == [found.setting]


@every_compressor
def test_the_result_is_a_model_of_the_same_kind_that_can_be_saved(
    trained: Trained, compressed: Made, name: str, tmp_path: Path
) -> None:
    found = compressed(name).model
    assert found.classes == trained.model.classes
    assert found.input_size == trained.model.input_size
    save_model(found, {}, tmp_path / "run")
    (tmp_path / "run" / "run.toml").write_text("")
    loaded = beholder.load(tmp_path / "run")
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(image), found(image))


@every_compressor
def test_the_seed_repeats(trained: Trained, compressed: Made, name: str) -> None:
    budget = Budget(max_drop=0.02)
    one = make("compressor", name).compress(trained.model, trained.unseen, budget=budget)
    other = compressed(name)
    assert one.model.weights_hash == other.model.weights_hash
    assert one.tried.equals(other.tried)


@every_compressor
def test_its_report_says_what_was_gained_and_what_was_lost(compressed: Made, name: str) -> None:
    section = compressed(name).report()
    lost = section.values["lost"]
    assert lost.low <= lost.estimate <= lost.high
    assert set(section.frame("cost")["what"]) >= {"packed_bytes", "macs", "latency_p50_ms"}
    assert section.assumptions
    section.to_dict()


@every_compressor
def test_a_budget_that_nothing_meets_names_the_nearest(trained: Trained, name: str) -> None:
    with pytest.raises(ArgumentError, match="No setting keeps to the budget"):
        make("compressor", name).compress(
            trained.model, trained.unseen, budget=Budget(max_parameters=10)
        )


@every_compressor
def test_data_of_other_classes_is_refused(trained: Trained, name: str) -> None:
    with pytest.raises(DataError, match="classes"):
        make("compressor", name).compress(
            trained.model, replace(trained.unseen, classes=("a", "b"))
        )


def test_pruning_by_hand_has_one_threshold_for_all_layers() -> None:
    weights = {"a": torch.tensor([[0.1, -5.0], [0.4, 2.0]]), "b": torch.tensor([-0.2, 0.3, 9.0, 1])}
    assert prune(weights, 0.5) == pytest.approx(0.4)
    assert weights["a"].tolist() == [[0, -5], [0, 2]]
    assert weights["b"].tolist() == [0, 0, 9, 1]
    assert prune(weights, 0.0) == 0


def test_the_share_of_zeros_is_the_one_asked_for(trained: Trained) -> None:
    few = MagnitudePrune((0.9,))
    model = few.compress(trained.model, trained.unseen, budget=Budget(1.0)).model
    weights = torch.cat([weight.flatten() for weight in prunable(model).values()])
    assert (weights == 0).float().mean().item() == pytest.approx(0.9, abs=1e-4)
    untouched = set(encoder_state(model.backbone)) - set(prunable(model))
    before = encoder_state(trained.model.backbone)
    assert all(
        torch.equal(before[key], value)
        for key, value in encoder_state(model.backbone).items()
        if key in untouched
    )


def test_more_drop_allows_at_least_as_many_zeros(trained: Trained) -> None:
    few = MagnitudePrune((0.1, 0.9))
    counts = [
        nonzero(few.compress(trained.model, trained.unseen, budget=Budget(drop)).model)
        for drop in (0.05, 1.0)
    ]
    assert counts[0] > counts[1]


def test_the_images_that_choose_do_not_judge(trained: Trained) -> None:
    choose, judge = halves(trained.unseen, trained.model, seed=0)
    assert not set(choose.table["id"]) & set(judge.table["id"])
    assert len(choose) + len(judge) == len(trained.unseen)
    turned = replace(trained.unseen, table=trained.unseen.table.reverse())
    assert set(halves(turned, trained.model, 0)[0].table["id"]) == set(choose.table["id"])
    with pytest.raises(DataError, match="has 1 labelled"):
        halves(trained.unseen.where(pl.col("id") == choose.table["id"][0]), trained.model, 0)


def test_timing_takes_turns(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beholder.optimize.compress.base.WARM_UP", 0)
    monkeypatch.setattr("beholder.optimize.compress.base.ROUNDS", 2)
    order: list[str] = []

    class Seen(type(trained.model)):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            order.append(self.name)
            return images

    models = [Seen(trained.model.backbone, name, input_size=(8, 8)) for name in "AB"]
    times = alternating(models)
    assert "".join(order) == "AABBAABB"
    assert [len(spent) for spent in times] == [4, 4]
    assert all((np.array(spent) >= 0).all() for spent in times)


def test_a_network_without_weights_to_prune_is_an_error(trained: Trained) -> None:
    class Bare(torch.nn.Module):
        pretrained_cfg = trained.model.backbone.pretrained_cfg
        feature_info = ()

    with pytest.raises(ModelError, match="no convolution"):
        prunable(type(trained.model)(Bare(), "bare", input_size=(8, 8)))  # type: ignore[arg-type]


@pytest.mark.parametrize("shares", [(), (0.0,), (0.5, 1.0)])
def test_shares_that_make_no_sense_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        MagnitudePrune(shares)
    with pytest.raises(ArgumentError, match="not in 0"):
        Budget(max_drop=1.5)

"""Which images in which order, and what does not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train.loop.small import model, squares

from beholder.core.errors import ArgumentError
from beholder.train.data import (
    ALONE,
    Draws,
    EpochSampler,
    Phase,
    Plan,
    ResolutionSchedule,
    Samples,
    loader,
    own_chance,
    seed_of,
)
from beholder.train.objectives.base import DataInfo
from beholder.train.objectives.classification import Classification


def plan(count: int = 22, batch: int = 4, epochs: int = 2, **options: int) -> Plan:
    world = options.pop("world", 1)
    return Plan({ALONE: EpochSampler(count, world=world)}, batch, epochs, **options)  # type: ignore[arg-type]


@given(count=st.integers(2, 60), batch=st.integers(1, 9), accumulate=st.integers(1, 5))
def test_every_epoch_shows_every_row_once(count: int, batch: int, accumulate: int) -> None:
    whole = plan(count, batch, accumulate=accumulate)
    rows: dict[int, list[int]] = {0: [], 1: []}
    for number in range(len(whole)):
        micro = whole[number]
        rows[micro.epoch] += whole.rows(micro).tolist()
    left_out = count % batch == 1 and batch > 1 and count > batch
    for epoch in rows.values():
        assert len(set(epoch)) == len(epoch) == count - left_out
    assert rows[0] != rows[1] or count < 4


@given(count=st.integers(4, 60), batch=st.integers(1, 9), accumulate=st.integers(1, 5))
def test_the_shares_of_a_step_sum_to_one(count: int, batch: int, accumulate: int) -> None:
    whole = plan(count, batch, accumulate=accumulate)
    sums = np.zeros(whole.steps)
    for number in range(len(whole)):
        sums[whole[number].step] += whole[number].share
    assert np.allclose(sums, 1)
    assert whole[len(whole) - 1].ends_epoch


@given(count=st.integers(8, 60), batch=st.integers(1, 5), world=st.integers(2, 4))
def test_processes_part_the_batches_and_weigh_them_as_a_whole(
    count: int, batch: int, world: int
) -> None:
    together = plan(count, batch, world=world)
    for number in range(len(together)):
        micro = together[number]
        parts = [together.rows(micro, rank) for rank in range(world)]
        assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) == micro.rows
        shares = [together.share(micro, rank) / len(part) for rank, part in enumerate(parts)]
        assert np.allclose(shares, world / micro.rows)  # every image counts the same


def test_a_run_that_goes_on_sees_the_rest_and_nothing_else() -> None:
    whole = plan()
    assert list(Draws(whole, 5)) == list(Draws(whole))[5:]
    assert len(Draws(whole, 5)) == 12 - 5


def test_the_order_is_of_seed_and_epoch() -> None:
    sampler = EpochSampler(50, seed=1)
    assert (sampler.order(2) == EpochSampler(50, seed=1).order(2)).all()
    assert (sampler.order(2) != sampler.order(3)).any()
    assert (sampler.order(2) != EpochSampler(50, seed=2).order(2)).any()


def test_views_do_not_depend_on_workers_and_differ_between_epochs() -> None:
    images, objective = squares(12), Classification()
    objective.setup(model(), DataInfo(images.classes, 12, (32, 32)))
    samples, draws = Samples({ALONE: images}, objective), Draws(plan(12, epochs=2))
    torch.manual_seed(5)
    alone = list(loader(samples, draws, 0, pin=False))
    torch.manual_seed(6)
    apart = list(loader(samples, draws, 2, pin=False))
    for one, other in zip(alone, apart, strict=True):
        assert one["id"] == other["id"]
        assert torch.equal(one["image"], other["image"])
    shown = {}
    for epoch in (0, 1):
        for batch in alone[epoch * 3 : epoch * 3 + 3]:
            shown |= {(epoch, id): x for id, x in zip(batch["id"], batch["image"], strict=True)}
    assert not torch.equal(shown[0, "003"], shown[1, "003"])


def test_alternating_tasks_are_drawn_by_their_odds() -> None:
    samplers = {"a": EpochSampler(40), "b": EpochSampler(400)}
    odds = {"a": 3.0, "b": 1.0}
    both = Plan(samplers, 4, 4, policy="alternate", odds=odds, accumulate=2)
    micros = [both[number] for number in range(len(both))]
    tasks = [micro.task for micro in micros]
    assert 0.65 < tasks.count("a") / len(tasks) < 0.85
    assert all(tasks[n] == tasks[n + 1] for n in range(0, len(tasks), 2))  # one task per step
    of_a = [(m.pass_, m.index) for m in micros if m.task == "a"]
    assert of_a == [divmod(k, 10) for k in range(len(of_a))]  # each goes on where it was


def test_chance_is_given_back() -> None:
    torch.manual_seed(0)
    before = torch.rand(1), torch.rand(1)
    torch.manual_seed(0)
    torch.rand(1)
    with own_chance(7):
        inside = torch.rand(1)
    assert torch.rand(1) == before[1]
    with own_chance(7):
        assert torch.rand(1) == inside
    assert seed_of(0, "a") != seed_of(0, "b") != seed_of("0a", "")


def test_a_schedule_of_sizes_starts_at_0_and_rises() -> None:
    sizes = ResolutionSchedule((Phase(0, (16, 16)), Phase(3, (32, 32))))
    assert [sizes.at(epoch).size[0] for epoch in (0, 2, 3, 9)] == [16, 16, 32, 32]
    with pytest.raises(ArgumentError, match=r"\[1\]"):
        ResolutionSchedule((Phase(1, (16, 16)),))

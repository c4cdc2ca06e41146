"""What mixings share: partners, targets, one of several, label weights from attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from beholder.core.errors import ArgumentError
from beholder.data.augment.base import (
    AttentionMixing,
    MixOneOf,
    MixPlan,
    mixed_targets,
    open_mixing,
    pairing,
)
from beholder.data.augment.cutmix import CutMix
from beholder.data.augment.cutout import Cutout
from beholder.data.augment.mixup import Mixup


class Attended(AttentionMixing, CutMix):
    """The partner's label weighs what the model attends to inside of the box."""

    def retarget(
        self, y: Tensor, plan: MixPlan, attention: Tensor, logits: Tensor | None = None
    ) -> Tensor:
        own = torch.nn.functional.adaptive_avg_pool2d(plan.mask.float(), 4).flatten(1)
        return mixed_targets(self.dense(y), plan.partner, (own * attention).sum(1))


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 40), st.integers(0, 10_000))
def test_pairs_are_each_others_partner_and_share_their_draw(batch: int, seed: int) -> None:
    partner, group = pairing("pair", batch, np.random.default_rng(seed))
    assert (partner[partner] == np.arange(batch)).all()
    assert (group[partner] == group).all()
    assert (partner == np.arange(batch)).sum() == batch % 2
    assert sorted(set(group)) == list(range((batch + 1) // 2))


def test_a_batch_shares_one_draw_and_elements_have_their_own() -> None:
    rng = np.random.default_rng(0)
    assert set(pairing("batch", 7, rng)[1]) == {0}
    assert pairing("elem", 7, rng)[1].tolist() == list(range(7))


def test_partners_are_uniform_over_the_batch() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((4, 4))
    for _ in range(4000):
        counts[np.arange(4), pairing("batch", 4, rng)[0]] += 1
    assert np.abs(counts / 4000 - 0.25).max() < 0.03


def test_smoothing_comes_before_mixing() -> None:
    plan = MixPlan(torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), None, "none")
    found = CutMix(smoothing=0.1).targets(torch.tensor([0, 1]), plan, classes=4)
    by_hand = [[0.75 * 0.925 + 0.25 * 0.025, 0.75 * 0.025 + 0.25 * 0.925, 0.025, 0.025]]
    torch.testing.assert_close(found[:1], torch.tensor(by_hand))


def test_multi_hot_labels_are_smoothed_to_one_half() -> None:
    mixing = CutMix(smoothing=0.2, sum_to_one=False)
    found = mixing.targets(torch.tensor([[1.0, 0.0, 1.0]]), MixPlan.unmixed(1))
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.1, 0.9]]))


def test_a_sample_mixed_with_itself_keeps_its_label() -> None:
    plan = MixPlan(torch.tensor([0]), torch.tensor([0.3]), None, "blend")
    assert torch.equal(Mixup().targets(torch.tensor([2]), plan, classes=3), torch.eye(3)[2:])


def test_one_of_several_is_drawn_as_often_as_it_says() -> None:
    mixing = MixOneOf([(0.5, CutMix()), (0.2, Mixup()), (0.1, Cutout())])
    generator = chance()
    kinds = [mixing.plan(2, 8, 8, generator).kind for _ in range(1500)]
    for kind, share in (("cut", 0.5), ("blend", 0.2), ("erase", 0.1), ("none", 0.2)):
        assert abs(kinds.count(kind) / 1500 - share) < 0.04


def test_one_of_several_applies_the_one_that_was_drawn() -> None:
    mixing = MixOneOf([(1.0, Mixup(smoothing=0.1))])
    images = torch.rand(3, 3, 8, 8, generator=chance())
    plan = mixing.plan(3, 8, 8, chance(1))
    assert torch.equal(mixing.apply(images, plan), Mixup().apply(images, plan))
    assert mixing.targets(torch.arange(3), plan, 3).min() > 0.03
    nothing = MixOneOf([(0.0, Mixup())])
    same, targets = nothing.mix(images, torch.arange(3), chance(), 3)
    assert torch.equal(same, images)
    assert torch.equal(targets, torch.eye(3))


def test_two_names_are_one_of_both() -> None:
    mixing = open_mixing("cutmix+mixup", {"mixup": {"alpha": 0.8}})
    assert isinstance(mixing, MixOneOf)
    assert mixing.odds == [0.5, 0.5]
    assert mixing.members[1].alpha == 0.8
    with pytest.raises(ArgumentError, match="no augmentation 'cutmx'"):
        open_mixing("cutmx")


def test_members_that_treat_labels_differently_are_refused() -> None:
    with pytest.raises(ArgumentError, match="smoothing"):
        MixOneOf([(0.5, CutMix(smoothing=0.1)), (0.5, Mixup())])
    with pytest.raises(ArgumentError, match="sum_to_one"):
        MixOneOf([(0.5, CutMix(sum_to_one=False)), (0.5, Mixup())])


@pytest.mark.parametrize("odds", [[], [0.7, 0.7], [-0.1, 0.5]])
def test_odds_that_are_no_probabilities_are_refused(odds: list[float]) -> None:
    with pytest.raises(ArgumentError, match="no probabilities"):
        MixOneOf([(p, CutMix()) for p in odds])


def test_even_attention_gives_the_target_of_the_area() -> None:
    mixing = Attended(minmax=(0.5, 0.5))
    plan = mixing.plan(4, 16, 16, chance(5))
    y = torch.eye(4)
    even = torch.full((4, 16), 1 / 16)
    torch.testing.assert_close(mixing.retarget(y, plan, even), mixing.targets(y, plan))


def test_one_of_several_weighs_labels_by_attention_only_where_its_mixing_does() -> None:
    attended = Attended()
    mixing = MixOneOf([(0.5, attended), (0.5, Mixup())])
    assert mixing.attends
    assert not MixOneOf([(1.0, CutMix())]).attends
    y, corner = torch.eye(4), torch.eye(16)[:4]
    generator, seen = chance(), set()
    for _ in range(20):
        plan = mixing.plan(4, 16, 16, generator)
        seen.add(plan.maker)
        found = mixing.retarget(y, plan, corner)
        expected = mixing.targets(y, plan) if plan.maker else attended.retarget(y, plan, corner)
        assert torch.equal(found, expected)
    assert seen == {0, 1}

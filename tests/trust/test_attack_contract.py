"""What every attack and every defence keeps to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel
from beholder.core.registry import make, systems
from beholder.models.encoder import create_encoder
from beholder.trust.attacks.base import Goal, distances
from beholder.trust.defences.base import evaluate_defence

ATTACKS = systems("attack")
DEFENCES = systems("defence")


def classifier(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def batch(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def answers(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


@pytest.fixture(params=ATTACKS, ids=lambda entry: entry.name)
def attack(request):
    return make("attack", request.param.name, eps=0.1)


def test_it_stays_in_its_ball_and_in_the_range_of_pixels(attack) -> None:
    model, images = classifier(), batch()
    result = attack.attack(model, images, Goal(labels=answers(model, images)))
    assert result.images.shape == images.shape
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert (result.distance[attack.ball] <= attack.radius * (1 + 1e-5)).all()


def test_success_is_what_the_model_answers(attack) -> None:
    model, images = classifier(), batch()
    labels = answers(model, images)
    result = attack.attack(model, images, Goal(labels=labels))
    assert torch.equal(result.success, answers(model, result.images) != labels)
    saved = (result.images * 255).round() / 255
    assert torch.equal(result.success_uint8, answers(model, saved) != labels)
    assert result.success.any()


def test_a_target_is_answered_more_often_than_before(attack) -> None:
    model, images = classifier(), batch(20)
    targets = (answers(model, images) + 1) % 3
    result = attack.attack(model, images, Goal(targets=targets))
    assert torch.equal(result.success, answers(model, result.images) == targets)
    assert result.success.any()


def test_the_model_is_left_as_it_was(attack) -> None:
    model, images = classifier(), batch()
    model.train()
    model[1].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attack.attack(model, images, Goal(labels=answers(model, images)))
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model._forward_hooks


def test_the_same_seed_gives_the_same_bytes(attack) -> None:
    model, images = classifier(), batch()
    goal = Goal(labels=answers(model, images))
    state = torch.random.get_rng_state()
    one, other = (attack.attack(model, images, goal, seed=3).images for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_constant_model_is_never_fooled_and_nothing_is_nan(attack) -> None:
    model = classifier()
    for parameter in model.parameters():
        parameter.data.zero_()
    images = batch()
    result = attack.attack(model, images, Goal(labels=torch.zeros(6, dtype=torch.long)))
    assert not result.success.any()
    assert torch.isfinite(result.images).all()


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_pixels_that_are_none_are_refused(attack, bad: float) -> None:
    images = batch()
    images[0, 0, 0, 0] = bad
    with pytest.raises(ArgumentError, match="from 0 to 1"):
        attack.attack(classifier(), images, Goal(labels=torch.zeros(6, dtype=torch.long)))


def test_it_attacks_a_whole_vision_model(attack) -> None:
    backbone, _ = create_encoder("untrained:test_resnet")
    names = tuple(str(i) for i in range(1000))
    model = VisionModel(backbone, "tiny", classes=names, input_size=(32, 32))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result = attack.attack(model, images, Goal(labels=answers(model, images)))
    assert (result.distance["linf"] > 0).all()
    assert result.queries >= 1


def test_a_goal_is_exactly_one() -> None:
    with pytest.raises(ArgumentError, match="one of labels"):
        Goal()
    with pytest.raises(ArgumentError, match="one of labels"):
        Goal(labels=torch.zeros(1), targets=torch.zeros(1))


def test_distances_by_hand() -> None:
    before = torch.zeros(1, 1, 1, 2)
    found = distances(before, torch.tensor([[[[0.3, -0.4]]]]))
    assert [round(float(found[norm]), 6) for norm in ("linf", "l2", "l1")] == [0.4, 0.5, 0.7]


@pytest.mark.parametrize("entry", DEFENCES, ids=lambda entry: entry.name)
def test_a_defence_keeps_shapes_and_is_attacked_through(entry) -> None:
    model, images = classifier(), batch(30)
    labels = answers(model, images)
    defence = entry.load()()
    defended = defence.defend(model)
    with torch.no_grad():
        assert defended(images).shape == (30, 3)
    table = evaluate_defence(model, defence, make("attack", "pgd", eps=0.1), images, labels)
    assert table["attacked"].to_list() == ["no", "bare model", "through the defence"]
    bare, own = table["bare"].to_list(), table["defended"].to_list()
    assert bare[0] > 0.9
    assert bare[1] < bare[0]
    assert own[2] < own[0]
    assert (table["low"] <= table["defended"]).all()
    assert (table["defended"] <= table["high"]).all()

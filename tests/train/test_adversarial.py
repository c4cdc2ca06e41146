"""The attack climbs the loss, stays in its ball and in [0, 1], and leaves the model alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from beholder.core.errors import ArgumentError
from beholder.train.recipes.adversarial import Adversarial, Norm, pgd, projected, uphill


class Linear(nn.Module):
    """Logits W x + b of the flat image, after a layer that knows train and eval apart."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)
        self.norm = nn.BatchNorm2d(3)

    def logits(self, x: Tensor) -> Tensor:
        return self.norm(x).flatten(1) @ self.weight.T

    forward = logits


def images(count: int = 5, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 3, 0])
NORMS: list[tuple[Norm, float]] = [("linf", 0.1), ("l2", 0.4)]


def test_one_step_is_the_fast_gradient_sign_method() -> None:
    model = Linear().eval()
    x = images() * 0.5 + 0.25
    leaf = x.clone().requires_grad_(True)
    F.cross_entropy(model.logits(leaf), LABELS).backward()
    expected = x + 0.1 * leaf.grad.sign()
    torch.testing.assert_close(pgd(model, x, LABELS, 0.1, 1, 0.1), expected)


def test_the_gradient_of_a_linear_model_by_hand() -> None:
    model = Linear().eval()
    x = images(1) * 0.2 + 0.4
    share = model.logits(x).softmax(1)[0] - F.one_hot(torch.tensor(2), 4)
    by_hand = (share @ model.weight).view(1, 3, 2, 2)
    found = pgd(model, x, torch.tensor([2]), 0.1, 1, 0.1, norm="l2") - x
    torch.testing.assert_close(found, 0.1 * by_hand / by_hand.norm(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_the_loss_rises_within_the_ball_and_the_pixels(norm: Norm, eps: float) -> None:
    model, x = Linear().eval(), images()
    found = pgd(model, x, LABELS, eps, 10, eps / 4, norm)
    before, after = (F.cross_entropy(model.logits(z), LABELS, reduction="none") for z in (x, found))
    assert (after > before).all()
    assert found.min() >= 0
    assert found.max() <= 1
    change = (found - x).flatten(1)
    length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (length <= eps * (1 + 1e-5)).all()


def test_more_steps_never_end_worse_on_a_linear_model() -> None:
    model, x = Linear().eval(), images()
    losses = [
        F.cross_entropy(model.logits(pgd(model, x, LABELS, 0.1, steps, 0.02)), LABELS).item()
        for steps in (1, 3, 6, 12)
    ]
    assert losses == sorted(losses)


def test_the_model_is_as_it_was() -> None:
    model = Linear().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    model.weight.grad = torch.ones_like(model.weight)
    x = images()
    pgd(model, x, LABELS, 0.1, 3, 0.05)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.weight.grad, torch.ones_like(model.weight))
    assert model.weight.requires_grad
    assert torch.equal(x, images())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_attacks_under_no_grad_as_well() -> None:
    model, x = Linear().eval(), images()
    with torch.no_grad():
        found = pgd(model, x, LABELS, 0.1, 2, 0.05)
    assert torch.equal(found, pgd(model, x, LABELS, 0.1, 2, 0.05))
    assert not found.requires_grad


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_an_image_is_attacked_alike_alone_and_in_a_batch(norm: Norm, eps: float) -> None:
    model, x = Linear().train(), images()
    together = pgd(model, x, LABELS, eps, 4, eps / 3, norm)
    alone = [pgd(model, x[i : i + 1], LABELS[i : i + 1], eps, 4, eps / 3, norm) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_masked_pixels_stay() -> None:
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    mask[..., 0, 1] = True
    x = images()
    for generator in (None, torch.Generator().manual_seed(0)):
        found = pgd(Linear(), x, LABELS, 0.1, 3, 0.05, mask=mask, generator=generator)
        assert torch.equal((found != x).any(0).any(0), mask[0, 0])


def test_a_constant_model_moves_nothing() -> None:
    model = Linear()
    nn.init.zeros_(model.weight)
    for norm, eps in NORMS:
        assert torch.equal(pgd(model, images(), LABELS, eps, 3, eps, norm), images())


def test_a_random_start_repeats_with_its_seed() -> None:
    model = Linear()
    found = [
        pgd(model, images(), LABELS, 0.1, 1, 0.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert (found[0] - images()).abs().max() <= 0.1 * (1 + 1e-5)


def test_shares_are_driven_away_from_like_classes() -> None:
    shares = F.one_hot(LABELS, 4).float()
    hard = pgd(Linear(), images(), LABELS, 0.1, 2, 0.05)
    torch.testing.assert_close(pgd(Linear(), images(), shares, 0.1, 2, 0.05), hard)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 2), st.sampled_from(["linf", "l2"]))
def test_projection_is_within_the_ball_and_leaves_what_is(
    seed: int, eps: float, norm: Norm
) -> None:
    delta = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    once = projected(delta, eps, norm)
    length = once.abs().amax((1, 2, 3)) if norm == "linf" else once.flatten(1).norm(dim=1)
    assert (length <= eps * (1 + 1e-5)).all()
    torch.testing.assert_close(projected(once, eps, norm), once)


def test_the_step_uphill_has_length_one_or_nothing() -> None:
    gradient = torch.stack([torch.full((3, 2, 2), 2.0), torch.zeros(3, 2, 2)])
    torch.testing.assert_close(
        uphill(gradient, "l2").flatten(1).norm(dim=1), torch.tensor([1.0, 0])
    )
    assert uphill(gradient, "linf").flatten(1)[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eps": -0.1}, "eps = -0.1"),
        ({"steps": 0}, "steps = 0"),
        ({"norm": "l7"}, "'l7'"),
        ({"x": images() + 1}, r"\[0, 1\]"),
        ({"x": images() * float("nan")}, r"\[0, 1\]"),
        ({"x": torch.zeros(5, 3, 2, 2, dtype=torch.uint8)}, r"\[0, 1\]"),
    ],
)
def test_bad_arguments_are_named(change: dict, says: str) -> None:
    arguments = {"x": images(), "y": LABELS, "eps": 0.1, "steps": 1, "step": 0.1, **change}
    with pytest.raises(ArgumentError, match=says):
        pgd(Linear(), **arguments)


def test_adversarial_training_sees_attacked_images_where_the_label_is_known() -> None:
    model, objective = Linear(), Adversarial(eps=0.1, steps=2)
    batch = {"image": images(), "label": torch.tensor([0, -1, 2, 3, 0])}
    found = objective.attacked(model, batch)
    assert torch.equal(found[1], images()[1])
    changed = (found - images()).abs().amax((1, 2, 3))
    assert (changed[[0, 2, 3, 4]] > 0).all()
    assert changed.max() <= 0.1 * (1 + 1e-5)

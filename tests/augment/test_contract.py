"""What every registered mixing promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beholder.core.errors import ArgumentError
from beholder.core.registry import arguments, checked, make, systems
from beholder.data.augment.base import Mixing, MixPlan, open_mixing

NAMES = [entry.name for entry in systems("augmentation")]
MODES = [
    (name, mode)
    for name in NAMES
    for mode in (
        ("batch", "pair", "elem")
        if "mode" in arguments(next(e for e in systems("augmentation") if e.name == name).load())
        else (None,)
    )
]
SIZES = (1, 2, 5, 8)
every_mode = pytest.mark.parametrize(("name", "mode"), MODES)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(name: str, mode: str | None, **options: Any) -> Mixing:
    return make("augmentation", name, **({} if mode is None else {"mode": mode}), **options)


def pictures(batch: int, size: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=chance(seed))


def plans(mixing: Mixing, batch: int, count: int = 20, size: int = 32) -> list[MixPlan]:
    generator = chance(7)
    return [mixing.plan(batch, size, size, generator) for _ in range(count)]


@every_mode
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_shares(name: str, mode: str | None, smoothing: float) -> None:
    mixing = made(name, mode, smoothing=smoothing)
    for batch in SIZES:
        for plan in plans(mixing, batch):
            targets = mixing.targets(torch.arange(batch), plan, classes=9)
            assert targets.shape == (batch, 9)
            assert targets.dtype == torch.float32
            assert (targets >= 0).all()
            torch.testing.assert_close(targets.sum(1), torch.ones(batch), atol=1e-6, rtol=0)


@every_mode
def test_targets_weigh_own_and_partner_by_lam(name: str, mode: str | None) -> None:
    mixing, batch = made(name, mode), 5
    for plan in plans(mixing, batch):
        targets = mixing.targets(torch.arange(batch), plan, classes=batch)
        expected = torch.zeros(batch, batch)
        for row in range(batch):
            expected[row, row] += plan.lam[row]
            expected[row, plan.partner[row]] += 1 - plan.lam[row]
        torch.testing.assert_close(targets, expected, atol=1e-6, rtol=0)


@every_mode
def test_plans_have_their_shapes(name: str, mode: str | None) -> None:
    for batch in SIZES:
        for plan in plans(made(name, mode), batch, 5, size=24):
            assert plan.partner.dtype == torch.long
            assert plan.partner.shape == plan.lam.shape == (batch,)
            assert ((plan.lam >= 0) & (plan.lam <= 1)).all()
            assert sorted(plan.partner.tolist()) == list(range(batch))
            if plan.mask is not None:
                assert plan.mask.shape == (batch, 1, 24, 24)
                assert plan.mask.dtype == torch.bool


@every_mode
def test_the_cut_area_is_the_weight_exactly(name: str, mode: str | None) -> None:
    for plan in plans(made(name, mode), 5, 50):
        if plan.kind == "cut":
            assert plan.mask is not None
            assert torch.equal(plan.mask.float().mean((1, 2, 3)), plan.lam)


@every_mode
def test_every_pixel_comes_from_where_the_plan_says(name: str, mode: str | None) -> None:
    mixing, images = made(name, mode), pictures(5)
    for plan in plans(mixing, 5):
        mixed = mixing.apply(images, plan)
        if plan.kind == "cut":
            expected = torch.where(plan.mask, images, images[plan.partner])
            assert torch.equal(mixed, expected)
        elif plan.kind == "erase":
            assert torch.equal(mixed, images * plan.mask)
        elif plan.kind == "blend":
            lam = plan.lam[:, None, None, None]
            torch.testing.assert_close(mixed, lam * images + (1 - lam) * images[plan.partner])
        else:
            assert torch.equal(mixed, images)


@every_mode
def test_black_and_white_mix_to_a_grey_that_is_the_weight(name: str, mode: str | None) -> None:
    mixing = made(name, mode)
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    for plan in plans(mixing, 2):
        black, white = mixing.apply(images, plan).mean((1, 2, 3))
        if plan.kind in ("cut", "blend") and plan.partner[0] == 1:
            torch.testing.assert_close(black, 1 - plan.lam[0])
            torch.testing.assert_close(white, plan.lam[1])
        else:
            assert black == 0


@every_mode
def test_the_same_seed_gives_the_same_batch(name: str, mode: str | None) -> None:
    mixing, images, y = made(name, mode), pictures(6), torch.arange(6)
    first, second, other = (mixing.mix(images, y, chance(seed), 6) for seed in (3, 3, 4))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


@every_mode
def test_global_chance_is_neither_used_nor_moved(name: str, mode: str | None) -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    made(name, mode).mix(pictures(4), torch.arange(4), chance(), 4)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@every_mode
def test_the_batch_given_is_left_alone_unless_in_place(name: str, mode: str | None) -> None:
    mixing, images = made(name, mode), pictures(5)
    kept = images.clone()
    plan = mixing.plan(5, 32, 32, chance(2))
    mixed = mixing.apply(images, plan)
    assert torch.equal(images, kept)
    over = mixing.apply(images, plan, inplace=True)
    assert over.data_ptr() == images.data_ptr()
    assert torch.equal(over, mixed)


@every_mode
def test_gradient_reaches_the_images(name: str, mode: str | None) -> None:
    mixing = made(name, mode)
    for plan in plans(mixing, 5):
        images = pictures(5).requires_grad_(True)
        mixing.apply(images, plan).sum().backward()
        if plan.kind == "erase":
            assert torch.equal(images.grad, plan.mask.float().expand_as(images))
        else:  # every pixel is used once, by itself and its partner together
            total = images.grad.sum()
            torch.testing.assert_close(total, torch.tensor(float(images.numel())))


@every_mode
def test_half_precision_images_stay_so_and_targets_do_not(name: str, mode: str | None) -> None:
    mixing = made(name, mode)
    images, targets = mixing.mix(
        pictures(4).to(torch.bfloat16), torch.eye(4).half(), chance(), None
    )
    assert images.dtype == torch.bfloat16
    assert targets.dtype == torch.float32


@every_mode
def test_uint8_is_cut_but_not_blended(name: str, mode: str | None) -> None:
    mixing, images = made(name, mode), (pictures(4) * 255).to(torch.uint8)
    plan = mixing.plan(4, 32, 32, chance())
    if plan.kind == "blend":
        with pytest.raises(ArgumentError, match="uint8"):
            mixing.apply(images, plan)
    else:
        assert mixing.apply(images, plan).dtype == torch.uint8


@every_mode
def test_soft_labels_mix_like_numbers(name: str, mode: str | None) -> None:
    mixing, plan = made(name, mode), made(name, mode).plan(5, 32, 32, chance())
    y = torch.tensor([0, 3, 1, 2, 0])
    by_number = mixing.targets(y, plan, classes=4)
    assert torch.equal(mixing.targets(torch.eye(4)[y], plan), by_number)


@every_mode
def test_multi_hot_labels_need_to_be_announced(name: str, mode: str | None) -> None:
    several = torch.tensor([[1.0, 1, 0], [0, 1, 1]])
    plan = MixPlan(torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), None, "none")
    with pytest.raises(ArgumentError, match="sum to 2"):
        made(name, mode).targets(several, plan)
    found = made(name, mode, sum_to_one=False).targets(several, plan)
    torch.testing.assert_close(found, torch.tensor([[0.75, 1, 0.25], [0.25, 1, 0.75]]))


@pytest.mark.parametrize("name", NAMES)
def test_no_chance_of_mixing_changes_nothing(name: str) -> None:
    images, y = pictures(4), torch.arange(4)
    same, targets = make("augmentation", name, prob=0.0).mix(images, y, chance(), 4)
    assert torch.equal(same, images)
    assert torch.equal(targets, torch.eye(4))


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_cannot_be_mixed_are_refused(name: str) -> None:
    mixing, images = make("augmentation", name), pictures(2)
    boxes = [{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(2, 4)}]
    with pytest.raises(ArgumentError, match="boxes"):
        mixing.mix(images, boxes, chance())
    with pytest.raises(ArgumentError, match="how many classes"):
        mixing.mix(images, torch.tensor([0, 1]), chance())
    with pytest.raises(ArgumentError, match="Label 7 is none of 0 to 2"):
        mixing.mix(images, torch.tensor([0, 7]), chance(), 3)
    with pytest.raises(ArgumentError, match="Label -1"):
        mixing.mix(images, torch.tensor([0, -1]), chance(), 3)
    with pytest.raises(ArgumentError, match="3 labels"):
        mixing.mix(images, torch.tensor([0, 1, 2]), chance(), 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("option", "value"), [("prob", 1.5), ("prob", -0.1), ("smoothing", 1.0), ("smoothing", -0.1)]
)
def test_shares_that_are_none_are_refused(name: str, option: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"{option} = {value}"):
        make("augmentation", name, **{option: value})


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_opens_it_by_name(name: str) -> None:
    mixing = open_mixing(name, {name: {"prob": "0.5"}})
    assert mixing.prob == 0.5
    assert checked(type(mixing), {"smoothing": "0.1"}, "augmentation") == {"smoothing": 0.1}

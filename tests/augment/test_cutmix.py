"""Row 58: the box of the authors, of timm and of torchvision, and what it does to the label."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import golden_fill as fill
import numpy as np
import pytest
import timm
import torch
from goldens import assert_same, golden
from hypothesis import given
from hypothesis import strategies as st
from timm.data import mixup as timm_mixup
from torchvision.transforms import v2

from beholder.core.errors import ArgumentError, ModelError
from beholder.data.augment.base import MixPlan
from beholder.data.augment.cutmix import (
    Convention,
    CutMix,
    FeatureCutMix,
    box_masks,
    cutmix_box,
    minmax_box,
)

CONVENTIONS: list[Convention] = ["timm", "authors", "torchvision"]
SIZES = [(32, 32), (224, 160), (7, 9)]


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cells(seed: int = 0, count: int = 200) -> list[tuple[float, int, int, int, int]]:
    """lam, cy, cx, height, width."""
    rng = np.random.default_rng(seed)
    return [
        (rng.random(), int(rng.integers(height)), int(rng.integers(width)), height, width)
        for height, width in SIZES
        for _ in range(count)
    ]


def share(box: tuple[int, ...], height: int, width: int) -> float:
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)


def test_the_authors_boxes_and_weights() -> None:
    record = golden("58_cutmix")
    for case in record["outputs"]["boxes"]:
        rows, columns = case["size"][2:]
        state = np.random.RandomState(case["seed"])
        lam = state.beta(case["beta"], case["beta"])
        assert lam == pytest.approx(case["lam_drawn"], abs=1e-12)
        first, second = state.randint(rows), state.randint(columns)
        box = cutmix_box(lam, first, second, rows, columns, "authors")
        top, bottom, left, right = (int(edge) for edge in box)
        assert [top, left, bottom, right] == case["box"]  # the authors' x runs over the rows
        assert share((top, bottom, left, right), rows, columns) == pytest.approx(case["lam"])


def test_the_authors_mixed_images_and_loss_weights() -> None:
    record = golden("58_cutmix")
    out = record["outputs"]
    top, left, bottom, right = out["box"]
    edges = [np.array([edge]) for edge in (top, bottom, left, right)]
    partner = torch.tensor(record["inputs"]["permutation"])
    lam = torch.full((4,), out["lam"])
    mask = box_masks(edges, 32, 32).expand(4, -1, -1, -1)
    images = torch.from_numpy(fill.image(4, 32, 32, seed=2))
    mixing = CutMix(box="authors")
    for box in (None, (top, bottom, left, right)):
        plan = MixPlan(partner, lam, mask, "cut", box)
        assert_same(mixing.apply(images, plan), out["mixed"], 1e-6)
    targets = mixing.targets(torch.tensor(record["inputs"]["labels"]), plan, classes=10)
    np.testing.assert_allclose(targets.numpy(), out["target"], atol=1e-6)


def test_the_box_by_hand() -> None:
    assert cutmix_box(0.75, 16, 16, 32, 32) == (8, 24, 8, 24)
    assert cutmix_box(0.75, 0, 0, 32, 32) == (0, 8, 0, 8)
    assert share((8, 24, 8, 24), 32, 32) == 0.75
    assert share((0, 8, 0, 8), 32, 32) == 0.9375


@pytest.mark.parametrize(("box", "side"), [("authors", 172), ("timm", 173), ("torchvision", 172)])
def test_the_side_at_224_pixels(box: Convention, side: int) -> None:
    top, bottom, left, right = cutmix_box(0.4, 112, 112, 224, 224, box)
    assert bottom - top == right - left == side


def test_the_box_is_timms() -> None:
    for lam, cy, cx, height, width in cells():
        with patch.object(timm_mixup.np.random, "randint", side_effect=[cy, cx]):
            theirs = timm_mixup.rand_bbox((1, 3, height, width), lam)
        top, bottom, left, right = theirs
        assert cutmix_box(lam, cy, cx, height, width) == (top, bottom, left, right)


def test_the_box_is_torchvisions() -> None:
    cutmix = v2.CutMix(num_classes=2)
    for lam, cy, cx, height, width in cells():
        drawn = [torch.tensor([cx]), torch.tensor([cy])]
        image = torch.zeros(2, 3, height, width)
        with (
            patch.object(cutmix._dist, "sample", lambda size, lam=lam: torch.tensor(lam)),
            patch("torch.randint", side_effect=drawn),
        ):
            theirs = cutmix.make_params([image])
        left, top, right, bottom = theirs["box"]
        assert cutmix_box(lam, cy, cx, height, width, "torchvision") == (top, bottom, left, right)
        assert share((top, bottom, left, right), height, width) == pytest.approx(
            theirs["lam_adjusted"]
        )


def test_pictures_and_targets_are_torchvisions_for_the_same_box() -> None:
    images, y = torch.rand(6, 3, 32, 24, generator=chance()), torch.tensor([0, 1, 2, 3, 0, 1])
    params = {"box": (3, 5, 19, 30), "lam_adjusted": share((5, 30, 3, 19), 32, 24)}
    cutmix = v2.CutMix(num_classes=4)
    params |= {"labels": y, "batch_size": 6}
    theirs = cutmix.transform(images, params), cutmix.transform(y, params)
    edges = [np.array([edge]) for edge in (5, 30, 3, 19)]
    plan = MixPlan(
        torch.arange(6).roll(1),
        torch.full((6,), params["lam_adjusted"]),
        box_masks(edges, 32, 24),
        "cut",
        (5, 30, 3, 19),
    )
    assert torch.equal(CutMix().apply(images, plan), theirs[0])
    torch.testing.assert_close(CutMix().targets(y, plan, classes=4), theirs[1])


def test_pictures_and_targets_are_timms_for_the_same_box() -> None:
    images, y = torch.rand(6, 3, 32, 24, generator=chance()), torch.tensor([0, 1, 2, 3, 0, 1])
    theirs = timm_mixup.Mixup(mixup_alpha=0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=4)
    with (
        patch.object(timm_mixup.np.random, "randint", side_effect=[11, 7]),
        patch.object(timm_mixup.np.random, "beta", return_value=0.6),
        patch.object(timm_mixup.np.random, "rand", return_value=0.0),
    ):
        pictures, targets = theirs(images.clone(), y)
    box = tuple(int(edge) for edge in cutmix_box(0.6, 11, 7, 32, 24))
    lam = torch.full((6,), share(box, 32, 24))
    plan = MixPlan(torch.arange(6).flip(0), lam, None, "cut", box)
    mixing = CutMix(smoothing=0.1)
    assert torch.equal(mixing.apply(images, plan), pictures)
    torch.testing.assert_close(mixing.targets(y, plan, classes=4), targets)


def test_the_mean_weight_is_that_of_all_centres_and_quantiles() -> None:
    lam = (np.arange(1000) + 0.5) / 1000
    centres = [
        np.array(axis) for axis in zip(*itertools.product(range(32), range(32)), strict=True)
    ]
    top, bottom, left, right = cutmix_box(lam[:, None], centres[0][None], centres[1][None], 32, 32)
    expected = float((1 - (bottom - top) * (right - left) / 1024).mean())
    assert expected == pytest.approx(0.6898, abs=5e-4)
    plan = CutMix(mode="elem").plan(20_000, 32, 32, chance())
    assert float(plan.lam.mean()) == pytest.approx(expected, abs=0.005)


def test_a_weight_of_nought_swaps_the_image_and_of_one_keeps_it() -> None:
    images = torch.rand(2, 3, 32, 32, generator=chance())
    for lam, expected in ((0.0, images.flip(0)), (1.0, images)):
        box = tuple(int(edge) for edge in cutmix_box(lam, 16, 16, 32, 32))
        plan = MixPlan(torch.tensor([1, 0]), torch.full((2,), lam), None, "cut", box)
        assert share(box, 32, 32) == lam
        assert torch.equal(CutMix().apply(images, plan), expected)


@given(
    st.floats(0, 1),
    st.integers(1, 64),
    st.integers(1, 64),
    st.data(),
    st.sampled_from(CONVENTIONS),
)
def test_boxes_lie_inside_and_are_never_larger_than_drawn(
    lam: float, height: int, width: int, data: st.DataObject, convention: Convention
) -> None:
    cy, cx = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    top, bottom, left, right = cutmix_box(lam, cy, cx, height, width, convention)
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert share((top, bottom, left, right), height, width) >= lam - 1e-9


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 64), st.integers(0, 1000))
def test_boxes_of_bounded_sides_lie_inside(a: float, b: float, size: int, seed: int) -> None:
    low, high = sorted((a, b))
    rng = np.random.default_rng(seed)
    top, bottom, left, right = minmax_box(low, high, size, 2 * size, 50, rng)
    for start, end, length in ((top, bottom, size), (left, right, 2 * size)):
        assert (start >= 0).all()
        assert (end <= length).all()
        assert (end - start >= int(length * low)).all()
        assert (end - start <= int(length * high)).all()


@given(st.integers(0, 1000), st.sampled_from(CONVENTIONS), st.floats(0.1, 4))
def test_the_weight_is_the_area_for_every_way_to_draw(
    seed: int, box: Convention, beta: float
) -> None:
    for mode in ("batch", "pair", "elem"):
        for minmax in (None, (0.2, 0.8)):
            plan = CutMix(beta, mode=mode, minmax=minmax, box=box).plan(5, 9, 14, chance(seed))
            assert torch.equal(plan.mask.float().mean((1, 2, 3)), plan.lam)


def test_without_correction_the_weight_is_as_drawn() -> None:
    corrected = CutMix(mode="elem").plan(500, 32, 32, chance())
    drawn = CutMix(mode="elem", correct_lam=False).plan(500, 32, 32, chance())
    assert torch.equal(corrected.mask, drawn.mask)
    assert float(drawn.lam.mean()) == pytest.approx(0.5, abs=0.04)
    assert (drawn.lam <= corrected.lam + 1e-6).all()


def test_pairs_share_their_box_and_elements_do_not() -> None:
    pair = CutMix(mode="pair").plan(6, 32, 32, chance())
    assert torch.equal(pair.mask, pair.mask[pair.partner])
    assert len(set(pair.lam.tolist())) == 3
    assert len(set(CutMix(mode="elem").plan(6, 32, 32, chance()).lam.tolist())) == 6


def test_half_of_the_elements_are_mixed_at_a_probability_of_one_half() -> None:
    plan = CutMix(prob=0.5, mode="elem", correct_lam=False).plan(2000, 8, 8, chance())
    assert float((plan.lam == 1).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert plan.mask[plan.lam == 1].all()


def test_the_fast_path_of_one_box_is_the_masks() -> None:
    images = torch.rand(5, 3, 20, 30, generator=chance())
    plan = CutMix().plan(5, 20, 30, chance(3))
    assert plan.box is not None
    slow = MixPlan(plan.partner, plan.lam, plan.mask, "cut")
    assert torch.equal(CutMix().apply(images, plan), CutMix().apply(images, slow))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": 0.0}, "beta = 0"),
        ({"beta": -1.0}, "beta = -1"),
        ({"prob": 2.0}, "prob = 2"),
        ({"minmax": (0.8, 0.2)}, r"minmax = \(0.8, 0.2\)"),
        ({"mode": "all"}, "'all'"),
        ({"box": "mine"}, "'mine'"),
    ],
)
def test_bad_arguments_are_named(options: dict, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        CutMix(**options)


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("resnet10t").eval()


def cut_share(mixing: FeatureCutMix, model: torch.nn.Module, stage: int) -> None:
    """Compare the maps of one stage with those cut by hand."""
    images = torch.rand(4, 3, 64, 64, generator=chance())
    seen: list[torch.Tensor] = []
    name = model.feature_info[stage]["module"]
    with torch.no_grad():
        whole = model.forward_intermediates(images, indices=[stage], intermediates_only=True)[0]
        with mixing.inside(model):
            plan = mixing.plan(4, 64, 64, chance(4))
            handle = model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output: seen.append(output)
            )
            model(mixing.apply(images, plan))
            handle.remove()
    assert plan.mask.shape[2:] == whole.shape[2:]
    assert torch.equal(plan.mask.float().mean((1, 2, 3)), plan.lam)
    assert not torch.equal(seen[0], whole)
    assert torch.equal(seen[0], torch.where(plan.mask, whole, whole[plan.partner]))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_feature_cutmix_cuts_the_maps_of_its_stage(stage: int, resnet: torch.nn.Module) -> None:
    cut_share(FeatureCutMix(stages=(stage,)), resnet, stage)


def test_feature_cutmix_cuts_once_and_leaves_no_trace(resnet: torch.nn.Module) -> None:
    mixing, images = FeatureCutMix(), torch.rand(4, 3, 64, 64, generator=chance())
    with torch.no_grad():
        before = resnet(images)
        with mixing.inside(resnet):
            mixing.apply(images, mixing.plan(4, 64, 64, chance(1)))
            first, second = resnet(images), resnet(images)
        after = resnet(images)
    assert not torch.equal(first, before)
    assert torch.equal(second, before)
    assert torch.equal(after, before)


def test_feature_cutmix_says_what_it_needs(resnet: torch.nn.Module) -> None:
    with pytest.raises(ArgumentError, match="inside"):
        FeatureCutMix().plan(4, 64, 64, chance())
    with pytest.raises(ModelError, match="number 9"), FeatureCutMix(stages=(9,)).inside(resnet):
        pass
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    mixing = FeatureCutMix(stages=(1,))
    with mixing.inside(vit):
        images = mixing.apply(torch.rand(2, 3, 32, 32), mixing.plan(2, 32, 32, chance()))
        with pytest.raises(ModelError, match="no maps"):
            vit(images)

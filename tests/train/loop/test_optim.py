"""Groups of parameters and the learning rate, against formulas and timm."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn
from train.loop.small import model

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel
from beholder.train.optim import RATES, make_optimiser, param_groups, rate, set_rates


def test_layer_decay_of_a_vit_is_timms() -> None:
    """Patch embedding d^13, block i d^(12 - i), head 1."""
    net = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    groups = param_groups(VisionModel(net, "vit"), 2.0, 0.1, layer_decay=0.65)
    names = {id(p): name for name, p in net.named_parameters()}
    lr = {names[id(p)]: group["lr"] / 2.0 for group in groups for p in group["params"]}
    assert lr["patch_embed.proj.weight"] == pytest.approx(0.65**13)
    for i in range(12):
        assert lr[f"blocks.{i}.attn.qkv.weight"] == pytest.approx(0.65 ** (12 - i))
    assert lr["head.weight"] == 1
    theirs = param_groups_layer_decay(net, 0.1, layer_decay=0.65)
    expected = {names[id(p)]: g["lr_scale"] for g in theirs for p in g["params"]}
    assert lr == pytest.approx(expected)


def test_every_trainable_parameter_stands_in_one_group_and_frozen_ones_in_none() -> None:
    vision = model()
    vision.backbone.patch_embed.requires_grad_(False)
    groups = param_groups(vision, 1e-3, 0.05, layer_decay=0.9, scales={"backbone.head*": 10.0})
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in vision.parameters() if p.requires_grad)
    lr = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert lr[id(vision.backbone.head.weight)] == pytest.approx(1e-2)


def test_biases_norms_and_what_the_backbone_names_do_not_decay() -> None:
    vision = model()
    groups = param_groups(vision, 1e-3, 0.05, no_decay=["*.fc1.weight"])
    names = {id(p): name for name, p in vision.named_parameters()}
    bare = {names[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]}
    assert "backbone.pos_embed" in bare
    assert {name for name, p in vision.named_parameters() if p.ndim <= 1} <= bare
    assert "backbone.blocks.0.mlp.fc1.weight" in bare
    assert "backbone.blocks.0.mlp.fc2.weight" not in bare


def test_a_parameter_in_two_groups_is_refused() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="two groups"):
        make_optimiser("sgd", param_groups(layer, 1, 0) + param_groups(layer, 1, 0))
    with pytest.raises(ArgumentError, match="frozen"):
        make_optimiser("sgd", param_groups(layer.requires_grad_(False), 1, 0))


@pytest.mark.parametrize("kind", RATES)
def test_every_optimiser_makes_a_step_downhill(kind: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 1), torch.randn(32, 4)
    optimiser = make_optimiser(kind, param_groups(layer, 0.01, 1e-4))
    losses = []
    for _ in range(20):
        loss = (layer(x) - x.sum(1, keepdim=True)).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]


def test_warm_up_and_cosine_at_their_corners() -> None:
    def at(s: int) -> float:
        return rate(s, 100, "cosine", warmup=20, floor=0.1)

    assert [at(0), at(10), at(20)] == [0, 0.5, 1]
    assert at(60) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert at(100) == pytest.approx(0.1)


def test_the_other_curves_at_their_corners() -> None:
    assert rate(50, 100, "linear") == 0.5
    assert rate(50, 100, "polynomial") == 0.25
    assert rate(10**6, 100, "constant") == 1
    assert [rate(s, 90, "step") for s in (0, 29, 30, 60, 90)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.01]
    )
    # NASNet: 0.97 every 2.4 epochs
    assert rate(23, 1000, "exponential", per_epoch=10) == 1
    assert rate(48, 1000, "exponential", per_epoch=10) == pytest.approx(0.97**2)


def test_rates_are_shares_of_each_groups_own() -> None:
    vision = model()
    optimiser = make_optimiser("adamw", param_groups(vision, 1e-3, 0.05, layer_decay=0.5))
    before = [group["lr"] for group in optimiser.param_groups]
    set_rates(optimiser, 0.25, decay=0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [lr / 4 for lr in before]
    assert {group["weight_decay"] for group in optimiser.param_groups} == {0, 0.025}

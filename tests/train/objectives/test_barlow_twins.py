"""Barlow Twins: the authors' numbers, hand-made batches, and what must change nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import golden_fill as fill
import pytest
import timm
import torch
import two_processes
from goldens import assert_same, golden, weights
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import Lars
from torch import Tensor, nn

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel
from beholder.train.objectives.barlow_twins import (
    BarlowTwins,
    _from_gram,
    barlow_twins_loss,
    convert,
    correlation,
    dead_columns,
    standardise,
)
from beholder.train.objectives.base import DataInfo, Step

RECORD = golden("47_barlow_twins")
CORNERS = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
LAMBDA = 0.0051


def given_z() -> tuple[Tensor, Tensor]:
    z1 = torch.from_numpy(fill.tensor("barlow.z1", (6, 24)))
    return z1, z1 + 0.5 * torch.from_numpy(fill.tensor("barlow.z2", (6, 24)))


def random_z(rows: int = 32, columns: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return a, a + torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def weighted(a: Tensor, b: Tensor) -> Tensor:
    terms = barlow_twins_loss(a, b)
    return terms["invariance"] + LAMBDA * terms["redundancy"]


def values(a: Tensor, b: Tensor) -> tuple[float, float]:
    terms = barlow_twins_loss(a, b)
    return terms["invariance"].item(), terms["redundancy"].item()


def by_hand(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 written down."""
    matrix = correlation(a, b)
    off = matrix - torch.diag(matrix.diagonal())
    return (matrix.diagonal() - 1).square().sum(), off.square().sum()


# the authors' numbers ------------------------------------------------------------------------


def test_loss_and_gradient_of_given_projections_are_the_authors() -> None:
    z1, z2 = given_z()
    z1.requires_grad_()
    loss = weighted(z1, z2)
    loss.backward()
    outputs = RECORD["outputs"]
    assert loss.item() == pytest.approx(1.0498270, abs=1e-5)
    assert_same(loss, outputs["loss_of_z"], absolute=1e-5)
    assert_same(z1.grad, outputs["grad_z1"], absolute=1e-5)
    assert_same(correlation(z1, z2), outputs["cross_correlation"], absolute=1e-5)


def test_both_terms_are_the_authors() -> None:
    invariance, redundancy = values(*given_z())
    outputs = RECORD["outputs_float64"]
    assert invariance == pytest.approx(outputs["on_diagonal"]["mean"], rel=1e-5)
    assert redundancy == pytest.approx(outputs["off_diagonal"]["mean"], rel=1e-5)


@pytest.fixture(scope="module")
def authors() -> tuple[VisionModel, BarlowTwins]:
    """Their ResNet-50 and projector in train mode and float64, through our converter."""
    backbone = timm.create_model("resnet50", num_classes=0)
    model = VisionModel(backbone, "resnet50", input_size=(64, 64))
    model._mean, model._std = torch.zeros_like(model._mean), torch.ones_like(model._std)
    objective = BarlowTwins((32, 32, 24))
    objective.setup(model, DataInfo((), 6, (64, 64)))
    module = {f"module.{key}": value for key, value in weights(RECORD).items()}
    released = convert({"epoch": 3, "model": module, "optimizer": {}})
    model.backbone.load_state_dict(released.backbone)
    objective.projector.load_state_dict(released.projector)
    return model.double().train(), objective.double().train()


def test_whole_model_in_train_mode_is_the_authors(
    authors: tuple[VisionModel, BarlowTwins],
) -> None:
    model, objective = authors
    views = [torch.from_numpy(fill.image(6, 64, 64, 3, seed)).double() for seed in (0, 1)]
    with pytest.warns(UserWarning, match="6 images"):
        terms = objective.loss(model, {"views": views})
    loss = objective.total(terms, Step(0, 1))
    loss.backward()
    outputs = RECORD["outputs_float64"]
    assert_same(loss, outputs["loss"], absolute=1e-9, relative=1e-9)
    stem: Any = model.backbone.get_submodule("conv1")
    assert_same(stem.weight.grad, outputs["grad_conv1"], absolute=1e-9, relative=1e-7)


def test_lars_steps_are_the_authors() -> None:
    w, b = (nn.Parameter(torch.from_numpy(fill.tensor(f"lars.{k}", s))) for k, s in SHAPES.items())
    groups = [{"params": [w], "lr": 0.5, "weight_decay": 1e-2}, {"params": [b], "lr": 0.05}]
    optimiser = Lars(groups, momentum=0.9, weight_decay=0, trust_coeff=1e-3)
    for i in range(3):
        w.grad = torch.from_numpy(fill.tensor(f"lars.gw{i}", SHAPES["w"]))
        b.grad = torch.from_numpy(fill.tensor(f"lars.gb{i}", SHAPES["b"]))
        optimiser.step()
    assert_same(w, RECORD["outputs"]["lars_w"], absolute=1e-5)
    assert_same(b, RECORD["outputs"]["lars_b"], absolute=1e-6)


SHAPES = {"w": (4, 3), "b": (4,)}


def test_both_forms_of_released_weights_are_read() -> None:
    whole = weights(RECORD)
    alone = {
        key.removeprefix("backbone."): value
        for key, value in whole.items()
        if key.startswith("backbone.")
    }
    names = set(timm.create_model("resnet50", num_classes=0).state_dict())
    for found in (convert(alone | {"fc.weight": torch.zeros(1)}), convert({"model": whole})):
        assert set(found.backbone) == names
    assert set(convert({"model": whole}).projector) >= {f"{i}.weight" for i in (0, 1, 3, 4, 6)}
    with pytest.raises(ArgumentError, match=r"layer1\.weight"):
        convert({"layer1.weight": torch.zeros(1)})


# by hand -------------------------------------------------------------------------------------


def test_orthogonal_equal_views_cost_nothing() -> None:
    invariance, redundancy = values(CORNERS, CORNERS)
    assert invariance == pytest.approx(2e-10, abs=1e-10)
    assert redundancy == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(correlation(CORNERS, CORNERS), torch.eye(2), atol=2e-5, rtol=0)


def test_swapped_columns_cost_two_and_two() -> None:
    assert values(CORNERS, CORNERS.flip(1)) == pytest.approx((2, 2), abs=1e-4)


def test_equal_columns_are_invariant_and_redundant() -> None:
    z = CORNERS[:, :1].repeat(1, 2)
    assert values(z, z) == pytest.approx((0, 2), abs=1e-4)


def test_opposite_views_are_not_invariant() -> None:
    assert values(CORNERS, -CORNERS) == pytest.approx((8, 0), abs=1e-3)


# what must change nothing --------------------------------------------------------------------


@given(st.integers(0, 7), st.floats(-5, 5), st.floats(0.2, 5), st.integers(0, 99))
def test_shift_and_scale_of_a_column_change_nothing(
    column: int, shift: float, scale: float, seed: int
) -> None:
    a, b = random_z(seed=seed)
    moved = a.clone()
    moved[:, column] = scale * moved[:, column] + shift
    assert values(moved, b) == pytest.approx(values(a, b), abs=1e-3, rel=1e-4)


@given(st.integers(0, 99))
def test_order_of_the_images_changes_nothing(seed: int) -> None:
    a, b = random_z(seed=seed)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    assert values(a[order], b[order]) == pytest.approx(values(a, b))
    assert values(a[order], b) != pytest.approx(values(a, b))


@given(st.integers(0, 99))
def test_swapped_views_transpose_the_correlation(seed: int) -> None:
    a, b = random_z(seed=seed)
    torch.testing.assert_close(correlation(b, a), correlation(a, b).T)
    assert values(b, a) == pytest.approx(values(a, b))


@pytest.mark.parametrize(("rows", "columns"), [(32, 8), (8, 32), (16, 16), (16, 17)])
def test_terms_without_the_matrix_are_those_of_the_matrix(rows: int, columns: int) -> None:
    a, b = (z.requires_grad_() for z in random_z(rows, columns))
    terms = barlow_twins_loss(a, b)
    for ours, theirs in zip(terms.values(), by_hand(a, b), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-9)
        found = torch.autograd.grad(ours, (a, b), retain_graph=True)
        expected = torch.autograd.grad(theirs, (a, b), retain_graph=True)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_gram_identity_has_the_right_gradients() -> None:
    a, b = (z.requires_grad_() for z in random_z(3, 7))
    assert torch.autograd.gradcheck(_from_gram, (a, b))
    assert torch.autograd.gradgradcheck(_from_gram, (a, b))


def test_columns_are_standardised_with_the_biased_variance() -> None:
    z, _ = random_z(6, 3)
    expected = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(standardise(z), expected)


def test_half_precision_does_not_reach_the_correlation() -> None:
    a, b = (z.float() for z in random_z())
    expected = values(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert values(a, b) == expected
    assert barlow_twins_loss(a.bfloat16(), b.bfloat16())["invariance"].dtype == torch.float32


def test_loss_and_gradient_are_lightlys() -> None:
    peer = pytest.importorskip("lightly.loss.barlow_twins_loss").BarlowTwinsLoss(LAMBDA)
    for rows, columns in ((32, 8), (8, 32)):
        a, b = (z.float().requires_grad_() for z in random_z(rows, columns))
        torch.testing.assert_close(weighted(a, b), peer(a, b), atol=1e-5, rtol=1e-5)
        found = torch.autograd.grad(weighted(a, b), a)[0]
        torch.testing.assert_close(found, torch.autograd.grad(peer(a, b), a)[0], atol=1e-5, rtol=0)


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    script = str(Path(two_processes.__file__))
    command = [sys.executable, script]
    started = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in started:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = two_processes.gradient(two_processes.views(0, 1))
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole, atol=1e-10, rtol=1e-10)


# the objective -------------------------------------------------------------------------------


def small(**options: Any) -> tuple[VisionModel, BarlowTwins]:
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0)
    model = VisionModel(backbone, "test_resnet", input_size=(32, 32)).train()
    objective = BarlowTwins(**({"projector": (16, 16)} | options))
    objective.setup(model, DataInfo((), 64, (32, 32)))
    return model, objective


@pytest.mark.parametrize(("name", "width"), [("resnet18", 2048), ("resnet50", 8192)])
def test_projector_is_as_wide_as_the_backbone_deserves(name: str, width: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=0)
        model = VisionModel(backbone, name)
        objective = BarlowTwins()
        objective.setup(model, DataInfo((), 64, (32, 32)))
    linear = [layer for layer in objective.projector if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [width] * 3
    assert all(layer.bias is None for layer in linear)


def test_redundancy_is_weighted_and_both_are_scaled() -> None:
    _, objective = small(lambd=0.02, scale=0.5)
    terms = {"invariance": torch.tensor(3.0), "redundancy": torch.tensor(100.0)}
    assert objective.total(terms, Step(0, 1)).item() == pytest.approx(0.5 * (3 + 0.02 * 100))


def test_each_view_has_its_own_batch_statistics() -> None:
    model, objective = small()
    views, calls = [torch.rand(16, 3, 32, 32) for _ in range(2)], []
    inner = model.backbone.forward_features
    model.backbone.forward_features = lambda x: (calls.append(len(x)), inner(x))[1]
    objective.loss(model, {"views": views})
    assert calls == [16, 16]


def test_dead_columns_are_counted_and_stay_finite() -> None:
    a, b = (z.float() for z in random_z(32, 8))
    a[:, 2], b[:, 5] = 3.7, -1.0
    assert dead_columns(a, b) == 2
    assert all(torch.isfinite(term) for term in barlow_twins_loss(a, b).values())
    model, objective = small()
    with torch.no_grad():
        objective.projector[-1].weight[4] = 0
    objective.loss(model, {"views": [torch.rand(16, 3, 32, 32) for _ in range(2)]})
    assert objective.noted == {"dead_columns": 1}


def test_bias_rate_is_that_of_vectors() -> None:
    model, objective = small(bias_rate=0.024)
    for group in objective.param_groups(model, 0.2, 1e-6):
        vector = {p.ndim <= 1 for p in group["params"]} == {True}
        assert group["lr"] == pytest.approx(0.2 * (0.024 if vector else 1))


def test_one_image_is_refused_and_few_are_warned_of() -> None:
    model, objective = small()
    with pytest.raises(ArgumentError, match="1 image"):
        objective.loss(model, {"views": [torch.rand(1, 3, 32, 32)] * 2})
    with pytest.warns(UserWarning, match="4 images"):
        objective.loss(model, {"views": [torch.rand(4, 3, 32, 32)] * 2})


def test_a_replica_of_data_parallel_is_refused() -> None:
    model, objective = small()
    replica = objective._replicate_for_data_parallel()
    with pytest.raises(ArgumentError, match="DataParallel"):
        replica.loss(model, {"views": [torch.rand(16, 3, 32, 32)] * 2})


def test_senseless_options_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"-1"):
        BarlowTwins(lambd=-1)
    with pytest.raises(ArgumentError, match="no layer"):
        BarlowTwins(projector=())

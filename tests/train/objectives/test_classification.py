"""Classification: the losses of torch and timm, unknown labels, and a model that timm loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from beholder.core.errors import ArgumentError, DataError
from beholder.core.model import VisionModel
from beholder.data.augment.cutmix import CutMix
from beholder.train.objectives.base import DataInfo
from beholder.train.objectives.classification import Classification, classification_loss

DATA = DataInfo(("a", "b", "c"), 9, (32, 32))
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])


def vision(classes: int = 0) -> VisionModel:
    backbone = timm.create_model("test_resnet", num_classes=classes)
    return VisionModel(backbone, "test_resnet", classes=DATA.classes[:classes])


def sample(**keys: Any) -> dict[str, Any]:
    return {"image": np.zeros((32, 32, 3), np.uint8), "label": 1} | keys


def test_hard_labels_give_torchs_cross_entropy() -> None:
    torch.testing.assert_close(
        classification_loss(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS), atol=1e-6, rtol=0
    )


def test_one_hot_targets_give_the_same_as_labels() -> None:
    for kind in ("ce", "bce"):
        torch.testing.assert_close(
            classification_loss(LOGITS, F.one_hot(LABELS, 3).float(), kind),
            classification_loss(LOGITS, LABELS, kind),
            atol=1e-6,
            rtol=0,
        )


def test_smoothing_is_timms() -> None:
    torch.testing.assert_close(
        classification_loss(LOGITS, LABELS, "ce", 0.1),
        LabelSmoothingCrossEntropy(0.1)(LOGITS, LABELS),
    )
    torch.testing.assert_close(
        classification_loss(LOGITS, LABELS, "bce", 0.1), BinaryCrossEntropy(0.1)(LOGITS, LABELS)
    )


def test_soft_targets_are_timms_and_are_not_smoothed_again() -> None:
    shares = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    expected = SoftTargetCrossEntropy()(LOGITS, shares)
    for smoothing in (0.0, 0.3):
        torch.testing.assert_close(classification_loss(LOGITS, shares, "ce", smoothing), expected)


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_unknown_labels_are_left_out_of_the_mean(kind: Any) -> None:
    known = torch.tensor([True, False, True, True, False, True])
    expected = classification_loss(LOGITS[known], LABELS[known], kind)
    hard = torch.where(known, LABELS, -1)
    torch.testing.assert_close(classification_loss(LOGITS, hard, kind), expected)
    soft = torch.where(known[:, None], F.one_hot(LABELS, 3), -1).float()
    torch.testing.assert_close(classification_loss(LOGITS, soft, kind), expected)


def test_a_batch_without_labels_is_zero_with_a_zero_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    found = classification_loss(logits, torch.full((6,), -1), "ce", 0.1)
    found.backward()
    assert found.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_weight_counts_as_that_many_images() -> None:
    weight = torch.tensor([2.0, 0, 1, 0, 0, 1])
    rows = torch.tensor([0, 0, 2, 5])
    torch.testing.assert_close(
        classification_loss(LOGITS, LABELS, weight=weight),
        F.cross_entropy(LOGITS[rows], LABELS[rows]),
    )


def test_setup_gives_the_model_the_datas_classes() -> None:
    model, objective = vision(), Classification()
    objective.setup(model, DATA)
    assert model.classes == DATA.classes
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_setup_keeps_a_classifier_that_fits() -> None:
    model = vision(3)
    before = model.backbone.get_classifier().weight.clone()
    Classification().setup(model, DATA)
    assert torch.equal(model.backbone.get_classifier().weight, before)
    Classification().setup(model, DataInfo(("b", "a", "c"), 9, (32, 32)))
    assert not torch.equal(model.backbone.get_classifier().weight, before)


def test_samples_are_hard_labels_unless_the_data_has_soft_ones() -> None:
    objective = Classification(view="raw")
    objective.setup(vision(), DATA)

    def label(**keys: Any) -> Any:
        return objective.views(sample(**keys), torch.Generator())["label"].tolist()

    assert label() == 1
    assert label(label=None) == -1
    assert label(soft_label=[0.5, 0.25, 0.25]) == [0.5, 0.25, 0.25]
    assert label(soft_label=None) == [0, 1, 0]
    assert label(soft_label=None, label=None) == [-1, -1, -1]


def test_weights_of_samples_reach_the_batch() -> None:
    objective = Classification(view="raw")
    objective.setup(vision(), DATA)
    weights = [
        objective.views(sample(**keys), torch.Generator())["weight"].item()
        for keys in ({}, {"weight": None}, {"weight": 0.5})
    ]
    assert weights == [1, 1, 0.5]


def test_accuracy_is_noted_against_the_larger_share() -> None:
    model, objective = vision(), Classification()
    objective.setup(model, DATA)
    images = torch.rand(4, 3, 32, 32)
    best = model(images).argmax(1)
    shares = 0.7 * F.one_hot(best, 3) + 0.1
    shares[0] = torch.roll(shares[0], 1)
    objective.loss(model, {"image": images, "label": LABELS[:4], "target": shares})
    assert objective.noted == {"accuracy": 0.75}


def test_targets_that_depend_on_attention_are_asked_for_after_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, objective = vision(), Classification()
    objective.setup(model, DATA)
    images, seen = torch.rand(2, 3, 32, 32), []

    @contextmanager
    def attention(vision: VisionModel) -> Iterator[Any]:
        yield lambda: torch.full((2, 4), 0.25)

    class Mixing:
        attends = True

        def retarget(self, y: Any, plan: Any, weights: torch.Tensor, logits: torch.Tensor) -> Any:
            seen.append((y.tolist(), plan, weights.sum(1).tolist(), logits.requires_grad))
            return torch.tensor([[1.0, 0, 0], [0, 0, 1]])

    fake = ModuleType("beholder.models.attention")
    fake.attention = attention  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "beholder.models.attention", fake)
    batch = {
        "image": images,
        "label": torch.tensor([1, 1]),
        "target": torch.full((2, 3), 1 / 3),
        "plan": "drawn",
        "mixing": Mixing(),
    }
    found = objective.loss(model, batch)["ce"]
    torch.testing.assert_close(found, F.cross_entropy(model(images), torch.tensor([0, 2])))
    assert seen == [([[0, 1, 0], [0, 1, 0]], "drawn", [1, 1], False)]


def test_mixed_targets_go_before_labels() -> None:
    model, objective = vision(), Classification()
    objective.setup(model, DATA)
    mixing = CutMix()
    images, label = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    plan = mixing.plan(4, 32, 32, torch.Generator().manual_seed(0))
    image, target = mixing.apply(images, plan), mixing.targets(label, plan, 3)
    batch = {"image": image, "label": label, "target": target, "plan": plan, "mixing": mixing}
    expected = SoftTargetCrossEntropy()(model(image), target)
    torch.testing.assert_close(objective.loss(model, batch)["ce"], expected)


def test_one_class_and_a_silly_smoothing_are_refused() -> None:
    with pytest.raises(DataError, match="has 1"):
        Classification().setup(vision(), DataInfo(("a",), 9, (32, 32)))
    with pytest.raises(ArgumentError, match="1\\.5"):
        Classification(smoothing=1.5)

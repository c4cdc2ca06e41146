"""What every objective inherits: weights, combining, projector, abilities, export."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.core.model import VisionModel
from beholder.train.objectives.base import MLP, Combine, DataInfo, Objective, Step, abilities
from beholder.train.objectives.classification import Classification
from beholder.train.objectives.views import VIEWS, pooled
from beholder.train.schedules import linear

DATA = DataInfo(("a", "b", "c"), 9, (32, 32))
NOW = Step(5, 10)


def vision(name: str = "test_resnet", **options: Any) -> VisionModel:
    return VisionModel(timm.create_model(name, num_classes=0, **options), name, input_size=(32, 32))


def sample(label: int | None = 1) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return {"image": pixels, "label": label, "id": "x"}


class Toy(Objective):
    """Two terms that are parameters, so that their gradient is their weight."""

    weights = MappingProxyType({"second": 0.25})
    sees = (VIEWS["raw"], VIEWS["upright"])

    def __init__(self, number: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(number))
        self.second = nn.Parameter(torch.tensor(2 * number))
        self.happened: list[str] = []

    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        self.seen = batch
        self.metric("seen", 3)
        return {"first": self.first, "second": self.second}

    def before_step(self, model: VisionModel, step: Step) -> None:
        self.happened.append("before")

    def after_backward(self, model: VisionModel, step: Step) -> None:
        self.happened.append("backward")

    def after_step(self, model: VisionModel, step: Step) -> None:
        self.happened.append("after")


class Blind(Objective):
    """Asks for what no image has."""

    needs = frozenset({"image", "caption"})
    requires = frozenset({"tokens"})


class Fitted(Objective):
    trains = False


def test_terms_are_weighted_and_the_others_count_once() -> None:
    toy = Toy()
    total = toy.total(toy.loss(vision(), {}), NOW)
    assert total.item() == 1 + 0.25 * 2
    total.backward()
    assert (toy.first.grad.item(), toy.second.grad.item()) == (1, 0.25)


def test_a_weight_may_be_a_schedule() -> None:
    toy = Toy()
    toy.weights = {"first": linear(0, 1)}
    assert toy.total(toy.loss(vision(), {}), NOW).item() == 0.5 * 1 + 2


def test_views_are_made_as_the_class_says() -> None:
    toy = Toy()
    toy.setup(vision(), DATA)
    views = toy.views(sample(), torch.Generator().manual_seed(0))["views"]
    assert [tuple(view.shape) for view in views] == [(3, 32, 32)] * 2


def test_a_missing_key_is_named_with_the_objective() -> None:
    with pytest.raises(DataError, match=r"Blind needs 'caption'; .* id, image, label"):
        Blind().views(sample(), torch.Generator())


def test_a_backbone_without_tokens_is_refused_with_one_that_has_them() -> None:
    with pytest.raises(ModelError, match="'tokens'") as caught:
        Blind().setup(vision(), DATA)
    assert "vit_tiny" in str(caught.value)
    Blind().setup(vision("test_vit", img_size=32), DATA)


def test_abilities_of_some_backbones() -> None:
    assert abilities(vision().backbone) == {"map"}
    assert abilities(vision("test_vit", img_size=32).backbone) == {"tokens", "map", "attn_mask"}


def test_projector_has_norms_between_and_none_at_the_end() -> None:
    kinds = [type(layer).__name__ for layer in MLP(4, 8, 8, 2)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert all(layer.bias is None for layer in MLP(4, 8, 2) if isinstance(layer, nn.Linear))
    assert MLP(4, 8, 2)(torch.rand(5, 4)).shape == (5, 2)


def test_export_without_labels_has_no_classifier_and_equal_features() -> None:
    backbone = timm.create_model("test_resnet", num_classes=3)
    model = VisionModel(backbone, "test_resnet", classes=DATA.classes, input_size=(32, 32))
    found = Toy().export(model)
    images = torch.rand(2, 3, 32, 32)
    assert found.classes == ()
    assert isinstance(found.backbone.get_classifier(), nn.Identity)
    torch.testing.assert_close(found.features(images), model.features(images))
    assert model.logits(images).shape == (2, 3)
    assert found.backbone.state_dict().keys() < model.backbone.state_dict().keys()


def combined() -> Combine:
    return Combine({"left": 1.0, "right": linear(0, 4)}, {"left": Toy(1.0), "right": Toy(10.0)})


def test_combined_terms_have_the_childs_name_and_both_weights() -> None:
    both = combined()
    terms = both.loss(vision(), {})
    assert {name: term.item() for name, term in terms.items()} == {
        "left/first": 1,
        "left/second": 2,
        "right/first": 10,
        "right/second": 20,
    }
    assert both.total(terms, NOW).item() == 1.5 + 2 * 15


def test_combined_children_see_their_own_keys_and_the_common_ones() -> None:
    both = combined()
    both.setup(vision(), DATA)
    views = both.views(sample(), torch.Generator().manual_seed(0))
    assert views.keys() == {"left/views", "right/views"}
    both.loss(vision(), views | {"id": ["x"]})
    assert both.objectives["right"].seen == {"views": views["right/views"], "id": ["x"]}


def test_combined_hooks_and_figures_are_the_childrens() -> None:
    both, model = combined(), vision()
    both.before_step(model, NOW)
    both.loss(model, {})
    both.after_backward(model, NOW)
    both.after_step(model, NOW)
    assert both.noted == {"left/seen": 3, "right/seen": 3}
    assert not both.objectives["left"].noted
    for part in both.objectives.values():
        assert part.happened == ["before", "backward", "after"]


def test_combined_by_name_needs_what_each_needs() -> None:
    both = Combine({"barlow_twins": 1.0, "classification": 0.5})
    assert both.needs == {"image", "label"}
    assert both.global_batch
    assert both.classifies
    assert both.name == "barlow_twins+classification"
    assert Toy.needs == {"image"}


def test_combined_with_one_term_is_that_objective() -> None:
    torch.manual_seed(0)
    model, alone = vision(), Classification()
    alone.setup(model, DATA)
    both = Combine({"classification": 1.0}, {"classification": alone})
    images, label = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    single = alone.loss(model, {"image": images, "label": label})
    batch = {"classification/image": images, "classification/label": label}
    terms = both.loss(model, batch)
    assert torch.equal(both.total(terms, NOW), alone.total(single, NOW))


def test_a_label_that_is_not_known_costs_the_labelled_term_only() -> None:
    both = Combine({"classification": 1.0, "toy": 1.0}, {"toy": Toy()})
    model = vision()
    both.setup(model, DATA)
    views = both.views(sample(label=None), torch.Generator().manual_seed(0))
    batch = {key: torch.stack([x, x]) for key, x in views.items() if isinstance(x, Tensor)}
    terms = both.loss(model, batch)
    assert terms["classification/ce"].item() == 0
    assert terms["toy/first"].item() == 1


def test_what_is_not_trained_by_steps_cannot_be_combined() -> None:
    with pytest.raises(ArgumentError, match="fitted"):
        Combine({"fitted": 1.0}, {"fitted": Fitted()})
    with pytest.raises(ArgumentError, match="no objective"):
        Combine({})
    with pytest.raises(ArgumentError, match="barlow"):
        Combine({"barlow": 1.0})


def test_every_parameter_stands_in_one_group_and_vectors_have_no_decay() -> None:
    model, objective = vision(), Combine({"barlow_twins": 1.0})
    objective.setup(model, DATA)
    groups = objective.param_groups(model, 0.1, 0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    every = [*model.parameters(), *objective.parameters()]
    assert sorted(grouped) == sorted(map(id, every))
    for group in groups:
        vectors = {p.ndim <= 1 for p in group["params"]}
        assert group["weight_decay"] == (0 if vectors == {True} else 0.01)


def test_probes_read_the_pooled_map() -> None:
    model, images = vision(), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(Toy().features(model, images), pooled(model, images))

"""The model as deployed answers as the model itself does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from beholder.core.engines import Eager, FromBytes
from beholder.core.errors import ModelError
from beholder.core.model import VisionModel
from beholder.evaluate.subject import DeployedGiven, DeployedRun
from beholder.models.classifier_heads import LinearHead
from beholder.models.classmatch import match_classes
from beholder.models.given import open_model
from beholder.models.open import open_vision

SIDE = 32


def vision(classes: int = 3, mirror: bool = True) -> VisionModel:
    model = open_vision("untrained:test_resnet", input_size=(SIDE, SIDE))
    model.classes = tuple("abcdef"[:classes])
    model.head, model.mirror = head(model, 0, classes), mirror
    return model


def head(model: VisionModel, seed: int, classes: int = 3) -> LinearHead:
    dim = max(part.stop for part in model.layout.values())
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(1 if classes == 2 else classes, dim, generator=draw)
    return LinearHead(torch.zeros(dim), torch.ones(dim), weight, weight[:, 0], classes, True)


def pixels(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))


def deployed(model: VisionModel, **more: object) -> DeployedRun:
    return DeployedRun(model, lambda: Eager(FromBytes(model, "descriptor")), **more)  # type: ignore[arg-type]


def as_tensor(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("count", [0, 1, 8, 11])
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
@torch.no_grad()
def test_answers_are_those_of_the_model(count, mirror, classes):
    model = vision(classes, mirror)
    done: list[int] = []
    found = deployed(model).ask(pixels(count), np.full(count, -1), done.append)
    assert found.logits.shape == (count, classes)
    assert sum(done) == count
    if count:
        expected = model.logits(as_tensor(pixels(count)))
        np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)
        features = model.descriptor(as_tensor(pixels(count)))
        np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cross_fitted_rows_are_answered_by_the_head_that_has_not_seen_them():
    model = vision()
    heads = [head(model, 1), head(model, 2)]
    asked = deployed(model, heads=heads, head_of=np.array([1, 0, 1, -1]))
    rows = np.array([3, 0, 1, 2, -1])
    found = asked.ask(pixels(5), rows).logits
    images = as_tensor(pixels(5))
    for place, own in enumerate([model.head, heads[1], heads[0], heads[1], model.head]):
        model.head = own
        expected = model.logits(images[place : place + 1])
        np.testing.assert_allclose(found[place : place + 1], expected, rtol=1e-4, atol=1e-4)


def test_modules_are_differentiable_and_agree_with_the_answers():
    model = vision()
    heads = [head(model, 1), head(model, 2)]
    asked = deployed(model, heads=heads, head_of=np.array([1, 0, 0, -1]))
    rows = np.array([0, 1, 2, 3])
    whole = asked.ask(pixels(4), rows).logits
    met = []
    for module, places in asked.modules(rows):
        images = as_tensor([pixels(4)[place] for place in places]).requires_grad_()
        logits = module(images)
        np.testing.assert_allclose(logits.detach(), whole[places], rtol=1e-4, atol=1e-4)
        (slope,) = torch.autograd.grad(logits.sum(), images)
        assert slope.abs().sum() > 0
        met += places.tolist()
        own = asked.vision_of(int(rows[places[0]]))
        torch.testing.assert_close(own.logits(images), logits)
        torch.testing.assert_close(asked.target(2)(logits[0]), logits[0, 2])
    assert sorted(met) == [0, 1, 2, 3]


@torch.no_grad()
def test_a_run_whose_classes_stand_in_another_order():
    model = vision()
    match = match_classes(("c", "a", "b"), ("a", "b", "c"))
    asked = deployed(model, match=match)
    assert asked.classes == ("c", "a", "b")
    logits = model.logits(as_tensor(pixels(2)))
    np.testing.assert_allclose(
        asked.ask(pixels(2), np.array([-1, -1])).logits, logits[:, [2, 0, 1]], rtol=1e-4, atol=1e-4
    )
    assert float(asked.target(0)(logits[0])) == pytest.approx(float(logits[0, 2]))


class Colours(nn.Module):
    """Four numbers of the colours."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((2, 3))
        return 5 * torch.cat([mean, mean[:, :1] - mean[:, 1:2]], 1)


@torch.no_grad()
def test_a_given_model_answers_for_the_classes_of_the_data_first():
    given = open_model(Colours(), classes=("red", "green", "blue", "more"), input_size=(SIDE, SIDE))
    match = match_classes(("blue", "red"), ("red", "green", "blue", "more"))
    kept = np.array([name in ("blue", "red", "more") for name in match.names])
    asked = DeployedGiven(given, match, kept)
    assert asked.classes == ("blue", "red", "more", "green")
    raw = given.logits(as_tensor(pixels(70)))
    found = asked.ask(pixels(70), np.full(70, -1)).logits
    np.testing.assert_allclose(found, raw[:, [2, 0, 3, 1]], rtol=1e-4, atol=1e-5)
    ((module, places),) = asked.modules(np.arange(3))
    torch.testing.assert_close(module(as_tensor(pixels(3))).double(), torch.tensor(found[:3]))
    assert places.tolist() == [0, 1, 2]
    with pytest.raises(ModelError, match="black box"):
        asked.vision_of(0)


@torch.no_grad()
def test_a_timm_model_that_was_given_can_be_looked_into():
    given = open_model("untrained:test_resnet", classes=None)
    names = tuple(
        str(i) for i in range(given.logits(torch.zeros(64, 3, *given.input_size)).shape[1])
    )
    match = match_classes(names, names)
    asked = DeployedGiven(given, match, np.ones(len(names), bool), features=8)
    images = torch.rand(2, 3, *given.input_size)
    torch.testing.assert_close(asked.vision_of(0).logits(images), given.logits(images))

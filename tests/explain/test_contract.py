"""What every registered explainer must do, on a convolutional network and a transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explain.conftest import small

from beholder.core.errors import ModelError
from beholder.core.model import VisionModel
from beholder.core.registry import Entry, systems
from beholder.explain.base import Explainer
from beholder.metrics.explanation import shuffled, spearman

ENTRIES = systems("explainer")
SIZES = {"square": (96, 96), "wide": (64, 96)}
SETTINGS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4},
    "occlusion": {"window": 0.5},
}
"""Cheaper than the defaults."""


def made(entry: Entry) -> Explainer:
    return entry.load()(**SETTINGS.get(entry.name, {}))


def models(size: tuple[int, int]) -> dict[str, VisionModel]:
    vit = small("vit_tiny_patch16_224", size, img_size=size, depth=2)
    return {"cnn": small("test_resnet", size), "vit": vit}


CASES = [
    pytest.param(entry, kind, id=f"{entry.name}-{kind}")
    for entry in ENTRIES
    for kind in ("cnn", "vit")
    if kind == "cnn" or "guided" not in entry.name
]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=SIZES, scope="module")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return SIZES[request.param]


def batch(size: tuple[int, int], count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("entry", "kind"), CASES)
def test_maps_have_the_size_of_the_images_and_are_finite(
    entry: Entry, kind: str, size: tuple[int, int]
):
    model, images = models(size)[kind], batch(size)
    found = made(entry).explain(model, images)
    assert found.heatmap.shape == (2, *size)
    assert found.heatmap.dtype == torch.float32
    assert torch.isfinite(found.heatmap).all()
    assert found.target.tolist() == model.logits(images).argmax(1).tolist()
    assert found.meta["method"] == entry.name
    if found.pixel is not None:
        assert found.pixel.shape == images.shape


@pytest.mark.parametrize(("entry", "kind"), CASES)
def test_an_image_is_explained_alike_alone_and_among_others(entry: Entry, kind: str):
    model, images = models((96, 96))[kind], batch((96, 96), 3)
    explainer = made(entry)
    together = explainer.explain(model, images, torch.tensor([0, 3, 5]))
    parted = explainer.explain(model, images, torch.tensor([0, 3, 5]), batch_size=2)
    alone = explainer.explain(model, images[1:2], 3)
    scale = together.heatmap.abs().max()
    assert torch.allclose(together.heatmap, parted.heatmap, atol=1e-5 * scale)
    assert torch.allclose(together.heatmap[1], alone.heatmap[0], atol=1e-5 * scale)
    assert together.target.tolist() == [0, 3, 5]


@pytest.mark.parametrize(("entry", "kind"), CASES)
def test_another_target_gives_another_map_where_the_method_says_so(entry: Entry, kind: str):
    model, images = models((96, 96))[kind], batch((96, 96))
    a, b = (made(entry).explain(model, images, target).heatmap for target in (0, 3))
    assert torch.allclose(a, b) != type(made(entry)).discriminates


@pytest.mark.parametrize(("entry", "kind"), CASES)
def test_a_model_that_has_forgotten_is_explained_otherwise(entry: Entry, kind: str):
    model, images = models((96, 96))[kind], batch((96, 96))
    explainer = made(entry)
    before, after = (explainer.explain(m, images, 1).heatmap for m in (model, shuffled(model)))
    assert (spearman(before.abs(), after.abs()) < 0.99).all()


@pytest.mark.parametrize(("entry", "kind"), CASES)
def test_the_model_is_left_as_it_was(entry: Entry, kind: str):
    model, images = models((96, 96))[kind], batch((96, 96))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    made(entry).explain(model, images)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_constant_image_and_a_second_call_give_the_same_finite_map(entry: Entry):
    model, explainer = models((96, 96))["cnn"], made(entry)
    first, second = (explainer.explain(model, torch.full((1, 3, 96, 96), 0.5)) for _ in "ab")
    assert torch.isfinite(first.heatmap).all()
    assert torch.equal(first.heatmap, second.heatmap)


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.load().completeness], ids=lambda entry: entry.name
)
def test_what_is_complete_adds_up_to_the_change_of_the_score(entry: Entry):
    model, images = models((96, 96))["cnn"], batch((96, 96))
    found = entry.load()().explain(model, images, 2)
    black = model.logits(torch.zeros_like(images))[:, 2]
    change = found.score - black.detach()
    assert torch.allclose(found.heatmap.sum((1, 2)), change, rtol=0.01)


@pytest.mark.parametrize("name", ["guided_backprop", "guided_gradcam"])
def test_guided_methods_refuse_a_model_without_relu(name: str):
    explainer = next(made(entry) for entry in ENTRIES if entry.name == name)
    with pytest.raises(ModelError, match="defined for ReLU"):
        explainer.explain(models((96, 96))["vit"], batch((96, 96)))

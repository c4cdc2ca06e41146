"""The embedded encoder and how encoders are opened."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from beholder.core.errors import ModelError
from beholder.core.model import VisionModel
from beholder.models.encoder import create_encoder, embedded_lite, input_side


@pytest.fixture(scope="module")
def lite() -> VisionModel:
    return VisionModel(create_encoder()[0], "lite0", input_size=(224, 224))


def photograph(name: str) -> np.ndarray:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    file = next(folder.glob(f"{name}.*"))
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize(("name", "top"), [("coffee", 967), ("chelsea", 285)])
def test_the_embedded_weights_know_photographs(lite: VisionModel, name: str, top: int) -> None:
    image = torch.from_numpy(lite.prepare(photograph(name))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        assert lite.backbone(lite.normalise(image)).argmax().item() == top


def test_every_key_of_the_embedded_file_is_used() -> None:
    model = embedded_lite("tf_efficientnet_lite0")
    assert len(model.state_dict()) == 296
    assert sum(p.numel() for p in model.parameters()) == 4_652_008


def test_the_descriptor_has_three_depths(lite: VisionModel) -> None:
    assert max(part.stop for part in lite.layout.values()) == 3016
    assert lite.layout["pooled"] == slice(456, 1736)
    image = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        descriptor = lite.descriptor(image)
        assert torch.equal(descriptor[:, lite.layout["pooled"]], lite.features(image))
        peaks = lite.feature_maps(image)["3"].amax((2, 3))
    assert torch.allclose(descriptor[:, lite.layout["tap1_max"]], peaks, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_nfnet"]
)
def test_any_timm_model_gives_a_descriptor(name: str) -> None:
    backbone, assumed = create_encoder(f"untrained:{name}")
    model = VisionModel(backbone, name)
    image = torch.rand(3, 3, *model.input_size)
    with torch.inference_mode():
        together = model.descriptor(image)
        alone = model.descriptor(image[1:2])
    assert together.shape == (3, max(part.stop for part in model.layout.values()))
    assert torch.allclose(together[1], alone[0], atol=1e-4)
    assert "random weights" in assumed[0]


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    a = create_encoder("untrained:test_resnet", seed=1)[0].state_dict()
    b = create_encoder("untrained:test_resnet", seed=1)[0].state_dict()
    c = create_encoder("untrained:test_resnet", seed=2)[0].state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_unknown_name_shows_near_ones() -> None:
    with pytest.raises(ModelError, match=r"resnet18x[\s\S]*Near names"):
        create_encoder("resnet18x")


def test_without_a_hub_a_pretrained_name_fails_quickly() -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match="untrained:resnet18"):
        create_encoder("resnet18")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("longest", "side"),
    [
        ([300] * 20, 300),
        ([8] * 5, 128),
        ([200] * 5, 200),
        ([190, 200, 210], 224),
        ([4000] * 3, 300),
    ],
)
def test_the_side_fits_the_images(longest: list[int], side: int) -> None:
    backbone = timm.create_model("test_resnet")
    assert input_side(backbone, longest) == (side, side)


def test_a_fixed_grid_keeps_its_side() -> None:
    backbone = timm.create_model("test_vit")
    assert input_side(backbone, [300] * 9) == tuple(backbone.pretrained_cfg["input_size"][1:])

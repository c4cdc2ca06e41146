"""Views: what they look like, and where their chance comes from."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from torchvision.transforms import v2

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel
from beholder.train.objectives.views import (
    BARLOW_A,
    BARLOW_B,
    VIEWS,
    View,
    forward_views,
    named,
    pooled,
    seeded,
    transform,
)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw(view: View, seed: int, size: tuple[int, int] = (32, 24)) -> torch.Tensor:
    with seeded(torch.Generator().manual_seed(seed)):
        return view(picture(), size)


@pytest.mark.parametrize("name", VIEWS)
def test_every_preset_gives_pixels_of_the_size_asked_for(name: str) -> None:
    for seed in range(5):
        found = draw(named(name), seed)
        assert found.shape == (3, 32, 24)
        assert found.dtype == torch.float32
        assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("name", sorted(set(VIEWS) - {"raw"}))
def test_the_generator_alone_decides(name: str) -> None:
    torch.manual_seed(1)
    first = draw(named(name), 7)
    torch.manual_seed(2)
    random.seed(5)
    assert torch.equal(first, draw(named(name), 7))
    assert not torch.equal(first, draw(named(name), 8))


def test_global_chance_is_as_it_was() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    with seeded(torch.Generator().manual_seed(9)):
        inside = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    after = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    assert after == expected
    assert inside != expected


def test_successive_views_of_one_generator_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    with seeded(generator):
        first = BARLOW_A(picture(), (32, 32))
        second = BARLOW_A(picture(), (32, 32))
    assert not torch.equal(first, second)


def test_raw_is_only_resized() -> None:
    torch.testing.assert_close(
        draw(VIEWS["raw"], 0, (40, 56)), torch.from_numpy(picture()).permute(2, 0, 1) / 255
    )


def test_solarize_turns_what_is_brighter_than_one_half() -> None:
    image = np.array([[[0, 127, 128]], [[200, 255, 1]]], np.uint8)
    found = View(crop="squash", solarize=1.0)(image, (2, 1)) * 255
    expected = torch.tensor([[[0.0, 127, 127]], [[55, 0, 1]]]).permute(2, 0, 1)
    torch.testing.assert_close(found, expected)


def test_flip_mirrors_the_image() -> None:
    image = picture(32, 24)
    found = View(crop="squash", flip=1.0)(image, (32, 24))
    torch.testing.assert_close(found, VIEWS["raw"](image[:, ::-1], (32, 24)))


def test_the_two_views_of_barlow_twins_are_the_papers() -> None:
    for view in (BARLOW_A, BARLOW_B):
        assert view.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (view.flip, view.jitter_p, view.grey, view.scale) == (0.5, 0.8, 0.2, (0.08, 1.0))
    assert (BARLOW_A.blur, BARLOW_A.solarize) == (1.0, 0.0)
    assert (BARLOW_B.blur, BARLOW_B.solarize) == (0.1, 0.2)


def test_blur_covers_three_sigma_at_224_pixels_and_shrinks_with_the_image() -> None:
    def blur(size: int) -> tuple[int, float]:
        steps = transform(BARLOW_A, (size, size)).transforms
        found = next(
            step.transforms[0]
            for step in steps
            if hasattr(step, "transforms") and isinstance(step.transforms[0], v2.GaussianBlur)
        )
        return found.kernel_size[0], found.sigma[1]

    assert blur(224) == (13, 2.0)
    assert blur(448) == (13, 2.0)
    assert blur(56) == (5, 0.5)


def test_an_unknown_view_is_named() -> None:
    with pytest.raises(ArgumentError, match="'mosaic'"):
        named("mosaic")


def model() -> VisionModel:
    return VisionModel(timm.create_model("test_resnet", num_classes=0), "test_resnet").train()


def test_pooled_is_the_models_features() -> None:
    images, vision = torch.rand(2, 3, 32, 32), model().eval()
    torch.testing.assert_close(pooled(vision, images), vision.features(images))


def test_joint_views_share_batch_statistics_and_single_ones_do_not() -> None:
    views, vision = [torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32) / 2], model()
    joint = forward_views(vision, views)
    torch.testing.assert_close(torch.cat(joint), pooled(vision, torch.cat(views)))
    alone = forward_views(vision, views, joint=False)
    torch.testing.assert_close(alone[1], pooled(vision, views[1]))
    assert not torch.allclose(joint[1], alone[1], atol=1e-3)


def test_joint_views_of_several_sizes_go_through_once_per_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    views = [torch.rand(2, 3, side, side) for side in (64, 64, 32, 32, 32)]
    vision, sizes = model().eval(), []
    inner = vision.backbone.forward_features
    monkeypatch.setattr(
        vision.backbone, "forward_features", lambda x: (sizes.append(len(x)), inner(x))[1]
    )
    found = forward_views(vision, views)
    assert sizes == [4, 6]
    monkeypatch.undo()
    for view, features in zip(views, found, strict=True):
        torch.testing.assert_close(features, pooled(vision, view), atol=1e-4, rtol=1e-4)

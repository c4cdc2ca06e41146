"""Mild changes and edits: exact values, sizes, and that they are mild."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beholder.data.augment.pipelines import (
    DECIDING,
    EDITS,
    PIPELINES,
    brighter,
    contrasted,
    gamma,
    mirrored,
    moved,
    squeezed,
    turned,
)
from beholder.data.sources import open_images

ALL = PIPELINES | EDITS


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.asarray(Image.fromarray(open_images("photos").read(0)).resize((200, 200)))


def ramp() -> np.ndarray:
    return np.arange(10 * 20 * 3, dtype=np.uint16).astype(np.uint8).reshape(10, 20, 3)


def test_the_changes_are_those_of_the_specification() -> None:
    assert list(PIPELINES) == [
        *("JPEG 95", "JPEG 90", "JPEG 75", "WebP 80"),
        *("half size, bilinear", "half size, Lanczos"),
        *(f"brightness {by} %" for by in ("-10", "-5", "+5", "+10")),
        *(f"contrast {by} %" for by in ("-10", "-5", "+5", "+10")),
        *("gamma 0.9", "gamma 1.1", "shift 2 %"),
    ]
    assert len(EDITS) == 5
    assert set(DECIDING) < set(PIPELINES)


@pytest.mark.parametrize("name", ALL)
def test_kind_and_size_stay_and_the_image_is_not_written_to(name: str) -> None:
    for shape in ((1, 1, 3), (9, 14, 3), (32, 32, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        before = image.copy()
        found = ALL[name](image)
        assert found.shape == shape
        assert found.dtype == np.uint8
        assert np.array_equal(found, ALL[name](image))
        assert np.array_equal(image, before)


@pytest.mark.parametrize("name", PIPELINES)
def test_another_pipeline_is_mild_and_changes_something(name: str, photograph: np.ndarray) -> None:
    change = np.abs(PIPELINES[name](photograph).astype(float) - photograph).mean()
    assert 0.3 < change < (40 if name == "shift 2 %" else 15)


def test_tones_are_exact() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert (brighter(grey, 1.1) == 110).all()
    assert (brighter(grey + np.uint8(150), 1.1) == 255).all()
    assert (contrasted(grey, 0.9) == 100).all()
    steps = np.array([[[50, 0, 200], [150, 100, 250]]], np.uint8)
    assert contrasted(steps, 1.1).tolist() == [[[45, 0, 198], [155, 105, 252]]]
    assert gamma(grey, 0.9)[0, 0, 0] == round(255 * (100 / 255) ** 0.9)
    assert gamma(np.array([[[0, 255, 7]]], np.uint8), 1.0).tolist() == [[[0, 255, 7]]]


def test_moving_repeats_the_border() -> None:
    image = ramp()
    found = moved(image, 0.1, 0.1)
    assert np.array_equal(found[1:, 2:], image[:-1, :-2])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[:, 0], found[:, 1])
    assert np.array_equal(moved(image, 0, 0), image)


def test_four_quarter_turns_and_two_mirrors_are_nothing() -> None:
    square = ramp()[:, :10]
    assert np.array_equal(turned(turned(square, 1), 3), square)
    assert np.array_equal(turned(turned(ramp(), 2), 2), ramp())
    assert np.array_equal(mirrored(mirrored(ramp())), ramp())
    assert turned(ramp(), 1).shape == ramp().shape


def test_a_squeezed_constant_is_constant_and_its_middle_is_the_narrow_image() -> None:
    assert (squeezed(np.full((8, 12, 3), 9, np.uint8)) == 9).all()
    narrow = np.asarray(Image.fromarray(ramp()).resize((15, 10), Image.Resampling.BILINEAR))
    assert np.array_equal(squeezed(ramp())[:, 2:17], narrow)

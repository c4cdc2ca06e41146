"""Thumbnails, hashes and measures of one image: specs/study.md, 4.13 and 4.14."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
import pytest
import skimage
from PIL import Image
from scipy.fft import dctn

from beholder.core.pixels import (
    hash_bits,
    low_frequencies,
    luma,
    measures,
    phash,
    pixel_hash,
    thumbnail,
)

SKIMAGE = Path(skimage.__file__).parent / "data"
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "coins.png", "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png"),
    *("retina.jpg", "rocket.jpg", "text.png"),
)


def photograph(name: str) -> np.ndarray:
    return np.asarray(Image.open(SKIMAGE / name).convert("RGB"))


def constant(value: int | tuple[int, int, int], height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_phash_is_within_two_bits_of_imagehash(name):
    image = photograph(name)
    ours = phash(thumbnail(image, 32))
    theirs = imagehash.phash(Image.fromarray(image)).hash.ravel()[1:]
    bits = [(ours >> k) & 1 for k in range(63)]
    assert sum(a != b for a, b in zip(bits, theirs, strict=True)) <= 2


def test_low_frequencies_are_scipys_orthonormal_dct():
    grey = thumbnail(photograph("coffee.png"), 32)
    expected = dctn(grey.astype(float), norm="ortho")[:8, :8]
    expected[0, 0] = 0
    assert np.allclose(low_frequencies(grey), expected, atol=1e-9)


def test_hashes_of_a_stack_are_those_of_each():
    stack = np.stack([thumbnail(photograph(name), 32) for name in PHOTOGRAPHS[:3]])
    assert hash_bits(low_frequencies(stack)).tolist() == [phash(grey) for grey in stack]


def test_half_of_the_63_bits_are_set_and_none_for_a_constant_image():
    assert phash(thumbnail(photograph("camera.png"), 32)).bit_count() == 31
    for value in (0, 127, 255):
        assert phash(thumbnail(constant(value), 32)) == 0


def test_thumbnail_of_an_image_and_of_its_luma_are_equal():
    image = photograph("chelsea.png")
    assert thumbnail(image, 96).shape == (96, 96)
    assert np.array_equal(thumbnail(image, 96), thumbnail(luma(image), 96))


def test_pixel_hash_tells_every_pixel_and_the_shape():
    image = constant(7, 4, 6)
    other = image.copy()
    other[3, 5, 2] = 8
    assert pixel_hash(image) == pixel_hash(image.copy())
    assert pixel_hash(image) == pixel_hash(np.asfortranarray(image))
    assert len({pixel_hash(x) for x in (image, other, image.reshape(6, 4, 3))}) == 3


def test_measures_of_half_black_half_white():
    image = np.concatenate([constant(0), constant(255)])
    found = measures(image)
    assert found["brightness"] == 127.5
    assert found["contrast"] == 127.5
    assert found["clipped"] == 1
    assert found["entropy"] == 1
    assert found["colourfulness"] == 0


def test_measures_of_a_constant_image():
    found = measures(constant(100))
    assert found == {
        "brightness": 100,
        "contrast": 0,
        "clipped": 0,
        "sharpness": math.log(1e-3),
        "entropy": 0,
        "colourfulness": 0,
    }


def test_colourfulness_by_hand():
    # left red: rg 255, yb 127.5; right blue: rg 0, yb -255
    image = np.concatenate([constant((255, 0, 0)), constant((0, 0, 255))], axis=1)
    spread = math.sqrt(127.5**2 + 191.25**2)
    mean = math.sqrt(127.5**2 + 63.75**2)
    assert measures(image)["colourfulness"] == pytest.approx(spread + 0.3 * mean, rel=1e-12)


def test_colourfulness_of_a_large_image_is_that_of_its_tiles():
    tile = photograph("chelsea.png")
    whole = np.tile(tile, (2, 2, 1))  # above one block of pixels
    expected = measures(tile)["colourfulness"]
    assert measures(whole)["colourfulness"] == pytest.approx(expected, rel=1e-12)


def test_sharpness_by_hand():
    # 256 x 256, one white pixel inside: the Laplacian is -4, 1, 1, 1, 1 times 200
    image = constant(0, 256, 256)
    image[100, 100] = 200
    variance = 20 * 200**2 / 254**2
    assert measures(image)["sharpness"] == pytest.approx(math.log(variance), rel=1e-5)


def test_a_blurred_photograph_is_less_sharp():
    image = Image.fromarray(photograph("astronaut.png"))
    soft = image.resize((64, 64), Image.Resampling.BOX).resize(image.size)
    assert measures(np.asarray(soft))["sharpness"] < measures(np.asarray(image))["sharpness"] - 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_the_smallest_images_have_measures(shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert all(math.isfinite(value) for value in measures(image).values())
    assert 0 <= phash(thumbnail(image, 32)) < 2**63


def test_threads_give_the_same_answers():
    images = [photograph(name) for name in PHOTOGRAPHS[:6]] * 3
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(measures, images)) == [measures(image) for image in images]

"""The search for copies: specs/study.md, 4.13, and the planted faults of section 10."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import skimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage

from beholder.core.decode import Unreadable
from beholder.core.pixels import luma, phash, pixel_hash, thumbnail
from beholder.core.split import split, units
from beholder.data.curate.duplicates import (
    LOOK_ALIKE,
    TURNS,
    Copies,
    Correlation,
    complete_linkage,
    edited,
    find_copies,
    high_pass,
)
from beholder.data.curate.hamming import neighbours

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
SKIMAGE = Path(skimage.__file__).parent / "data"


def facts(images: list[np.ndarray]) -> pl.DataFrame:
    greys = [luma(image) for image in images]
    return pl.DataFrame(
        {
            "exact_hash": [pixel_hash(image) for image in images],
            "phash": pl.Series([phash(thumbnail(grey, 32)) for grey in greys], dtype=pl.UInt64),
            "width": [image.shape[1] for image in images],
            "height": [image.shape[0] for image in images],
            "grey32": [thumbnail(grey, 32).tobytes() for grey in greys],
            "grey96": [thumbnail(grey, 96).tobytes() for grey in greys],
        }
    )


def search(images: list[np.ndarray]) -> Copies:
    return find_copies(facts(images), images.__getitem__)


def patches(count: int, side: int = 100) -> list[np.ndarray]:
    """Different pictures: pieces of photographs that do not overlap."""
    names = ("astronaut.png", "coffee.png", "chelsea.png", "ihc.png", "rocket.jpg", "retina.jpg")
    found = []
    for name in names:
        image = np.asarray(Image.open(SKIMAGE / name).convert("RGB"))
        for top in range(0, image.shape[0] - side + 1, side):
            for left in range(0, image.shape[1] - side + 1, side):
                piece = image[top : top + side, left : left + side]
                if piece.std((0, 1)).min() > 12:
                    found.append(np.ascontiguousarray(piece))
    assert len(found) >= count
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))[:count]]


@pytest.fixture(scope="module")
def solar() -> list[np.ndarray]:
    """300 photographs of solar cells, 300 x 300, that look much alike."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the optional package elpv-dataset is not installed")
    paths = sorted(Path(package.submodule_search_locations[0]).glob("data/images/*.png"))
    chosen = np.random.default_rng(0).choice(len(paths), 300, replace=False)
    return [np.asarray(Image.open(paths[k]).convert("RGB")) for k in sorted(chosen)]


def png_again(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return np.asarray(Image.open(stream).convert("RGB"))


# planted faults


def test_thirty_exact_duplicates_of_thirty_are_found_and_counted_once():
    images = patches(100)
    copies = search([*images, *(png_again(image) for image in images[:30])])
    exact = copies.pairs.filter(pl.col("kind") == "exact")
    assert exact["i"].to_list() == list(range(30))
    assert exact["j"].to_list() == list(range(100, 130))
    assert copies.pairs["kind"].unique().to_list() == ["exact"]
    assert (copies.group >= 0).sum() == 60
    assert copies.group.max() == 29
    assert copies.sentence.startswith("60 of 130 images show a picture that is there more than")


def test_half_size_and_jpeg_copies_among_solar_cells(solar):
    images = [
        *solar,
        *(edited(image, "jpeg_75") for image in solar[:30]),
        *(edited(image, "half_size") for image in solar[30:60]),
    ]
    copies = search(images)
    pairs = {(i, j) for i, j in copies.pairs.select("i", "j").iter_rows()}
    jpeg = {(k, 300 + k) for k in range(30)}
    half = {(k, 300 + k) for k in range(30, 60)}
    assert len(pairs & jpeg) >= 29
    assert len(pairs & half) >= 29
    assert len(pairs - jpeg - half) <= 10
    assert not copies.look_alike


def test_solar_cells_that_look_alike_are_not_taken_for_copies(solar):
    copies = search(solar)
    assert copies.q_self is not None
    assert copies.q_other is not None
    assert 0.98 < copies.q_self < 0.998
    assert copies.pairs.is_empty() or len(copies.pairs) <= 3
    assert not copies.look_alike
    assert copies.recall["half_size"] == (64, 64)
    assert copies.recall["jpeg_75"][0] >= 60
    assert copies.recall["jpeg_30"][0] <= copies.recall["jpeg_50"][0]


def noise_variants(count: int) -> list[np.ndarray]:
    image = np.asarray(Image.open(SKIMAGE / "coffee.png").convert("RGB").resize((150, 100)))
    rng = np.random.default_rng(0)
    noisy = (image + rng.normal(0, 1, (count, *image.shape)) for image in [image])
    return [np.clip(np.rint(x), 0, 255).astype(np.uint8) for x in next(noisy)]


def test_two_hundred_noise_variants_of_one_picture_look_too_much_alike():
    copies = search(noise_variants(200))
    assert copies.look_alike
    assert copies.sentence == LOOK_ALIKE
    assert np.bincount(copies.group[copies.group >= 0]).max(initial=0) <= 20


def test_noise_variants_among_other_pictures_look_too_much_alike():
    others = patches(100)
    copies = search([*noise_variants(200), *others])
    assert copies.sentence == LOOK_ALIKE
    assert np.bincount(copies.group[copies.group >= 0]).max(initial=0) <= 20


@pytest.mark.parametrize("pace", [0.015, 0.12])
def test_a_slow_film_looks_too_much_alike(pace):
    basis = np.stack([luma(image) for image in patches(12)]).astype(float)
    basis -= basis.mean((1, 2), keepdims=True)
    steps = np.random.default_rng(0).normal(0, pace, (300, 12))
    for k in range(1, len(steps)):
        steps[k] += 0.97 * steps[k - 1]
    film = np.clip(128 + np.tensordot(steps + 0.3, basis, 1), 0, 255).astype(np.uint8)
    copies = search([np.repeat(grey[:, :, None], 3, axis=2) for grey in film])
    assert copies.sentence == LOOK_ALIKE
    assert np.bincount(copies.group[copies.group >= 0]).max(initial=0) <= 20


def test_no_leaked_copy_straddles_a_split_made_with_the_groups():
    images = patches(100)
    images += [edited(image, "jpeg_75") for image in images[:20]]
    copies = search(images)
    ids = [f"{k:03d}" for k in range(120)]
    table = pl.DataFrame({"id": ids, "source": pl.Series([None] * 120, dtype=pl.String)})
    unit = units(table, facts(images)["exact_hash"], copies.group)
    labels = pl.Series([k % 2 for k in range(100)] + [k % 2 for k in range(20)])
    result = split(table.with_columns(label=labels, unit=unit))
    assert (result.folds[:20] == result.folds[100:]).all()
    assert len(np.unique(unit)) == 100


def test_the_same_picture_in_a_mirror_and_turned_is_found():
    images = patches(60)
    turned = [np.ascontiguousarray(images[k].swapaxes(0, 1)[::-1]) for k in range(3)]
    mirrored = [np.ascontiguousarray(images[k][:, ::-1]) for k in range(3, 6)]
    upside_down = [np.ascontiguousarray(images[k][::-1, ::-1]) for k in range(6, 9)]
    copies = search([*images, *turned, *mirrored, *upside_down])
    pairs = {(i, j) for i, j in copies.pairs.select("i", "j").iter_rows()}
    assert pairs == {(k, 60 + k) for k in range(9)}


# borders


def test_blank_images_are_no_copies_but_may_be_exact_duplicates():
    blank = [np.full((50, 50, 3), value, np.uint8) for value in (0, 0, 10, 200)]
    copies = search([*patches(20), *blank])
    assert copies.pairs.rows() == [(20, 21, 1.0, "exact")]
    assert copies.group[20:].tolist() == [0, 0, -1, -1]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_very_few_images(count):
    copies = search(patches(count))
    assert copies.group.tolist() == [-1] * count
    assert copies.pairs.is_empty()
    assert copies.q_other is None
    assert copies.sentence == "No two images are the same picture."


def test_only_blank_images():
    copies = search([np.full((9, 9, 3), value, np.uint8) for value in range(5)])
    assert copies.q_self is None
    assert copies.pairs.is_empty()


def test_one_picture_and_its_copy_are_all_there_is():
    image = patches(1)[0]
    copies = search([image, edited(image, "jpeg_75")])
    assert copies.pairs.select("i", "j", "kind").rows() == [(0, 1, "copy")]


def test_an_image_that_can_no_longer_be_read_is_left_out_of_the_planting():
    images = patches(30)

    def read(row: int) -> np.ndarray:
        if row == 4:
            raise Unreadable("missing_file")
        return images[row]

    copies = find_copies(facts(images), read)
    assert copies.recall["jpeg_75"][1] == 29


def test_the_same_seed_gives_the_same_and_only_64_images_are_read():
    images, asked = patches(100), []

    def read(row: int) -> np.ndarray:
        asked.append(row)
        return images[row]

    first, second = find_copies(facts(images), read), find_copies(facts(images), read)
    assert len(asked) == 128
    assert asked[:64] == asked[64:]
    assert first.threshold == second.threshold


# the pieces


def test_correlation_is_that_of_the_formula_in_every_turn():
    grey = np.stack([thumbnail(image, 96) for image in patches(6)])
    shared = high_pass(grey.mean(0))
    correlation = Correlation(grey, shared, np.arange(6))
    i, j = np.triu_indices(6, 1)
    for number, turn in enumerate(TURNS):
        a = high_pass(grey)[i] - shared
        b = high_pass(turn(grey))[j] - shared
        dot = (a * b).sum((1, 2))
        expected = dot / np.sqrt((a**2).sum((1, 2)) * (b**2).sum((1, 2)))
        assert np.allclose(correlation.pairs(i, j, number), expected, atol=2e-4)


def test_every_turn_is_undone_by_its_opposite():
    image = np.arange(16).reshape(4, 4)
    for turn, back in zip(TURNS, (0, 1, 4, 3, 2), strict=True):
        assert np.array_equal(TURNS[back](turn(image)), image)


def test_a_chain_is_no_group():
    i, j = np.array([0, 1, 2]), np.array([1, 2, 3])
    score = np.array([0.99, 0.98, 0.97])
    assert complete_linkage(5, i, j, score).tolist() == [0, 0, 1, 1, -1]


@PROPERTY
@given(st.integers(2, 12), st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_complete_linkage_is_that_of_scipy(n, seed, threshold):
    rng = np.random.default_rng(seed)
    i, j = np.triu_indices(n, 1)
    score = rng.permutation(len(i)) / len(i)  # no ties
    kept = score >= threshold
    found = complete_linkage(n, i[kept], j[kept], score[kept])
    tree = linkage(1 - score, "complete")
    expected = fcluster(tree, 1 - threshold + 1e-9, "distance")
    for a, b in zip(i, j, strict=True):
        assert (found[a] == found[b] >= 0) == (expected[a] == expected[b])


def slow_pairs(hashes: np.ndarray, turned: np.ndarray, radius: int) -> set[tuple[int, int, int]]:
    return {
        (i, j, (int(hashes[i]) ^ int(turned[j])).bit_count())
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (int(hashes[i]) ^ int(turned[j])).bit_count() <= radius
    }


@pytest.mark.parametrize("brute", [0, 10**6])
def test_neighbours_are_all_pairs_within_the_radius(brute):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 60, dtype=np.uint64)
    hashes = np.repeat(base, 6)
    for k in range(len(hashes)):
        for bit in rng.choice(63, rng.integers(0, 8), replace=False):
            hashes[k] ^= np.uint64(1) << np.uint64(bit)
    turned = hashes[::-1].copy()
    for other in (hashes, turned):
        i, j, distance = neighbours(hashes, other, 10, 10**6, brute)
        found = list(zip(i.tolist(), j.tolist(), distance.tolist(), strict=True))
        assert len(found) == len(set(found))
        assert set(found) == slow_pairs(hashes, other, 10)
        assert found == sorted(found)


@pytest.mark.parametrize("brute", [0, 10**6])
def test_only_the_nearest_neighbours_of_a_crowd_are_kept(brute):
    hashes = np.zeros(40, np.uint64)
    hashes[20:] = 1
    i, j, distance = neighbours(hashes, hashes, 10, 5, brute)
    assert np.bincount(i).max() == 5
    assert j[i == 0].tolist() == [1, 2, 3, 4, 5]
    assert distance[i == 18].tolist() == [0, 1, 1, 1, 1]


def test_edits_change_size_or_brightness_as_they_say():
    image = patches(1)[0]
    assert edited(image, "half_size").shape == (50, 50, 3)
    assert edited(image[:1, :1], "half_size").shape == (1, 1, 3)
    assert edited(np.full((2, 2, 3), 100, np.uint8), "brightness_10")[0, 0, 0] == 110
    assert edited(np.full((2, 2, 3), 250, np.uint8), "brightness_10")[0, 0, 0] == 255

"""Composed scenes: what is known of them is what is drawn, and repeats from (seed, index)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beholder.core.errors import ArgumentError
from beholder.data.synthesize.scenes import Scenes, boxes_of, paste, scattered
from beholder.data.synthesize.sprites import THINGS, catalogue, drawings, sprite, tinted

GREY = [np.full((40, 50, 3), 128, np.uint8)]


def same(a: dict, b: dict) -> bool:
    return a["id"] == b["id"] and all(
        np.array_equal(a[key], b[key]) for key in ("image", "label", "boxes", "box_labels", "masks")
    )


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    first, second = Scenes(20, 32, 4, seed=3), Scenes(50, 32, 4, seed=3)
    assert all(same(a, b) for a, b in zip(first, second[:20], strict=True))
    backwards = [first[index] for index in reversed(range(20))][::-1]
    assert all(same(a, b) for a, b in zip(first, backwards, strict=True))
    assert not same(first[0], Scenes(20, 32, 4, seed=4)[0])


def test_global_chance_is_neither_used_nor_moved() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    Scenes(3, 32, 4)[1]
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_shapes_types_and_ranges_are_those_of_the_sample_keys() -> None:
    for sample in Scenes(30, 48, 6, sprites=(1, 3)):
        count = len(sample["boxes"])
        assert 1 <= count <= 3
        assert sample["image"].shape == (48, 48, 3)
        assert sample["image"].dtype == np.uint8
        assert sample["boxes"].dtype == np.float32
        assert sample["box_labels"].dtype == np.int64
        assert sample["masks"].shape == (count, 48, 48)
        assert sample["masks"].dtype == bool
        assert sample["label"] == sample["box_labels"][0]
        assert len(sample["attributes"]["sprites"]) == count


def test_boxes_are_tight_around_the_masks_which_are_disjoint() -> None:
    for sample in Scenes(30, 48, 6, sprites=(3, 3)):
        assert sample["masks"].sum(0).max() == 1
        for (x0, y0, x1, y1), mask in zip(
            sample["boxes"].astype(int), sample["masks"], strict=True
        ):
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert mask[y0, x0:x1].any()
            assert mask[y1 - 1, x0:x1].any()
            assert mask[y0:y1, x0].any()
            assert mask[y0:y1, x1 - 1].any()


def test_outside_of_the_sprites_the_picture_is_the_background() -> None:
    for sample in Scenes(10, 48, ["pizza", "soccer ball"], sprites=(2, 2), background=GREY):
        outside = np.ones((48, 48), bool)
        for x0, y0, x1, y1 in sample["boxes"].astype(int):
            outside[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
        assert (sample["image"][outside] == 128).all()
        assert (sample["image"][sample["masks"].any(0)] != 128).any(-1).mean() > 0.9


def test_classes_take_turns() -> None:
    labels = [sample["label"] for sample in Scenes(40, 32, 8, sprites=(1, 2))]
    assert np.bincount(labels).tolist() == [5] * 8


def test_no_sprites_give_backgrounds_without_label() -> None:
    sample = Scenes(1, 32, 4, sprites=(0, 0))[0]
    assert sample["label"] == -1
    assert sample["boxes"].shape == (0, 4)
    assert sample["masks"].shape == (0, 32, 32)


def test_a_layout_places_what_it_says_where_it_says() -> None:
    scenes = Scenes(
        1, 100, ["pizza", "soccer ball"], layout=lambda rng: [(1, 0.3, 0.6, 0.4)], background=GREY
    )
    sample = scenes[0]
    assert sample["label"] == 1
    assert sample["attributes"]["sprites"] == ["soccer ball"]
    np.testing.assert_allclose(sample["boxes"], [[10, 40, 50, 80]], atol=1)


def test_a_wholly_hidden_sprite_is_left_out_and_a_clipped_one_stays_inside() -> None:
    twice = [(0, 0.5, 0.5, 0.3), (0, 0.5, 0.5, 0.3)]
    assert len(Scenes(1, 64, ["soccer ball"], layout=lambda rng: twice)[0]["boxes"]) == 1
    sample = Scenes(1, 64, ["soccer ball"], layout=lambda rng: [(0, 0.0, 1.0, 0.5)])[0]
    np.testing.assert_allclose(sample["boxes"], [[0, 48, 16, 64]], atol=1)
    away = Scenes(1, 64, ["soccer ball"], layout=lambda rng: [(0, 2.0, -1.0, 0.5)])[0]
    assert away["boxes"].shape == (0, 4)


def test_a_later_sprite_lies_over_an_earlier_one() -> None:
    image, owner = np.zeros((4, 4, 3), np.uint8), np.full((4, 4), -1)
    for number, value in enumerate((100, 200)):
        drawing = np.full((2, 2, 4), value, np.uint8)
        drawing[..., 3] = 255
        paste(image, owner, number, drawing, 1 + number, 1 + number)
    assert image[..., 0].tolist() == [
        [100, 100, 0, 0],
        [100, 200, 200, 0],
        [0, 200, 200, 0],
        [0, 0, 0, 0],
    ]
    assert (owner == 0).sum() == 3
    assert (owner == 1).sum() == 4


def test_half_opaque_paint_is_blended() -> None:
    image, owner = np.full((1, 1, 3), 100, np.uint8), np.full((1, 1), -1)
    paste(image, owner, 0, np.array([[[200, 0, 50, 51]]], np.uint8), 0.5, 0.5)
    assert image[0, 0].tolist() == [120, 80, 90]  # a fifth of the paint


def test_boxes_of_masks_by_hand() -> None:
    mask = np.zeros((1, 5, 6), bool)
    mask[0, 1, 2] = mask[0, 3, 4] = True
    assert boxes_of(mask).tolist() == [[2, 1, 5, 4]]


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_scattered_sprites_lie_inside_and_hardly_overlap(seed: int, most: int) -> None:
    placed = scattered(np.random.default_rng(seed), 2, 5, (1, most))
    assert placed[0][0] == 2
    assert 1 <= len(placed) <= most
    for _, x, y, scale in placed:
        assert scale / 2 - 1e-9 <= x <= 1 - scale / 2 + 1e-9
        assert scale / 2 - 1e-9 <= y <= 1 - scale / 2 + 1e-9


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["pizza", "parrot", "sailboat"]), st.integers(1, 120))
def test_the_longer_side_of_a_sprite_is_the_side_asked_for(name: str, side: int) -> None:
    drawing = sprite(name, side)
    assert max(drawing.shape[:2]) == side
    assert drawing[..., 3].max() > 0


def test_tint_keeps_opacity_and_names_the_colour() -> None:
    drawing = np.array([[[255, 255, 255, 9], [0, 0, 0, 255]]], np.uint8)
    assert tinted(drawing, (200, 100, 50)).tolist() == [[[200, 100, 50, 9], [40, 20, 10, 255]]]
    sample = Scenes(1, 64, 3, sprites=(1, 1), tint={"red": (255, 0, 0)}, background=GREY)[0]
    assert sample["attributes"]["colours"] == ["red"]
    red, _, blue = sample["image"][sample["masks"][0]].astype(int).T
    assert (red > blue).all()


def test_classes_by_number_name_group_or_map() -> None:
    assert list(Scenes(1, 32, 3).classes) == drawings(3)
    assert Scenes(1, 32, ["pizza"]).members == {"pizza": ["pizza"]}
    assert len(Scenes(1, 32, ["animals", "food"]).members["animals"]) > 100
    both = Scenes(60, 32, {"round": ["pizza", "soccer ball"]}, sprites=(1, 1))
    assert {sample["attributes"]["sprites"][0] for sample in both} == {"pizza", "soccer ball"}


def test_drawings_are_things_and_slices_of_them_are_disjoint() -> None:
    first, second = drawings(30), drawings(30, skip=30)
    assert not set(first) & set(second)
    assert {catalogue()[name][1] for name in first} <= set(THINGS)
    assert first == drawings(60)[:30]


def test_as_images_pictures_and_labels_are_the_same() -> None:
    scenes = Scenes(6, 32, 3, sprites=(1, 2))
    images = scenes.images()
    assert images.classes == scenes.classes
    assert images.kind == "classes"
    for row, sample in enumerate(scenes):
        assert np.array_equal(images.read(row), sample["image"])
        assert images[row]["label"] == sample["label"]
        assert images[row]["id"] == sample["id"]
    assert Scenes(2, 32, 3, sprites=(0, 0)).images().kind == "unlabelled"


def test_plain_backgrounds_have_one_colour() -> None:
    image = Scenes(1, 32, 3, sprites=(0, 0), background="plain")[0]["image"]
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n": 0}, "n = 0"),
        ({"size": 4}, "size = 4"),
        ({"sprites": (2, 1)}, r"\(2, 1\)"),
        ({"background": "sea"}, "'sea'"),
        ({"classes": ["no such thing"]}, "'no such thing'"),
        ({"classes": 0}, "classes = 0"),
        ({"classes": 100_000}, "100,000"),
        ({"classes": {"a": []}}, "no drawing"),
    ],
)
def test_bad_arguments_are_named(options: dict, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        Scenes(**{"n": 2, "size": 32, "classes": 3, **options})


def test_a_layout_with_an_unknown_class_is_refused() -> None:
    with pytest.raises(ArgumentError, match="class 7 of 3"):
        Scenes(1, 32, 3, layout=lambda rng: [(7, 0.5, 0.5, 0.5)])[0]


def test_an_index_past_the_end_is_an_index_error() -> None:
    scenes = Scenes(2, 32, 3)
    assert same(scenes[-1], scenes[1])
    with pytest.raises(IndexError):
        scenes[2]

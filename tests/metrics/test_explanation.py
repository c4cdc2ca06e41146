"""Measures of heat maps: numbers worked by hand, and maps whose worth is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from beholder.metrics.explanation import (
    auc,
    blurred,
    centred,
    deletion,
    insertion,
    iou,
    largest_box,
    max_box_acc,
    max_box_acc_v2,
    permuted,
    pointing_game,
    randomisation,
    removal_order,
    shuffled,
    spearman,
    wsl_iou,
)

WEIGHTS = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
ONES = torch.ones(3, 2, 2)


def linear(images: Tensor) -> Tensor:
    """sum w x / 10 of the first colour."""
    return (images[:, 0] * WEIGHTS).sum((1, 2)) / 10


def blob(box: tuple[int, int, int, int], size: int = 32) -> Tensor:
    """A map that is 1 in the box."""
    x0, y0, x1, y1 = box
    heatmap = torch.zeros(size, size)
    heatmap[y0:y1, x0:x1] = 1
    return heatmap


def boxes(*found: tuple[int, ...]) -> list[Tensor]:
    return [torch.tensor([box]) for box in found]


def test_deletion_in_the_exact_order_has_the_area_worked_by_hand():
    curve = deletion(linear, ONES, WEIGHTS, steps=4)
    assert curve.tolist() == pytest.approx([1, 0.6, 0.3, 0.1, 0], abs=1e-6)
    assert auc(curve) == pytest.approx(0.375)


def test_deletion_in_the_opposite_order_has_the_complement():
    assert auc(deletion(linear, ONES, -WEIGHTS, steps=4)) == pytest.approx(0.625)


def test_deletion_in_random_order_averages_one_half():
    areas = [auc(deletion(linear, ONES, torch.zeros(2, 2), steps=4, seed=s)) for s in range(400)]
    assert sum(areas) / 400 == pytest.approx(0.5, abs=0.02)


def test_insertion_starts_blurred_and_ends_at_the_image():
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    curve = insertion(lambda x: x[:, 0, 8, 8], image, torch.rand(16, 16))
    assert len(curve) == 17
    assert float(curve[0]) == pytest.approx(float(blurred(image)[0, 8, 8]))
    assert float(curve[-1]) == pytest.approx(float(image[0, 8, 8]))


def test_a_map_of_what_is_used_beats_the_same_map_moved():
    image = torch.ones(3, 32, 32)
    used = blob((4, 4, 12, 12))

    def score(x: Tensor) -> Tensor:
        return (x[:, 0] * used).sum((1, 2)) / used.sum()

    moved = permuted(used, (8, 8), torch.Generator().manual_seed(1))
    assert auc(deletion(score, image, used)) < auc(deletion(score, image, moved)) - 0.2


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_every_pixel_is_removed_once_and_hotter_ones_first(height: int, width: int, seed: int):
    heatmap = torch.randint(0, 4, (height, width), generator=torch.Generator().manual_seed(seed))
    rank = removal_order(heatmap.float(), seed)
    assert sorted(rank.flatten().tolist()) == list(range(height * width))
    assert (heatmap.flatten()[rank.flatten().argsort()].diff() <= 0).all()


def test_ties_are_removed_by_a_lot_that_repeats():
    flat = torch.zeros(4, 4)
    assert torch.equal(removal_order(flat, 1), removal_order(flat, 1))
    assert not torch.equal(removal_order(flat, 1), removal_order(flat, 2))


def test_a_moved_map_keeps_its_values():
    heatmap = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    moved = permuted(heatmap, (8, 8), torch.Generator().manual_seed(3))
    assert not torch.equal(moved, heatmap)
    assert torch.equal(moved.flatten().sort().values, heatmap.flatten().sort().values)


@pytest.mark.parametrize(
    ("tolerance", "hits"), [(0, [1, 0, 0]), (3, [1, 1, 0]), (40, [1, 1, 1])], ids=str
)
def test_the_pointing_game_counts_what_lies_in_or_near_the_box(tolerance: int, hits: list[int]):
    maps = torch.stack([blob((5, 5, 6, 6)), blob((10, 5, 11, 6)), blob((30, 30, 31, 31))])
    own = boxes((2, 2, 8, 8), (2, 2, 8, 8), (2, 2, 8, 8))
    assert pointing_game(maps, own, tolerance).tolist() == hits


def test_a_flat_map_points_as_often_right_as_chance():
    found = pointing_game(torch.zeros(1, 32, 32), boxes((0, 0, 16, 8)), tolerance=0)
    assert float(found) == pytest.approx(16 * 8 / 32**2)


def test_any_of_several_boxes_may_be_pointed_at():
    both = [torch.tensor([[0, 0, 4, 4], [20, 20, 24, 24]])]
    assert pointing_game(blob((21, 21, 22, 22))[None], both, 0).tolist() == [1]


def test_the_largest_part_is_boxed_and_a_smaller_one_is_not():
    heatmap = blob((4, 6, 14, 12)) + blob((20, 20, 23, 23))
    assert largest_box(heatmap[None]).tolist() == [[4, 6, 14, 12]]


def test_what_is_below_the_threshold_is_outside():
    heatmap = blob((4, 4, 12, 12)) + 0.1 * blob((0, 0, 32, 32))
    assert largest_box(heatmap[None], 0.15).tolist() == [[4, 4, 12, 12]]
    assert largest_box(heatmap[None], 0.05).tolist() == [[0, 0, 32, 32]]


def test_parts_that_touch_at_a_corner_are_one():
    heatmap = blob((2, 2, 4, 4)) + blob((4, 4, 6, 6))
    assert largest_box(heatmap[None]).tolist() == [[2, 2, 6, 6]]


def test_a_map_without_positive_evidence_has_no_box():
    assert largest_box(-torch.ones(1, 8, 8)).tolist() == [[0, 0, 0, 0]]
    assert wsl_iou(torch.zeros(1, 8, 8), boxes((0, 0, 8, 8))).tolist() == [0]


def test_overlap_is_that_worked_by_hand():
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 0, 0]])
    b = torch.tensor([[2.0, 0, 6, 4]])
    assert iou(a, b).flatten().tolist() == pytest.approx([8 / 24, 0])


def test_the_true_mask_as_map_is_localised_perfectly():
    own = [(3, 5, 20, 17), (8, 8, 30, 12)]
    maps = torch.stack([blob(box) for box in own])
    assert wsl_iou(maps, boxes(*own)).tolist() == [1, 1]
    assert max_box_acc(maps, boxes(*own)) == 1
    assert max_box_acc_v2(maps, boxes(*own)) == 1


def test_max_box_acc_finds_the_threshold_that_serves_the_whole_set():
    own = (8, 8, 24, 24)
    hot, faint = blob((8, 8, 24, 24)) + 0.5 * blob((0, 0, 32, 32)), blob(own)
    maps = torch.stack([hot / 1.5, faint])
    assert wsl_iou(maps, boxes(own, own)).tolist() == pytest.approx([0.25, 1])
    assert max_box_acc(maps, boxes(own, own)) == 1


def test_the_second_version_lets_any_part_match_and_asks_for_three_overlaps():
    heatmap = blob((0, 0, 12, 12)) + blob((20, 20, 30, 30))
    own = boxes((20, 20, 30, 28))  # the smaller part covers it by 0.8
    assert max_box_acc(heatmap[None], own) == 0
    assert max_box_acc_v2(heatmap[None], own) == 1
    narrow = boxes((20, 20, 30, 24))  # by 0.4: right at 0.3 alone
    assert max_box_acc_v2(heatmap[None], narrow) == pytest.approx(1 / 3)


def test_the_centred_map_peaks_in_the_middle_and_is_symmetric():
    heatmap = centred(8, 6)
    assert torch.allclose(heatmap, heatmap.flip(0))
    assert torch.allclose(heatmap, heatmap.flip(1))
    assert torch.allclose(heatmap[3:5, 2:4], heatmap.max())


def test_rank_correlation_of_a_map_with_itself_its_negative_and_a_flat_one():
    a = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    b = torch.stack([a[0].exp(), -a[1], torch.ones(5, 5)])
    assert spearman(a, b).tolist() == pytest.approx([1, -1, 0])


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())


def test_shuffling_keeps_values_forgets_places_and_leaves_the_model_alone():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = shuffled(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    weight, new = model[0].weight, other[0].weight
    assert not torch.equal(weight, new)
    assert torch.equal(weight.flatten().sort().values, new.flatten().sort().values)
    assert torch.equal(model[0].bias, other[0].bias)


def test_randomisation_goes_from_the_output_down_and_tells_edges_from_explanations():
    image = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    model = network()
    explains = randomisation(lambda m: m(image).sum(1), model)
    assert list(explains) == ["2.weight", "0.weight"]
    assert (explains["0.weight"] < 0.9).all()
    edges = randomisation(lambda m: image.mean(1), model)
    assert all(torch.allclose(found, torch.ones(2)) for found in edges.values())

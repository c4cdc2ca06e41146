"""Groups: shrinkage worked by hand, naming rates by simulation, the guard against class mix."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beholder.metrics.groups import (
    compare_slices,
    cramers_v,
    gap_same_mix,
    permutation_less,
    shrink,
)
from beholder.metrics.intervals import fisher_less, holm, wilson

SIZES = (200, 120, 80, 60, 40, 20, 10, 5)
cases = settings(deadline=None, derandomize=True, max_examples=200)
groups = st.lists(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    min_size=1,
    max_size=12,
).map(lambda rows: tuple(map(np.array, zip(*rows, strict=True))))


def slices_of(sizes: tuple[int, ...], attribute: str = "site") -> list[tuple[str, str, np.ndarray]]:
    of_row = np.repeat(np.arange(len(sizes)), sizes)
    return [(attribute, str(index), of_row == index) for index in range(len(sizes))]


def test_shrinkage_of_four_groups_worked_by_hand():
    found = shrink(np.array([270, 190, 18, 1]), np.array([300, 200, 40, 3]))
    assert pytest.approx(0.88214, abs=5e-6) == found.P
    assert found.tau2 == pytest.approx(0.030197, abs=5e-7)
    assert pytest.approx(2.4431, abs=5e-5) == found.M
    assert found.estimate == pytest.approx([0.89986, 0.94918, 0.47487, 0.57966], abs=5e-6)


def test_groups_that_vary_no_more_than_chance_shrink_to_one_share():
    found = shrink(np.array([90, 180, 45, 2]), np.array([100, 200, 50, 3]))
    assert (found.tau2, found.M) == (0, 1e6)
    assert found.estimate == pytest.approx([0.89802] * 4, abs=5e-6)


def test_a_single_group_is_its_own_share():
    assert shrink(np.array([8]), np.array([10])).estimate == pytest.approx([0.8])


def test_groups_without_an_error_have_estimate_one():
    found = shrink(np.array([5, 50]), np.array([5, 50]))
    assert (found.estimate, found.low, found.high) == (
        pytest.approx([1, 1]),
        pytest.approx([1, 1]),
        pytest.approx([1, 1]),
    )


@cases
@given(groups)
def test_shrunken_estimate_lies_between_the_raw_share_and_that_of_all(case):
    k, n = case
    found = shrink(k, n)
    raw = k / n
    assert (found.estimate >= np.minimum(raw, found.P) - 1e-12).all()
    assert (found.estimate <= np.maximum(raw, found.P) + 1e-12).all()
    assert (found.low <= found.high).all()
    assert found.low.min() >= 0
    assert found.high.max() <= 1


def test_fisher_and_holm_of_the_hand_example():
    k, n = np.array([270, 190, 18, 1]), np.array([300, 200, 40, 3])
    p = holm(fisher_less(k, n, 479 - k, 543 - n))
    assert p[2] == pytest.approx(1e-11, rel=0.05)
    assert p[3] == pytest.approx(0.114, abs=5e-4)


def test_hand_example_names_the_forty_and_not_the_three():
    sizes, right = (300, 200, 40, 3), (270, 190, 18, 1)
    hits = np.concatenate([np.arange(n) < k for n, k in zip(sizes, right, strict=True)])
    table = compare_slices(slices_of(sizes), hits, np.zeros(543, int), None)
    assert table["named"].to_list() == [False, False, True, False]
    assert table["estimate"].to_list() == pytest.approx(
        [0.89986, 0.94918, 0.47487, 0.57966], abs=5e-6
    )
    assert table["p"].to_list()[3] is None  # 3 units: listed, not tested
    forty = table.row(2, named=True)
    assert (forty["raw"], forty["raw_low"], forty["raw_high"]) == (0.45, *wilson(18, 40))
    assert forty["gap"] == pytest.approx(461 / 503 - forty["estimate"])
    assert forty["p_holm"] == pytest.approx(3 * forty["p"])
    assert not forty["because_of_mix"]


def test_table_has_the_columns_of_the_specification():
    hits = np.arange(40) % 4 > 0
    table = compare_slices(slices_of((30, 10)), hits, np.zeros(40, int), None)
    shares = ["raw", "raw_low", "raw_high", "estimate", "low", "high", "gap", "p", "p_holm"]
    told = ["gap_same_mix", "named", "because_of_mix"]
    assert table.columns == ["attribute", "slice", "n", *shares, *told]
    assert table["named"].dtype == pl.Boolean


def test_without_slices_the_table_is_empty():
    assert len(compare_slices([], np.ones(5, bool), np.zeros(5, int), None)) == 0


def test_a_slice_of_all_or_of_no_images_is_listed_and_not_tested():
    masks = [("a", "all", np.ones(30, bool)), ("a", "none", np.zeros(30, bool))]
    table = compare_slices(masks, np.arange(30) < 20, np.zeros(30, int), None)
    assert table["n"].to_list() == [30, 0]
    assert table["raw"].to_list() == [pytest.approx(2 / 3), None]
    assert table["p"].to_list() == table["gap"].to_list() == [None, None]


def test_no_difference_is_named_in_at_most_ten_of_a_hundred_sets():
    rng = np.random.default_rng(0)
    slices, labels = slices_of(SIZES), np.zeros(535, int)
    named = [
        compare_slices(slices, rng.random(535) < 0.85, labels, None)["named"].any()
        for _ in range(100)
    ]
    assert sum(named) <= 10


def test_eighty_images_25_points_worse_are_named_in_nine_of_ten_sets_and_no_other_group():
    rng = np.random.default_rng(0)
    slices, labels = slices_of(SIZES), np.zeros(535, int)
    chance = np.repeat([0.85, 0.85, 0.60, 0.85, 0.85, 0.85, 0.85, 0.85], SIZES)
    found = wrong = 0
    for _ in range(100):
        table = compare_slices(slices, rng.random(535) < chance, labels, None)
        found += table["named"][2] and table["estimate"].arg_min() == 2
        wrong += table["named"].sum() - table["named"][2]
    assert found >= 90
    assert wrong <= 1


def test_five_images_at_forty_per_cent_are_never_named():
    rng = np.random.default_rng(0)
    for _ in range(10):
        hits = np.concatenate([rng.random(530) < 0.85, np.arange(5) < 2])
        assert not compare_slices(slices_of(SIZES), hits, np.zeros(535, int), None)["named"][7]


def test_renaming_and_reordering_groups_changes_nothing_but_names():
    rng = np.random.default_rng(1)
    slices, hits, labels = slices_of(SIZES), rng.random(535) < 0.8, rng.integers(0, 3, 535)
    table = compare_slices(slices, hits, labels, None)
    renamed = [("place", f"site {8 - int(name)}", mask) for _, name, mask in reversed(slices)]
    other = compare_slices(renamed, hits, labels, None).reverse()
    numbers = table.drop("attribute", "slice")
    for name in numbers.columns:
        assert other[name].to_list() == pytest.approx(numbers[name].to_list())


def test_gap_that_comes_from_the_class_mix_is_told_apart():
    """Class 1 is hard everywhere; the slice holds mostly class 1."""
    labels = np.repeat([0, 1, 0, 1], [300, 100, 20, 180])
    inside = np.arange(600) >= 400
    hits = np.where(labels == 0, np.arange(600) % 20 > 0, np.arange(600) % 2 > 0)
    table = compare_slices([("site", "b", inside), ("site", "a", ~inside)], hits, labels, None)
    hard = table.row(0, named=True)
    assert hard["named"]
    assert hard["because_of_mix"]
    assert hard["gap_same_mix"] == pytest.approx(0, abs=0.01)


def test_standardised_gap_worked_by_hand():
    """Classes of 6 and 4 images: gaps 1/2 and 0 -> .6 / 2."""
    labels = np.array([0, 0, 0, 0, 1, 1, 0, 0, 1, 1])
    inside = np.arange(10) >= 6
    hits = np.array([1, 1, 1, 1, 1, 0, 1, 0, 1, 0], bool)
    assert gap_same_mix(inside, hits, labels) == pytest.approx(0.3)
    assert np.isnan(gap_same_mix(inside, hits, inside.astype(int)))


def test_copies_of_images_do_not_make_a_group_significant():
    """20 units of 4 copies, 3 of 5 units wrong in the slice: chance for units, not for rows."""
    hits = np.repeat(np.concatenate([np.arange(15) >= 3, np.arange(5) >= 2]), 10)
    slices = [("site", "b", np.arange(200) >= 150)]
    units = np.arange(200) // 10
    assert compare_slices(slices, hits, np.zeros(200, int), None)["p"][0] < 0.01
    assert compare_slices(slices, hits, np.zeros(200, int), units)["p"][0] > 0.2


def test_permutation_of_single_rows_is_fishers_test():
    hits = np.arange(100) % 5 > 0
    masks = np.array([np.arange(100) % 10 < 2, np.arange(100) < 40])
    k, n = (masks & hits).sum(axis=1), masks.sum(axis=1)
    exact = fisher_less(k, n, hits.sum() - k, 100 - n)
    assert permutation_less(masks, hits, np.arange(100)) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("cut", [False, True])
def test_permutation_keeps_its_level_for_slices_of_units_and_slices_through_units(cut):
    """Patients of 2 to 8 images and unlike difficulty; no slice is worse. 40 slices x 20 sets."""
    rng = np.random.default_rng(0)
    below = []
    for _ in range(20):
        units = np.repeat(np.arange(60), rng.integers(2, 9, 60))
        hits = rng.random(len(units)) < rng.beta(4, 1, 60)[units]
        of_unit = rng.random((40, 60)) < 0.3
        masks = rng.random((40, len(units))) < 0.3 if cut else of_unit[:, units]
        below.append(permutation_less(masks, hits, units, draws=500) < 0.05)
    assert 0.02 < np.mean(below) < 0.085


def test_cramers_v_of_the_reference_table():
    assert cramers_v(np.array([[30, 10], [10, 30]])) == pytest.approx(0.490290, abs=5e-7)


def test_cramers_v_is_one_when_the_group_decides_the_label_and_zero_when_nothing_does():
    assert cramers_v(np.diag([50, 50, 50])) == pytest.approx(1)
    assert cramers_v(np.full((3, 2), 20)) == 0
    assert cramers_v(np.array([[30, 10], [0, 0]])) == 0

"""Units, splits and folds: specs/study.md section 2, 'Splits', and section 10, 'Properties'."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beholder.core.errors import BeholderError
from beholder.core.split import Sealed, SealedError, folds, split, units

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)


def table(
    labels: list[int | None],
    *,
    unit: list[int] | None = None,
    group: list[str] | None = None,
    given_split: list[str | None] | None = None,
) -> pl.DataFrame:
    n = len(labels)
    frame = pl.DataFrame(
        {
            "id": [f"{i:05d}.png" for i in range(n)],
            "label": pl.Series(labels, dtype=pl.Int32),
            "unit": list(range(n)) if unit is None else unit,
        }
    )
    if group is not None:
        frame = frame.with_columns(group_kind=pl.Series(group))
    if given_split is not None:
        frame = frame.with_columns(split=pl.Series(given_split, dtype=pl.String))
    return frame


def by_id(frame: pl.DataFrame, values: np.ndarray) -> dict[str, str]:
    return dict(zip(frame["id"], values.tolist(), strict=True))


def rows(ids: list[str], source: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame({"id": ids, "source": pl.Series(source, dtype=pl.String)})


# units


def test_images_without_source_or_copy_are_units_of_their_own():
    assert units(rows(["b", "a", "c"], [None] * 3)).tolist() == [1, 0, 2]


def test_source_pixels_and_copies_join_into_one_component():
    frame = rows(list("abcdef"), ["s", "s", None, None, None, None])
    exact = pl.Series(["1", "2", "2", "3", "4", "5"])  # b = c
    copies = np.array([-1, -1, 0, 0, -1, -1])  # c ~ d
    assert units(frame, exact, copies).tolist() == [0, 0, 0, 0, 1, 2]


@PROPERTY
@given(
    st.lists(
        st.tuples(st.sampled_from([None, "s", "t", "u"]), st.integers(0, 9), st.integers(-1, 3)),
        min_size=1,
        max_size=30,
    ),
    st.randoms(),
)
def test_units_are_the_components_and_do_not_depend_on_the_order_of_rows(facts, random):
    ids = [f"{i:02d}" for i in range(len(facts))]
    source, exact, copies = (list(column) for column in zip(*facts, strict=True))
    found = units(rows(ids, source), pl.Series([str(e) for e in exact]), np.array(copies))

    parent = {i: {i} for i in range(len(ids))}  # the slow way: merge sets until nothing changes
    for i in range(len(ids)):
        for j in range(i):
            joined = (
                (source[i] is not None and source[i] == source[j])
                or exact[i] == exact[j]
                or (copies[i] >= 0 and copies[i] == copies[j])
            )
            if joined and parent[i] is not parent[j]:
                merged = parent[i] | parent[j]
                for k in merged:
                    parent[k] = merged
    for i in range(len(ids)):
        assert {j for j in range(len(ids)) if found[j] == found[i]} == parent[i]

    shuffled = list(range(len(ids)))
    random.shuffle(shuffled)
    again = units(
        rows([ids[i] for i in shuffled], [source[i] for i in shuffled]),
        pl.Series([str(exact[i]) for i in shuffled]),
        np.array([copies[i] for i in shuffled]),
    )
    assert again.tolist() == found[shuffled].tolist()


# one test part


def test_a_quarter_of_every_class_is_tested():
    result = split(table([0] * 300 + [1] * 200))
    assert result.kind == "holdout"
    assert (result.roles[:300] == "test").sum() == 75
    assert (result.roles[300:] == "test").sum() == 50
    assert set(result.roles) == {"train", "test"}
    assert (result.folds == -1).all()


def test_a_cell_with_few_units_joins_the_rest_of_its_class():
    labels, group = [0] * 206 + [1] * 200, ["a"] * 200 + ["b"] * 3 + ["c"] * 3 + ["a"] * 200
    result = split(table(labels, group=group))
    tested = result.roles == "test"
    assert tested[:200].sum() in (50, 51)
    assert tested[200:206].sum() in (1, 2)


def test_a_class_with_one_unit_is_listed_and_stays_in_training():
    labels = [0] * 300 + [1] * 300 + [2] * 4
    unit = [*range(600), 600, 600, 600, 600]
    result = split(table(labels, unit=unit), classes=["ok", "bad", "rare"])
    assert result.kind == "holdout"
    assert result.untested == (2,)
    assert (result.roles[600:] == "train").all()
    assert any("rare" in note for note in result.notes)


def test_an_unlabelled_image_is_kept_for_training_and_goes_with_its_unit():
    labels: list[int | None] = [0, 1] * 300
    unit = list(range(600))
    plain = split(table(labels, unit=unit))
    test_unit = int(np.flatnonzero(plain.roles == "test")[0])
    result = split(table([*labels, None, None], unit=[*unit, 600, test_unit]))
    assert result.roles[:600].tolist() == plain.roles.tolist()
    assert result.roles[600:].tolist() == ["train", "test"]


def test_no_patient_straddles():
    labels = [patient % 2 for patient in range(40) for _ in range(10)]
    frame = rows([f"{i:03d}" for i in range(400)], [f"p{i // 10}" for i in range(400)])
    unit = units(frame)
    result = split(table(labels, unit=unit.tolist()))
    assert result.kind == "holdout"
    roles = result.roles.reshape(40, 10)
    assert (roles == roles[:, :1]).all()
    assert (result.roles == "test").sum() == 100


@st.composite
def tables(draw: st.DrawFn, largest_unit: int = 1) -> pl.DataFrame:
    """400 to 700 images of 2 to 4 classes and 1 to 3 groups in units of one class and group."""
    classes, groups = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(400, 700))
    sizes = rng.integers(1, largest_unit + 1, n)
    unit = np.repeat(np.arange(n), sizes)[:n]
    label = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 3.0)))[unit]
    group = rng.choice(groups, n, p=rng.dirichlet(np.full(groups, 2.0)))[unit]
    return table(label.tolist(), unit=unit.tolist(), group=[f"g{g}" for g in group])


@PROPERTY
@given(tables(), st.integers(0, 5))
def test_every_cell_of_single_images_is_within_one_of_its_share(frame, seed):
    result = split(frame, seed)
    shares = 1 / (result.folds.max() + 1) if result.kind == "cross_fit" else 0.25
    parts = [result.folds == k for k in range(result.folds.max() + 1)] or [result.roles == "test"]
    cell = [f"{c}/{g}" for c, g in frame.select("label", "group_kind").iter_rows()]
    sizes = Counter(cell)
    for part in parts:
        for name, size in sizes.items():
            if size >= 4:
                inside = sum(
                    1 for c, in_part in zip(cell, part, strict=True) if in_part and c == name
                )
                assert abs(inside - shares * size) <= 1
        assert abs(part.sum() - shares * (result.roles == "test").sum()) <= 1 or len(parts) == 1
    if len(parts) == 1:
        assert abs(parts[0].sum() - len(frame) / 4) <= 1


@PROPERTY
@given(tables(largest_unit=8), st.integers(0, 5), st.randoms())
def test_units_stay_whole_and_the_order_of_rows_does_not_matter(frame, seed, random):
    result = split(frame, seed)
    roles, fold = by_id(frame, result.roles), by_id(frame, result.folds)
    assert set(roles.values()) <= {"train", "test"}
    per_unit = frame.with_columns(role=pl.Series(result.roles), fold=pl.Series(result.folds))
    counts = per_unit.group_by("unit").agg(pl.col("role", "fold").n_unique())
    assert counts["role"].max() == counts["fold"].max() == 1
    if result.kind == "holdout":
        largest = frame.group_by("unit").len()["len"].max()
        cells = frame.select(pl.exclude("id", "unit")).n_unique()  # each is rounded by itself
        assert abs((result.roles == "test").sum() - len(frame) / 4) <= largest + cells
    order = list(range(len(frame)))
    random.shuffle(order)
    shuffled = frame[order]
    again = split(shuffled, seed)
    assert by_id(shuffled, again.roles) == roles
    assert by_id(shuffled, again.folds) == fold


def test_another_seed_gives_another_split():
    frame = table([0, 1] * 300)
    first, second = split(frame, 0), split(frame, 1)
    assert first.roles.tolist() != second.roles.tolist()
    assert first.roles.tolist() == split(frame, 0).roles.tolist()


# cross-fitting


@pytest.mark.parametrize(
    ("counts", "kind"),
    [((200, 200), "holdout"), ((200, 199), "cross_fit"), ((600, 40), "holdout")],
)
def test_fewer_than_four_hundred_images_are_cross_fitted(counts, kind):
    assert split(table([0] * counts[0] + [1] * counts[1])).kind == kind


def test_a_class_with_fewer_than_ten_test_images_means_cross_fitting():
    assert split(table([0] * 600 + [1] * 36)).kind == "cross_fit"


def test_in_cross_fitting_every_image_is_judged_once_in_five_even_folds():
    result = split(table([0] * 60 + [1] * 40))
    assert result.kind == "cross_fit"
    assert (result.roles == "test").all()
    assert np.bincount(result.folds).tolist() == [20] * 5
    assert np.bincount(result.folds[:60]).tolist() == [12] * 5


def test_the_smallest_class_sets_the_number_of_folds_and_is_in_each():
    result = split(table([0] * 50 + [1] * 3))
    assert result.folds.max() == 2
    assert sorted(result.folds[50:].tolist()) == [0, 1, 2]


def test_a_class_of_one_unit_is_never_judged_nor_counted_for_the_folds():
    result = split(table([0] * 50 + [1] * 50 + [2]))
    assert result.folds.max() == 4
    assert result.folds[100] == -1
    assert result.roles[100] == "train"


def test_nothing_is_judged_if_every_class_has_one_unit():
    result = split(table([0, 0, 1, 1], unit=[0, 0, 1, 1]))
    assert (result.roles == "train").all()
    assert (result.folds == -1).all()
    assert any("Nothing is judged" in note for note in result.notes)


def test_without_labels_nothing_is_judged():
    result = split(table([None] * 500))
    assert (result.roles == "train").all()


# given splits


def test_a_given_split_wins():
    given_split = ["train", "val", "test", None]
    result = split(table([0, 1, 0, 1], given_split=given_split))
    assert result.kind == "given"
    assert result.roles.tolist() == ["train", "val", "test", "train"]
    assert any("no split of their own" in note for note in result.notes)


def test_a_given_split_without_test_judges_nothing_and_says_so():
    result = split(table([0, 1], given_split=["train", "val"]))
    assert any("no test images" in note for note in result.notes)


def test_a_split_column_of_nulls_is_no_given_split():
    assert split(table([0, 1] * 300, given_split=[None] * 600)).kind == "holdout"


# folds


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=8, max_size=80),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_folds_cover_all_images_and_keep_units_whole(pairs, k, seed):
    unit, label = (np.array(column) for column in zip(*pairs, strict=True))
    fold = folds(unit, label, k, seed)
    assert ((fold >= 0) & (fold < k)).all()
    for number in np.unique(unit):
        assert len(np.unique(fold[unit == number])) == 1


@PROPERTY
@given(st.lists(st.integers(0, 3), min_size=20, max_size=120), st.integers(2, 5))
def test_folds_of_single_images_are_even_in_every_class(labels, k):
    label = np.array(labels)
    fold = folds(np.arange(len(label)), label, k, 0)
    for c in np.unique(label):
        counts = np.bincount(fold[label == c], minlength=k)
        assert counts.max() - counts.min() <= 1
    counts = np.bincount(fold, minlength=k)
    assert counts.max() - counts.min() <= 1


# the seal


def test_sealed_names_up_to_three_test_images():
    sealed = Sealed(["a", "b", "c", "d"])
    sealed.check(["x", "y"])
    with pytest.raises(SealedError, match="a, b, c and 1 more"):
        sealed.check(["d", "x", "c", "b", "a"])
    assert issubclass(SealedError, BeholderError)


@PROPERTY
@given(st.sets(st.text(), min_size=1), st.sets(st.text()), st.data())
def test_sealed_raises_on_any_test_image(test, others, data):
    planted = data.draw(st.sampled_from(sorted(test)))
    with pytest.raises(SealedError):
        Sealed(test).check([*sorted(others), planted])

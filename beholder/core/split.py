"""Which images train and which judge: units, splits, folds (specs/study.md section 2, 'Splits').

A unit is what must stay together: images of one source, equal pictures, copies. Everything here is
a pure function of the table and a seed, and does not depend on the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from .errors import BeholderError

SMALL_CELL = 4  # units below which a class x group cell joins the rest of its class
SMALL_SET = 400  # labelled images below which every image is judged, by cross-fitting
FEWEST_TESTED = 10  # test images that every class must have for one test part
MOST_FOLDS = 5

Cell = tuple[object, ...]


class SealedError(BeholderError):
    """A test image was given to something that fits."""


class Sealed:
    """Guards the test images: whatever fits shows the ids it is about to see."""

    def __init__(self, test_ids: Iterable[str]) -> None:
        self._ids = frozenset(test_ids)

    def check(self, ids: Iterable[str]) -> None:
        """Raises `SealedError`, naming up to three, if any of `ids` is a test image."""
        seen = sorted(self._ids.intersection(ids))
        if seen:
            more = f" and {len(seen) - 3:,} more" if len(seen) > 3 else ""
            raise SealedError(
                f"Test images must not be fitted on: {', '.join(seen[:3])}{more}.",
                "Fit on the training part, or cross-fit.",
            )


@dataclass(frozen=True)
class Split:
    """Roles of N rows.

    Attributes:
        roles: [N] 'train', 'val' or 'test'; 'test' = judged.
        folds: int8 [N]: in cross-fitting the fold whose model has not seen the image; else -1.
        kind: 'given', 'holdout' (one test part) or 'cross_fit' (the judged images are judged by
            the model of their fold; nothing is judged if there is no fold).
        untested: classes (numbers) with a single unit, which stays in training.
        notes: sentences for people.
    """

    roles: np.ndarray
    folds: np.ndarray
    kind: Literal["holdout", "given", "cross_fit"]
    untested: tuple[int, ...]
    notes: tuple[str, ...]


def units(
    table: pl.DataFrame, exact_hash: pl.Series | None = None, copies: np.ndarray | None = None
) -> np.ndarray:
    """Connected components of: same source, same pixels, same group of copies.

    Args:
        table: columns id (unique) and source (null = the image itself); [N] rows.
        exact_hash: [N] hash of the pixels.
        copies: int [N] group of copies, -1 = none.

    Returns:
        int [N]: units numbered in the order of their smallest id, whatever the order of rows.
    """
    keys = [_numbers(table["source"])]
    if exact_hash is not None:
        keys.append(_numbers(exact_hash))
    if copies is not None:
        group = pl.Series(copies)
        keys.append(_numbers(group.set(group < 0, None)))
    unit = _ranks(table["id"])
    while True:
        before = unit
        for key in keys:
            smallest = np.full(len(unit), len(unit))
            np.minimum.at(smallest, key, unit)
            unit = smallest[key]
        if np.array_equal(unit, before):
            return np.unique(unit, return_inverse=True)[1]


def split(
    table: pl.DataFrame,
    seed: int = 0,
    test_share: float = 0.25,
    classes: Sequence[str] | None = None,
) -> Split:
    """Roles for every row: given, or one test part, or cross-fitting.

    Args:
        table: columns id, unit (of `units`), label (null = no label, never judged: it stays in
            training, or with its unit), and if there: split (given role), any `group_NAME`.
        seed: another one gives another split.
        test_share: of the images, of every class x group, in one test part.
        classes: names, for the notes.

    A given split wins entirely. Else units are dealt, in the order of blake2b(seed, smallest id),
    to the part whose class x group counts are furthest below target. Below 400 labelled images,
    or where a class would have under 10 test images, K = min(5, units of the smallest class) folds
    take the place of the test part; classes with one unit are not counted there, and never judged.
    """
    if "split" in table.columns and table["split"].null_count() < len(table):
        return _given(table)
    n = len(table)
    labelled = np.flatnonzero(table["label"].is_not_null().to_numpy())
    label = table["label"].to_numpy()[labelled].astype(int)
    unit = table["unit"].to_numpy()[labelled]
    per_class = {c: len(np.unique(unit[label == c])) for c in np.unique(label).tolist()}
    single = [c for c, count in per_class.items() if count < 2]
    tested = [c for c, count in per_class.items() if count >= 2]
    notes = [_single_note(single, classes)] if single else []
    notes += _unlabelled_note(n - len(labelled))
    roles, fold = np.full(n, "train", "<U5"), np.full(n, -1, np.int8)
    if not tested:
        notes.append("Nothing is judged: no class has two images that are independent.")
        return Split(roles, fold, "cross_fit", tuple(single), tuple(notes))

    cells = _cells(table[labelled], label, unit)
    stays = np.isin(unit, unit[np.isin(label, single)])
    rows = np.flatnonzero(~stays)
    dealt, cells = unit[rows], [cells[row] for row in rows]
    order = _order(table["id"].gather(labelled), unit, seed)
    part = _deal(dealt, cells, (test_share, 1 - test_share), order, whole=1.0)
    in_test, in_all = Counter(label[rows[part == 0]].tolist()), Counter(label.tolist())
    enough = all(FEWEST_TESTED <= in_test[c] < in_all[c] for c in tested)
    if len(labelled) >= SMALL_SET and enough:
        roles[_with_their_unit(table, dealt[part == 0])] = "test"
        return Split(roles, fold, "holdout", tuple(single), tuple(notes))
    k = min(MOST_FOLDS, *(per_class[c] for c in tested))
    part = _deal(dealt, cells, (1 / k,) * k, order, whole=0.0)
    for number in range(k):
        judged = _with_their_unit(table, dealt[part == number])
        roles[judged], fold[judged] = "test", number
    notes.append(f"Few images: {k} models, each judged on the part that it has not seen.")
    return Split(roles, fold, "cross_fit", tuple(single), tuple(notes))


def _with_their_unit(table: pl.DataFrame, unit: np.ndarray) -> np.ndarray:
    """Rows of these units, unlabelled ones too (so that no copy of a judged image trains)."""
    return np.isin(table["unit"].to_numpy(), unit)


def folds(units: np.ndarray, labels: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Folds 0..k-1 that keep units whole and classes even, by the rule of `split` -> int [N].

    Args:
        units, labels: int [N]; units as numbered by `units`.
        k: at least 2; fewer units than k leave folds empty.
    """
    order = sorted(set(units.tolist()), key=lambda unit: _draw(seed, str(unit)))
    rank = {unit: place for place, unit in enumerate(order)}
    return _deal(units, [(label,) for label in labels.tolist()], (1 / k,) * k, rank, whole=0.0)


def _numbers(values: pl.Series) -> np.ndarray:
    """0.. for equal values; every null is a value of its own."""
    number = values.rank("dense").to_numpy().astype(float)
    missing = np.flatnonzero(np.isnan(number))
    number[missing] = len(values) + 1 + np.arange(len(missing))
    return np.unique(number, return_inverse=True)[1]


def _ranks(ids: pl.Series) -> np.ndarray:
    return ids.rank("ordinal").to_numpy().astype(int) - 1


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()


def _order(ids: pl.Series, unit: np.ndarray, seed: int) -> dict[int, int]:
    """Place of every unit in the order of blake2b(seed, its smallest id)."""
    smallest: dict[int, str] = {}
    for number, name in sorted(zip(unit.tolist(), ids.to_list(), strict=True)):
        smallest.setdefault(number, name)
    order = sorted(smallest, key=lambda number: _draw(seed, smallest[number]))
    return {number: place for place, number in enumerate(order)}


def _cells(table: pl.DataFrame, label: np.ndarray, unit: np.ndarray) -> list[Cell]:
    """Class x group of every row; cells with few units become the rest of their class."""
    groups = sorted(name for name in table.columns if name.startswith("group_"))
    columns = [label.tolist(), *(table[name].to_list() for name in groups)]
    cells: list[Cell] = list(zip(*columns, strict=True))
    members: dict[Cell, set[int]] = {}
    for cell, number in zip(cells, unit.tolist(), strict=True):
        members.setdefault(cell, set()).add(number)
    small = {cell for cell, inside in members.items() if len(inside) < SMALL_CELL}
    return [cell[:1] if cell in small else cell for cell in cells]


def _deal(
    unit: np.ndarray,
    cells: Sequence[Cell],
    shares: Sequence[float],
    order: dict[int, int],
    whole: float,
) -> np.ndarray:
    """Part 0.. of every row, units whole, every cell's counts near `shares` of it -> int [N].

    A unit goes to the part that is furthest below target in the unit's cells (mean over its
    images) plus `whole` times that in all cells together, among the parts that are below target in
    its cells at all. With `whole` = 0 no part gets a second unit of a cell before every part
    of the same target has one.
    """
    lacking = _targets(Counter(cells), shares)
    lacking_whole = [sum(part.values()) for part in lacking]
    content: dict[int, Counter[Cell]] = {}
    for number, cell in zip(unit.tolist(), cells, strict=True):
        content.setdefault(number, Counter())[cell] += 1
    chosen: dict[int, int] = {}
    for number in sorted(content, key=order.__getitem__):
        inside, size = content[number], content[number].total()
        ranked = []
        for part, lacks in enumerate(lacking):
            below = sum(count * lacks[cell] for cell, count in inside.items()) / size
            in_all = lacking_whole[part]
            ranked.append((below > 0, below + whole * in_all * (below > 0), in_all, -part))
        best = -max(ranked)[-1]
        chosen[number] = best
        lacking_whole[best] -= size
        for cell, count in inside.items():
            lacking[best][cell] -= count
    return np.array([chosen[number] for number in unit.tolist()], int)


def _targets(total: Counter[Cell], shares: Sequence[float]) -> list[dict[Cell, int]]:
    """Whole numbers of images per part and cell, within 1 of share x count, with right sums.

    All images stand in one row, cell by cell, and each goes to the part furthest below its share
    of the row so far.
    """
    targets: list[dict[Cell, int]] = [dict.fromkeys(total, 0) for _ in shares]
    lacking = [0.0] * len(shares)
    for cell in sorted(total, key=repr):
        for _ in range(total[cell]):
            lacking = [now + share for now, share in zip(lacking, shares, strict=True)]
            part = lacking.index(max(lacking))
            lacking[part] -= 1
            targets[part][cell] += 1
    return targets


def _given(table: pl.DataFrame) -> Split:
    given = table["split"].fill_null("train")
    missing = table["split"].null_count()
    notes = []
    if missing:
        notes.append(f"{missing:,} images have no split of their own: they are for training.")
    if not (given == "test").any():
        notes.append("The given split has no test images, so nothing is judged.")
    roles = given.to_numpy().astype("<U5")
    return Split(roles, np.full(len(table), -1, np.int8), "given", (), tuple(notes))


def _single_note(single: Sequence[int], classes: Sequence[str] | None) -> str:
    names = ", ".join(classes[c] if classes else str(c) for c in single[:10])
    more = f" and {len(single) - 10:,} more" if len(single) > 10 else ""
    return f"In training only, for want of a second independent image: {names}{more}."


def _unlabelled_note(count: int) -> list[str]:
    return [f"{count:,} images without a label are never judged."] if count else []

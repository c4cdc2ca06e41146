"""Labels in any form to numbers: class indices, distributions, sets. Pure functions.

Specs/study.md section 2, 'Columns', 'Class order', 'Label uncertainty'; section 5 for numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beholder.core.errors import ArgumentError, DataError
from beholder.core.images import DataKind

from .names import class_order, refuse_clashes

TIE = 1e-9
ROUNDING = 1e-3
TOLERANCE = 0.05
"""Shares whose sum is off by less are rounding (silent), carelessness (noted), else an error."""


@dataclass(frozen=True)
class Labels:
    """One entry per image in each list; `label` None = none given, or an exact tie (`q` given)."""

    kind: DataKind
    classes: tuple[str, ...]
    label: list[int | None]
    q: list[list[float] | None]
    sets: list[list[int] | None]
    notes: tuple[str, ...] = ()

    @property
    def given(self) -> list[bool]:
        """Whether an image has a label of any form."""
        return [
            self.kind == "unlabelled" or not (label is None and q is None and several is None)
            for label, q, several in zip(self.label, self.q, self.sets, strict=True)
        ]


def unlabelled(count: int) -> Labels:
    """No labels at all."""
    return Labels("unlabelled", (), [None] * count, [None] * count, [None] * count)


def named(names: Sequence[str | None], classes: Sequence[str] | None = None) -> Labels:
    """One name per image; all None is unlabelled, one class is `one_class`.

    Args:
        classes: order wanted, and the only names allowed.

    Raises:
        ArgumentError: a name that is not in `classes`.
        AmbiguousDataError: names that differ only in case.
    """
    count = len(names)
    present = {name for name in names if name is not None}
    if not present:
        return unlabelled(count)
    order = _order(present, classes)
    index = {name: number for number, name in enumerate(order)}
    label = [None if name is None else index[name] for name in names]
    kind: DataKind = "classes" if len(order) > 1 else "one_class"
    return Labels(kind, order, label, [None] * count, [None] * count)


def several(sets: Sequence[Sequence[str] | None], classes: Sequence[str] | None = None) -> Labels:
    """Any number of names per image, in any order; None = no label, [] = none of the classes."""
    count = len(sets)
    order = _order({name for names in sets for name in names or ()}, classes)
    index = {name: number for number, name in enumerate(order)}
    numbers = [None if names is None else sorted({index[name] for name in names}) for names in sets]
    return Labels("multilabel", order, [None] * count, [None] * count, numbers)


def uncertain(
    shares: Sequence[Sequence[float] | None], classes: Sequence[str], rows: Sequence[int]
) -> Labels:
    """A distribution over classes per image.

    Args:
        shares: per image C numbers >= 0 that sum to 1, or None. Sums off by up to 0.05 are
            normalised (above 0.001 with a note).
        rows: number of each image, for messages.

    Raises:
        DataError: names the row whose numbers are no distribution.
    """
    label: list[int | None] = []
    q: list[list[float] | None] = []
    mended = ties = 0
    refuse_clashes(classes)
    for row, values in zip(rows, shares, strict=True):
        if values is None:
            label.append(None)
            q.append(None)
            continue
        total = sum(values)
        if not all(0 <= value <= 1 + ROUNDING for value in values) or abs(total - 1) > TOLERANCE:
            raise DataError(
                f"Row {row}: the shares {', '.join(f'{value:g}' for value in values)} sum to"
                f" {total:g}.",
                "Each must be between 0 and 1, and together they must be 1.",
            )
        mended += abs(total - 1) > ROUNDING
        distribution = [value / total for value in values]
        first, second = sorted(distribution, reverse=True)[:2] if len(values) > 1 else (1.0, 0.0)
        ties += first - second <= TIE
        label.append(None if first - second <= TIE else int(np.argmax(distribution)))
        q.append(distribution)
    notes = []
    if mended:
        notes.append(f"{mended:,} rows of shares did not sum to 1 and were normalised")
    if ties:
        notes.append(f"{ties:,} labels are exact ties and are left out of the accuracy")
    return Labels("classes", tuple(classes), label, q, [None] * len(label), tuple(notes))


def second_class(
    probabilities: Sequence[float | None], classes: Sequence[str] | None, rows: Sequence[int]
) -> Labels:
    """`uncertain` with q = (1 - p, p), p the probability of the second class.

    Raises:
        DataError: names the row whose probability is not within 0..1.
        ArgumentError: `classes` are not two.
    """
    for row, value in zip(rows, probabilities, strict=True):
        if value is not None and not 0 <= value <= 1:
            raise DataError(
                f"Row {row}: the probability {value:g} is not between 0 and 1.",
                "It is that of the second class, as a share.",
            )
    if classes is not None and len(classes) != 2:
        raise ArgumentError(
            f"--classes names {len(classes)} classes, but a probability column tells two apart.",
            "Name two, the one that the probability belongs to last.",
        )
    shares = [None if value is None else [1 - value, value] for value in probabilities]
    labels = uncertain(shares, classes or ("negative", "positive"), rows)
    if classes is not None:
        return labels
    note = "the classes of the probability column are called negative and positive; --classes A,B"
    return Labels(
        labels.kind, labels.classes, labels.label, labels.q, labels.sets, (*labels.notes, note)
    )


def judged_as_classes(
    names: Sequence[str | None], column: str, bins: int | None
) -> tuple[Sequence[str | None], tuple[str, ...]]:
    """`names`, cut into `bins` classes of equal size where wanted; and notes.

    Raises:
        ArgumentError: numbers that are measurements, not classes (more than 50 distinct and more
            than 20 % distinct) without `bins`; or `bins` of something that is no number.
    """
    present = [name for name in names if name is not None]
    numbers = _numbers(present)
    if bins is not None:
        if numbers is None:
            raise ArgumentError(f"--bins {bins}: the column {column!r} does not hold numbers.")
        return _binned(names, numbers, bins)
    distinct = len(set(present))
    if numbers is not None and distinct > 50 and distinct > 0.2 * len(present):
        raise ArgumentError(
            f"{column} has {distinct:,} different numbers; beholder judges classes.",
            "Bin it with --bins 5 or name another column (--label-column).",
        )
    return names, ()


def _binned(
    names: Sequence[str | None], numbers: Sequence[float], bins: int
) -> tuple[list[str | None], tuple[str, ...]]:
    """Quantile classes '1: 0 to 3.5', ...: numbered, so that their natural order is right."""
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, bins + 1)))
    count = max(1, len(edges) - 1)
    titles = [f"{i + 1}: {edges[i]:g} to {edges[min(i + 1, count)]:g}" for i in range(count)]
    which = iter(np.searchsorted(edges[1:count], numbers, side="right"))
    found: list[str | None] = [None if name is None else titles[int(next(which))] for name in names]
    notes = (f"{bins} bins asked for, {count} made: many numbers are equal",)
    return found, notes if count < bins else ()


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """All of them as finite numbers, or None."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return None
    return numbers if numbers and all(np.isfinite(numbers)) else None


def _order(present: set[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        return class_order(present)
    if unknown := sorted(present - set(classes)):
        raise ArgumentError(
            f"The label {unknown[0]!r} is not among --classes {','.join(classes)}.",
            "Name every class, or leave --classes out.",
        )
    return tuple(classes)

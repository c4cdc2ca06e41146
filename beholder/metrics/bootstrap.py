"""The cluster bootstrap, vectorised over resamples (specs/benchmarks.md 'Shared', study.md 4).

A *unit* is what was drawn independently (source, copy group, image): all its rows move together.
A *statistic* maps multiplicities of rows [r, N] to r numbers. Statistics that depend on nothing
but how often each *cell* (say: true class x answer) was drawn are `CellStatistic`s: where every
unit is a single row, a resample is one multinomial draw over the cells, which is exact and costs
nothing in the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from beholder.core.sections import Unit, Value

from .binomial import wilson

CHUNK_BYTES = 64 << 20
MIN_UNITS = 20
MAX_DROPPED = 0.05
CELLS_WORTH_COLLAPSING = 1 / 16  # of the rows: above it drawing rows is faster than multinomials

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class CellStatistic:
    """A statistic of how often each cell was drawn.

    Attributes:
        cells: [N] the cell of each row, 0..number - 1.
        number: K, of cells; empty ones are allowed.
        of: counts of cells [r, K] -> [r].
    """

    cells: np.ndarray
    number: int
    of: Statistic

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows in order of their cell; the cells that have rows; where each of them starts."""
        order = np.argsort(self.cells, kind="stable")
        present, starts = np.unique(self.cells[order], return_index=True)
        return order, present, starts

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """The statistic of multiplicities of rows [r, N]: [r]."""
        order, present, starts = self._sorted
        sums = np.zeros((len(counts), self.number))
        sums[:, present] = np.add.reduceat(counts[:, order], starts, axis=1)
        return self.of(sums)

    @property
    def collapses(self) -> bool:
        """Whether drawing cells is cheaper than drawing rows."""
        return self.number <= max(8, len(self.cells) * CELLS_WORTH_COLLAPSING)


def divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    blank = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=blank, where=denominator > 0)


def mean_present(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is there."""
    there = ~np.isnan(values)
    return divided(np.where(there, values, 0.0).sum(axis=-1), there.sum(axis=-1).astype(float))


def mean_of(values: np.ndarray, weights: np.ndarray | None = None) -> Statistic:
    """Statistic: (weighted) mean of `values` [N]."""
    by_value = shares_of(np.zeros(len(values), dtype=int), values, weights)
    if by_value.collapses:
        return by_value
    weights = np.ones(len(values)) if weights is None else weights
    contributions = np.column_stack([weights * values, weights]).astype(float)

    def mean(counts: np.ndarray) -> np.ndarray:
        totals = counts @ contributions
        return divided(totals[:, 0], totals[:, 1])

    return mean


def shares_of(
    groups: np.ndarray, hits: np.ndarray, weights: np.ndarray | None = None
) -> CellStatistic:
    """Statistic: sum w hit / sum w inside each group, averaged over the groups that are present.

    Args:
        groups: [N] labels. hits: [N] bool or float. weights: [N] >= 0.
    """
    weights = np.ones(len(hits)) if weights is None else weights
    rows = np.column_stack([np.unique(groups, return_inverse=True)[1], hits, weights])
    distinct, cells = np.unique(rows.astype(float), axis=0, return_inverse=True)
    hit, weight = distinct[:, 1], distinct[:, 2]
    starts = np.unique(distinct[:, 0], return_index=True)[1]  # cells are sorted by group

    def shares(counts: np.ndarray) -> np.ndarray:
        mass = counts * weight
        total = np.add.reduceat(mass, starts, axis=1)
        return mean_present(divided(np.add.reduceat(mass * hit, starts, axis=1), total))

    return CellStatistic(cells.reshape(-1), len(distinct), shares)


def balanced_accuracy_of(true: np.ndarray, predicted: np.ndarray, classes: int) -> CellStatistic:
    """Statistic: mean recall over the classes present. `true`, `predicted`: [N] in 0..classes-1."""
    _check_labels(true, predicted, classes)
    return shares_of(true, true == predicted)


def macro_f1_of(true: np.ndarray, predicted: np.ndarray, classes: int) -> CellStatistic:
    """Statistic: mean F1 over the classes that are true or answered somewhere in the resample."""
    _check_labels(true, predicted, classes)
    codes = np.asarray(true) * classes + np.asarray(predicted)
    pairs, cells = np.unique(codes, return_inverse=True)
    of_true, of_predicted = np.divmod(pairs, classes)
    truth, answers = (_one_hot(labels, classes) for labels in (of_true, of_predicted))
    right = np.flatnonzero(of_true == of_predicted)

    def f1(counts: np.ndarray) -> np.ndarray:
        either = counts @ truth + counts @ answers
        return mean_present(divided(2 * (counts[:, right] @ truth[right]), either))

    return CellStatistic(cells.reshape(-1), len(pairs), f1)


def _one_hot(labels: np.ndarray, classes: int) -> sparse.csr_array:
    """[K, C], one 1 per row."""
    ones = (np.ones(len(labels)), (np.arange(len(labels)), labels))
    return sparse.csr_array(ones, shape=(len(labels), classes))


def f1_of(positive: np.ndarray, answered: np.ndarray) -> CellStatistic:
    """Statistic: F1 of one class. `positive` (truth), `answered` (model): [N] bool."""
    cells = 2 * positive.astype(int) + answered.astype(int)

    def f1(counts: np.ndarray) -> np.ndarray:
        return divided(2 * counts[:, 3], counts[:, 1] + counts[:, 2] + 2 * counts[:, 3])

    return CellStatistic(cells, 4, f1)


def auroc_of(score: np.ndarray, positive: np.ndarray) -> Statistic:
    """Statistic: area under the ROC curve, ties count half; NaN if one kind is missing.

    Sorted once; each resample costs two cumulative sums. `score`: [N], `positive`: [N] bool.
    """
    order = np.argsort(score, kind="stable")
    truth = np.asarray(positive, dtype=bool)[order]
    starts = np.unique(np.asarray(score)[order], return_index=True)[1]

    def auroc(counts: np.ndarray) -> np.ndarray:
        counts = counts[:, order]
        positives, negatives = counts * truth, counts * ~truth
        if len(starts) < len(truth):
            positives = np.add.reduceat(positives, starts, axis=1)
            negatives = np.add.reduceat(negatives, starts, axis=1)
        upto = np.cumsum(negatives, axis=1, dtype=float)
        wins = np.einsum("rn,rn->r", positives, upto - negatives / 2)
        return divided(wins, positives.sum(axis=1, dtype=float) * upto[:, -1])

    return auroc


def auroc_macro_of(probability: np.ndarray, true: np.ndarray) -> Statistic:
    """Statistic: one-vs-rest AUROC averaged over the classes present; of two: the second's.

    Args:
        probability: [N, C]. true: [N] in 0..C-1.
    """
    classes = [1] if probability.shape[1] == 2 else range(probability.shape[1])
    parts = [auroc_of(probability[:, label], true == label) for label in classes]
    return lambda counts: mean_present(np.stack([part(counts) for part in parts], axis=1))


def resample_counts(
    units: np.ndarray, resamples: int, seed: int, strata: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Multiplicities of rows in each resample, [r, N] float32 in chunks of at most 64 MB.

    Args:
        units: [N] labels of any kind; rows of one unit are drawn together.
        strata: [N] labels; units are then drawn inside their stratum.

    Raises:
        ValueError: a unit lies in two strata.
    """
    codes, members = _strata_of(units, strata)
    rng = np.random.default_rng(seed)
    number = sum(map(len, members))
    plain = np.array_equal(codes, np.arange(len(codes)))
    step = max(1, CHUNK_BYTES // (8 * len(codes)))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = np.concatenate(
            [group[rng.integers(len(group), size=(size, len(group)))] for group in members], axis=1
        )
        drawn += np.arange(size)[:, None] * number
        counts = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        counts = counts.astype(np.float32)
        yield counts if plain else counts[:, codes]


def _strata_of(units: np.ndarray, strata: np.ndarray | None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Unit of each row as 0..U-1, and the units of each stratum."""
    labels, first, codes = np.unique(units, return_index=True, return_inverse=True)
    codes = codes.reshape(-1)
    if strata is None:
        return codes, [np.arange(len(labels))]
    names, of_row = np.unique(strata, return_inverse=True)
    of_unit = of_row.reshape(-1)[first]
    if not np.array_equal(of_unit[codes], of_row.reshape(-1)):
        raise ValueError("A unit lies in two strata: its rows could not be drawn together.")
    return codes, [np.flatnonzero(of_unit == index) for index in range(len(names))]


def bootstrap(
    statistic: Statistic,
    units: np.ndarray,
    *,
    strata: np.ndarray | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    unit: Unit = "share",
    higher_is_better: bool | None = True,
) -> Value:
    """The statistic of all rows with the percentile interval of the cluster bootstrap.

    Resamples in which it is undefined (a class is missing) are left out; above 5 % of them the
    value says 'interval unreliable'. Fewer than 20 units, or a share of exactly 0 or 1 in every
    resample, give no interval: a width of 0 would claim certainty.

    Args:
        statistic: multiplicities [r, N] -> [r].
        units: [N] labels of what was drawn independently.
    """
    value = _percentile(statistic, units, strata, resamples, level, seed)
    value.unit, value.higher_is_better = unit, higher_is_better
    if unit in ("share", "") and value.low == value.high and value.estimate in (0.0, 1.0):
        value.low = value.high = value.resamples = None
        value.method, value.why = "none", "every resample gives the same value: no interval"
    return value


def _percentile(
    statistic: Statistic,
    units: np.ndarray,
    strata: np.ndarray | None,
    resamples: int,
    level: float,
    seed: int,
) -> Value:
    """Estimate and percentile interval, or the reason why there is none."""
    rows, number = len(units), len(np.unique(units))
    if rows == 0:
        return Value.undefined("nothing to judge")
    value = Value(estimate=float(statistic(np.ones((1, rows)))[0]), n=rows, level=level)
    if value.estimate is None:
        value.why = "undefined on these images: a class is missing"
    elif number < MIN_UNITS:
        value.why = f"too few units for an interval ({number} < {MIN_UNITS})"
    else:
        drawn = _replicates(statistic, units, number, strata, resamples, seed)
        kept = drawn[~np.isnan(drawn)]
        if len(kept) < (1 - MAX_DROPPED) * resamples:
            value.why = "interval unreliable"
        if len(kept):
            low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
            value.low, value.high = float(low), float(high)
            value.method, value.resamples = "bootstrap", len(kept)
    return value


def _replicates(
    statistic: Statistic,
    units: np.ndarray,
    number: int,
    strata: np.ndarray | None,
    resamples: int,
    seed: int,
) -> np.ndarray:
    """The statistic of every resample, [resamples]."""
    rows = len(units)
    if (
        isinstance(statistic, CellStatistic)
        and strata is None
        and number == rows
        and statistic.collapses
    ):
        rng = np.random.default_rng(seed)
        share = np.bincount(statistic.cells, minlength=statistic.number) / rows
        step = max(1, CHUNK_BYTES // (8 * statistic.number))
        sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
        return np.concatenate(
            [statistic.of(rng.multinomial(rows, share, size=size).astype(float)) for size in sizes]
        )
    return np.concatenate(
        [statistic(counts) for counts in resample_counts(units, resamples, seed, strata)]
    )


def paired(
    a: Statistic | np.ndarray,
    b: Statistic | np.ndarray,
    units: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    unit: Unit = "share",
    higher_is_better: bool | None = True,
) -> Value:
    """`a` minus `b` on the same rows, both resampled alike.

    Args:
        a, b: both values per row [N] (their means are compared), or both statistics.
        weights: [N], for values per row only.
    """
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        difference = mean_of(a.astype(float) - b.astype(float), weights)
    elif isinstance(a, np.ndarray) or isinstance(b, np.ndarray) or weights is not None:
        raise ValueError("Give two arrays (and weights), or two statistics.")
    else:
        difference = _difference(a, b)
    value = _percentile(difference, units, None, resamples, level, seed)
    value.unit, value.higher_is_better = unit, higher_is_better
    return value


def _difference(a: Statistic, b: Statistic) -> Statistic:
    return lambda counts: a(counts) - b(counts)


def bootstrap_shares(
    groups: np.ndarray,
    hits: np.ndarray,
    weights: np.ndarray | None = None,
    units: np.ndarray | None = None,
    macro: bool = True,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    higher_is_better: bool | None = True,
) -> Value:
    """Share of hits in each group averaged over groups (`macro`), or of all rows.

    Where the bootstrap fails (fewer than 20 units, a share of exactly 0 or 1): Wilson's interval
    on the number of units; of a macro average on the effective number G^2 / sum_g 1 / n_g, whose
    binomial variance is that of the average.

    Args:
        groups: [N] labels. hits: [N] bool or float in 0..1. weights: [N] >= 0. units: [N] labels;
            None = each row by itself.
    """
    rows = len(hits)
    units = np.arange(rows) if units is None else units
    groups = groups if macro else np.zeros(rows, dtype=int)
    value = bootstrap(
        shares_of(groups, hits, weights) if rows else mean_of(hits),
        units,
        resamples=resamples,
        level=level,
        seed=seed,
        higher_is_better=higher_is_better,
    )
    if value.estimate is None or value.low is not None:
        return value
    return by_wilson(value, effective_units(groups, units))


def effective_units(groups: np.ndarray, units: np.ndarray) -> float:
    """G^2 / sum_g (1 / n_g), n_g = units in group g: the number of units where there is one."""
    pairs = np.unique(
        np.column_stack([np.unique(x, return_inverse=True)[1] for x in (groups, units)]), axis=0
    )
    sizes = np.bincount(pairs[:, 0])
    return len(sizes) ** 2 / float((1 / sizes).sum())


def by_wilson(value: Value, trials: float) -> Value:
    """`value` with Wilson's interval of that many trials instead of its own."""
    assert value.estimate is not None
    low, high = wilson(value.estimate * trials, trials, value.level)
    found = {"low": low, "high": high, "method": "wilson", "why": None}
    return value.model_copy(update=found)


def over_seeds(
    units_per_seed: list[np.ndarray],
    hits_per_seed: list[np.ndarray],
    weights_per_seed: list[np.ndarray] | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    higher_is_better: bool | None = True,
) -> Value:
    """Accuracy as the mean over split seeds (specs/study.md, section 2, Splits, point 5).

    The units of all test parts together are resampled; in each resample every seed's accuracy is
    taken over its own test images, then the mean over seeds. `n` counts distinct units.

    Args:
        units_per_seed: unit labels of each seed's test images, [N_s].
        hits_per_seed: bool or float, [N_s]. weights_per_seed: [N_s] >= 0.
    """
    seeds = len(units_per_seed)
    labels, codes = np.unique(np.concatenate(units_per_seed), return_inverse=True)
    if len(labels) == 0:
        return Value.undefined("nothing to judge")
    parts = np.split(codes.reshape(-1), np.cumsum([len(x) for x in units_per_seed])[:-1])
    weights = weights_per_seed or [np.ones(len(x)) for x in hits_per_seed]
    mass = [np.bincount(c, w, len(labels)) for c, w in zip(parts, weights, strict=True)]
    won = [
        np.bincount(c, w * hits, len(labels))
        for c, w, hits in zip(parts, weights, hits_per_seed, strict=True)
    ]
    distinct, cells = np.unique(np.column_stack(won + mass), axis=0, return_inverse=True)

    def mean_share(counts: np.ndarray) -> np.ndarray:
        totals = counts @ distinct
        return divided(totals[:, :seeds], totals[:, seeds:]).mean(axis=1)

    value = bootstrap(
        CellStatistic(cells.reshape(-1), len(distinct), mean_share),
        np.arange(len(labels)),
        resamples=resamples,
        level=level,
        seed=seed,
        higher_is_better=higher_is_better,
    )
    if value.estimate is None or value.low is not None:
        return value
    return by_wilson(value, len(labels))


def _check_labels(true: np.ndarray, predicted: np.ndarray, classes: int) -> None:
    for labels in (true, predicted):
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            span = f"{labels.min()}..{labels.max()}"
            raise ValueError(f"Labels must lie in 0..{classes - 1}; these lie in {span}.")

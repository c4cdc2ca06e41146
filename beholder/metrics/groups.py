"""Does the model fail in some group of images more than chance explains?

Specs/study.md, sections 4.2 and 4.4. Shrinkage: empirical Bayes with the method of moments for the
beta-binomial. Cramer's V: Bergsma, J. Korean Statistical Society 42, 2013.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import special

from .bootstrap import CHUNK_BYTES
from .intervals import fisher_less, holm, share

LARGEST_M = 1e6
MIN_TEST_UNITS = 5
MIN_GAP = 0.03
LEVEL = 0.05
DRAWS = 5000


@dataclass(frozen=True)
class Shrunken:
    """Shares pulled towards the share of all, the more so the fewer images they rest on.

    Attributes:
        P: share of all. tau2: variance between groups. M: images that P is worth.
        estimate, low, high: [G], 95 % Beta quantiles.
    """

    P: float
    tau2: float
    M: float
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


def shrink(k: np.ndarray, n: np.ndarray) -> Shrunken:
    """Shrunken shares of `k` hits among `n` > 0 images per group, [G] each."""
    k, n = np.asarray(k, dtype=float), np.asarray(n, dtype=float)
    total = n.sum()
    P = k.sum() / total
    spread = (n * (k / n - P) ** 2).sum() - (len(n) - 1) * P * (1 - P)
    room = total - (n**2).sum() / total
    tau2 = max(0.0, float(spread / room)) if room > 0 else 0.0
    M = float(np.clip(P * (1 - P) / tau2 - 1, 1, LARGEST_M)) if tau2 > 0 else LARGEST_M
    hits, misses = k + P * M, n - k + (1 - P) * M
    with np.errstate(invalid="ignore"):
        quantiles = special.betaincinv(hits, misses, np.array([[0.025], [0.975]]))
    low, high = np.where(misses == 0, 1.0, np.where(hits == 0, 0.0, quantiles))
    return Shrunken(float(P), tau2, M, hits / (n + M), low, high)


def cramers_v(table: np.ndarray) -> float:
    """Association 0..1 of the rows and columns of counts [R, K], corrected for bias (Bergsma).

    Empty rows and columns are left out; 0 where fewer than two of either remain.
    """
    table = np.asarray(table, dtype=float)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    if min(table.shape) < 2:
        return 0.0
    n, (rows, columns) = table.sum(), table.shape
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    phi2 = float(((table - expected) ** 2 / expected).sum()) / n
    phi2 = max(0.0, phi2 - (columns - 1) * (rows - 1) / (n - 1))
    least = min(size - (size - 1) ** 2 / (n - 1) for size in (rows, columns)) - 1
    return float(np.sqrt(min(1.0, phi2 / least))) if least > 0 else 0.0


def compare_slices(
    slices: list[tuple[str, str, np.ndarray]],
    hits: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray | None,
    seed: int = 0,
) -> pl.DataFrame:
    """Every slice against the rest (section 4.4); one row per slice in the order given.

    `estimate` is shrunken inside the slice's attribute; `gap` = share of the rest - estimate. The
    one-sided test is Fisher's, or a permutation of units where units have several rows; Holm over
    all slices of at least 5 units. `named`: p_holm < .05 and gap >= 3 points. `gap_same_mix`: rest
    - slice, both with the class mix of all images; `because_of_mix`: a named slice whose gap then
    falls below half of the raw one. Null: slice without images or rest, too small, or no class in
    common with the rest.

    Args:
        slices: (attribute, name, mask [N] bool).
        hits: [N] bool. labels: [N] int. units: [N] labels; None = each row by itself.
    """
    hits, labels = np.asarray(hits, dtype=bool), np.asarray(labels)
    rows = len(hits)
    units = np.arange(rows) if units is None else np.asarray(units)
    codes = np.unique(units, return_inverse=True)[1].reshape(-1)
    clustered = len(np.unique(codes)) < rows
    masks = np.array([mask for _, _, mask in slices], dtype=bool).reshape(len(slices), rows)
    n, k = masks.sum(axis=1), (masks & hits).sum(axis=1)
    k_rest, n_rest = hits.sum() - k, rows - n
    sizes = np.array([len(np.unique(codes[mask])) for mask in masks], dtype=int)

    raw = [share(hits[mask], units[mask], seed=seed) for mask in masks]
    estimate, low, high = _shrink_by_attribute([attribute for attribute, _, _ in slices], k, n)
    gap = _quotient(k_rest, n_rest) - estimate
    tested = np.flatnonzero((sizes >= MIN_TEST_UNITS) & (n_rest > 0))
    p, p_holm = np.full((2, len(slices)), np.nan)
    if clustered and len(tested):
        p[tested] = permutation_less(masks[tested], hits, codes, seed=seed)
    else:
        p[tested] = fisher_less(k[tested], n[tested], k_rest[tested], n_rest[tested])
    p_holm[tested] = holm(p[tested])
    same_mix = np.array([gap_same_mix(mask, hits, labels) for mask in masks])
    named = (p_holm < LEVEL) & (gap >= MIN_GAP)
    raw_gap = _quotient(k_rest, n_rest) - _quotient(k, n)
    return pl.DataFrame(
        {
            "attribute": [attribute for attribute, _, _ in slices],
            "slice": [name for _, name, _ in slices],
            "n": n,
            "raw": [value.estimate for value in raw],
            "raw_low": [value.low for value in raw],
            "raw_high": [value.high for value in raw],
            "estimate": estimate,
            "low": low,
            "high": high,
            "gap": gap,
            "p": p,
            "p_holm": p_holm,
            "gap_same_mix": same_mix,
            "named": named,
            "because_of_mix": named & (same_mix < raw_gap / 2),
        },
        schema_overrides={
            "attribute": pl.String,
            "slice": pl.String,
            "n": pl.Int64,
            "raw": pl.Float64,
            "raw_low": pl.Float64,
            "raw_high": pl.Float64,
        },
    ).with_columns(pl.col(pl.Float64).fill_nan(None))


def _shrink_by_attribute(
    attributes: list[str], k: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate, low, high [G]; NaN for slices without images."""
    result = np.full((3, len(n)), np.nan)
    names = np.array(attributes, dtype=object)
    for name in dict.fromkeys(attributes):
        inside = np.flatnonzero((names == name) & (n > 0))
        if len(inside):
            shrunken = shrink(k[inside], n[inside])
            result[:, inside] = shrunken.estimate, shrunken.low, shrunken.high
    return result[0], result[1], result[2]


def gap_same_mix(mask: np.ndarray, hits: np.ndarray, labels: np.ndarray) -> float:
    """Share of the rest - share of the slice, both standardised to the class mix of all images.

    Over the classes that both hold; NaN if there is none. `mask`, `hits`: [N] bool; `labels`: [N].
    """
    classes, codes = np.unique(labels, return_inverse=True)
    codes = codes.reshape(-1)

    def count(which: np.ndarray) -> np.ndarray:
        return np.bincount(codes[which], minlength=len(classes))

    n_in, n_out = count(mask), count(~mask)
    both = (n_in > 0) & (n_out > 0)
    if not both.any():
        return float("nan")
    difference = count(~mask & hits)[both] / n_out[both] - count(mask & hits)[both] / n_in[both]
    return float(np.average(difference, weights=(n_in + n_out)[both]))


def permutation_less(
    masks: np.ndarray, hits: np.ndarray, units: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """One-sided p that each slice has the smaller share, when the rows of a unit hang together.

    Memberships are permuted between units: a unit receives the share f of rows that lie in the
    slice from another one. Slices that cut through units (0 < f < 1) also vary inside a unit; that
    part is added as a normal deviate with the variance of drawing f n of its n rows.

    Args:
        masks: [S, N] bool. hits: [N] bool. units: [N] in 0..U-1. Returns p: [S].
    """
    size = np.bincount(units).astype(float)
    won = np.bincount(units, hits)
    rate = won / size
    noise = size**2 / np.maximum(size - 1, 1) * rate * (1 - rate)
    member = np.array([np.bincount(units, mask) / size for mask in masks]).T
    all_won, all_rows = won.sum(), size.sum()

    def difference(k: np.ndarray, n: np.ndarray) -> np.ndarray:
        return _quotient(k, n) - _quotient(all_won - k, all_rows - n)

    observed = difference((masks & hits).sum(axis=1), masks.sum(axis=1))
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_BYTES // (8 * 3 * len(size)))
    reached = np.zeros(len(masks))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        order = rng.permuted(np.tile(np.arange(len(size)), (count, 1)), axis=1)
        k, n = won[order] @ member, size[order] @ member
        spread = noise[order] @ (member * (1 - member))
        k = k + np.sqrt(np.maximum(spread, 0)) * rng.standard_normal(k.shape)
        reached += (difference(k, n) <= observed + 1e-9).sum(axis=0)
    return (1 + reached) / (1 + draws)


def _quotient(k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """k / n; NaN where n = 0."""
    return np.divide(k, n, out=np.full(np.shape(k), np.nan), where=np.asarray(n) > 0)

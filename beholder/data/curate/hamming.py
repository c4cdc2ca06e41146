"""Pairs of 63-bit hashes that differ in few bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BRUTE = 20_000
"""Up to so many hashes every pair is looked at; above, only those that share most of a band."""

BANDS, BAND_BITS = 4, 16
CHUNK = 256  # hashes looked up at once
CELLS = 1 << 22  # pairs looked at at once

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""i [M], j [M] and the distance [M] in bits."""


def neighbours(
    hashes: np.ndarray, turned: np.ndarray, radius: int, nearest: int, brute: int = BRUTE
) -> Pairs:
    """Pairs i < j whose hashes `hashes[i]` and `turned[j]` differ in at most `radius` bits.

    Args:
        hashes, turned: uint64 [N], 63 bits used.
        radius: 0..11 (above, four bands cannot hold all pairs apart by at most two bits each).
        nearest: at most so many j are kept for every i, those of least distance (then least j).
        brute: see `BRUTE`.

    Returns:
        i, j and distance, sorted by i, then j.
    """
    find = _all_pairs if len(hashes) <= brute else _banded
    found = [_nearest(*pairs, nearest) for pairs in find(hashes, turned, radius)]
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8)
    i, j, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    return i, j, distance


def _all_pairs(hashes: np.ndarray, turned: np.ndarray, radius: int) -> Iterator[Pairs]:
    rows = max(1, min(CHUNK, CELLS // max(1, len(hashes))))
    for start in range(0, len(hashes), rows):
        block = hashes[start : start + rows, None] ^ turned[None, start + 1 :]
        distance = np.bitwise_count(block)
        i, j = np.nonzero(distance <= radius)
        after = j >= i  # column j is image start + 1 + j
        i, j = i[after], j[after]
        yield i + start, j + start + 1, distance[i, j]


def _banded(hashes: np.ndarray, turned: np.ndarray, radius: int) -> Iterator[Pairs]:
    """Hashes apart by `radius` bits are apart by at most radius // 4 in one of four bands.

    `turned` is sorted by each band's value; every value within that distance is looked up. A pair
    is given out by the first band in which it is that near.
    """
    near = radius // BANDS
    values = np.arange(1 << BAND_BITS, dtype=np.uint16)
    masks = values[np.bitwise_count(values) <= near]
    tables = []
    for band in range(BANDS):
        value = _band(turned, band)
        order = np.argsort(value, kind="stable")
        starts = np.searchsorted(value[order], np.arange((1 << BAND_BITS) + 1))
        tables.append((order, starts))
    for start in range(0, len(hashes), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(hashes)))
        found = []
        for band, (order, starts) in enumerate(tables):
            wanted = (_band(hashes[rows], band)[:, None] ^ masks[None]).ravel().astype(np.int64)
            first, count = starts[wanted], starts[wanted + 1] - starts[wanted]
            owner = np.repeat(rows, len(masks))
            for part in _parts(count):
                i = np.repeat(owner[part], count[part])
                j = order[_ranges(first[part], count[part])]
                i, j = i[j > i], j[j > i]
                distance = np.bitwise_count(hashes[i] ^ turned[j])
                i, j, distance = (column[distance <= radius] for column in (i, j, distance))
                new = np.ones(len(i), bool)
                for earlier in range(band):
                    apart = _band(hashes[i], earlier) ^ _band(turned[j], earlier)
                    new &= np.bitwise_count(apart) > near
                found.append((i[new], j[new], distance[new]))
        i, j, distance = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((j, i))
        yield i[order], j[order], distance[order]


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return (hashes >> np.uint64(BAND_BITS * band)).astype(np.uint16)


def _parts(count: np.ndarray) -> Iterator[slice]:
    """Slices of `count` with a sum of at most about `CELLS` each."""
    ends = np.cumsum(count)
    start = 0
    while start < len(count):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + CELLS, side="right")))
        yield slice(start, stop)
        start = stop


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first, first + 1, ... of each range of `count` numbers, one after another."""
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(first, count) + offset


def _nearest(i: np.ndarray, j: np.ndarray, distance: np.ndarray, nearest: int) -> Pairs:
    """At most `nearest` pairs for every i; `i` and `j` sorted, and sorted again on return."""
    if len(i) == 0 or np.bincount(i - i[0]).max() <= nearest:
        return i, j, distance
    order = np.lexsort((j, distance, i))
    _, first, count = np.unique(i, return_index=True, return_counts=True)
    rank = np.arange(len(i)) - np.repeat(first, count)
    kept = np.sort(order[rank < nearest])
    return i[kept], j[kept], distance[kept]

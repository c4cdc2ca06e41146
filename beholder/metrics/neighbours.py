"""Nearest neighbours by brute force, exact, in chunks; and what they vote for."""

from __future__ import annotations

from typing import Literal

import numpy as np

Metric = Literal["cosine", "euclidean"]

CHUNK_BYTES = 16 << 20
SPARE = 8
"""Candidates beyond k: distances are computed again, so that rounding does not decide."""


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays. [N, D] -> float [N, D]."""
    x = np.asarray(x)
    x = x if x.dtype.kind == "f" else x.astype(np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def nearest(
    queries: np.ndarray, bank: np.ndarray, k: int, metric: Metric = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of the bank nearest to each query, nearest first; equal ones by index.

    Args:
        queries: [Q, D]. bank: [N, D].
        k: more than N means N.
        metric: 'cosine' (1 - cosine; a row of zeros has distance 1 to all) or 'euclidean'.

    Returns:
        distance [Q, k] and index [Q, k].

    Raises:
        ValueError: an empty bank, k < 1, other widths, or something that is not a number.
    """
    _check(queries, bank, k)
    cosine = metric == "cosine"
    queries, bank = (unit_rows(x) if cosine else np.asarray(x, float) for x in (queries, bank))
    k = min(k, len(bank))
    taken = min(k + SPARE, len(bank))
    squares = np.zeros(len(bank)) if cosine else np.square(bank).sum(1)
    distance = np.empty((len(queries), k), queries.dtype)
    index = np.empty((len(queries), k), np.int64)
    step = max(1, CHUNK_BYTES // (8 * max(len(bank), taken * bank.shape[1])))
    for start in range(0, len(queries), step):
        chunk = queries[start : start + step]
        rough = squares - 2 * chunk @ bank.T
        found = np.argpartition(rough, taken - 1, axis=1)[:, :taken]
        found.sort(axis=1)
        exact = _distance(chunk, bank[found], cosine)
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        distance[start : start + step] = np.take_along_axis(exact, order, 1)
        index[start : start + step] = np.take_along_axis(found, order, 1)
    return distance, index


def _distance(queries: np.ndarray, rows: np.ndarray, cosine: bool) -> np.ndarray:
    """Of queries [Q, D] to rows [Q, k, D] of their own: [Q, k]."""
    if cosine:
        return np.maximum(1 - np.einsum("qd,qkd->qk", queries, rows), 0)
    return np.linalg.norm(queries[:, None] - rows, axis=-1)


def knn_predict(
    queries: np.ndarray,
    bank: np.ndarray,
    labels: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Shares of the votes of the k nearest by cosine, each weighing exp(cosine / temperature).

    Args:
        queries: [Q, D]. bank: [N, D]. labels: int [N] in 0..C-1.

    Returns:
        [Q, C]; `argmax(1)` is the answer, the smaller class where two have equal votes.
    """
    labels = np.asarray(labels)
    if len(labels) != len(bank) or (len(labels) and labels.min() < 0):
        raise ValueError(f"{len(labels)} labels (all >= 0) for {len(bank)} rows of the bank.")
    distance, index = nearest(queries, bank, k)
    weight = np.exp((distance[:, :1] - distance) / temperature)  # the nearest weighs 1
    votes = np.zeros((len(index), labels.max() + 1))
    np.add.at(votes, (np.arange(len(index))[:, None], labels[index]), weight)
    return votes / votes.sum(1, keepdims=True)


def _check(queries: np.ndarray, bank: np.ndarray, k: int) -> None:
    if k < 1 or not len(bank):
        raise ValueError(f"k = {k} of {len(bank)} rows: there is no neighbour.")
    if queries.shape[1:] != bank.shape[1:] or queries.ndim != 2:
        raise ValueError(f"Queries {queries.shape} and bank {bank.shape} do not fit.")
    if not (np.isfinite(queries).all() and np.isfinite(bank).all()):
        raise ValueError("Features hold something that is not a number.")

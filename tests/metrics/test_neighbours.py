"""Neighbours against brute force, scikit-learn, and the authors' classifier of row 32."""

from __future__ import annotations

import golden_fill as fill
import numpy as np
import pytest
from goldens import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from beholder.metrics import neighbours
from beholder.metrics.neighbours import knn_predict, nearest, unit_rows


def points(rows: int, seed: int, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_equals_scikit_learn(metric):
    queries, bank = points(70, 0), points(90, 1)
    distance, index = nearest(queries, bank, 11, metric)
    theirs = NearestNeighbors(n_neighbors=11, metric=metric, algorithm="brute").fit(bank)
    expected, rows = theirs.kneighbors(queries)
    assert np.array_equal(index, rows)
    np.testing.assert_allclose(distance, expected, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_chunks_change_nothing(metric, monkeypatch):
    queries, bank = points(50, 2), points(40, 3)
    whole = nearest(queries, bank, 5, metric)
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 1)
    for a, b in zip(whole, nearest(queries, bank, 5, metric), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_distances_rise_and_are_those_of_their_rows(seed, k):
    queries, bank = points(4, seed), points(7, seed + 1)
    distance, index = nearest(queries, bank, k, "euclidean")
    assert distance.shape == (4, min(k, 7))
    assert (np.diff(distance, axis=1) >= 0).all()
    np.testing.assert_allclose(
        distance, np.linalg.norm(queries[:, None] - bank[index], axis=2), rtol=1e-6
    )


def test_a_point_is_its_own_nearest_even_far_from_the_origin():
    bank = points(50, 4) * 1e-3 + 1e4
    distance, index = nearest(bank, bank, 1, "euclidean")
    assert np.array_equal(index[:, 0], np.arange(50))
    assert not distance.any()


def test_equal_points_come_by_index():
    assert nearest(np.ones((1, 2)), np.ones((5, 2)), 3)[1].tolist() == [[0, 1, 2]]


def test_a_row_of_zeros_is_at_distance_one():
    assert nearest(np.zeros((1, 2)), np.eye(2), 2)[0].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("queries", "bank", "k", "said"),
    [
        (np.ones((1, 2)), np.ones((0, 2)), 1, "no neighbour"),
        (np.ones((1, 2)), np.ones((3, 2)), 0, "no neighbour"),
        (np.ones((1, 2)), np.ones((3, 4)), 1, "do not fit"),
        (np.full((1, 2), np.nan), np.ones((3, 2)), 1, "not a number"),
    ],
)
def test_what_has_no_neighbours_is_refused(queries, bank, k, said):
    with pytest.raises(ValueError, match=said):
        nearest(queries, bank, k)


def test_votes_equal_scikit_learn_with_the_same_weights():
    bank, queries = unit_rows(points(60, 5)), unit_rows(points(30, 6))
    labels = np.arange(60) % 4
    theirs = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    expected = theirs.fit(bank, labels).predict_proba(queries)
    np.testing.assert_allclose(knn_predict(queries, bank, labels), expected, atol=1e-5)


def test_votes_equal_those_of_select():
    record = golden("32_select.knn")
    bank, queries = (
        unit_rows(fill.tensor(f"select.{part}", (rows, 8)))
        for part, rows in (("train", 60), ("test", 100))
    )
    truth = np.array(record["inputs"]["test_labels"])
    for name, (top1, top5) in record["outputs"]["top1_top5_percent"].items():
        votes = knn_predict(queries, bank, np.arange(60) % 5, k=int(name[1:]))
        assert 100 * (votes.argmax(1) == truth).mean() == pytest.approx(top1, abs=1e-4)
        some = votes[np.arange(100), truth] > 0
        assert name != "k1" or 100 * some.mean() == pytest.approx(top5, abs=1e-4)


def test_k_above_the_number_of_rows_asks_them_all():
    votes = knn_predict(np.eye(2), np.eye(2), np.array([0, 1]), k=50, temperature=1.0)
    far = np.exp(-1) / (1 + np.exp(-1))
    np.testing.assert_allclose(votes, [[1 - far, far], [far, 1 - far]], atol=1e-12)


def test_a_missing_or_negative_label_is_refused():
    with pytest.raises(ValueError, match="labels"):
        knn_predict(np.eye(2), np.eye(2), np.array([0]))
    with pytest.raises(ValueError, match="labels"):
        knn_predict(np.eye(2), np.eye(2), np.array([0, -1]))

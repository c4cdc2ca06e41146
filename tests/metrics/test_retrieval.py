"""Ranking measures: worked by hand, against torchmetrics, and what ties and blanks must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_r_precision,
)

from beholder.metrics.bootstrap import bootstrap
from beholder.metrics.retrieval import (
    first_ranks,
    map_at,
    median_of,
    median_rank,
    ndcg,
    precision_at,
    r_precision,
    recall_at,
    wanted_ranks,
)


def test_recall_and_median_by_hand():
    scores = np.array([[4.0, 3, 2, 1], [2, 3, 4, 1], [4, 3, 2, 1], [4, 3, 2.5, 2.9]])
    wanted = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], bool)
    assert first_ranks(scores, wanted).tolist() == [1, 3, 2, 4]
    assert recall_at(scores, wanted, 1).mean() == 0.25
    assert recall_at(scores, wanted, 3).mean() == 0.75
    assert median_rank(scores, wanted) == 2.5


def test_the_best_of_several_wanted_items_counts():
    assert first_ranks(np.array([[1.0, 2, 3]]), np.array([[1, 1, 0]])).tolist() == [2]


@pytest.mark.parametrize("measure", [recall_at, precision_at, map_at, ndcg])
def test_a_constant_score_finds_nothing_at_k(measure):
    wanted = np.zeros((3, 20), bool)
    wanted[:, 4] = True
    assert measure(np.zeros((3, 20)), wanted, k=19).tolist() == [0, 0, 0]
    assert r_precision(np.zeros((3, 20)), wanted).tolist() == [0, 0, 0]


def test_ties_in_the_mean_stand_in_the_middle():
    scores, wanted = np.array([[2.0, 1, 1, 1, 0]]), np.array([[0, 1, 0, 0, 0]])
    assert wanted_ranks(scores, wanted)[0, 1] == 4
    assert wanted_ranks(scores, wanted, ties="mean")[0, 1] == 3


def test_equal_scores_of_wanted_items_alone_cost_nothing():
    scores, wanted = np.array([[5.0, 5, 1, 0]]), np.array([[1, 1, 0, 0]])
    for ties in ("last", "mean"):
        assert r_precision(scores, wanted, ties).tolist() == [1]
        assert map_at(scores, wanted, ties=ties).tolist() == [1]


def test_average_precision_and_ndcg_by_hand():
    scores, wanted = np.array([[5.0, 4, 3, 2]]), np.array([[1, 0, 1, 1]])
    assert map_at(scores, wanted)[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert map_at(scores, wanted, k=2)[0] == pytest.approx(1 / 2)
    gain = np.array([[0.0, 3, 1, 0]])
    won, best = 3 / np.log2(3) + 1 / np.log2(4), 3 + 1 / np.log2(3)
    assert ndcg(scores, gain)[0] == pytest.approx(won / best)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_without_ties_torchmetrics_agrees(seed, k):
    rng = np.random.default_rng(seed)
    scores = 1 + rng.permuted(np.arange(12.0)[None].repeat(3, 0), axis=1)
    wanted = rng.random((3, 12)) < 0.4
    wanted[:, 0] = True
    pairs = [  # torchmetrics takes a score of 0 for 'not retrieved'
        (recall_at(scores, wanted, k), lambda s, w: retrieval_hit_rate(s, w, top_k=k)),
        (precision_at(scores, wanted, k), lambda s, w: retrieval_precision(s, w, top_k=k)),
        (map_at(scores, wanted), retrieval_average_precision),
        (r_precision(scores, wanted), retrieval_r_precision),
        (ndcg(scores, wanted, k), lambda s, w: retrieval_normalized_dcg(s, w, top_k=k)),
    ]
    for found, peer in pairs:
        expected = [
            float(peer(torch.from_numpy(s), torch.from_numpy(w)))
            for s, w in zip(scores, wanted, strict=True)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_queries_that_want_nothing_have_no_figure():
    scores, wanted = np.eye(2), np.array([[1, 0], [0, 0]])
    for figures in (
        recall_at(scores, wanted, 1),
        map_at(scores, wanted),
        r_precision(scores, wanted),
        ndcg(scores, wanted),
        first_ranks(scores, wanted),
    ):
        assert figures[0] == 1
        assert np.isnan(figures[1])
    assert median_rank(scores, wanted) == 1


def test_a_score_that_is_no_number_is_the_lowest():
    assert first_ranks(np.array([[np.nan, 0.0]]), np.array([[1, 0]])).tolist() == [2]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be"):
        recall_at(np.ones((2, 3)), np.ones((2, 4)), 1)


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_the_weighted_median_is_that_of_repeated_figures(seed, rows):
    rng = np.random.default_rng(seed)
    figures = rng.integers(1, 6, rows).astype(float)
    figures[rng.random(rows) < 0.2] = np.nan
    counts = rng.integers(0, 4, (1, rows)).astype(float)
    repeated = np.repeat(figures, counts[0].astype(int))
    if np.isfinite(repeated).any():
        assert median_of(figures)(counts)[0] == np.nanmedian(repeated)


def test_the_median_has_an_interval():
    ranks = np.random.default_rng(0).integers(1, 9, 200)
    value = bootstrap(median_of(ranks), np.arange(200), unit="")
    assert value.estimate == np.median(ranks)
    assert value.low is not None
    assert value.low <= value.estimate <= value.high

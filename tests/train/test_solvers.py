"""Convex solvers against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import LinearSVC

from beholder.train.solvers import (
    linear,
    logistic_loss,
    nystroem_map,
    rbf,
    softmax_loss,
    squared_hinge_loss,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype(np.float32)
Y = (X @ RNG.normal(size=(6, 3)) + RNG.normal(size=(120, 3))).argmax(1)


def halves():
    yield slice(0, 70), X[:70]
    yield slice(70, 120), X[70:]


def solve(targets, weights, loss, strength=0.1):
    return linear(halves, 6, targets, weights, strength, loss, iterations=2000, tolerance=1e-7)


def test_softmax_regression_equals_scikit_learn() -> None:
    found = solve(np.eye(3)[Y], np.ones((120, 1)), softmax_loss)[0]
    peer = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(X, Y)
    np.testing.assert_allclose(found[:-1].T, peer.coef_, atol=2e-3)
    np.testing.assert_allclose(found[-1] - found[-1].mean(), peer.intercept_, atol=2e-3)


def test_binary_regression_equals_scikit_learn_in_every_fold_at_once() -> None:
    target = (Y == 1).astype(float)
    folds = np.arange(120) % 3
    weights = np.stack([folds != k for k in range(3)], 1).astype(float)
    found = solve(target[:, None], weights, logistic_loss)
    for k in range(3):
        peer = LogisticRegression(C=0.1, tol=1e-8).fit(X[folds != k], target[folds != k])
        np.testing.assert_allclose(found[k, :-1, 0], peer.coef_[0], atol=2e-3)


def test_a_soft_target_is_the_same_as_weighted_rows() -> None:
    soft = np.where(RNG.random(120) < 0.5, 1 / 3, 1.0)
    found = solve(soft[:, None], np.ones((120, 1)), logistic_loss)[0]
    twice = np.concatenate([X, X])
    labels = np.repeat([1, 0], 120)
    peer = LogisticRegression(C=0.1, tol=1e-8).fit(
        twice, labels, sample_weight=np.concatenate([soft, 1 - soft])
    )
    np.testing.assert_allclose(found[:-1, 0], peer.coef_[0], atol=2e-3)


def test_the_squared_hinge_machine_equals_scikit_learn() -> None:
    target = (Y == 2).astype(float)
    found = solve(target[:, None], np.ones((120, 1)), squared_hinge_loss)[0]
    peer = LinearSVC(C=0.1, tol=1e-8, max_iter=50_000, intercept_scaling=1000).fit(X, target)
    np.testing.assert_allclose(found[:-1, 0], peer.coef_[0], atol=5e-3)


def test_the_kernel_equals_scikit_learn() -> None:
    np.testing.assert_allclose(rbf(X, X[:9], 0.3), rbf_kernel(X, X[:9], 0.3), atol=1e-5)


def test_nystroem_with_every_point_is_exact() -> None:
    points = X[:40]
    mapped = rbf(points, points, 0.3) @ nystroem_map(points, 0.3)
    np.testing.assert_allclose(mapped @ mapped.T, rbf(points, points, 0.3), atol=1e-3)


@pytest.mark.parametrize("loss", [logistic_loss, squared_hinge_loss])
def test_gradients_are_those_of_the_loss(loss) -> None:
    scores, targets = RNG.normal(size=(7, 1, 2)), RNG.random((7, 1, 2))
    _, gradient = loss(scores, targets)
    step = 1e-6
    for k in range(2):
        moved = scores.copy()
        moved[..., k] += step
        numeric = (loss(moved, targets)[0] - loss(scores, targets)[0]) / step
        np.testing.assert_allclose(gradient[..., k], numeric, atol=1e-4)

"""Convex problems behind the heads: several weightings of one design solved in a single pass.

A design is an iterator of float32 blocks [n, D], so that memory does not grow with the rows. The
folds of a cross-validation are columns of one weight matrix: they share every pass over the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

Blocks = Callable[[], Iterator[tuple[slice, np.ndarray]]]


def softmax_loss(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy to soft targets per row, and its gradient. [n, P, C] and [n, 1, C]."""
    loss = -(targets * log_softmax(scores, axis=-1)).sum(-1)
    return loss, softmax(scores, axis=-1) * targets.sum(-1, keepdims=True) - targets


def logistic_loss(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Binary cross-entropy to soft targets in [0, 1], summed over outputs."""
    return (np.logaddexp(0, scores) - targets * scores).sum(-1), expit(scores) - targets


def squared_hinge_loss(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """max(0, 1 - y s)^2 with y = 2 t - 1, summed over outputs."""
    signs = 2 * targets - 1
    slack = np.maximum(0, 1 - signs * scores)
    return (slack**2).sum(-1), -2 * signs * slack


Loss = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def linear(
    blocks: Blocks,
    dim: int,
    targets: np.ndarray,
    weights: np.ndarray,
    strength: float,
    loss: Loss,
    start: np.ndarray | None = None,
    iterations: int = 200,
    tolerance: float = 1e-3,
) -> np.ndarray:
    """min over W of 1/2 |W|^2 + strength * sum_i weights_ip loss(x_i W_p + b_p), for every p.

    The intercept is not penalised (as in scikit-learn, whose C `strength` is).

    Args:
        blocks: yields (rows, standardised float32 [n, D]).
        targets: [N, K], K outputs.
        weights: [N, P], one column per problem (0 leaves a row out).
        start: solution to begin from, as returned.
        tolerance: stops where no entry of the gradient of the mean objective exceeds it.

    Returns:
        [P, D + 1, K]; the last row is the intercept.
    """
    outputs, problems = targets.shape[1], weights.shape[1]
    shape = (problems, dim + 1, outputs)
    counts = np.maximum(weights.sum(0), 1)
    scale = 1 / (strength * counts)  # every problem in units of its own mean loss

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        solution = flat.reshape(shape)
        columns = solution[:, :-1].transpose(1, 0, 2).reshape(dim, -1).astype(np.float32)
        gradient = solution * scale[:, None, None]
        gradient[:, -1] = 0
        value = 0.5 * float((solution[:, :-1] ** 2 * scale[:, None, None]).sum())
        share = weights / counts
        for rows, block in blocks():
            scores = (block @ columns).reshape(-1, problems, outputs) + solution[:, -1]
            losses, slopes = loss(scores, targets[rows][:, None])
            value += float((share[rows] * losses).sum())
            slopes *= share[rows][:, :, None]
            pulled = slopes.reshape(len(block), -1).T.astype(np.float32) @ block
            gradient[:, :-1] += pulled.reshape(problems, outputs, dim).transpose(0, 2, 1)
            gradient[:, -1] += slopes.sum(0)
        return value, gradient.ravel()

    found = minimize(
        objective,
        np.zeros(shape).ravel() if start is None else start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "gtol": tolerance, "ftol": 1e-9, "maxcor": 10},
    )
    return found.x.reshape(shape)


def shrunk_lda(
    blocks: Blocks, dim: int, targets: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Linear discriminants of classes with equal priors and one shrunk covariance.

    The within-class covariance S becomes (1 - s) S + s mean(diagonal) I, with the s of Ledoit and
    Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.

    Args:
        blocks: yields (rows, standardised float32 [n, D]).
        targets: [N, C], one-hot; every class has a row that counts.
        weights: [N], 1 = the row counts, 0 = it does not.

    Returns:
        Weight [D, C], bias [C].
    """
    member = targets * weights[:, None]
    means = sum(member[rows].T @ block for rows, block in blocks()) / member.sum(0)[:, None]
    covariance, fourth, count = np.zeros((dim, dim)), 0.0, weights.sum()
    for rows, block in blocks():
        keep = weights[rows] > 0
        centred = block[keep] - (targets[rows][keep] @ means).astype(np.float32)
        covariance += centred.T @ centred
        fourth += float(np.square(np.square(centred).sum(1, dtype=np.float64)).sum())
    covariance /= count
    level = max(float(np.trace(covariance)) / dim, 1e-12)
    square = float(np.square(covariance).sum())
    spread = square - dim * level**2
    error = (fourth / count - square) / count
    shrinkage = min(1.0, max(0.0, error / spread)) if spread > 0 else 1.0
    covariance *= 1 - shrinkage
    covariance[np.diag_indices(dim)] += max(shrinkage, 1e-6) * level
    weight = cho_solve(cho_factor(covariance, overwrite_a=True), means.T)
    return weight, -0.5 * (means.T * weight).sum(0)


def rbf(a: np.ndarray, b: np.ndarray, gamma: float) -> np.ndarray:
    """exp(-gamma |a_i - b_j|^2), float32 [len(a), len(b)], one BLAS product."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None]
    distances = a @ b.T
    distances *= -2
    distances += squares
    np.maximum(distances, 0, out=distances)
    distances *= -gamma
    return np.exp(distances, out=distances)


def nystroem_map(points: np.ndarray, gamma: float) -> np.ndarray:
    """W^(-1/2) of the landmarks' kernel: `rbf(x, points) @ map` approximates the feature map."""
    values, vectors = np.linalg.eigh(rbf(points, points, gamma).astype(np.float64))
    values = np.maximum(values, 1e-8 * values[-1])
    return ((vectors / np.sqrt(values)) @ vectors.T).astype(np.float32)

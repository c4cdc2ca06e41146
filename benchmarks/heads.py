"""The choice of a head on 4,000 rows of 3,016 features against scikit-learn's grid search.

The peer is `GridSearchCV` over `SVC`, on the same standardised rows, the same folds and the same
three C (gamma = 1 / D), on all cores; beholder computes the Gram matrix once, for all folds and all
C. Cross-fitted accuracies at the chosen C, by the sign of the decision, must be the same. Then the
whole grid of `study` (logistic heads, kernel heads, their mean) is timed alone.
"""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from beholder.core.features import Features
from beholder.core.split import folds
from beholder.train.heads import Candidate, select

from .base import Measured, at_least, at_most, measured, timed

DIM = 3_016
STRENGTHS = (1.0, 3.0, 10.0)
INFORMATIVE = 150


def problem(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Random features [rows, 3016] of which some tell the class a little, and classes [rows]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, rows)
    features = rng.standard_normal((rows, DIM), np.float32)
    features[:, :INFORMATIVE] += 0.15 * (2 * labels[:, None] - 1)
    return features, labels


def measure(quick: bool = False) -> Measured:
    rows = 1_000 if quick else 4_000
    matrix, labels = problem(rows)
    features, every = Features.of(matrix), np.arange(rows)
    soft = np.eye(2)[labels]
    kernels = [Candidate("kernel", strength) for strength in STRENGTHS]

    ours, chosen = timed(lambda: select(features, every, labels, soft, every, candidates=kernels))
    whole, full = timed(lambda: select(features, every, labels, soft, every))
    search = GridSearchCV(
        SVC(gamma="auto"),
        {"C": list(STRENGTHS)},
        cv=PredefinedSplit(folds(every, labels, 4, 0)),
        n_jobs=-1,
    )
    theirs, _ = timed(lambda: search.fit(StandardScaler().fit_transform(matrix), labels))
    same = search.cv_results_["mean_test_score"][STRENGTHS.index(chosen.candidate.strength)]
    by_sign = float(((chosen.decisions[:, 0] > 0) == labels).mean())
    figures = {
        "rows": rows,
        "features": DIM,
        "beholder_s": ours,
        "grid_search_s": theirs,
        "whole_grid_s": whole,
        "candidate": str(chosen.candidate),
        "beholder_accuracy": by_sign,
        "grid_search_accuracy": float(same),
        "whole_grid_candidate": str(full.candidate),
    }
    return measured(
        figures,
        at_least("faster than GridSearchCV(SVC)", theirs / ours, 1),
        at_most("difference of their accuracies", 100 * abs(by_sign - same), 0.1, "points"),
        at_most(f"whole grid on {rows:,} rows", whole, 5, "s"),
    )

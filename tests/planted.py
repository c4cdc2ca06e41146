"""Evidence straight from numbers: no image, no model. Each builder plants one known condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from beholder.core.images import DataKind
from beholder.evaluate.benchmarks.base import Evidence

NO_SKIPPED = pl.DataFrame(schema={"path": pl.String, "reason": pl.String, "detail": pl.String})
COST_SCHEMA = {
    "engine": pl.String,
    "batch": pl.Int64,
    "latency_p50_ms": pl.Float64,
    "latency_p90_ms": pl.Float64,
    "images_per_s": pl.Float64,
    "memory_mb": pl.Float64,
    "max_difference": pl.Float64,
    "equal_answers": pl.Float64,
    "note": pl.String,
}


def evidence(
    labels: Sequence[int] | np.ndarray,
    probability: np.ndarray,
    *,
    logits: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    units: Sequence[int] | np.ndarray | None = None,
    split: Sequence[str] | None = None,
    fold: Sequence[int] | None = None,
    certainty: np.ndarray | None = None,
    embeddings: np.ndarray | None = None,
    columns: Mapping[str, Sequence] | None = None,
    skipped: pl.DataFrame = NO_SKIPPED,
    seeds: int = 3,
    origin: str = "made",
    source_given: bool = False,
) -> Evidence:
    """`labels` [N] and `probability` [N, C]; everything is judged unless `split` says otherwise.

    `certainty` [N] makes soft labels: q puts (1 + certainty (C - 1)) / C on the label.
    """
    labels = np.asarray(labels)
    n, c = probability.shape
    predicted = probability.argmax(1)
    certainty = np.ones(n) if certainty is None else certainty
    top = (1 + certainty * (c - 1)) / c
    q = np.repeat(((1 - top) / max(c - 1, 1))[:, None], c, axis=1)
    q[np.arange(n), labels] = top
    logits = np.log(np.maximum(probability, 1e-7)) if logits is None else logits
    names = tuple(classes or (f"class {i}" for i in range(c)))
    frame = pl.DataFrame(
        {
            "id": [f"{i:06d}.png" for i in range(n)],
            "path": [f"{names[label]}/{i:06d}.png" for i, label in enumerate(labels)],
            "split": ["test"] * n if split is None else list(split),
            "fold": pl.Series([None] * n if fold is None else list(fold), dtype=pl.Int8),
            "label": pl.Series(labels, dtype=pl.Int32),
            "q": pl.Series(q.tolist(), dtype=pl.List(pl.Float32)),
            "certainty": pl.Series(certainty, dtype=pl.Float32),
            "weight": pl.Series(np.ones(n), dtype=pl.Float32),
            "unit": pl.Series(np.arange(n) if units is None else units, dtype=pl.Int32),
            "predicted": pl.Series(predicted, dtype=pl.Int32),
            "correct": predicted == labels,
            "logits": pl.Series(logits.tolist(), dtype=pl.List(pl.Float32)),
            "probability": pl.Series(probability.tolist(), dtype=pl.List(pl.Float32)),
            "confidence": pl.Series(probability.max(1), dtype=pl.Float32),
            "format": ["PNG"] * n,
            "mode": ["RGB"] * n,
            "width": pl.Series([64] * n, dtype=pl.Int32),
            "height": pl.Series([64] * n, dtype=pl.Int32),
            **{f"group_{name}": list(values) for name, values in (groups or {}).items()},
            **(columns or {}),
        }
    )
    test = frame.filter(pl.col("split") == "test").select("id", "correct")
    repeats = [test.select(pl.lit(seed).alias("seed"), "id", "correct") for seed in range(seeds)]
    return Evidence(
        name="planted",
        kind="classes",
        classes=names,
        frame=frame,
        skipped=skipped,
        embeddings=embeddings,
        repeats=pl.concat(repeats),
        source_given=source_given,
        split={"kind": "holdout" if split is not None else "cross_fit", "seed": 0},
        model={"origin": origin, "name": "planted model"},
    )


def answers(predicted: np.ndarray, classes: int, confidence: float = 0.9) -> np.ndarray:
    """Probabilities [N, C] with `confidence` on the predicted class."""
    n = len(predicted)
    probability = np.full((n, classes), (1 - confidence) / (classes - 1))
    probability[np.arange(n), predicted] = confidence
    return probability


def fixed_model(
    accuracy: float | Mapping[str, float], sizes: Mapping[str, int], seed: int = 0
) -> Evidence:
    """Two classes; each group of `sizes` images is hit with probability `accuracy`."""
    rng = np.random.default_rng(seed)
    group = np.repeat(list(sizes), list(sizes.values()))
    share = np.array([accuracy[g] if isinstance(accuracy, Mapping) else accuracy for g in group])
    labels = rng.integers(0, 2, len(group))
    predicted = np.where(rng.random(len(group)) < share, labels, 1 - labels)
    return evidence(labels, answers(predicted, 2), groups={"site": group.tolist()})


def group(
    gap: float, n: int = 80, total: int = 535, share: float = 0.85, seed: int = 0
) -> Evidence:
    """One site of `n` images on which the model is `gap` worse than on five others."""
    rest = {
        f"fine {i}": size for i, size in enumerate(np.diff(np.linspace(0, total - n, 6, dtype=int)))
    }
    sizes = {"bad": n, **rest}
    shares = {name: share - (gap if name == "bad" else 0.0) for name in sizes}
    return fixed_model(shares, sizes, seed)


def perfect(n: int = 656, classes: int = 2) -> Evidence:
    """Every answer right, with all the confidence there is."""
    labels = np.arange(n) % classes
    columns = {"brightness": np.linspace(0, 1, n).tolist()}
    return evidence(labels, answers(labels, classes, 1.0), columns=columns)


def constant(n: int = 400, share: float = 0.7) -> Evidence:
    """Always the same answer, which is right on `share` of the images."""
    labels = (np.arange(n) >= round(share * n)).astype(int)
    return evidence(labels, answers(np.zeros(n, int), 2, 0.7))


def random_labels(n: int = 500, classes: int = 10, seed: int = 0) -> Evidence:
    """Labels that have nothing to do with the answers."""
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, n), rng.integers(0, classes, n)
    sites = rng.choice(["a", "b", "c"], n)
    return evidence(labels, answers(predicted, classes, 0.6), groups={"site": sites.tolist()})


def overconfident(factor: float, n: int = 2000, seed: int = 0) -> Evidence:
    """Labels drawn from softmax(z); the model says softmax(factor z), calibration gives softmax(z).

    Half of the rows are training images, so that an operating point can be chosen there.
    """
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, 3))
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probability.cumsum(1) < rng.random((n, 1))).sum(1).clip(0, 2)
    split = np.where(np.arange(n) % 2, "test", "train").tolist()
    return evidence(labels, probability, logits=factor * logits, split=split)


def wrong_order(n: int = 300, origin: str = "given") -> Evidence:
    """A good model whose class names are moved on by one: a is called b, b c, c a."""
    labels = np.arange(n) % 3
    predicted = np.where(np.arange(n) % 20 == 0, labels, (labels + 1) % 3)
    return evidence(labels, answers(predicted, 3), classes="abc", origin=origin)


def of_kind(kind: DataKind, n: int = 60) -> Evidence:
    """Data of another kind than one label per image out of several classes."""
    frame = perfect(n).frame.with_columns(
        pl.lit(None, pl.Boolean).alias("correct"),
        pl.lit("train").alias("split"),
        pl.lit(None, pl.List(pl.Float32)).alias("probability"),
        (pl.lit(0) if kind == "one_class" else pl.lit(None)).cast(pl.Int32).alias("label"),
        pl.Series(
            "labels", [[0, 1]] * n if kind == "multilabel" else [None] * n, pl.List(pl.Int32)
        ),
    )
    classes = {"unlabelled": (), "one_class": ("good",)}.get(kind, ("cat", "dog"))
    return Evidence("planted", kind, classes, frame, NO_SKIPPED)

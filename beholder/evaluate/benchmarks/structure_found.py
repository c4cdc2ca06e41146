"""What lies in images without labels: groups that come back, lone images, what to label first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score

from beholder.core.features import Features
from beholder.core.files import write_bytes
from beholder.core.sections import Spent
from beholder.data.curate.k_centre import k_centre
from beholder.evaluate.report.text import csv_text
from beholder.evaluate.subject import Subject
from beholder.metrics.neighbours import nearest, unit_rows

from .base import Records

MOST_LOOKED_AT = 5_000
FLOOR = 200
PILOT = 200
GROUPS = range(2, 13)
HALVES = 10
DIMENSIONS = 64
BLOCK = 4_096
LABEL_FIRST = 50
FILE = "label_first.csv"
SLOPE = 2.0
"""Seconds per image grow with their number: silhouettes compare all with all."""


@dataclass(frozen=True)
class Groups:
    """k-means of the number of groups with the greatest silhouette.

    Attributes:
        fitted: `n_clusters` of it is that number.
        silhouettes: number of groups -> mean silhouette, -1..1.
        agreement: adjusted Rand index of every half-sample with the whole, [10].
    """

    fitted: KMeans
    silhouettes: dict[int, float]
    agreement: list[float]


def groups_of(x: np.ndarray, seed: int) -> Groups | None:
    """Groups of the rows of `x` [N, D], and whether halves of them give the same groups; None
    where there are not even three different rows."""
    tried: dict[int, tuple[float, KMeans]] = {}
    for k in GROUPS:
        if k >= len(np.unique(x, axis=0)):
            break
        fitted = KMeans(k, n_init=3, random_state=seed).fit(x)  # pyright: ignore[reportArgumentType]
        tried[k] = float(silhouette_score(x, fitted.labels_)), fitted
    if not tried:
        return None
    best = max(tried, key=lambda k: tried[k][0])
    whole = tried[best][1]
    rng, agreement = np.random.default_rng(seed), []
    for draw in range(HALVES):
        half = np.sort(rng.permutation(len(x))[: max(best, len(x) // 2)])
        if len(np.unique(x[half], axis=0)) < best:
            agreement.append(0.0)
            continue
        again = KMeans(best, n_init=3, random_state=seed + 1 + draw).fit(x[half])  # pyright: ignore[reportArgumentType]
        assert whole.labels_ is not None
        agreement.append(float(adjusted_rand_score(whole.labels_[half], again.labels_)))
    return Groups(whole, {k: score for k, (score, _) in tried.items()}, agreement)


def main_axes(features: Features, rows: np.ndarray, seed: int) -> PCA:
    """The 64 main axes of these rows' final features, of length 1."""
    sample = unit_rows(features.take(rows, columns=features.layout["pooled"]))
    return PCA(min(DIMENSIONS, *sample.shape), random_state=seed).fit(sample)


def placed(features: Features, rows: np.ndarray, axes: PCA) -> np.ndarray:
    """Final features of these rows, of length 1, on the axes: [len(rows), <= 64]."""
    columns = features.layout["pooled"]
    blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
    return np.concatenate(
        [axes.transform(unit_rows(features.take(block, columns=columns))) for block in blocks]
    )


def label_first(x: np.ndarray, allowed: np.ndarray, count: int) -> pl.DataFrame:
    """Farthest-first choice from the most central row on.

    Args:
        x: [N, D]. allowed: [N] bool, what may be chosen.

    Returns:
        row, distance (to the nearest chosen before; null for the first), represents (images of
        which it is the nearest chosen one, itself included).
    """
    rows = np.flatnonzero(allowed)
    middle = x[rows].mean(0)
    first = int(np.argmin(np.linalg.norm(x[rows] - middle, axis=1)))
    rows = np.concatenate([rows[first : first + 1], np.delete(rows, first)])
    order, _, gap = k_centre(x[rows].astype(float), min(count, len(rows)))
    chosen = rows[order]
    _, nearest_chosen = nearest(x, x[chosen], 1, "euclidean")
    counts = np.bincount(nearest_chosen[:, 0], minlength=len(chosen))
    distance = [None, *gap[order][1:].tolist()]
    return pl.DataFrame(
        {"row": chosen, "distance": pl.Series(distance, dtype=pl.Float64), "represents": counts}
    )


def worth_labelling(frame: pl.DataFrame) -> np.ndarray:
    """[N] bool: one image of each group of copies, and none that is odd; all if none is left."""
    first = frame["unit"].is_first_distinct().to_numpy()
    plain = ~frame["oddity"].fill_null(False).to_numpy()
    both = first & plain
    return both if both.any() else first


def measure(subject: Subject) -> Records:
    """Groups, neighbours and what to label first (needs features); what a run's answers are worth
    on images like its own (needs a run)."""
    frames = {}
    source = source_of(subject.options.model)
    if source is not None:
        frames["source"] = source
    if subject.features is None:
        return Records(frames)
    features, frame = subject.features, subject.evidence.frame
    n, seed = len(frame), subject.seed
    order = np.random.default_rng(seed).permutation(n)
    few = np.sort(order[: min(PILOT, n)])
    begun = time.perf_counter()
    groups_of(placed(features, few, main_axes(features, few, seed)), seed)
    price = SLOPE * (time.perf_counter() - begun) / len(few)
    wanted = min(n, MOST_LOOKED_AT)
    used = subject.allowance.count(price, wanted, FLOOR)
    rows = np.sort(order[:used])
    subject.expect(3)
    x = placed(features, np.arange(n), main_axes(features, rows, seed))
    found = groups_of(x[rows], seed)
    subject.progress(1)
    first = label_first(x, worth_labelling(frame), LABEL_FIRST).with_row_index("rank", 1)
    chosen = frame[first["row"].to_list()].select("id", "path")
    first = pl.concat([first, chosen], how="horizontal")
    first = first.select("rank", "id", "path", "represents", "distance")
    write_bytes(subject.run / FILE, csv_text(first.columns, first.iter_rows()).encode())
    subject.progress(1)
    frames |= {"label_first": first, "nearest": neighbours(features, rows, frame["id"])}
    if found is not None:
        frames |= group_frames(found, x, frame["id"])
    subject.progress(1)
    return Records(frames, Spent(wanted=wanted, used=used))


def group_frames(found: Groups, x: np.ndarray, ids: pl.Series) -> dict[str, pl.DataFrame]:
    """How many groups, whether they come back, and where each image [N, D] belongs."""
    distance = found.fitted.transform(x)
    near = np.sort(distance, axis=1)
    scores = list(found.silhouettes.items())
    return {
        "silhouettes": pl.DataFrame(scores, ["groups", "silhouette"], orient="row"),
        "agreement": pl.DataFrame({"agreement": found.agreement}),
        "assigned": pl.DataFrame(
            {
                "id": ids,
                "group": distance.argmin(1) + 1,
                "distance": near[:, 0].astype(float),
                "margin": (near[:, 1] - near[:, 0]).astype(float),
            }
        ),
    }


def neighbours(features: Features, rows: np.ndarray, ids: pl.Series) -> pl.DataFrame:
    """Of each of these rows the nearest other one: id, distance (1 - cosine), nearest_id."""
    pooled = features.take(rows, columns=features.layout["pooled"])
    distance, index = nearest(pooled, pooled, 2)
    other = np.where(index[:, 0] == np.arange(len(rows)), 1, 0)[:, None]
    names = ids.gather(rows)
    return pl.DataFrame(
        {
            "id": names,
            "distance": np.take_along_axis(distance, other, 1)[:, 0].astype(float),
            "nearest_id": names.gather(np.take_along_axis(index, other, 1)[:, 0]),
        }
    )


def source_of(model: str | None) -> pl.DataFrame | None:
    """Of a study's run: n, accuracy on its unseen images, and the confidence that this share of
    them exceeds. None where the model is no such run."""
    path = Path(model or "") / "predictions.parquet"
    if not model or not path.exists():
        return None
    frame = pl.read_parquet(path)
    if not {"confidence", "correct"} <= set(frame.columns):
        return None
    unseen = frame.filter(pl.col("split") == "test").drop_nulls(["confidence", "correct"])
    if not len(unseen):
        return None
    accuracy = float(unseen["correct"].cast(pl.Float64).mean())  # pyright: ignore[reportArgumentType]
    confidence = np.sort(unseen["confidence"].to_numpy())
    below = round((1 - accuracy) * len(unseen))
    threshold = float(confidence[below - 1]) if below else -1.0
    return pl.DataFrame({"n": [len(unseen)], "accuracy": [accuracy], "threshold": [threshold]})

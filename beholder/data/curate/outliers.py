"""Outliers: images that are farther from all others than these are from one another.

Sun, Ming, Zhu, Li: "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022; authors'
code: deeplearning-wisc/knn-ood. Theirs is the distance to the nearest neighbours; ours are: mean
over k = 10 neighbours in other folds (so that an image is no neighbour of its own copy), features
standardised instead of normalised (measured on solar cells: AUROC of shuffled images .98 against
.92), a threshold from the data itself, and a self-test (specs/study.md, 4.14).

>>> from beholder.data.sources import open_images
>>> digits = open_images("digits").where(pl.col("id") < "digits-0200")
>>> pixels = np.stack([sample["image"].ravel() for sample in digits]).astype(float)
>>> pixels[7] += 200
>>> Outliers().curate(digits, embeddings=pixels).worst(n=1)["id"].to_list()
['digits-0007']
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.stats import norm
from sklearn.datasets import load_sample_image
from sklearn.neighbors import NearestNeighbors

from beholder.core.decode import Unreadable
from beholder.core.registry import system

from .base import Curator, Decided, Pool, Trial

FOLDS = 5
FEWEST = 30
"""Images below which nothing is called an outlier."""

MADE = 32  # planted outliers of each kind
GRID = 4  # tiles per side of a shuffled image


def shuffled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`image` uint8 [H, W, 3] cut into 4 x 4 tiles (a rest at the border goes), shuffled."""
    height, width = (max(1, side // GRID) for side in image.shape[:2])
    rows, columns = image.shape[0] // height, image.shape[1] // width
    tiles = image[: rows * height, : columns * width]
    tiles = (
        tiles.reshape(rows, height, columns, width, 3)
        .swapaxes(1, 2)
        .reshape(rows * columns, height, width, 3)
    )
    mixed = rng.permutation(tiles).reshape(rows, columns, height, width, 3)
    return mixed.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def photographs(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Square pieces, 120 px or more, of scikit-learn's two photographs."""
    whole = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    pieces = []
    for number in range(count):
        image, side = whole[number % 2], int(rng.integers(120, 400))
        top, left = (int(rng.integers(0, size - side)) for size in image.shape[:2])
        pieces.append(np.ascontiguousarray(image[top : top + side, left : left + side]))
    return pieces


def plant(images: list[np.ndarray], rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Strange images made of the user's own, and foreign ones."""
    return {
        "images cut into tiles and shuffled": [shuffled(image, rng) for image in images],
        "negatives": [255 - image for image in images],
        "photographs of a temple and a flower": photographs(len(images), rng),
    }


def distances(
    x: np.ndarray, fold: np.ndarray, bank: np.ndarray, part: np.ndarray, k: int
) -> np.ndarray:
    """Mean distance of every row of `x` [n, D] to its k nearest in `bank` [N, D] -> [n].

    Args:
        fold: [n], part: [N]; rows of the bank whose part is the row's fold are left out.
    """
    found = np.empty(len(x))
    for number in np.unique(fold):
        others = bank[part != number]
        search = NearestNeighbors(n_neighbors=min(k, len(others))).fit(others)
        rows = fold == number
        found[rows] = search.kneighbors(x[rows])[0].mean(1)
    return found


def improbable(distance: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """p [n]: how seldom one meets such a distance, if logarithms of the usual ones [N] are normal.

    Centre and width are those of the bulk: the median, and from there to the upper quartile.
    """
    logs = np.log(np.maximum(usual, 1e-12))
    centre, upper = np.quantile(logs, (0.5, 0.75))
    width = (upper - centre) / norm.ppf(0.75)
    return norm.sf((np.log(np.maximum(distance, 1e-12)) - centre) / max(width, 1e-6))


def rejected(p: np.ndarray, rate: float) -> np.ndarray:
    """Benjamini and Hochberg (1995): the tests of which at most `rate` are expected to be false.

    >>> rejected(np.array([0.01, 0.9, 0.04, 0.03]), 0.1).tolist()
    [True, False, True, True]
    """
    order = np.sort(p)
    passing = np.flatnonzero(order <= rate * np.arange(1, len(p) + 1) / len(p))
    return p <= (order[passing[-1]] if len(passing) else -1)


@system(name="outliers")
@dataclass
class Outliers(Curator):
    """Drops images that are far from all others in feature space.

    Args:
        k: neighbours.
        rate: share of false alarms among the flagged that is allowed.
    """

    k: int = 10
    rate: float = 0.1

    needs = frozenset({"embeddings"})
    score_name = "- distance to the nearest images, in standardised features"
    cannot_see = (
        "Not found: strange images of which there are more than a few alike.",
        "An outlier is unlike the others; whether it is wrong, only a person can say.",
    )

    def decide(self, pool: Pool, count: int | None) -> Decided:
        assert pool.embeddings is not None
        x = pool.embeddings.astype(np.float64)
        if len(x) < FEWEST:
            few = f"{len(x):,} images are too few to say what is unusual: {FEWEST} are needed."
            return Decided(pl.DataFrame({"id": pool.ids}), few)
        deviation = x.std(0)
        centre, scale = x.mean(0), np.where(deviation > 1e-6, deviation, 1)
        x, fold = (x - centre) / scale, _folds(pool)
        distance = distances(x, fold, x, fold, self.k)
        flagged = rejected(improbable(distance, distance), self.rate)
        times = distance / max(float(np.median(distance)), 1e-12)
        detail = [
            f"{far:.1f} times as far from its neighbours as usual." if flag else None
            for far, flag in zip(times, flagged, strict=True)
        ]
        frame = pl.DataFrame(
            {
                "id": pool.ids,
                "keep": ~flagged,
                "reason": np.where(flagged, "outlier", "kept"),
                "detail": pl.Series(detail, dtype=pl.String),
                "score": -distance,
            }
        )

        def found(images: list[np.ndarray]) -> int:
            """How many would be flagged, each put alone into the data."""
            strange = (pool.embed(images) - centre) / scale
            far = distances(strange, np.arange(len(images)) % FOLDS, x, fold, self.k)
            allowed = self.rate * (1 + flagged.sum()) / (1 + len(x))
            return int((improbable(far, distance) <= allowed).sum())

        tested = self.self_test(pool, found) if pool.model is not None else []
        return Decided(frame, _finding(int(flagged.sum()), len(x), tested), tuple(tested))

    def self_test(self, pool: Pool, found: Callable[[list[np.ndarray]], int]) -> list[Trial]:
        """Makes strange images of up to `MADE` of the pool. `found`: how many the search flags."""
        rng = np.random.default_rng(pool.seed)
        images = []
        for row in pool.order[:MADE]:
            with suppress(Unreadable):
                images.append(pool.images.read(int(row)))
        planted = plant(images, rng) if images else {}
        return [Trial(fault, len(made), found(made)) for fault, made in planted.items()]


def _folds(pool: Pool) -> np.ndarray:
    """Fold [N] of every image, by chance; equal pictures have one fold."""
    place = np.argsort(pool.order)
    exact = np.unique(pool.facts["exact_hash"].to_numpy(), return_inverse=True)[1]
    first = np.full(len(place), len(place))
    np.minimum.at(first, exact, place)
    return first[exact] % FOLDS


def _finding(flagged: int, images: int, tested: list[Trial]) -> str:
    told = f"{flagged:,} of {images:,} images are unlike all others."
    if not tested:
        return f"{told} Not tested: the model is not known."
    counts = ", ".join(f"{t.found} of {t.planted} {t.fault}" for t in tested)
    return f"{told} Of planted ones it would find {counts}."

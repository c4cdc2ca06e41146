"""k-centre: the images that cover feature space, so that none is far from one that is kept.

Sener, Savarese: "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR
2018 (the greedy solution, within twice the best radius; their robust integer programme is left
out). Authors' code: ozansener/active_learning_coreset.

>>> from beholder.data.sources import open_images
>>> digits = open_images("digits").where(pl.col("id") < "digits-0020")
>>> pixels = np.stack([sample["image"].ravel() for sample in digits])
>>> KCentre().curate(digits, budget=5, embeddings=pixels).kept
5
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.registry import system

from .base import Curator, Decided, Pool


def k_centre(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Farthest-first choice of `count` rows of `x` [N, D], from row 0 on; ties by lowest row.

    Returns:
        chosen [count] in order; the index into it of every row's nearest centre [N]; every row's
        distance to its centre before it was chosen itself [N] (so chosen ones have at least as
        much as others; infinite for row 0).
    """
    chosen = np.zeros(count, int)
    nearest = np.zeros(len(x), int)
    gap = np.full(len(x), np.inf)
    free = np.ones(len(x), bool)
    squares = np.einsum("nd,nd->n", x, x)
    for step in range(count):
        if step:
            chosen[step] = np.argmax(np.where(free, gap, -1))
        row = chosen[step]
        free[row] = False
        squared = squares + squares[row] - 2 * x @ x[row]
        distance = np.sqrt(np.maximum(squared, 0))
        closer = free & (distance < gap)
        gap[closer], nearest[closer] = distance[closer], step
        nearest[row] = step
    return chosen, nearest, gap


@system(name="k_centre")
@dataclass
class KCentre(Curator):
    """Keeps centres chosen farthest first in feature space; starts with an image by chance."""

    needs = frozenset({"budget", "embeddings"})
    score_name = "distance to the nearest image that was chosen before"
    cannot_see = (
        "The farthest images are kept first, and broken or foreign ones are far from all: take "
        "outliers and label errors out before.",
    )

    def decide(self, pool: Pool, count: int | None) -> Decided:
        assert count is not None
        assert pool.embeddings is not None
        order = pool.order
        x = pool.embeddings[order].astype(np.float64)
        chosen, nearest, gap = k_centre(x, count)
        ids = np.array(pool.ids)[order]
        keep = np.isin(np.arange(len(ids)), chosen)
        gap[0] = gap[1:].max(initial=0)
        frame = pl.DataFrame(
            {
                "id": ids,
                "keep": keep,
                "reason": np.where(keep, "kept", "not_sampled"),
                "score": gap,
                "group": nearest,
                "partner": np.where(keep, "", ids[chosen[nearest]]),
            }
        )
        return Decided(frame.with_columns(partner=pl.col("partner").replace("", None)))

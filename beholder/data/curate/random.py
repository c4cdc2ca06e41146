"""Random: the baseline of every selection, and the same choice whatever the order of the files.

>>> from beholder.data.sources import open_images
>>> Random(per_class=True).curate(open_images("digits"), budget=100).kept
100
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.registry import system

from .base import Curator, Decided, Pool, split_budget


@system(name="random")
@dataclass
class Random(Curator):
    """Keeps images at random.

    Args:
        per_class: every class in proportion, by largest remainder.
    """

    per_class: bool = False

    needs = frozenset({"budget"})
    cannot_see = ("Nothing is looked at: the choice is chance.",)

    def decide(self, pool: Pool, count: int | None) -> Decided:
        assert count is not None
        keep = np.zeros(len(pool), bool)
        groups = pool.labels[pool.order] if self.per_class else np.zeros(len(pool), int)
        for group, share in split_budget(groups, count).items():
            keep[pool.order[groups == group][:share]] = True
        reason = np.where(keep, "kept", "not_sampled")
        frame = pl.DataFrame({"id": pool.ids, "keep": keep, "reason": reason.tolist()})
        return Decided(frame)

"""Random search: what every other searcher has to beat at equal cost.

Li, Talwalkar: "Random Search and Reproducibility for Neural Architecture Search", UAI 2019 (its
point: random search is a strong baseline). Authors' code: liamcli/randomNAS_release. Without their
weight sharing.

Example:
    >>> from beholder.optimize.search.resnets import ResNets, Size
    >>> found = RandomSearch().search(ResNets(), Size(), budget=5)
    >>> len(found.ranked)
    5
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from beholder.core.registry import system

from .base import Arch, Searcher, SearchSpace


@system(name="random")
class RandomSearch(Searcher):
    """Architectures by chance."""

    def proposals(
        self, space: SearchSpace, known: Mapping[Arch, float], rng: np.random.Generator
    ) -> Iterator[Arch]:
        while True:
            yield space.sample(rng)

"""What models answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """`probability` [N, C] over `classes`."""

    classes: tuple[str, ...]
    probability: np.ndarray

    def __len__(self) -> int:
        return len(self.probability)

    @property
    def predicted(self) -> np.ndarray:
        """Index of the likeliest class, [N]."""
        return self.probability.argmax(1)

    @property
    def labels(self) -> list[str]:
        """Name of the likeliest class, one per image."""
        return [self.classes[i] for i in self.predicted]

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the likeliest class, [N]."""
        return self.probability.max(1)

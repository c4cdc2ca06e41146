"""How an encoder is fine-tuned: settings, and what a budget allows of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from beholder.core.errors import BudgetError

FEWEST_EPOCHS, LAST = 4, 3
WARM, PILOT = 2, 10
"""Steps before the pilot is timed, and of the pilot."""
UNEVEN = 5.0
"""Largest over smallest class from which images are weighted by their class."""


@dataclass(frozen=True)
class Recipe:
    """Settings.

    Attributes:
        cached: only what follows stride 16 is trained, on cached maps.
        largest: side of the input above which it is brought to `side`.
        lr, head_lr: of the encoder, and of its classifier.
    """

    cached: bool
    side: int
    largest: int
    batch: int
    epochs: int
    lr: float
    head_lr: float
    weight_decay: float = 0.05


CPU = Recipe(cached=True, side=224, largest=256, batch=32, epochs=12, lr=3e-4, head_lr=3e-3)
GPU = Recipe(cached=False, side=300, largest=300, batch=64, epochs=40, lr=2e-4, head_lr=2e-3)


def affordable(price: float, seconds: float, wanted: int) -> int:
    """Epochs of `price` seconds each, at most `wanted`.

    Raises:
        BudgetError: fewer than four.
    """
    epochs = min(wanted, int(seconds / price)) if seconds < float("inf") else wanted
    if epochs < FEWEST_EPOCHS:
        needs = FEWEST_EPOCHS * price
        raise BudgetError(
            f"Fine-tuning needs {FEWEST_EPOCHS} epochs of {price:,.0f} s, {needs:,.0f} s in all; "
            f"{max(seconds, 0):,.0f} s are there.",
            "Give --finetune-budget MINUTES more, or leave out --finetune.",
        )
    return epochs


def weights_of(labels: np.ndarray) -> np.ndarray:
    """Of every image, mean 1: equal, or inverse to the size of its class where these are uneven."""
    counts = np.bincount(labels)
    present = counts[counts > 0]
    if present.max() <= UNEVEN * present.min():
        return np.ones(len(labels), np.float32)
    return (len(labels) / (len(present) * counts[labels])).astype(np.float32)

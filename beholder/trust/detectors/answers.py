"""A classifier's own doubt: the two baselines that need nothing but its answers.

Hendrycks, Gimpel: "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
Neural Networks", ICLR 2017 (hendrycks/error-detection). Liu, Wang, Owens, Li: "Energy-based
Out-of-distribution Detection", NeurIPS 2020 (wetliu/energy_ood). Scores as in the papers.

Example:
    >>> sure, unsure = torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.0, 0.9]])
    >>> max_softmax(sure) < max_softmax(unsure), energy(sure) < energy(unsure)
    (tensor(True), tensor(True))
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from beholder.core.errors import ArgumentError
from beholder.core.registry import system

from .base import FeatureDetector, Levels


def max_softmax(logits: Tensor) -> Tensor:
    """1 - the largest probability. [..., C] -> [...]."""
    return 1 - logits.softmax(-1).amax(-1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-T log sum exp(logits / T). [..., C] -> [...]."""
    return -temperature * torch.logsumexp(logits / temperature, -1)


class _Answers(FeatureDetector):
    """Nothing is learned."""

    needs_logits = True

    def fit_features(self, levels: Levels, y: np.ndarray | None = None) -> None:
        pass


@system(name="max_softmax")
class MaxSoftmax(_Answers):
    """One minus the largest probability."""

    def score_features(self, levels: Levels) -> Tensor:
        return max_softmax(levels["logits"])


@system(name="energy")
class Energy(_Answers):
    """Free energy of the logits at `temperature`."""

    def __init__(self, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ArgumentError(f"temperature = {temperature} is not above 0.")
        self.temperature = temperature

    def score_features(self, levels: Levels) -> Tensor:
        return energy(levels["logits"], self.temperature)

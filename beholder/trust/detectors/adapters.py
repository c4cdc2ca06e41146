"""Detectors of pytorch-ood beside ours (`pip install 'beholder[detectors]'`).

Kirchheim, Filax, Ortmeier: "PyTorch-OOD: A Library for Out-of-Distribution Detection based on
PyTorch", CVPR Workshops 2022 (kkirchheim/pytorch-ood). Only its arithmetic on features and logits
is used; the feature pass, thresholds and files are ours. What is saved are the trusted images'
features: loading fits them again, which gives the same numbers.

Example:
    >>> trusted = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    >>> detector = RelativeMahalanobis().fit_levels({"pooled": trusted}, np.arange(60) % 2)
    >>> detector.score_levels({"pooled": trusted[:5]}).image.shape
    torch.Size([5])
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pytorch_ood import detector as ood
from torch import Tensor, nn

from beholder.core.errors import ArgumentError
from beholder.core.registry import system

from .base import DetectorError, FeatureDetector, Levels, Supervision


class _Peer(FeatureDetector):
    """A detector of pytorch-ood on one level."""

    level: ClassVar[str] = "pooled"
    trusted_: Tensor
    labels_: Tensor
    _peer: Any = None

    def peer(self) -> Any:
        """A new one, not fitted."""
        raise NotImplementedError

    def fit_features(self, levels: Levels, y: np.ndarray | None = None) -> None:
        z = levels[self.level]
        self.trusted_ = z.contiguous()
        self.labels_ = torch.zeros(len(z), dtype=torch.long) if y is None else torch.tensor(y)
        self._peer = None

    def score_features(self, levels: Levels) -> Tensor:
        if self._peer is None:
            self._peer = self._fresh()
        with torch.no_grad():
            return self._predict(levels[self.level])

    def _fresh(self) -> Any:
        peer = self.peer()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                peer.fit_features(self.trusted_, self.labels_)
        except (ValueError, RuntimeError) as error:
            raise DetectorError(f"pytorch-ood cannot fit {self.called}: {error}") from error
        return peer

    def _predict(self, z: Tensor) -> Tensor:
        return self._peer.predict_features(z)


class _PeerOfLogits(_Peer):
    """On logits; nothing is fitted."""

    level = "logits"
    needs_logits = True

    def fit_features(self, levels: Levels, y: np.ndarray | None = None) -> None:
        self._peer = None

    def _fresh(self) -> Any:
        return self.peer()

    def _predict(self, z: Tensor) -> Tensor:
        return self._peer.predict_logits(z)


@system(name="class_mahalanobis", extra="detectors")
class ClassMahalanobis(_Peer):
    """Squared Mahalanobis distance to the nearest class, one covariance (Lee et al., 2018)."""

    supervision: ClassVar[Supervision] = "labels"

    def peer(self) -> Any:
        return ood.Mahalanobis(None)


@system(name="rmd", extra="detectors")
class RelativeMahalanobis(_Peer):
    """That, less the distance to all classes as one (Ren et al., 2021)."""

    supervision: ClassVar[Supervision] = "labels"

    def peer(self) -> Any:
        return ood.RMD(None)


@system(name="vim", extra="detectors")
class ViM(_Peer):
    """Virtual logit of the part of a feature outside the main `d` directions (Wang et al., 2022).

    Needs a model whose classifier is one linear layer.
    """

    def __init__(self, d: int = 512) -> None:
        if d < 1:
            raise ArgumentError(f"d = {d} is no number of directions.")
        self.d = d

    def peer(self) -> Any:
        last = None if self.model is None else self.model.backbone.get_classifier()
        if not isinstance(last, nn.Linear) or self.model is None or self.model.head is not None:
            raise DetectorError(
                "vim reads a last linear layer, and this model has none of its own.",
                "Choose another detector: knn and gaussian_ad take any model.",
            )
        return ood.ViM(None, self.d, last.weight.cpu(), last.bias.cpu())


@system(name="entropy", extra="detectors")
class Entropy(_PeerOfLogits):
    """Entropy of the probabilities."""

    def peer(self) -> Any:
        return ood.Entropy(None)


@system(name="max_logit", extra="detectors")
class MaxLogit(_PeerOfLogits):
    """Minus the largest logit (Hendrycks et al., 2022)."""

    def peer(self) -> Any:
        return ood.MaxLogit(None)


@system(name="gen", extra="detectors")
class GEN(_PeerOfLogits):
    """Generalised entropy of the probabilities (Liu et al., 2023)."""

    def __init__(self, gamma: float = 0.1) -> None:
        self.gamma = gamma

    def peer(self) -> Any:
        return ood.GEN(None, gamma=self.gamma)


@system(name="kl_matching", extra="detectors")
class KLMatching(_Peer):
    """Divergence from the typical answer of the class that is answered (Hendrycks et al., 2022)."""

    level = "logits"
    needs_logits = True

    def peer(self) -> Any:
        return ood.KLMatching(None)

    def _fresh(self) -> Any:
        return self.peer().fit_logits(self.trusted_)

    def _predict(self, z: Tensor) -> Tensor:
        return self._peer.predict_logits(z)

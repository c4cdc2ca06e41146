"""Relatives of Grad-CAM: other ways to join the maps and gradients of the same layer.

Grad-CAM++: Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional
Networks", WACV 2018. XGrad-CAM: Fu et al., "Axiom-based Grad-CAM", BMVC 2020. LayerCAM: Jiang et
al., IEEE TIP 2021. HiResCAM: Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful
explanations of convolutional neural networks", 2020. Eigen-CAM: Muhammad, Yeasin, IJCNN 2020. Peer
in the tests: jacobgil/pytorch-grad-cam.

Example:
    >>> maps, gradients = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, -1.0]]]])
    >>> HiResCAM().rule(maps, gradients).tolist(), LayerCAM().rule(maps, gradients).tolist()
    ([[[3.0, -2.0]]], [[[3.0, 0.0]]])
"""

from __future__ import annotations

import torch
from torch import Tensor

from beholder.core.registry import system

from .gradcam import CAM

TINY = 1e-7


@system(name="gradcam_pp")
class GradCAMPlusPlus(CAM):
    """Each positive gradient G weighs 1 / (2 + G sum A): Eq. 19 for a score that is exp(logit)."""

    def rule(self, maps: Tensor, gradients: Tensor) -> Tensor:
        weights = gradients.relu() / (2 + gradients * maps.sum((2, 3), keepdim=True))
        return (weights.sum((2, 3), keepdim=True) * maps).sum(1)


@system(name="xgradcam")
class XGradCAM(CAM):
    """A map's weight is its gradient's mean under the map itself (Eq. 8)."""

    def rule(self, maps: Tensor, gradients: Tensor) -> Tensor:
        total = maps.sum((2, 3), keepdim=True)
        return ((gradients * maps).sum((2, 3), keepdim=True) / (total + TINY) * maps).sum(1)


@system(name="layercam")
class LayerCAM(CAM):
    """Every cell has its own weight, its positive gradient: works on early layers too (Eq. 6)."""

    def rule(self, maps: Tensor, gradients: Tensor) -> Tensor:
        return (gradients.relu() * maps).sum(1)


@system(name="hirescam")
class HiResCAM(CAM):
    """Gradient times activation, cell by cell (Eq. 4)."""

    def rule(self, maps: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * maps).sum(1)


@system(name="eigencam")
class EigenCAM(CAM):
    """The maps along their first principal direction: the same for every target.

    Centred, as in the peer. The direction's sign, which the decomposition leaves open, is that in
    which the maps grow.
    """

    discriminates = False

    def rule(self, maps: Tensor, gradients: Tensor) -> Tensor:
        flat = maps.flatten(2).transpose(1, 2)  # [B, hw, C]
        centred = flat - flat.mean(1, keepdim=True)
        direction = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0, :, None]
        along = (centred @ direction)[..., 0]
        grows = (along * centred.sum(2)).sum(1, keepdim=True) >= 0
        return torch.where(grows, along, -along).unflatten(1, maps.shape[2:])

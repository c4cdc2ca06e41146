"""Barlow Twins: a label-free objective that needs no negatives, no teacher and no queue.

"Barlow Twins: Self-Supervised Learning via Redundancy Reduction", Jure Zbontar, Li Jing, Ishan
Misra, Yann LeCun, Stephane Deny, 2021, ICML. Authors' code: facebookresearch/barlowtwins.

Where we differ: the two terms are computed without a mask of the D x D matrix, and for D > N from
N x N matrices; over several processes the gradient is that of the whole batch (the authors' plain
all_reduce drops a part); the projector is narrower for backbones of less than 1,024 features; blur
radii shrink with images below 224 px.

Example:
    >>> import torch
    >>> z = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    >>> {name: round(term.item(), 3) for name, term in barlow_twins_loss(z, z.flip(1)).items()}
    {'invariance': 2.0, 'redundancy': 2.0}
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel
from beholder.core.registry import system

from .base import MLP, DataInfo, Objective
from .ranks import summed, world
from .views import BARLOW_A, BARLOW_B, forward_views

EPS = 1e-5  # of the variance, as BatchNorm
FEW = 16  # below so many images correlations mean little
WIDE = 1024  # features from which on a backbone gets the authors' projector


def standardise(z: Tensor) -> Tensor:
    """Columns of [N, D] with mean 0 and (biased) variance 1 over the batch of all processes."""
    if world() == 1:
        return F.batch_norm(z, None, None, training=True, eps=EPS)
    count = summed(torch.full((), float(len(z)), device=z.device))
    centred = z - summed(z.sum(0)) / count
    return centred * (summed(centred.square().sum(0)) / count + EPS).rsqrt()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Cross-correlation [D, D] of the columns of two views [N, D] (Eq. 2)."""
    count = summed(torch.full((), float(len(a)), device=a.device))
    return summed(standardise(a).T @ standardise(b) / count)


def barlow_twins_loss(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Squared distance of the cross-correlation from the identity (Eq. 1), in two terms.

    `a`, `b`: [N, D] projections of two views of the same images. Works in float32 (float64 stays),
    whatever autocast says.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (z if z.dtype == torch.float64 else z.float() for z in (a, b))
        if a.shape[1] > len(a) and world() == 1:
            on, squares = _from_gram(standardise(a), standardise(b))
        else:
            matrix = correlation(a, b)
            on, squares = matrix.diagonal(), matrix.square().sum()
        return {
            "invariance": (on - 1).square().sum(),
            "redundancy": squares - on.square().sum(),
        }


def _from_gram(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal [D] and sum of squares of a^T b / N, without it: |a^T b|^2 = <a a^T, b b^T>."""
    diagonal = (a * b).mean(0)
    return diagonal, ((a @ a.T) * (b @ b.T)).sum() / len(a) ** 2


@system(47)
class BarlowTwins(Objective):
    """Views of one image agree (invariance), and no two outputs say the same (redundancy).

    The authors' recipe: batch 2048, LARS with `bias_rate` 0.024, 1,000 epochs.

    Args:
        projector: widths of the layers behind the backbone; None = (8192, 8192, 8192), or (2048,
            2048, 2048) for a backbone of less than 1,024 features.
        lambd: weight of the redundancy.
        scale: of both terms; matters with optimisers that are not scale-free (AdamW, SGD).
        bias_rate: learning rate of biases and norms over that of weights.
    """

    global_batch = True
    sees = (BARLOW_A, BARLOW_B)

    def __init__(
        self,
        projector: tuple[int, ...] | None = None,
        lambd: float = 0.0051,
        scale: float = 1.0,
        bias_rate: float = 1.0,
    ) -> None:
        super().__init__()
        if projector == ():
            raise ArgumentError("--projector () has no layer.", "For example (2048, 2048, 2048).")
        if lambd < 0:
            raise ArgumentError(f"--lambd {lambd} is negative.", "The authors' is 0.0051.")
        self.widths = projector
        self.weights = {"invariance": scale, "redundancy": scale * lambd}
        self.bias_rate = bias_rate
        self.projector = nn.Sequential()

    def setup(self, model: VisionModel, data: DataInfo) -> None:
        super().setup(model, data)
        features = model.backbone.num_features
        widths = self.widths or ((8192,) * 3 if features >= WIDE else (2048,) * 3)
        self.projector = MLP(features, *widths)

    def param_groups(self, model: VisionModel, lr: float, decay: float) -> list[dict[str, Any]]:
        """As usual, with `bias_rate` for vectors."""
        groups = super().param_groups(model, lr, decay)
        for group in groups:
            if all(parameter.ndim <= 1 for parameter in group["params"]):
                group["lr"] *= self.bias_rate
        return groups

    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Terms 'invariance' and 'redundancy'; `batch["views"]`: two [N, 3, H, W]."""
        count = len(batch["views"][0]) * world()
        if count < 2:
            raise ArgumentError(
                "barlow_twins correlates over a batch; this one has 1 image.",
                "Take --batch-size 128 or more.",
            )
        if getattr(self, "_is_replica", False):
            raise ArgumentError(
                "DataParallel would correlate over a part of the batch.", "Run one process per GPU."
            )
        if count < FEW:
            warnings.warn(f"Correlations over {count} images mean little.", stacklevel=2)
        a, b = map(self.projector, forward_views(model, batch["views"], joint=False))
        self.metric("dead_columns", dead_columns(a, b))
        return barlow_twins_loss(a, b)


@torch.no_grad()
def dead_columns(a: Tensor, b: Tensor) -> int:
    """Columns of [N, D] that are constant in a view: their variance is lost in eps."""
    still = [z.float().var(0, correction=0) < EPS * 1e-2 for z in (a, b)]
    return int((still[0] | still[1]).sum())


class Released(NamedTuple):
    """The authors' weights: of a timm `resnet50` without `fc`, and of our projector (may be
    empty)."""

    backbone: dict[str, Tensor]
    projector: dict[str, Tensor]


def convert(state: Mapping[str, Any]) -> Released:
    """The authors' `resnet50.pth` or full checkpoint (`torch.load(..., weights_only=True)`).

    Raises:
        ArgumentError: it is neither.
    """
    state = {key.removeprefix("module."): x for key, x in state.get("model", state).items()}
    if "conv1.weight" in state:
        return Released({key: x for key, x in state.items() if not key.startswith("fc.")}, {})
    backbone, projector = (
        {key.removeprefix(part): x for key, x in state.items() if key.startswith(part)}
        for part in ("backbone.", "projector.")
    )
    if "conv1.weight" not in backbone:
        raise ArgumentError(
            f"No Barlow Twins checkpoint: it starts with {', '.join(list(state)[:3])}.",
            "Give resnet50.pth or checkpoint.pth of facebookresearch/barlowtwins.",
        )
    return Released(backbone, projector)

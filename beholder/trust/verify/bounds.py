"""Interval bounds: a quick proof for small networks and small regions.

Interval bound propagation, as in Gowal et al.: "On the Effectiveness of Interval Bound Propagation
for Training Verifiably Robust Models", 2018, in float64. The last linear layer and the difference
of two logits are taken together, which is never looser.

Example:
    >>> import torch
    >>> from torch import nn
    >>> from beholder.trust.verify.base import Region
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    >>> _ = nn.init.eye_(model[1].weight)
    >>> image = torch.full((3, 2, 2), 0.5)
    >>> image[0, 0, 0] = 0.7
    >>> verdict = Bounds().verify(model, Region.linf(image, 0.05))
    >>> type(verdict).__name__, round(verdict.margin, 3)
    ('Proved', 0.1)
"""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from beholder.core.errors import ModelError
from beholder.core.registry import system

from .base import Counterexample, Proved, Region, Unknown, Verdict, Verifier, answer

Box = tuple[Tensor, Tensor]
MONOTONE = (nn.ReLU, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity)


def affine(centre: Tensor, radius: Tensor, layer: nn.Module) -> Box:
    """Centre and radius of a box behind a linear, convolutional or batch-norm layer."""
    if isinstance(layer, nn.Linear):
        return layer(centre), functional.linear(radius, layer.weight.abs())
    if isinstance(layer, nn.Conv2d):
        spread = copy.deepcopy(layer)
        spread.weight.data.abs_()
        spread.bias = None
        return layer(centre), spread(radius)
    if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
        scale = (layer.running_var + layer.eps).rsqrt()
        scale = scale if layer.weight is None else scale * layer.weight
        return layer(centre), radius * scale.abs()[:, None, None]
    raise ModelError(
        f"Bounds do not know the layer {type(layer).__name__}.",
        "They take sequences of Linear, Conv2d, BatchNorm2d, ReLU, pooling and Flatten.",
    )


def propagate(layers: list[nn.Module], lower: Tensor, upper: Tensor) -> Box:
    """Bounds of every output of a sequence of layers for inputs between `lower` and `upper`."""
    for layer in layers:
        if isinstance(layer, MONOTONE):
            lower, upper = layer(lower), layer(upper)
        else:
            centre, radius = affine((lower + upper) / 2, (upper - lower) / 2, layer)
            lower, upper = centre - radius, centre + radius
    return lower, upper


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of nested `nn.Sequential`s in order, without dropout."""
    if isinstance(model, nn.Sequential):
        return [layer for part in model for layer in layers_of(part)]
    return [] if isinstance(model, nn.Dropout) else [model]


@torch.no_grad()
def margins(model: nn.Module, region: Region, label: int) -> Tensor:
    """Lower bounds of logit[label] - logit[j] over the region, for all j: [C], 0 at `label`."""
    layers = layers_of(copy.deepcopy(model).double().eval())
    if not layers or not isinstance(layers[-1], nn.Linear):
        raise ModelError("Bounds need a network that ends in a linear layer.")
    lower, upper = propagate(layers[:-1], region.lower.double()[None], region.upper.double()[None])
    last = layers[-1]
    weight = last.weight[label] - last.weight
    bias = torch.zeros(len(weight), dtype=torch.float64)
    if last.bias is not None:
        bias = last.bias[label] - last.bias
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    return (weight @ centre[0] - weight.abs() @ radius[0]) + bias


@system()
class Bounds(Verifier):
    """Interval bounds, and the corners of the region as a search for a counterexample."""

    def verify(self, model: nn.Module, region: Region, timeout: float = 60) -> Verdict:
        start = time.perf_counter()
        label = answer(model, region.centre)
        for corner in (region.lower, region.upper):
            if (other := answer(model, corner)) != label:
                return Counterexample(corner, other, time.perf_counter() - start)
        bound = margins(model, region, label)
        bound = torch.cat([bound[:label], bound[label + 1 :]])
        worst, seconds = float(bound.min()), time.perf_counter() - start
        if worst > 0:
            return Proved("interval bounds", worst, seconds)
        return Unknown(f"the bounds are too loose by {-worst:.3g}", seconds)

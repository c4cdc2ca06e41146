"""Methods of captum under beholder's contract.

Kokhlikyan et al., "Captum: A unified and generic model interpretability library for PyTorch", 2020.
Saliency: Simonyan, Vedaldi, Zisserman, 2013. Integrated gradients: Sundararajan, Taly, Yan, ICML
2017. Occlusion: Zeiler, Fergus, ECCV 2014.

Example:
    >>> from beholder.models.open import open_vision
    >>> model, images = open_vision("untrained:test_resnet"), torch.rand(1, 3, 64, 64)
    >>> found = IntegratedGradients(steps=32).explain(model, images, targets=7)
    >>> change = found.score - model.logits(torch.zeros_like(images))[:, 7]
    >>> abs(found.heatmap.sum() / change.item() - 1).item() < 0.05
    True
"""

from __future__ import annotations

import torch
from captum import attr
from torch import Tensor

from beholder.core.model import VisionModel
from beholder.core.registry import system
from beholder.explain.base import Attribution, Explainer, strongest
from beholder.explain.targets import Reader

CHUNK = 32


@system(name="saliency", extra="explain")
class Saliency(Explainer):
    """The size of the gradient at each pixel, the largest of the colours."""

    def attribute(self, model: VisionModel, images: Tensor, read: Reader) -> Attribution:
        score = _score(read, images)
        pixel = attr.Saliency(read).attribute(images.clone().requires_grad_())
        return Attribution(strongest(pixel), score, pixel)


@system(name="input_x_gradient", extra="explain")
class InputXGradient(Explainer):
    """Gradient times value, summed over the colours: signed."""

    def attribute(self, model: VisionModel, images: Tensor, read: Reader) -> Attribution:
        score = _score(read, images)
        pixel = attr.InputXGradient(read).attribute(images.clone().requires_grad_())
        return Attribution(pixel.sum(1), score, pixel)


@system(name="integrated_gradients", extra="explain")
class IntegratedGradients(Explainer):
    """Gradients summed on the way from a black image; they add up to the change of the score.

    Args:
        steps: points on the way.
    """

    completeness = True

    def __init__(self, steps: int = 50) -> None:
        self.steps = steps

    def attribute(self, model: VisionModel, images: Tensor, read: Reader) -> Attribution:
        score = _score(read, images)
        pixel = torch.cat(
            [
                attr.IntegratedGradients(read.of(slice(i, i + 1))).attribute(
                    images[i : i + 1], n_steps=self.steps, internal_batch_size=CHUNK
                )
                for i in range(len(images))
            ]
        )
        return Attribution(pixel.sum(1), score, pixel)


@system(name="occlusion", extra="explain")
class Occlusion(Explainer):
    """How far the score falls while a grey square covers each place; needs no gradient.

    Args:
        window: side of the square as a share of the image's shorter side; it moves by half.
    """

    needs = frozenset({"blackbox"})

    def __init__(self, window: float = 0.2) -> None:
        self.window = window

    def attribute(self, model: VisionModel, images: Tensor, read: Reader) -> Attribution:
        side = max(2, round(self.window * min(images.shape[2:])))
        with torch.no_grad():
            score = _score(read, images)
            pixel = torch.cat(
                [
                    attr.Occlusion(read.of(slice(i, i + 1))).attribute(
                        images[i : i + 1],
                        sliding_window_shapes=(3, side, side),
                        strides=(3, side // 2, side // 2),
                        baselines=0.5,
                        perturbations_per_eval=CHUNK,
                    )
                    for i in range(len(images))
                ]
            )
        return Attribution(pixel.mean(1), score)


def _score(read: Reader, images: Tensor) -> Tensor:
    """[B]; fixes the likeliest class, where that is what is explained."""
    with torch.no_grad():
        return read(images)

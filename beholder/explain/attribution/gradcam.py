"""Grad-CAM: which places of the last map speak for a class, for any network that has such a map.

"Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization". R. R. Selvaraju,
M. Cogswell, A. Das, R. Vedantam, D. Parikh, D. Batra. ICCV 2017; IJCV 2019. Authors' code:
ramprs/grad-cam.

Here it also runs on transformers (see `beholder.explain.layers`), on models that average over
mirror images (the maps of both views are added), and guided backpropagation takes every piecewise
linear rectifier, ReLU6 too, however often a module is used, in place or as a function. The naming
of neurons and explanations in words (Sec. 7 of the IJCV paper) are left out.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from beholder.core.errors import ArgumentError, ModelError
from beholder.core.model import VisionModel
from beholder.core.registry import system
from beholder.explain.base import Attribution, Explainer, gradient, strongest
from beholder.explain.layers import as_maps, find_layer, module_named, tapped
from beholder.explain.targets import Reader
from beholder.metrics.explanation import resized

RECTIFIERS = {
    *(F.relu, F.relu6, F.hardtanh, F.threshold),
    *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
}
SMOOTH = {
    *(F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.leaky_relu, F.prelu, F.hardswish),
    *(F.softplus, F.softsign, F.tanhshrink),
}


class CAM(Explainer):
    """What the CAM family shares: maps of a layer, gradients there, a rule that joins them."""

    needs = frozenset({"gradients", "feature_maps"})

    def __init__(self, layer: str | None = None, relu: bool = True) -> None:
        self.layer = layer
        self.relu = relu

    @abc.abstractmethod
    def rule(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Maps and gradients [B, C, h, w] to the signed map [B, h, w]."""

    def prepared(self, model: VisionModel, read: Reader, images: Tensor) -> Self:
        found = copy.copy(self)
        found.layer = self.layer or find_layer(model, read.of(slice(0, 1)), images.shape[2:])
        return found

    def attribute(self, model: VisionModel, images: Tensor, read: Reader) -> Attribution:
        assert self.layer is not None
        with tapped(module_named(model.backbone, self.layer)) as outputs:
            score = read(images)
        if not outputs:
            raise ModelError(f"{self.layer} takes no part in this score.", "Name another layer.")
        own = [view[-1] for view in _split(outputs, read.views)]
        total = torch.zeros(())
        for view, (output, slope) in enumerate(zip(own, gradient(score, own), strict=True)):
            if slope is None or (output.ndim == 3 and not _at_patches(slope, images, model)):
                raise _no_gradient(self.layer)
            maps, slopes = (as_maps(x, images.shape[2:], model.backbone) for x in (output, slope))
            signed = self.rule(maps.detach(), slopes)
            total = total + (signed.flip(-1) if view else signed)
        return Attribution(total.relu() if self.relu else total, score, facts={"layer": self.layer})


def _split(outputs: list[Tensor], views: int) -> list[list[Tensor]]:
    """Outputs of a layer by the view that they belong to; the second is mirrored."""
    each = len(outputs) // views
    return [outputs[view * each : (view + 1) * each] for view in range(views)]


def _at_patches(slope: Tensor, images: Tensor, model: VisionModel) -> bool:
    return bool(as_maps(slope, images.shape[2:], model.backbone).count_nonzero())


def _no_gradient(layer: str) -> ArgumentError:
    return ArgumentError(
        f"The gradient at {layer} is 0 at every patch.",
        "Behind the last attention the score reads the class token alone: name an earlier layer, "
        "such as the first norm of the last block, or none.",
    )


@system(20)
class GradCAM(CAM):
    """Maps weighted by their mean gradient, then ReLU (Eq. 1, 2).

    Args:
        layer: dotted name in the backbone; None = the last map that the score is read from.
        counterfactual: what speaks against the target: the gradient's sign is turned (Sec. 3.3).
        relu: False keeps what is negative.

    Example:
        >>> from beholder.models.open import open_vision
        >>> model = open_vision("untrained:test_resnet")
        >>> found = GradCAM().explain(model, torch.rand(2, 3, 96, 96), targets=7)
        >>> found.heatmap.shape, found.meta["layer"], found.meta["cells"]
        (torch.Size([2, 96, 96]), 'layer4', (3, 3))
    """

    def __init__(
        self, layer: str | None = None, counterfactual: bool = False, relu: bool = True
    ) -> None:
        super().__init__(layer, relu)
        self.counterfactual = counterfactual

    def rule(self, maps: Tensor, gradients: Tensor) -> Tensor:
        return grad_cam(maps, -gradients if self.counterfactual else gradients)


def grad_cam(maps: Tensor, gradients: Tensor) -> Tensor:
    """sum_k a_k A_k with a_k the mean gradient over space: [B, C, h, w] twice -> [B, h, w]."""
    return (gradients.mean((2, 3), keepdim=True) * maps).sum(1)


class Guided(TorchFunctionMode):
    """Within it, gradients pass a rectifier only where they are positive (and its input was).

    `met` counts the rectifiers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in SMOOTH:
            raise ModelError(
                f"Guided backpropagation is defined for ReLU, and this model has {func.__name__}.",
                "Take gradcam, or another method.",
            )
        if func not in RECTIFIERS:
            return func(*args, **kwargs)
        self.met += 1
        output = func(args[0].clone(), *args[1:], **kwargs)  # the copy may be changed in place
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp_min(0))
        return output


def guided_gradient(read: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [B] and guided gradients [B, 3, H, W].

    Raises:
        ModelError: a model without ReLU.
    """
    images = images.detach().clone().requires_grad_(True)
    with Guided() as guided:
        score = read(images)
    if not guided.met:
        raise ModelError(
            "Guided backpropagation is defined for ReLU, and this model has none.",
            "Take gradcam, or another method.",
        )
    (found,) = gradient(score, [images])
    return score, torch.zeros_like(images) if found is None else found


SANITY = (
    "guided gradients look alike for any weights (Adebayo et al. 2018): edges, not proof of what "
    "the model uses"
)


@system(20, name="guided_backprop")
class GuidedBackprop(Explainer):
    """The gradient at the pixels, where every ReLU lets only positive gradients back.

    Springenberg et al., "Striving for Simplicity", ICLR 2015 workshop. The map is the largest
    absolute value over the colours.
    """

    caveat = SANITY

    def attribute(self, model: VisionModel, images: Tensor, read: Reader) -> Attribution:
        score, pixel = guided_gradient(read, images)
        return Attribution(strongest(pixel), score, pixel)


@system(20, name="guided_gradcam")
class GuidedGradCAM(GradCAM):
    """Guided backpropagation times the enlarged Grad-CAM (Sec. 3.2): fine, and of one class."""

    caveat = SANITY

    def attribute(self, model: VisionModel, images: Tensor, read: Reader) -> Attribution:
        coarse = super().attribute(model, images, read)
        _, pixel = guided_gradient(read, images)
        pixel = pixel * resized(coarse.maps, images.shape[2:])[:, None]
        return Attribution(strongest(pixel), coarse.score, pixel, coarse.facts)

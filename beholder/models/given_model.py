"""Given models: judged as they came, never trained; they answer what `VisionModel` answers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from beholder.core.decode import Interpolation, resize
from beholder.core.errors import ModelError
from beholder.core.model import Crop, state_hash
from beholder.core.predictions import Predictions

from .classmatch import numbered
from .intake import Intake, Preprocess, Size, are_probabilities, in_batches, wrong_count

Kind = Literal["timm", "module", "exported", "onnx", "callable"]
FLOOR = 1e-7
PROBABILITIES = "The model gives probabilities: logits are log(max(p, 1e-7))."


class GivenModel(nn.Module):
    """A model that is judged as it came; answers what `VisionModel` answers.

    Images are uint8, or float in [0, 1], [B, 3, H, W] at `input_size`.

    Attributes:
        classes: names of the outputs in order; None = not named.
        mean, std, scale: see `Preprocess`.
        assumptions: sentences for the report, on what the model did not say.
        differentiable: False = a black box, there are no gradients with respect to images.
        weights_hash: BLAKE2b-128 of file or state; None = unknown, so nothing may be cached.
        parameters_count: None = unknown.
    """

    origin: Literal["made", "given"] = "given"
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        name: str,
        kind: Kind,
        *,
        classes: Sequence[str] | None,
        input_size: Size,
        preprocess: Preprocess,
        crop: Crop,
        differentiable: bool,
        weights_hash: str | None,
        parameters_count: int | None,
        assumptions: Sequence[str],
    ) -> None:
        super().__init__()
        self.name, self.kind = name, kind
        self.classes = tuple(classes) if classes else None
        self.input_size = input_size
        self.crop: Crop = crop
        self.mean, self.std, self.scale = preprocess.mean, preprocess.std, preprocess.scale
        self.interpolation: Interpolation = preprocess.interpolation
        self.differentiable = differentiable
        self.weights_hash, self.parameters_count = weights_hash, parameters_count
        self.assumptions = list(assumptions)
        self._probabilities: bool | None = None
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)

    def _run(self, images: Tensor) -> tuple[object, Tensor | None]:
        """What the model itself gives, and features [B, D] where it has them."""
        raise NotImplementedError

    def normalise(self, images: Tensor) -> Tensor:
        """[0, 1] (or uint8) to what the model was trained on."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images * (255 * self.scale) - self._mean.to(images)) / self._std.to(images)

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C], and features [B, D] or None, of one pass.

        The first call decides whether the model gives probabilities: hand over 64 images or more.

        Raises:
            ModelError: wrong size of images, or outputs that are not one number per class.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *self.input_size):
            raise ModelError(
                f"{self.name} takes [B, 3, {self.input_size[0]}, {self.input_size[1]}], "
                f"not {list(images.shape)}."
            )
        output, features = self._run(images)
        scores = self._scores(output).to(images.device)
        if self._probabilities is None:
            self._probabilities = are_probabilities(scores[:64].detach())
            if self._probabilities:
                self.assumptions.append(PROBABILITIES)
        return (scores.clamp_min(FLOOR).log() if self._probabilities else scores), features

    def logits(self, images: Tensor) -> Tensor:
        """[B, C]; `classmatch.apply` brings them to the classes of the data."""
        return self.answer(images)[0]

    forward = logits

    def features(self, images: Tensor) -> Tensor | None:
        """What the classifier is given, pooled: [B, D]; None for a black box."""
        return self.answer(images)[1]

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """RGB uint8 [h, w, 3] of any size to [H, W, 3] at `input_size`."""
        return resize(image, self.input_size, self.crop, self.interpolation)

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> Predictions:
        """Probabilities over the model's own outputs for RGB uint8 images of any size."""
        batch = torch.from_numpy(np.stack([self.prepare(image) for image in images]))
        logits = self.logits(batch.permute(0, 3, 1, 2).to(self._mean.device))
        names = self.classes or numbered(logits.shape[1])
        return Predictions(names, logits.softmax(1).cpu().numpy())

    def describe(self) -> dict[str, object]:
        """Everything that decides the answers, for cache keys and `results.json`."""
        return {
            "kind": self.kind,
            "weights": self.weights_hash,
            "size": list(self.input_size),
            "crop": self.crop,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "scale": self.scale,
        }

    def _scores(self, output: object) -> Tensor:
        """Checked float32 [B, C] of whatever came out."""
        scores = getattr(output, "logits", output)
        if isinstance(scores, np.ndarray):
            scores = torch.from_numpy(scores)
        if not isinstance(scores, Tensor):
            raise ModelError(f"{self.name} gives a {type(scores).__name__}, not a tensor [B, C].")
        if scores.ndim > 2 and math.prod(scores.shape[2:]) == 1:
            scores = scores.flatten(1)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise ModelError(
                f"{self.name} gives {list(scores.shape)}; expected one number per image and class, "
                "[B, C] with C >= 2.",
                "beholder judges classifiers of whole images.",
            )
        if self.classes and len(self.classes) != scores.shape[1]:
            raise wrong_count(self.name, self.classes, scores.shape[1])
        return scores.float()


class TorchModel(GivenModel):
    """A module that takes normalised floats; differentiable, and asked for its features."""

    def __init__(self, backbone: nn.Module, name: str, kind: Kind, **told: Any) -> None:
        count = sum(parameter.numel() for parameter in backbone.parameters())
        state = {k: v for k, v in backbone.state_dict().items() if isinstance(v, Tensor)}
        told.update(differentiable=True, weights_hash=state_hash(state), parameters_count=count)
        super().__init__(name, kind, **told)
        self.backbone = backbone.eval()

    def _run(self, images: Tensor) -> tuple[object, Tensor | None]:
        x = self.normalise(images)
        if self.kind == "timm":
            backbone = cast(Any, self.backbone)
            final = backbone.forward_features(x)
            pooled = backbone.forward_head(final, pre_logits=True)
            return backbone.forward_head(final), pooled.flatten(1)
        taken: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
            for layer in self.backbone.modules()
            if isinstance(layer, nn.Linear)
        ]
        try:
            output = self.backbone(x)
        finally:
            for hook in hooks:
                hook.remove()
        return output, taken[-1] if taken and taken[-1].ndim == 2 else None

    def feature_maps(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Stages in order, each [B, C, h, w]. Raises `ModelError` where timm does not know them."""
        if not hasattr(self.backbone, "forward_intermediates"):
            raise ModelError(f"{self.name} has no named stages.", "Name a layer of it instead.")
        maps = cast(Any, self.backbone).forward_intermediates(
            self.normalise(images), intermediates_only=True, output_fmt="NCHW"
        )
        return OrderedDict((str(i), stage) for i, stage in enumerate(maps))


class GraphModel(GivenModel):
    """A function of prepared tensors whose inside is out of reach: ONNX, exported, a callable."""

    def __init__(
        self, call: Callable[[Tensor], object], intake: Intake, name: str, kind: Kind, **told: Any
    ) -> None:
        super().__init__(name, kind, **told)
        self.intake = intake
        self._call = (call,)  # a tuple, as an exported module must not become a child module

    def _run(self, images: Tensor) -> tuple[object, Tensor | None]:
        if self.intake.dtype != torch.uint8:
            images = self.normalise(images).to(self.intake.dtype)
        elif images.dtype != torch.uint8:
            images = (images * 255).round().clamp(0, 255).to(torch.uint8)
        if self.intake.layout == "NHWC":
            images = images.permute(0, 2, 3, 1)
        call = self._call[0]
        return in_batches(lambda x: self._scores(call(x)), images, self.intake.batch), None

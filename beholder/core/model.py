"""The noun of a model: backbone, preprocessing, head, class names."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .decode import Interpolation, resize
from .errors import ModelError
from .predictions import Predictions

Crop = Literal["squash", "center"]
Size = tuple[int, int]
"""(height, width)"""


class Backbone(nn.Module):
    """What is used of a timm model; never made, only named in types."""

    pretrained_cfg: dict[str, Any]
    num_features: int
    feature_info: Sequence[dict[str, Any]]
    forward_features: Callable[..., Tensor]
    forward_head: Callable[..., Tensor]
    forward_intermediates: Callable[..., Any]
    reset_classifier: Callable[..., None]
    get_classifier: Callable[[], nn.Module]


class DecisionHead(nn.Module):
    """Descriptor [B, F] to decisions [B, K] (`forward`), and those to calibrated `logits` [B, C].

    Decisions are averaged over `views` before they become logits.
    """

    def views(self, images: Tensor) -> list[Tensor]:
        """Versions of the images [B, 3, H, W] that are looked at."""
        return [images]

    def logits(self, decisions: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Taps:
    """Which intermediate maps of a timm backbone are pooled into the descriptor.

    A pyramid gives its last stages of reduction 8 and 16, a plain transformer its blocks at one
    and two thirds of the depth; the final map is always taken (specs/study.md, section 3).
    """

    indices: tuple[int, ...]
    prefix_tokens: int
    channels_last: bool

    @classmethod
    def of(cls, backbone: Backbone) -> Taps:
        info = list(getattr(backbone, "feature_info", None) or [])
        reductions = [stage["reduction"] for stage in info]
        indices: list[int] = []
        if hasattr(backbone, "forward_intermediates") and info:
            if len(set(reductions)) == 1:
                depth = len(reductions)
                indices = [max(round(depth / 3) - 1, 0), max(round(2 * depth / 3) - 1, 0)]
            else:
                last = {reduction: i for i, reduction in enumerate(reductions)}
                indices = [last[r] for r in (8, 16) if r in last and last[r] != len(reductions) - 1]
        return cls(
            tuple(sorted(set(indices))),
            int(getattr(backbone, "num_prefix_tokens", 0) or 0),
            getattr(backbone, "output_fmt", "NCHW") == "NHWC",
        )


def spread(maps: Tensor) -> list[Tensor]:
    """Mean, maximum and standard deviation over space of [B, C, h, w], each [B, C]."""
    flat = maps.flatten(2)
    return [flat.mean(2), flat.amax(2), flat.var(2, correction=0).clamp_min(0).sqrt()]


class VisionModel(nn.Module):
    """A timm backbone with its preprocessing inside; optionally a head and class names.

    Images are uint8, or float in [0, 1], [B, 3, H, W] at `input_size`.

    Args:
        backbone: a timm model; its own classifier, if any, is the portable linear model.
        input_size: (H, W) that the backbone is run at.
        head: descriptor [B, F] -> decisions [B, K]; see `beholder.train.heads`.
        mirror: the decision is the mean over the image and its mirror image.
        crop: 'squash' resizes both sides, 'center' resizes the short side and crops.
    """

    origin: Literal["made", "given"] = "made"
    backbone: Backbone
    head: DecisionHead | None
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        name: str,
        *,
        classes: Sequence[str] = (),
        input_size: Size | None = None,
        head: DecisionHead | None = None,
        mirror: bool = False,
        crop: Crop = "squash",
    ) -> None:
        super().__init__()
        config = backbone.pretrained_cfg
        self.backbone = backbone
        backbone.eval()
        self.name = name
        self.classes = tuple(classes)
        height, width = input_size or config["input_size"][1:]
        self.input_size: Size = (height, width)
        self.interpolation: Interpolation = config.get("interpolation") or "bicubic"
        self.crop: Crop = crop
        self.head = head
        self.mirror = mirror
        self.assumptions: list[str] = []
        self.taps = Taps.of(backbone)
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, -1, 1, 1), persistent=False)
        self._layout: dict[str, slice] | None = None

    def normalise(self, images: Tensor) -> Tensor:
        """[0, 1] (or uint8) to what the backbone was trained on."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images - self._mean) / self._std

    def parts(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The pooled depths by name, each [B, C]: `tap0_mean` ..., `pooled`, `final_max` ..."""
        x = self.normalise(images)
        named: OrderedDict[str, Tensor] = OrderedDict()
        prefix = self.taps.prefix_tokens > 0
        if self.taps.indices:
            options = {"return_prefix_tokens": True} if prefix else {}
            final, maps = self.backbone.forward_intermediates(
                x, indices=list(self.taps.indices), **options
            )
        else:
            final, maps = self.backbone.forward_features(x), []
        for i, tapped in enumerate(maps):
            tokens = None
            if prefix:
                tapped, tokens = tapped
            for kind, value in zip(("mean", "max", "std"), spread(tapped), strict=True):
                named[f"tap{i}_{kind}"] = value
            if tokens is not None:
                named[f"tap{i}_class"] = tokens[:, 0]
        named["pooled"] = self.backbone.forward_head(final, pre_logits=True).flatten(1)
        space = self._space(final)
        mean, peak, deviation = spread(space)
        named["final_max"] = peak
        if final.ndim == 3:
            named["final_mean"], named["final_std"] = mean, deviation
        return named

    def _space(self, final: Tensor) -> Tensor:
        """The final map as [B, C, h, w] (tokens: [B, C, N, 1])."""
        if final.ndim == 2:
            return final[:, :, None, None]
        if final.ndim == 3:
            return final[:, self.taps.prefix_tokens :].transpose(1, 2).unsqueeze(-1)
        return final.permute(0, 3, 1, 2) if self.taps.channels_last else final

    def descriptor(self, images: Tensor) -> Tensor:
        """All pooled depths of one view, [B, F]; `layout` says what stands where."""
        return torch.cat(list(self.parts(images).values()), 1)

    @property
    def layout(self) -> dict[str, slice]:
        """Part of the descriptor -> its columns."""
        if self._layout is None:
            with torch.inference_mode():
                blank = torch.zeros(1, 3, *self.input_size, device=self._mean.device)
                sizes = {name: part.shape[1] for name, part in self.parts(blank).items()}
            ends = np.cumsum(list(sizes.values()))
            self._layout = {
                name: slice(int(end - size), int(end))
                for (name, size), end in zip(sizes.items(), ends, strict=True)
            }
        return self._layout

    def features(self, images: Tensor) -> Tensor:
        """The pooled final map, as before the backbone's own classifier: [B, D]."""
        return self.parts(images)["pooled"]

    def feature_maps(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Stages in order, each [B, C, h, w]."""
        maps = self.backbone.forward_intermediates(
            self.normalise(images), intermediates_only=True, output_fmt="NCHW"
        )
        return OrderedDict((str(i), stage) for i, stage in enumerate(maps))

    def logits(self, images: Tensor) -> Tensor:
        """Logits of the model as deployed (head and mirror, or the backbone's own classifier):
        [B, C].

        Raises:
            ModelError: it has neither.
        """
        if self.head is None:
            if not self.classes:
                raise ModelError(f"{self.name} has no head.", "Train one: beholder study DATA.")
            final = self.backbone.forward_features(self.normalise(images))
            return self.backbone.forward_head(final)
        views = self.head.views(images)
        if self.mirror:
            views = [*views, *(view.flip(-1) for view in views)]
        decisions = torch.stack([self.head(self.descriptor(view)) for view in views]).mean(0)
        return self.head.logits(decisions)

    forward = logits

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """RGB uint8 [h, w, 3] of any size to [H, W, 3] at `input_size`."""
        return resize(image, self.input_size, self.crop, self.interpolation)

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> Predictions:
        """Probabilities for RGB uint8 images of any size."""
        batch = torch.from_numpy(np.stack([self.prepare(image) for image in images]))
        batch = batch.permute(0, 3, 1, 2).to(self._mean.device)
        return Predictions(self.classes, self.logits(batch).softmax(1).cpu().numpy())

    @property
    def weights_hash(self) -> str:
        """BLAKE2b-128 of the backbone's state (names, shapes, bytes), without its classifier."""
        return state_hash(encoder_state(self.backbone))

    @property
    def head_hash(self) -> str:
        """`state_hash` of the head; empty without one."""
        return "" if self.head is None else state_hash(self.head.state_dict())

    @property
    def parameters_count(self) -> int:
        return sum(
            p.numel() for p in encoder_state(self.backbone).values() if p.is_floating_point()
        )

    def describe(self) -> dict[str, object]:
        """Everything that decides the descriptor, for cache keys and the report."""
        return {
            "architecture": self.backbone.pretrained_cfg["architecture"],
            "weights": self.weights_hash,
            "taps": list(self.taps.indices),
            "size": list(self.input_size),
            "crop": self.crop,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def encoder_state(backbone: Backbone) -> dict[str, Tensor]:
    """The state dict without the classifier (which `reset_classifier` may replace)."""
    classifier = backbone.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {
        key: value
        for key, value in backbone.state_dict().items()
        if not any(key.startswith(f"{name}.") for name in names)
    }


def state_hash(state: dict[str, Tensor]) -> str:
    """BLAKE2b-128 over sorted names, types, shapes and bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        hasher.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        hasher.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return hasher.hexdigest()

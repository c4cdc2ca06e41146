"""MODEL of the command line as a `VisionModel`: a run, a timm name, a module, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import timm
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from beholder.core.errors import ModelError
from beholder.core.model import Backbone, VisionModel

from .encoder import create_encoder
from .run import is_run, load

Spec = str | Path | nn.Module | None


def open_vision(
    model: Spec = None, *, input_size: tuple[int, int] | None = None, seed: int = 0
) -> VisionModel:
    """A model to explain, attack, fit a detector on, or take features from.

    Args:
        model: None = the embedded encoder; a run directory; a timm name, `local-dir:PATH` or
            `untrained:NAME`; a timm module; a `VisionModel` (returned as it is).
        input_size: (H, W); None = the model's own.
        seed: of random weights.

    Raises:
        ModelError: no such run or name; a module that is no timm model.
    """
    if isinstance(model, VisionModel):
        return model
    if isinstance(model, nn.Module):
        if not hasattr(model, "forward_features") or not hasattr(model, "pretrained_cfg"):
            raise ModelError(
                f"{type(model).__name__} is no timm model.",
                "Give a timm model, or a VisionModel made of one.",
            )
        backbone, name = cast(Backbone, model), type(model).__name__
    elif model is not None and is_run(Path(model)):
        return load(model)
    elif str(model).startswith("local-dir:"):
        backbone = cast(Backbone, timm.create_model(str(model), pretrained=True))
        name = str(model)
    else:
        backbone, _ = create_encoder(None if model is None else str(model), seed)
        name = str(model or backbone.pretrained_cfg["architecture"])
    return VisionModel(backbone, name, classes=_classes(backbone), input_size=input_size)


def _classes(backbone: Backbone) -> tuple[str, ...]:
    """Names of the outputs of the backbone's own classifier; () without one."""
    count = int(getattr(backbone, "num_classes", 0) or 0)
    named = backbone.pretrained_cfg.get("label_names")
    if named and len(named) == count:
        return tuple(named)
    subset = infer_imagenet_subset({"num_classes": count}) if count else None
    if subset:
        return tuple(ImageNetInfo(subset).label_names())
    return tuple(str(index) for index in range(count))

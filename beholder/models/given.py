"""Models that the user already has, opened so that all answer alike (specs/study.md, section 3).

timm models with their classifier, local directories and hub names, ONNX, torch.export programs,
weights for a named architecture, modules and callables. None is trained here, and no file that can
run code of its own is opened.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import load_state_dict
from torch import Tensor, nn

from beholder.core.errors import ModelError
from beholder.core.model import Crop

from .encoder import create_encoder, create_pretrained
from .given_model import GivenModel, GraphModel, TorchModel
from .graphs import LOAD_ERRORS, open_exported, open_onnx, unopened
from .intake import Intake, Preprocess, Size, Told, names_in_order, read_preprocess, wrong_count

WEIGHT_FILES = {".safetensors", ".pt", ".pth", ".bin"}


def open_model(
    spec: str | Path | nn.Module | Callable[[Tensor], object],
    *,
    classes: Sequence[str] | None = None,
    preprocess: Path | Preprocess | None = None,
    judge: bool = True,
    input_size: Size | None = None,
    crop: Crop = "squash",
) -> GivenModel:
    """Open a model to be judged, not trained.

    Args:
        spec: a timm name, `local-dir:PATH`, `hf-hub:NAME`, a file `.onnx` or `.pt2`,
            `ARCHITECTURE:FILE` with weights (`.safetensors`, or a state dict `.pt`, `.pth`,
            `.bin`), an `nn.Module` that takes normalised floats, or a callable
            uint8 [B, 3, H, W] -> logits or probabilities [B, C].
        classes: names of the outputs in order, where the model has none or wrong ones.
        preprocess: what the model wants done to pixels, where it does not say.
        judge: False = a bare timm name is meant as an encoder, which is refused here.
        input_size: (height, width), where the model takes any.

    Raises:
        ModelError: no such file, name or hub; a file that is broken, of another kind or able to
            run code; a model that is no classifier, or does not fit what was said of it.
        MissingExtraError: ONNX without onnxruntime.
    """
    if isinstance(spec, GivenModel):
        return spec
    if isinstance(preprocess, Path):
        preprocess = read_preprocess(preprocess)
    told = Told(tuple(classes) if classes else None, preprocess, input_size, crop)
    with torch.random.fork_rng(devices=[]):
        if isinstance(spec, nn.Module):
            return _open_module(spec, type(spec).__name__, told)
        if isinstance(spec, str | Path):
            return _open_named(str(spec), told, judge)
        return _open_callable(spec, told)


def _open_named(spec: str, told: Told, judge: bool) -> GivenModel:
    source, _, rest = spec.partition(":")
    if rest and source == "local-dir":
        return _open_directory(Path(rest), told)
    if rest and source in ("hf-hub", "hf_hub"):
        return _open_timm(create_pretrained(f"hf-hub:{rest}"), rest, told, registered=False)
    if rest and re.fullmatch(r"\w[\w.]+", source) and Path(rest).suffix.lower() in WEIGHT_FILES:
        return _open_weights(source, _existing(Path(rest)), told)
    path = Path(spec)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return open_onnx(_existing(path), told)
    if suffix == ".pt2":
        return open_exported(_existing(path), told)
    if suffix in WEIGHT_FILES:
        read_state(_existing(path))
        raise ModelError(
            f"{path.name} holds weights without their architecture.",
            f"Name it: --model ARCHITECTURE:{path}, for example resnet18:{path}.",
        )
    if path.exists() or "/" in spec or "\\" in spec:
        raise ModelError(
            f"{spec!r} is no model file (.onnx, .pt2) and no timm name.",
            f"For a folder with config.json say local-dir:{spec}, for the hub hf-hub:{spec}.",
        )
    if not judge:
        raise ModelError(
            f"{spec!r} is a timm name, which means an encoder.",
            "To judge its own classifier, add --judge.",
        )
    backbone, notes = create_encoder(spec)
    return _open_timm(backbone, spec, told, registered=True, notes=notes)


def _open_timm(
    backbone: nn.Module,
    name: str,
    told: Told,
    *,
    registered: bool,
    notes: Sequence[str] = (),
    preprocess_known: bool = True,
) -> GivenModel:
    """A timm model with its classifier. `registered`: the weights are those that timm names."""
    notes = list(notes)
    config: Mapping[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    outputs = int(getattr(backbone, "num_classes", 0))
    if outputs < 2:
        raise ModelError(
            f"{name} has no classifier: it gives features only.",
            "Leave out --judge: beholder then trains a head on it.",
        )
    classes = told.classes
    if classes is None and config.get("num_classes") == outputs and config.get("label_names"):
        classes = names_in_order(config["label_names"], outputs)
    elif classes is None and (subset := infer_imagenet_subset({"num_classes": outputs})):
        classes = tuple(ImageNetInfo(subset).label_names())
        if not registered:
            notes.append(f"{outputs:,} unnamed outputs are assumed to be the classes of {subset}.")
    if classes and len(classes) != outputs:
        raise wrong_count(name, classes, outputs)
    own = Preprocess(
        mean=config["mean"], std=config["std"], interpolation=config.get("interpolation", "bicubic")
    )
    if not preprocess_known and not told.normalises:
        notes.append(
            f"The file does not say how its images are normalised: {config['architecture']}'s mean "
            "and deviation are assumed (--preprocess FILE says otherwise)."
        )
    native = tuple(config["input_size"][1:])
    fixed = native if config.get("fixed_input_size") else None
    return TorchModel(
        backbone,
        name,
        "timm",
        classes=classes,
        input_size=told.size(fixed, native, notes, name),
        preprocess=told.normalisation(own, notes),
        crop=told.crop,
        assumptions=notes,
    )


def _open_directory(path: Path, told: Told) -> GivenModel:
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} has no config.json.", "local-dir: wants a folder in timm's layout."
        )
    try:
        backbone = timm.create_model(f"local-dir:{path}", pretrained=True)
    except LOAD_ERRORS as error:
        raise unopened(path, "a folder in timm's layout", error) from error
    return _open_timm(backbone, path.resolve().name, told, registered=False)


def _open_weights(architecture: str, path: Path, told: Told) -> GivenModel:
    """Weights for a timm architecture; the number of classes is that of its classifier."""
    if not timm.is_model(architecture):
        raise ModelError(f"timm knows no architecture {architecture!r}.", "See timm.list_models().")
    state = read_state(path)
    config = timm.get_pretrained_cfg(architecture)
    classifier = config.classifier if config else None
    head = classifier[0] if isinstance(classifier, tuple | list) else classifier
    weight = state.get(f"{head}.weight")
    if weight is None:
        raise ModelError(
            f"{path.name} has no classifier: {head}.weight of {architecture} is not in it.",
            "Is the architecture right?",
        )
    backbone = timm.create_model(architecture, pretrained=False, num_classes=len(weight))
    try:
        backbone.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise unopened(path, f"the weights of {architecture}", error) from error
    return _open_timm(backbone, path.stem, told, registered=False, preprocess_known=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """Parameter name -> tensor of a weights file, without running what a pickle may hold.

    Raises:
        ModelError: a pickled object, a broken file, or something else than a state dict.
    """
    try:
        state = load_state_dict(str(path), weights_only=True)
    except LOAD_ERRORS as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise unopened(path, "a file of weights", error) from error
        raise ModelError(
            f"{path.name} is a pickled Python object: opening it could run any code, so it is "
            "refused.",
            "Save the model with torch.export.save (.pt2), as ONNX, or save its state_dict() and "
            "say ARCHITECTURE:FILE. In Python, pass the module itself.",
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path.name} holds no state dict (names of parameters and tensors).")
    return state


def _open_module(module: nn.Module, name: str, told: Told) -> GivenModel:
    """An `nn.Module` given in Python; one made by timm brings its own preprocessing."""
    config = getattr(module, "pretrained_cfg", None)
    if config and hasattr(module, "forward_head"):
        architecture = config.get("architecture", name)
        return _open_timm(module, architecture, told, registered=False)
    notes: list[str] = []
    return TorchModel(
        module,
        name,
        "module",
        classes=told.classes,
        input_size=told.size(None, None, notes, name),
        preprocess=told.normalisation(None, notes),
        crop=told.crop,
        assumptions=notes,
    )


def _open_callable(call: Callable[[Tensor], object], told: Told) -> GivenModel:
    notes: list[str] = []
    name = getattr(call, "__name__", type(call).__name__)
    return GraphModel(
        call,
        Intake(dtype=torch.uint8),
        name,
        "callable",
        classes=told.classes,
        input_size=told.size(None, None, notes, name),
        preprocess=told.untouched(name),
        crop=told.crop,
        differentiable=False,
        weights_hash=None,
        parameters_count=None,
        assumptions=notes,
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"The model file {path} {what}.", "Check the path given to --model.")
    return path

"""Which layer of a network has the map that its answer is read from.

No list of architectures: a probe runs through the model once, and of the places where timm models
have their maps (top-level modules, stages, blocks, the first norm of blocks) the last one is taken
that has more than one cell and a gradient there. So a convolutional network is explained at the map
before its pooling, and a transformer with a class token at the first norm of its last block: behind
the last attention only the class token carries gradient (jacobgil/pytorch-grad-cam, issues 76 and
513).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from beholder.core.errors import ArgumentError, ModelError
from beholder.core.model import Backbone, VisionModel

ANY = re.compile("")
TOP_OR_BLOCK = re.compile(r"^[^.]+$|\.\d+$")
FIRST_NORM = re.compile(r"\.norm(1\d?|_out)$")
PREFERRED = {"SwinTransformer": re.compile(r"\.norm2$"), "CoaT": FIRST_NORM}
"""Type of backbone -> layers to be preferred to its last map: Swin's second norm
(frgfm/torch-cam, issue 412); CoaT's last modules have a map for every attention head."""
UNDECLARED_PREFIXES = (0, 1, 2)
MOST_DISTORTION, MOST_DISTORTION_OF_TOKENS = 0.35, 0.15
PROBE_SEED = 0


def module_named(backbone: Backbone, name: str) -> nn.Module:
    """The layer of that dotted name.

    Raises:
        ArgumentError: there is none; the nearest names are shown.
    """
    modules = dict(backbone.named_modules())
    if not name or name not in modules:
        near = difflib.get_close_matches(name, modules, n=5, cutoff=0.0)
        raise ArgumentError(f"There is no layer {name!r}.", f"Near: {', '.join(near)}.")
    return modules[name]


def as_maps(output: Tensor, size: Sequence[int], backbone: Backbone) -> Tensor:
    """The output of a layer as [B, C, h, w], a view of it; tokens before the patches are left out.

    Args:
        output: [B, C, h, w], [B, h, w, C] or [B, N, C].
        size: (H, W) of the images.

    Raises:
        ArgumentError: it has no places in the image.
    """
    if output.ndim == 4:
        maps = output.permute(0, 3, 1, 2) if _channels_last(output, size, backbone) else output
        if _distortion(maps.shape[2], maps.shape[3], size) < MOST_DISTORTION:
            return maps
    if output.ndim == 3:
        prefix, height, width = _grid(output.shape[1], size, backbone)
        return output[:, prefix:].unflatten(1, (height, width)).permute(0, 3, 1, 2)
    raise ArgumentError(
        f"An output of shape {tuple(output.shape)} has no places in the image.",
        "Name a layer before the pooling.",
    )


def _distortion(height: int, width: int, size: Sequence[int]) -> float:
    """How far a map is from the image's proportions: |log| of their ratio."""
    return abs(math.log(height / width) - math.log(size[0] / size[1]))


def _channels_last(output: Tensor, size: Sequence[int], backbone: Backbone) -> bool:
    """Whether the two middle axes have the image's proportions, rather than the last two."""
    _, a, b, c = output.shape
    last, first = _distortion(a, b, size), _distortion(b, c, size)
    if math.isclose(last, first):
        return getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    return last < first


def _grid(tokens: int, size: Sequence[int], backbone: Backbone) -> tuple[int, int, int]:
    """(prefix, h, w): how many tokens come before the patches, and how those are laid out."""
    declared = int(getattr(backbone, "num_prefix_tokens", 0) or 0)
    for prefix in (declared, *UNDECLARED_PREFIXES):
        patches = tokens - prefix
        height = round(math.sqrt(max(patches, 0) * size[0] / size[1]))
        if height and patches % height == 0:
            width = patches // height
            if _distortion(height, width, size) < MOST_DISTORTION_OF_TOKENS:
                return prefix, height, width
    raise ArgumentError(
        f"{tokens} tokens are no grid on an image of {size[0]} x {size[1]}.", "Name another layer."
    )


@contextmanager
def tapped(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a layer, one per call, as leaves: gradients end there, and what lies before
    costs no memory. The next layer gets a copy, which it may change in place."""
    leaves: list[Tensor] = []

    def leave(_: nn.Module, __: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1].clone()

    hook = layer.register_forward_hook(leave)
    try:
        yield leaves
    finally:
        hook.remove()


@contextmanager
def watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a layer, one per call, where they stand in the graph."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        outputs.append(output)

    hook = layer.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


def find_layer(model: VisionModel, read: Callable[[Tensor], Tensor], size: Sequence[int]) -> str:
    """Name of the layer whose map the score is read from.

    Args:
        read: images [1, 3, H, W] to scores [1].
        size: (H, W) of the images.

    Raises:
        ModelError: no map with a gradient was found; the layer has to be named.
    """
    generator = torch.Generator().manual_seed(PROBE_SEED)
    probe = torch.rand(1, 3, *size, generator=generator).to(next(model.buffers()).device)
    names = _places(model.backbone)
    seen: dict[str, Tensor] = {}  # in the order of their last call

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                seen.pop(name, None)
                seen[name] = output

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in names.items()]
    try:
        score = read(probe.requires_grad_(True))
    finally:
        for hook in hooks:
            hook.remove()
    found = [name for name in reversed(seen) if _has_cells(seen[name], size, model.backbone)]
    if found and score.requires_grad:
        outputs = [seen[name] for name in found]
        gradients = torch.autograd.grad(score.sum(), outputs, allow_unused=True)
        read_from = [
            name
            for name, gradient in zip(found, gradients, strict=True)
            if gradient is not None and _cells(gradient, size, model.backbone) > 1
        ]
        wanted = PREFERRED.get(type(model.backbone).__name__, ANY)
        better = [name for name in read_from if wanted.search(name)]
        if read_from:
            return (better or read_from)[0]
    raise ModelError(
        f"No layer of {model.name} has a map that this score depends on.",
        "Name one with --layer, or use a method that needs none, such as occlusion.",
    )


def _places(backbone: Backbone) -> dict[str, nn.Module]:
    """Where timm models have their maps: by name, the modules that may be asked."""
    stages = {str(stage.get("module")) for stage in getattr(backbone, "feature_info", None) or []}
    known = PREFERRED.get(type(backbone).__name__, FIRST_NORM)
    return {
        name: module
        for name, module in backbone.named_modules()
        if name in stages or TOP_OR_BLOCK.search(name) or known.search(name)
    }


def _has_cells(output: Tensor, size: Sequence[int], backbone: Backbone) -> bool:
    try:
        return as_maps(output, size, backbone)[0, 0].numel() > 1
    except ArgumentError:
        return False


def _cells(gradient: Tensor, size: Sequence[int], backbone: Backbone) -> int:
    """At how many places the gradient is not 0."""
    return int(as_maps(gradient, size, backbone)[0].abs().amax(0).count_nonzero())

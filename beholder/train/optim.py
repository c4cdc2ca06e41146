"""Optimisers, their groups of parameters, and the learning rate as a pure function of the step."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2  # type: ignore[reportPrivateImportUsage]
from torch import nn

from beholder.core.errors import ArgumentError
from beholder.core.model import VisionModel

Optimiser = Literal["adamw", "sgd", "rmsprop", "lars", "lamb"]
Curve = Literal["cosine", "linear", "polynomial", "step", "exponential", "constant"]

TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {}),
    "sgd": ("nesterov", {"momentum": 0.9}),
    "rmsprop": ("rmsproptf", {"momentum": 0.9, "alpha": 0.9, "eps": 1e-3}),
    "lars": ("lars", {"momentum": 0.9, "trust_coeff": 1e-3}),
    "lamb": ("lamb", {}),
}
"""Our name -> timm's, and its settings."""
RATES = {"adamw": 1e-3, "sgd": 0.05, "rmsprop": 5e-3, "lars": 0.2, "lamb": 5e-3}
"""Learning rates to start from, for batches of about 64."""


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    layer_decay: float | None = None,
    no_decay: Collection[str] = (),
    scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups that share learning rate and decay; every trainable parameter stands in exactly one.

    Args:
        model: a `VisionModel`, or any module.
        layer_decay: see `layered`.
        no_decay: patterns of names without decay, beside biases, norms (ndim <= 1) and what the
            backbone itself names.
        scales: pattern of a name -> factor of its learning rate, such as of a new head.

    Returns:
        Dicts with `params`, `lr`, `weight_decay`. Frozen parameters are in none.
    """
    own = getattr(getattr(model, "backbone", model), "no_weight_decay", set)()
    patterns = [*no_decay, *(f"*{name}" for name in own)]
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bare = parameter.ndim <= 1 or name.endswith(".bias") or _matches(name, patterns)
        rate = lr * math.prod(x for p, x in (scales or {}).items() if fnmatch.fnmatch(name, p))
        decay = 0.0 if bare else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    found = list(groups.values())
    return found if layer_decay is None else layered(found, model, layer_decay)


def layered(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, decay: float
) -> list[dict[str, Any]]:
    """Groups whose rates fall from the head of a backbone down: lr d^(L - i) in layer i of L, by
    timm's `group_matcher`. What is not of the backbone keeps its rate.

    Raises:
        ArgumentError: the backbone does not say what its layers are.
    """
    backbone = model.backbone if isinstance(model, VisionModel) else model
    if not hasattr(backbone, "group_matcher"):
        raise ArgumentError(
            f"layer_decay = {decay}: {type(backbone).__name__} does not say what its layers are.",
            "Leave it out, or use a backbone of timm.",
        )
    matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    layer = cast(dict[str, int], group_parameters(backbone, matcher, reverse=True))
    last = max(layer.values())
    scale = {id(p): decay ** (last - layer[name]) for name, p in backbone.named_parameters()}
    found = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(scale.get(id(parameter), 1.0), []).append(parameter)
        found += [
            {**group, "params": parameters, "lr": group["lr"] * factor}
            for factor, parameters in parts.items()
        ]
    return found


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def make_optimiser(
    kind: str, groups: list[dict[str, Any]], momentum: float | None = None
) -> torch.optim.Optimizer:
    """timm's optimiser over `groups`, each with its `lr` and `weight_decay`.

    `initial_lr` and `initial_weight_decay` are kept in the groups, for `set_rates`.

    Raises:
        ArgumentError: no such optimiser, no parameters, or one that stands in two groups.
    """
    if kind not in TIMM:
        raise ArgumentError(f"There is no optimiser {kind!r}.", f"There is: {', '.join(TIMM)}.")
    parameters = [parameter for group in groups for parameter in group["params"]]
    if not parameters:
        raise ArgumentError("Nothing is to be trained: every parameter is frozen.")
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise ArgumentError("A parameter stands in two groups of the optimiser.")
    groups = [group for group in groups if group["params"]]
    name, own = TIMM[kind]
    settings: dict[str, Any] = {**own}
    if momentum is not None and "momentum" in settings:
        settings["momentum"] = momentum
        if kind == "sgd" and momentum == 0:
            name = "momentum"  # Nesterov's needs some
    optimiser = create_optimizer_v2(groups, opt=name, lr=groups[0]["lr"], **settings)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
        group["initial_weight_decay"] = group["weight_decay"]
    return optimiser


def set_rates(optimiser: torch.optim.Optimizer, rate: float, decay: float = 1.0) -> None:
    """Learning rates (and weight decays) of all groups as shares of their initial ones."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * rate
        group["weight_decay"] = group["initial_weight_decay"] * decay


def rate(
    step: int,
    total: int,
    curve: Curve = "cosine",
    *,
    warmup: int = 0,
    floor: float = 0.0,
    per_epoch: float = 1.0,
) -> float:
    """Share of the full learning rate at a step, 0 to 1.

    s / W in the `warmup` steps W; then, with t = (s - W) / (T - W), cosine: (1 + cos(pi t)) / 2;
    linear: 1 - t; polynomial: (1 - t)^2; step: 0.1 from t = 1/3 on, 0.01 from 2/3; exponential:
    0.97 per 2.4 epochs (NASNet, EfficientNet); all of it from 1 down to `floor`.

    Args:
        total: steps of the run, T.
        per_epoch: steps of an epoch, for 'exponential'.
    """
    if step < warmup:
        return step / warmup
    t = min((step - warmup) / max(total - warmup, 1), 1.0)
    shares = {
        "cosine": (1 + math.cos(math.pi * t)) / 2,
        "linear": 1 - t,
        "polynomial": (1 - t) ** 2,
        "step": 0.1 ** math.floor(min(3 * t, 2.0)),
        "exponential": 0.97 ** math.floor((step - warmup) / (2.4 * per_epoch)),
        "constant": 1.0,
    }
    return floor + (1 - floor) * shares[curve]

"""Classifier heads on a descriptor, and their form on disk.

A head maps a descriptor [B, F] to decisions [B, K]; those of the image and of its mirror image are
averaged, then calibrated to logits [B, C]. Everything is differentiable, so that explanations and
attacks run through it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from beholder.core.errors import ModelError
from beholder.core.files import write_bytes, write_json
from beholder.core.model import DecisionHead

from .jitter import versions

DAMAGED = (
    *(OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError),
    SafetensorError,
)
"""What reading a damaged head or model raises."""

Kind = Literal["nearest_mean", "logistic", "kernel", "unit", "blend"]
LARGEST_MIB = 40
"""What a kernel head may weigh; `train.heads` keeps fewer points where it would be more."""


class Calibration(nn.Module):
    """Decisions [B, K] to logits [B, C] whose soft max is calibrated.

    Two classes have one margin (K = 1). More have one decision each: logits of one soft max
    (`joint`, scaled by a temperature), or margins that are calibrated one by one and normalised.
    """

    slope: Tensor
    shift: Tensor

    def __init__(self, classes: int, joint: bool) -> None:
        super().__init__()
        self.classes, self.joint = classes, joint
        outputs = 1 if classes == 2 else classes
        self.register_buffer("slope", torch.ones(outputs))
        self.register_buffer("shift", torch.zeros(outputs))

    def forward(self, decisions: Tensor) -> Tensor:
        scaled = decisions * self.slope + self.shift
        if self.classes == 2:
            return torch.cat([torch.zeros_like(scaled), scaled], 1)
        return scaled if self.joint else nn.functional.logsigmoid(scaled)

    def fit(self, decisions: np.ndarray, labels: np.ndarray) -> Self:
        """On cross-fitted decisions: a temperature for soft max, Platt's a and b for margins.

        A margin with fewer than 3 images on either side stays as it is.
        """
        # Here, because a model that is only opened and asked should not wait for scipy.
        from beholder.metrics.calibration import fit_platt, fit_temperature

        if self.joint:
            zero = np.zeros_like(decisions)
            logits = np.concatenate([zero, decisions], 1) if self.classes == 2 else decisions
            self.slope.fill_(1 / fit_temperature(logits, labels))
            return self
        for k in range(decisions.shape[1]):
            positive = labels == (1 if self.classes == 2 else k)
            if min(positive.sum(), (~positive).sum()) >= 3:
                self.slope[k], self.shift[k] = fit_platt(decisions[:, k], positive)
        return self


class Head(DecisionHead):
    """What all heads share: `forward` to decisions, `logits` of decisions."""

    kind: Kind

    def __init__(self, classes: int, joint: bool) -> None:
        super().__init__()
        self.classes = classes
        self.calibration = Calibration(classes, joint)

    def logits(self, decisions: Tensor) -> Tensor:
        """Calibrated [B, C]."""
        return self.calibration(decisions)

    def raw_logits(self, decisions: Tensor) -> Tensor:
        """[B, C] before calibration."""
        return Calibration(self.classes, joint=True)(decisions)

    def fit_calibration(self, decisions: np.ndarray, labels: np.ndarray) -> None:
        """On cross-fitted decisions [n, K] and class indices [n]."""
        self.calibration.fit(decisions, labels)

    def record(self) -> dict[str, Any]:
        """What `restore` needs beside the tensors."""
        return {"kind": self.kind, "classes": self.classes, "joint": self.calibration.joint}


class LinearHead(Head):
    """`weight` [K, F], `bias` [K] on standardised features; `mean`, `scale` [F]."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, classes: int, joint: bool
    ) -> None:
        super().__init__(classes, joint)
        self.kind = "logistic" if joint else "nearest_mean"
        for name, value in (("mean", mean), ("scale", scale), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, value)

    def forward(self, descriptor: Tensor) -> Tensor:
        return (descriptor.float() - self.mean) / self.scale @ self.weight.T + self.bias


class KernelHead(Head):
    """exp(-gamma |x - point|^2) @ `alpha` + `bias`: support vectors, or landmarks of Nystroem.

    `points` are float16 [M, F], standardised; `alpha` [M, K].
    """

    kind = "kernel"
    mean: Tensor
    scale: Tensor
    points: Tensor
    alpha: Tensor
    bias: Tensor
    gamma: Tensor

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        points: Tensor,
        alpha: Tensor,
        bias: Tensor,
        gamma: Tensor,
        classes: int,
        joint: bool = False,
    ) -> None:
        super().__init__(classes, joint)
        self.register_buffer("points", points.half())
        for name, value in (("mean", mean), ("scale", scale), ("alpha", alpha), ("bias", bias)):
            self.register_buffer(name, value)
        self.register_buffer("gamma", gamma)

    def forward(self, descriptor: Tensor) -> Tensor:
        x, points = (descriptor.float() - self.mean) / self.scale, self.points.float()
        squares = x.square().sum(1, keepdim=True) + points.square().sum(1) - 2 * x @ points.T
        return (-self.gamma * squares.clamp_min(0)).exp() @ self.alpha + self.bias


class UnitHead(Head):
    """`weight` [K, D], `bias` [K] on one part of the descriptor, after the power sign(v)|v|^p of
    each component brought to length 1: off-the-shelf features (survey row 24).

    `columns` [2] = first and last + 1 of the part; `power` p; `jitter` 1, or 16 = decisions are
    averaged over `jitter.versions`. All are tensors, so that they are saved with the weights.
    """

    kind = "unit"
    weight: Tensor
    bias: Tensor
    columns: Tensor
    power: Tensor
    jitter: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        columns: Tensor,
        power: Tensor,
        jitter: Tensor,
        classes: int,
        joint: bool = True,
    ) -> None:
        super().__init__(classes, joint)
        for name, value in (("weight", weight), ("bias", bias), ("columns", columns)):
            self.register_buffer(name, value)
        self.register_buffer("power", power)
        self.register_buffer("jitter", jitter)

    def views(self, images: Tensor) -> list[Tensor]:
        return versions(images) if self.jitter > 1 else [images]

    def forward(self, descriptor: Tensor) -> Tensor:
        first, end = self.columns.tolist()
        return (
            powered_unit(descriptor[:, first:end].float(), self.power) @ self.weight.T + self.bias
        )


TINY = 1e-12
"""A root has no slope at 0, where many features stand: below this none is given to it."""


def powered_unit(features: Tensor, power: Tensor | float) -> Tensor:
    """sign(v)|v|^power, then length 1 (a row of zeros stays): [B, D]."""
    powered = features.sign() * features.abs().clamp_min(TINY) ** power
    return nn.functional.normalize(powered, dim=1)


class BlendHead(Head):
    """The mean of the calibrated logits of several heads; decisions are theirs, side by side."""

    kind = "blend"

    def __init__(self, heads: list[Head]) -> None:
        super().__init__(heads[0].classes, joint=True)
        self.heads = nn.ModuleList(heads)

    @property
    def parts(self) -> list[Head]:
        return cast(list[Head], list(self.heads))

    def forward(self, descriptor: Tensor) -> Tensor:
        return torch.cat([head(descriptor) for head in self.parts], 1)

    def _mean(self, decisions: Tensor) -> Tensor:
        """Decisions of the blend itself, in the form that `calibration` takes."""
        shares = decisions.chunk(len(self.parts), 1)
        logits = [head.logits(share) for head, share in zip(self.parts, shares, strict=True)]
        mean = torch.stack(logits).mean(0)
        return mean[:, 1:] - mean[:, :1] if self.classes == 2 else mean

    def logits(self, decisions: Tensor) -> Tensor:
        return self.calibration(self._mean(decisions))

    def raw_logits(self, decisions: Tensor) -> Tensor:
        return super().raw_logits(self._mean(decisions))

    def fit_calibration(self, decisions: np.ndarray, labels: np.ndarray) -> None:
        shares = np.split(decisions, len(self.parts), axis=1)
        for head, share in zip(self.parts, shares, strict=True):
            head.fit_calibration(share, labels)
        mean = self._mean(torch.from_numpy(decisions).float()).double().numpy()
        self.calibration.fit(mean, labels)

    def record(self) -> dict[str, Any]:
        return super().record() | {"heads": [head.record() for head in self.parts]}


FORMS: dict[str, type[KernelHead | UnitHead]] = {"kernel": KernelHead, "unit": UnitHead}
"""Kinds that are not linear on the whole descriptor."""


def copy_calibration(source: Head, target: Head) -> None:
    """Give `target` the calibration of `source`, a head of the same form."""
    pairs = zip(source.modules(), target.modules(), strict=True)
    for old, new in pairs:
        if isinstance(old, Calibration):
            new.load_state_dict(old.state_dict())


def restore(record: dict[str, Any], state: dict[str, Tensor]) -> Head:
    """A head from what `record` and `state_dict` gave. Raises KeyError, TypeError, RuntimeError."""
    if record["kind"] == "blend":
        parts = [
            restore(part, {key[8:]: v for key, v in state.items() if key.startswith(f"heads.{i}.")})
            for i, part in enumerate(record["heads"])
        ]
        head: Head = BlendHead(parts)
    else:
        form = FORMS.get(record["kind"], LinearHead)
        own = {key: value for key, value in state.items() if "." not in key}
        head = form(**own, classes=record["classes"], joint=record["joint"])
    head.load_state_dict(state)
    return head.eval()


def save_head(head: Head, facts: dict[str, object], directory: Path) -> None:
    """`head.safetensors` and `head.json`.

    Raises:
        StorageError: disk full or read-only.
    """
    tensors = {  # copies, because the parts of a blend share their standardisation
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in head.state_dict().items()
    }
    write_bytes(directory / "head.safetensors", save(tensors))
    write_json(directory / "head.json", head.record() | facts)


def load_head(directory: Path) -> tuple[Head, dict[str, Any]]:
    """What `save_head` wrote, and the facts beside it.

    Raises:
        ModelError: missing or damaged files.
    """
    try:
        facts = json.loads((directory / "head.json").read_text())
        return restore(facts, load_file(directory / "head.safetensors")), facts
    except DAMAGED as error:
        raise ModelError(f"{directory.name} has no readable head: {error}") from error

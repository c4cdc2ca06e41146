"""What a training is told: every setting with its default, once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch

from beholder.core.errors import ArgumentError
from beholder.data.augment.base import Mixing

from .data import Policy, ResolutionSchedule
from .objectives.base import Schedule, Step
from .optim import RATES, Curve, Optimiser

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]

NOT_DECIDING = ("device", "devices", "workers", "compile", "max_time", "checkpoint_every")
"""Settings that change how long a run takes, not what it comes to."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training.

    Attributes:
        batch_size: images per micro-batch and process.
        lr: at its peak; None = `optim.RATES` of the optimiser.
        layer_decay: factor of the rate per layer, from the head down.
        warmup: epochs of linear warm-up.
        curve: of the learning rate afterwards, down to `floor` of it.
        accumulate: micro-batches per optimiser step.
        clip: largest norm of the gradient; None = no clipping.
        ema: decay of the moving average of the weights, which is then judged and saved; None = off.
        mixing: a `Mixing` of `beholder.data.augment`.
        no_mixing: last epochs without it.
        resolution: progressive resizing.
        policy, odds: of several tasks, see `data.Plan`.
        schedules: name of a module attribute -> schedule; set on every module that has it, before
            each step. Such as 'drop_prob'.
        on_nonfinite: 'skip' leaves out up to ten steps in a row.
        patience: epochs without a better `monitor` before the run ends; its best weights are kept.
        monitor: what is best: a figure of the validation; None = accuracy, else loss.
        devices: processes (GPUs; on a CPU, processes of it).
        sync_batchnorm: statistics of BatchNorm over all processes.
        workers: processes that read; None = 0 on a CPU, up to 8 beside a GPU.
        max_time: seconds after which this call ends, resumable.
        checkpoint_every: seconds between checkpoints; 0 = every step.
        log_every: steps per row of the metrics.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float | None = None
    optimiser: Optimiser = "adamw"
    weight_decay: float = 0.05
    momentum: float | None = None
    layer_decay: float | None = None
    warmup: float = 1.0
    curve: Curve = "cosine"
    floor: float = 0.0
    precision: Precision = "auto"
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    seed: int = 0
    mixing: Mixing | None = None
    no_mixing: int = 0
    resolution: ResolutionSchedule | None = None
    policy: Policy = "alternate"
    odds: Mapping[str, float] | None = None
    schedules: Mapping[str, Schedule] | None = None
    on_nonfinite: Literal["raise", "skip"] = "raise"
    patience: int | None = None
    monitor: str | None = None
    sync_batchnorm: bool = False
    log_every: int = 10
    device: str = "auto"
    devices: int = 1
    workers: int | None = None
    compile: bool = False
    max_time: float | None = None
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        at_least = {
            "epochs": 1,
            "batch_size": 1,
            "accumulate": 1,
            "devices": 1,
            "log_every": 1,
            "warmup": 0,
            "weight_decay": 0,
            "no_mixing": 0,
            "checkpoint_every": 0,
            "workers": 0,
            "patience": 1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ArgumentError(
                    f"--{name.replace('_', '-')} = {value} is too small.", f"At least {least}."
                )
        above = {"lr": None, "clip": None, "max_time": None, "ema": 1.0, "layer_decay": 1.0}
        for name, most in above.items():
            value = getattr(self, name)
            if value is not None and (value <= 0 or (most is not None and value > most)):
                limits = "above 0" if most is None else f"above 0 and at most {most:g}"
                raise ArgumentError(f"--{name.replace('_', '-')} = {value} must be {limits}.")
        if self.optimiser not in RATES:
            raise ArgumentError(
                f"There is no optimiser {self.optimiser!r}.", f"There is: {', '.join(RATES)}."
            )

    @property
    def peak(self) -> float:
        """The learning rate at its peak."""
        return RATES[self.optimiser] if self.lr is None else self.lr

    def precision_on(self, device: str) -> str:
        """What 'auto' means there."""
        if self.precision != "auto":
            return self.precision
        half = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        return "bf16-mixed" if half else "32-true"

    def workers_on(self, device: str) -> int:
        """Reading processes beside that device."""
        if self.workers is not None:
            return self.workers
        return min(8, os.cpu_count() or 1) if device.startswith("cuda") else 0

    def record(self) -> dict[str, Any]:
        """Every setting as plain values, for `run.toml`."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in named.items()}

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what the run comes to."""
        return {name: value for name, value in self.record().items() if name not in NOT_DECIDING}


def _plain(value: Any) -> Any:
    """As numbers and text that are the same in every process."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, ResolutionSchedule):
        return _plain(value.phases)
    if callable(value):
        return [value(Step(number, 100)) for number in range(0, 101, 25)]
    told = {k: v for k, v in sorted(vars(value).items()) if k[0] != "_"}
    return {"kind": type(value).__name__, **_plain(told)}

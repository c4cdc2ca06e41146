"""What an objective compares with: a slow copy of itself, another model, features of the past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from beholder.core.model import VisionModel
from beholder.core.predictions import TeacherOutputs
from beholder.train.schedules import at

from .base import Schedule, Step
from .ranks import gathered


class Teacher(nn.Module):
    """The exponential moving average of a module: teacher = m teacher + (1 - m) module.

    Weights in float32 and in the state dict, without gradient; buffers (BatchNorm statistics) are
    copied, not averaged.

    Args:
        module: what is averaged, such as `nn.ModuleList([model, projector])`; it is copied.
        momentum: m, often `cosine(0.996, 1.0)`.
        training: the mode it always runs in, whatever that of the objective.
    """

    def __init__(
        self, module: nn.Module, momentum: float | Schedule, training: bool = False
    ) -> None:
        super().__init__()
        self.average = ModelEmaV3(module, exclude_buffers=True, dtype=torch.float32)
        self.average.requires_grad_(False)
        self.momentum = momentum
        self.always = training
        self.train()

    @property
    def module(self) -> nn.Module:
        """The averaged copy."""
        return self.average.module

    def train(self, mode: bool = True) -> Self:
        """Only the mode that was chosen."""
        return super().train(self.always)

    def update(self, module: nn.Module, step: Step) -> None:
        """One step of the average; call it in `after_step`."""
        self.average.decay = at(self.momentum, step)
        self.average.update(module)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


class FrozenTeacher(nn.Module):
    """A model that never changes, with its own size and normalisation; in no state dict.

    Its outputs are constants to autograd.
    """

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self._hidden = (model.eval().requires_grad_(False),)

    @property
    def model(self) -> VisionModel:
        return self._hidden[0]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutputs:
        """float [0, 1] [B, 3, H, W] of any size to logits, features and tokens."""
        model = self.model
        if tuple(images.shape[-2:]) != model.input_size:
            images = F.interpolate(images, model.input_size, mode="bicubic", antialias=True)
            images = images.clamp(0, 1)
        final = model.backbone.forward_features(model.normalise(images))
        features = model.backbone.forward_head(final, pre_logits=True).flatten(1)
        if model.head is not None:
            logits = model.logits(images)
        else:
            logits = model.backbone.forward_head(final) if model.classes else None
        return TeacherOutputs(logits, features, self._tokens(final))

    def _tokens(self, final: Tensor) -> Tensor:
        """The final map as [B, N, C], without class and register tokens."""
        taps = self.model.taps
        if final.ndim == 3:
            return final[:, taps.prefix_tokens :]
        return final.flatten(1, 2) if taps.channels_last else final.flatten(2).transpose(1, 2)


class Queue(nn.Module):
    """The last `size` features of each of `kinds` streams, oldest out first; in the state dict, so
    that a resumed run does not start with an empty one."""

    bank: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, kinds: int = 1) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(kinds, size, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Add [kinds, B, dim] of every process."""
        new = gathered(features.detach().float().transpose(0, 1)).transpose(0, 1)
        size = self.bank.shape[1]
        new = new[:, -size:]
        place = (self.pointer + torch.arange(new.shape[1], device=new.device)) % size
        self.bank[:, place] = new
        self.pointer.copy_((self.pointer + new.shape[1]) % size)
        self.filled.copy_((self.filled + new.shape[1]).clamp(max=size))

    def read(self) -> Tensor:
        """What was pushed: [kinds, 0 .. size, dim]."""
        return self.bank[:, : int(self.filled)]

"""What a given model takes and how its outputs are read: pure, but for reading `--preprocess`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from beholder.core.decode import Interpolation
from beholder.core.errors import ModelError
from beholder.core.model import Crop

Layout = Literal["NCHW", "NHWC"]
Triple = tuple[float, float, float]
Size = tuple[int, int]
ASSUMED_SIDE = 224


class Preprocess(BaseModel):
    """From pixels to what a model takes: (pixel x scale - mean) / std, pixel in 0..255.

    Attributes:
        mean, std: per channel, after `scale`; one number stands for all three.
        scale: 1/255 brings pixels to 0..1, 1 leaves them.
        size: (height, width) where the model does not say; one number is a square.
        layout: order of the axes where the model does not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Triple = IMAGENET_DEFAULT_MEAN
    std: Triple = IMAGENET_DEFAULT_STD
    scale: float = Field(default=1 / 255, gt=0)
    size: Size | None = None
    layout: Layout | None = None
    interpolation: Interpolation = "bilinear"

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _per_channel(cls, value: object) -> object:
        return (value,) * 3 if isinstance(value, int | float) else value

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @field_validator("std")
    @classmethod
    def _positive(cls, value: Triple) -> Triple:
        if min(value) <= 0:
            raise ValueError("must be above 0")
        return value

    @model_validator(mode="after")
    def _together(self) -> Preprocess:
        if {"mean", "std", "scale"} & self.model_fields_set and not self.normalises:
            raise ValueError("mean and std belong together, and scale to both")
        return self

    @property
    def normalises(self) -> bool:
        """Whether it says how images are normalised, instead of leaving ImageNet's defaults."""
        return {"mean", "std"} <= self.model_fields_set


def read_preprocess(path: Path) -> Preprocess:
    """The TOML or JSON file of `--preprocess`.

    Raises:
        ModelError: no such file, neither TOML nor JSON, or a key that is not of `Preprocess`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return Preprocess.model_validate(
            json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(
            f"{path}: {'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}.",
            f"Known keys: {', '.join(Preprocess.model_fields)}.",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot read {path}: {error}.", "It must be TOML or JSON.") from error


@dataclass(frozen=True)
class Intake:
    """What a fixed graph takes. `batch`, `size` (height, width): None = any."""

    batch: int | None = None
    size: Size | None = None
    layout: Layout = "NCHW"
    dtype: torch.dtype = torch.float32


def intake_of(
    shape: Sequence[int | None], dtype: torch.dtype, layout: Layout | None = None
) -> Intake:
    """What a graph with an input of this shape takes; None = a free axis.

    Without `layout` the axis of length 3 is the channels, the second before the fourth.

    Raises:
        ModelError: not four axes, or not three channels.
    """
    if len(shape) != 4:
        raise ModelError(
            f"The model takes a tensor of {len(shape)} axes; pictures have four: [B, 3, H, W]."
        )
    if layout is None:
        layout = "NHWC" if shape[3] == 3 and shape[1] != 3 else "NCHW"
    channels = shape[1] if layout == "NCHW" else shape[3]
    if channels not in (3, None):
        raise ModelError(
            f"The model takes {channels} channels; pictures have three.",
            "Name the order of the axes, layout = 'NCHW' or 'NHWC', in the file of --preprocess.",
        )
    height, width = (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])
    size = (height, width) if height and width else None
    return Intake(shape[0] or None, size, layout, dtype)


def are_probabilities(outputs: Tensor) -> bool:
    """Whether every row of [N, C] lies in [0, 1] and sums to 1 within 1e-3."""
    inside = bool((outputs >= 0).all() and (outputs <= 1).all())
    return inside and bool((outputs.sum(1) - 1).abs().max() <= 1e-3)


def in_batches(call: Callable[[Tensor], Tensor], x: Tensor, batch: int | None) -> Tensor:
    """`call` on [B, ...] by pieces of `batch`; the last is filled up with its first image."""
    if batch is None:
        return call(x)
    outputs = []
    for piece in x.split(batch):
        filler = piece[:1].expand(batch - len(piece), *piece.shape[1:])
        outputs.append(call(torch.cat([piece, filler]))[: len(piece)])
    return torch.cat(outputs)


@dataclass(frozen=True)
class Told:
    """What the user said beside the model."""

    classes: tuple[str, ...] | None
    preprocess: Preprocess | None
    input_size: Size | None
    crop: Crop

    @property
    def normalises(self) -> bool:
        """Whether the user said how images are normalised."""
        return bool(self.preprocess and self.preprocess.normalises)

    @property
    def layout(self) -> Layout | None:
        return self.preprocess.layout if self.preprocess else None

    def normalisation(self, known: Preprocess | None, notes: list[str]) -> Preprocess:
        """The user's, else the model's own, else /255 and ImageNet's, which is noted."""
        if self.preprocess and self.preprocess.normalises:
            return self.preprocess
        if known is None:
            notes.append(
                "The model does not say how its images are normalised: division by 255 and the "
                "mean and deviation of ImageNet are assumed (--preprocess FILE says otherwise)."
            )
        return (known or Preprocess()).model_copy(update=self._interpolation)

    def untouched(self, name: str) -> Preprocess:
        """Pixels go in as 0..255. Raises `ModelError` where the user wants them normalised."""
        if self.normalises:
            raise ModelError(
                f"{name} takes pixels of 0..255 as they are: mean and std do not apply.",
                "Leave them out of the file of --preprocess.",
            )
        return Preprocess(mean=(0, 0, 0), std=(1, 1, 1), scale=1).model_copy(
            update=self._interpolation
        )

    @property
    def _interpolation(self) -> dict[str, str]:
        if self.preprocess is None:
            return {}
        return self.preprocess.model_dump(include={"interpolation"}, exclude_unset=True)

    def size(self, fixed: Size | None, hinted: Size | None, notes: list[str], name: str) -> Size:
        """(H, W): the graph's, else the user's, else the model's hint, else 224, which is noted."""
        wanted = self.input_size or (self.preprocess.size if self.preprocess else None)
        if fixed and wanted and fixed != wanted:
            raise ModelError(
                f"{name} takes {fixed[0]} x {fixed[1]} pixels only, not {wanted[0]} x {wanted[1]}.",
                "Leave the size out.",
            )
        if size := fixed or wanted or hinted:
            return size
        notes.append(
            f"The model takes any size and names none: {ASSUMED_SIDE} x {ASSUMED_SIDE} is assumed."
        )
        return (ASSUMED_SIDE, ASSUMED_SIDE)


def names_in_order(names: object, outputs: int | None) -> tuple[str, ...]:
    """Class names from a list, or from a mapping output -> name; an output left out is 'output i'.

    Raises:
        ModelError: neither, or names for outputs that are not there.
    """
    if isinstance(names, Mapping) and all(str(key).isdecimal() for key in names):
        by_output = {int(key): str(name) for key, name in names.items()}
        count = outputs or max(by_output, default=-1) + 1
        if not by_output or max(by_output) < count:
            return tuple(by_output.get(i, f"output {i}") for i in range(count))
        names = tuple(by_output.values())
    if isinstance(names, list | tuple):
        if outputs is None or len(names) == outputs:
            return tuple(map(str, names))
        raise wrong_count("The model", tuple(map(str, names)), outputs)
    raise ModelError(
        f"The class names of the model are no list: {str(names)[:80]}.", "Use --classes A,B,..."
    )


def wrong_count(name: str, classes: Sequence[str], outputs: int) -> ModelError:
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return ModelError(
        f"{name} has {outputs:,} outputs, but {len(classes):,} class names ({shown}).",
        "Give one name per output, in order: --classes A,B,...",
    )

"""What is explained: a class, a number of the output, the likeness to a text, a unit.

A `Reader` reads one number per image off a model, with its gradient.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from beholder.core.errors import ArgumentError, ModelError
from beholder.core.model import VisionModel

from .layers import as_maps, module_named, watched


@dataclass(frozen=True)
class Text:
    """The likeness of image and text, for a model with `encode_text(list[str]) -> [N, D]`."""

    words: str | Sequence[str]


@dataclass(frozen=True)
class Neuron:
    """A unit of a layer: its mean over space, or its value at the cell `xy`."""

    layer: str
    unit: int
    xy: tuple[int, int] | None = None


Choice = Callable[[Tensor], Tensor]
"""The output of one image, [C], to a scalar."""
Targets = None | int | Tensor | Choice | Sequence[Choice] | Text | Neuron


class Reader(abc.ABC):
    """Images [N, 3, H, W] to the scores that are explained, [N].

    Attributes:
        model: that the images are given to.
        views: how often it runs its backbone on an image: twice where it averages mirror images.
    """

    views: int = 1

    def __init__(self, model: VisionModel) -> None:
        self.model = model

    @abc.abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """With a single target any number of versions of its image may be given."""

    @abc.abstractmethod
    def of(self, rows: slice) -> Reader:
        """That of some of the images."""

    def classes(self, count: int) -> Tensor:
        """Index of the class of each image, [count]; -1 where it is none."""
        return torch.full((count,), -1)


class ClassScore(Reader):
    """The logit of a class; None = of the likeliest, which the first reading fixes.

    Of two classes it is the logit minus the other's: nothing else is decided, and a head with one
    margin holds the first logit at 0.
    """

    def __init__(self, model: VisionModel, chosen: Tensor | None) -> None:
        super().__init__(model)
        self.chosen = chosen
        self.views = _views(model)

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.model.logits(images)
        if self.chosen is None:
            self.chosen = logits.detach().argmax(1)
        chosen = self.chosen.to(logits.device).expand(len(logits))[:, None]
        own = logits.gather(1, chosen)[:, 0]
        return own - logits.gather(1, 1 - chosen)[:, 0] if logits.shape[1] == 2 else own

    def of(self, rows: slice) -> ClassScore:
        return ClassScore(self.model, None if self.chosen is None else self.chosen[rows])

    def classes(self, count: int) -> Tensor:
        assert self.chosen is not None
        return self.chosen.cpu().expand(count)


class Chosen(Reader):
    """What a function makes of each image's logits."""

    def __init__(self, model: VisionModel, choices: Sequence[Choice]) -> None:
        super().__init__(model)
        self.choices = choices
        self.views = _views(model)

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.model.logits(images)
        choices = self.choices if len(self.choices) > 1 else [self.choices[0]] * len(logits)
        return torch.stack([choice(row) for choice, row in zip(choices, logits, strict=True)])

    def of(self, rows: slice) -> Chosen:
        return Chosen(self.model, self.choices[rows])


class Likeness(Reader):
    """Cosine of the features and a direction of the same space, [B, D]."""

    def __init__(self, model: VisionModel, directions: Tensor) -> None:
        super().__init__(model)
        self.directions = directions

    def __call__(self, images: Tensor) -> Tensor:
        features = self.model.features(images)
        return F.cosine_similarity(features, self.directions.to(features.device), dim=1)

    def of(self, rows: slice) -> Likeness:
        return Likeness(self.model, self.directions[rows])


class UnitScore(Reader):
    """The activation of a unit."""

    def __init__(self, model: VisionModel, neuron: Neuron) -> None:
        super().__init__(model)
        self.neuron = neuron
        self.layer = module_named(model.backbone, neuron.layer)

    def __call__(self, images: Tensor) -> Tensor:
        with watched(self.layer) as outputs:
            self.model.features(images)
        maps = as_maps(outputs[-1], images.shape[2:], self.model.backbone)
        unit, xy = self.neuron.unit, self.neuron.xy
        if not 0 <= unit < maps.shape[1]:
            raise ArgumentError(
                f"{self.neuron.layer} has no unit {unit}.", f"It has 0 to {maps.shape[1] - 1}."
            )
        return maps[:, unit].mean((1, 2)) if xy is None else maps[:, unit, xy[1], xy[0]]

    def of(self, rows: slice) -> UnitScore:
        return self


def _views(model: VisionModel) -> int:
    return 2 if model.head is not None and model.mirror else 1


def reader(model: VisionModel, targets: Targets, count: int) -> Reader:
    """Targets of `count` images, checked.

    Raises:
        ArgumentError: a class or unit that the model does not have, or another number of targets
            than of images.
        ModelError: a text, for a model that does not know texts.
    """
    if targets is None:
        return ClassScore(model, None)
    if isinstance(targets, Neuron):
        return UnitScore(model, targets)
    if isinstance(targets, Text):
        return _likeness(model, targets, count)
    if isinstance(targets, int | Tensor):
        chosen = torch.as_tensor(targets).reshape(-1)
        _same_number(len(chosen), count)
        known = len(model.classes)
        wrong = [int(index) for index in chosen if not 0 <= index < known]
        if wrong:
            raise ArgumentError(
                f"{model.name} has no class {wrong[0]}.",
                f"It has {known}: 0 to {known - 1}." if known else "It has no classifier.",
            )
        return ClassScore(model, chosen.expand(count))
    choices = [targets] if callable(targets) else list(targets)
    _same_number(len(choices), count)
    return Chosen(model, choices * count if len(choices) == 1 else choices)


def _likeness(model: VisionModel, text: Text, count: int) -> Likeness:
    encode = getattr(model, "encode_text", None)
    if encode is None:
        raise ModelError(
            f"{model.name} does not know texts.", "Name a class, or take an image-text model."
        )
    words = [text.words] if isinstance(text.words, str) else list(text.words)
    _same_number(len(words), count)
    with torch.no_grad():
        return Likeness(model, encode(words).expand(count, -1))


def _same_number(targets: int, images: int) -> None:
    if targets not in (1, images):
        raise ArgumentError(f"{targets} targets for {images} images.", "Give one, or one each.")

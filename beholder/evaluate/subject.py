"""The model as it is deployed, and the data it is judged on: what sections measure anew with."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from beholder.core.decode import Unreadable
from beholder.core.engines import Engine
from beholder.core.errors import BeholderError, ModelError
from beholder.core.features import Features
from beholder.core.images import Images
from beholder.core.model import Backbone, Crop, DecisionHead, VisionModel
from beholder.core.options import Options
from beholder.data.scanned import Scanned
from beholder.models.classmatch import Match, apply, numbered
from beholder.models.given_model import GivenModel, TorchModel
from beholder.train.answers import Labelled
from beholder.train.heads import Fitted

from .benchmarks.base import Evidence
from .given import AsGiven, asked

Progress = Callable[[int], None]
PROBE = 16


def quiet(done: int) -> None:
    """No progress."""


class TooLittleTimeError(BeholderError):
    """Not even the least that a section needs fits into what is left of the budget."""

    def __init__(self, needs: float, left: float) -> None:
        self.needs, self.left = needs, left
        super().__init__(f"needs {needs:.0f} s, {max(left, 0):.0f} s were left")


class Allowance:
    """Seconds that a section may take, from now on (infinity = no limit)."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun = time.monotonic()

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)

    def count(self, price: float, wanted: int, floor: int) -> int:
        """How many of `wanted` things at `price` seconds each there is time for.

        Raises:
            TooLittleTimeError: for fewer than `floor`.
        """
        floor = min(floor, wanted)
        affordable = wanted
        if price > 0:
            affordable = int(min(wanted, max(self.left, 0) / price))
        if affordable < floor:
            raise TooLittleTimeError(floor * price, self.left)
        return affordable


class Answer(NamedTuple):
    """Logits [N, C] in the order of the evidence's classes, and what they were decided from:
    features [N, F] (columns: `Deployed.layout`), None for a black box."""

    logits: np.ndarray
    features: np.ndarray | None


class Deployed(abc.ABC):
    """A model as its users meet it.

    Attributes:
        classes: of the answers: those of the evidence in their order, then what it may answer
            besides (a given model); () = it only gives features.
        size: (H, W) of what it looks at.
        crop: how an image is brought to it.
        layout: part of the features -> its columns; `pooled` is among them. Empty for a black box.
        differentiable: there are gradients with respect to the pixels.
        vision: for methods that look inside; None for a black box.
    """

    classes: tuple[str, ...]
    size: tuple[int, int]
    crop: Crop
    layout: dict[str, slice]
    differentiable: bool
    vision: VisionModel | None = None
    _price: float | None = None

    @abc.abstractmethod
    def prepare(self, image: np.ndarray) -> np.ndarray:
        """RGB uint8 [h, w, 3] of any size to `size`."""

    @abc.abstractmethod
    def ask(
        self, pixels: Sequence[np.ndarray], rows: np.ndarray, progress: Progress = quiet
    ) -> Answer:
        """Answers to images at `size`, uint8 [H, W, 3] each, in their order.

        Args:
            rows: [N] which image of the data each comes from: where the data was cross-fitted, the
                head answers that has not seen it. -1 = none of them.
            progress: told how many more images are done.
        """

    @abc.abstractmethod
    def modules(self, rows: np.ndarray) -> Iterator[tuple[nn.Module, np.ndarray]]:
        """The differentiable models that answer these rows, each with places in `rows`.

        A module maps float [0, 1] [B, 3, H, W] to logits [B, C] in the order of the evidence's
        classes, mirror image and all.
        """

    @abc.abstractmethod
    def vision_of(self, row: int) -> VisionModel:
        """The model that answers this row, for explainers. Raises ModelError for a black box."""

    def target(self, label: int) -> Callable[[Tensor], Tensor]:
        """Reads the logit of a class of the evidence off the logits [C] of `vision_of`."""
        return lambda logits: logits[label]

    def price(self, sample: Sequence[np.ndarray]) -> float:
        """Seconds per image of `ask`, measured once, on these images."""
        if self._price is None:
            rows = np.full(len(sample), -1)
            self.ask(sample[:1], rows[:1])
            start = time.perf_counter()
            self.ask(sample, rows)
            self._price = (time.perf_counter() - start) / len(sample)
        return self._price


class DeployedRun(Deployed):
    """A `VisionModel`: features by the fastest engine, then the head.

    Args:
        engine: opens the engine of the descriptor, when it is first needed.
        heads, head_of: see `train.answers.Answers`; () = the model's own head alone.
        match: where its classes have to be brought to those of the data.
    """

    differentiable = True

    def __init__(
        self,
        vision: VisionModel,
        engine: Callable[[], Engine],
        heads: Sequence[DecisionHead] = (),
        head_of: np.ndarray | None = None,
        match: Match | None = None,
    ) -> None:
        self.vision, self.size, self.layout = vision, vision.input_size, vision.layout
        self.crop: Crop = vision.crop
        self.heads, self.head_of, self.match = list(heads), head_of, match
        self.classes = match.names if match else vision.classes
        self._open, self._engine = engine, None
        own = vision.head
        self._own: DecisionHead | None = own
        self.views = 2 if vision.mirror and own is not None else 1

    def prepare(self, image: np.ndarray) -> np.ndarray:
        assert self.vision is not None
        return self.vision.prepare(image)

    @property
    def engine(self) -> Engine:
        self._engine = self._engine or self._open()
        return self._engine

    def ask(
        self, pixels: Sequence[np.ndarray], rows: np.ndarray, progress: Progress = quiet
    ) -> Answer:
        views = [self._described(pixels, False, progress)]
        if self.views == 2:
            views.append(self._described(pixels, True, progress))
        logits = np.zeros((len(pixels), len(self.classes)))
        if self._own is not None:
            for head, places in self._groups(rows):
                logits[places] = self._decided(head, [view[places] for view in views])
        return Answer(logits, views[0])

    def _described(
        self, pixels: Sequence[np.ndarray], mirrored: bool, progress: Progress
    ) -> np.ndarray:
        size = self.engine.batch

        def batches() -> Iterator[np.ndarray]:
            for start in range(0, len(pixels), size):
                batch = np.zeros((size, *self.size, 3), np.uint8)
                part = np.stack(pixels[start : start + size])
                batch[: len(part)] = part[:, :, ::-1] if mirrored else part
                yield batch

        found = []
        for number, result in enumerate(self.engine.run(batches())):
            found.append(result)
            if not mirrored:
                progress(min(size, len(pixels) - number * size))
        dim = max(part.stop for part in self.layout.values())
        return np.concatenate(found)[: len(pixels)] if found else np.zeros((0, dim), np.float32)

    @torch.inference_mode()
    def _decided(self, head: DecisionHead, views: list[np.ndarray]) -> np.ndarray:
        device = next(iter(head.state_dict().values())).device
        shown = [torch.from_numpy(view).to(device) for view in views]
        logits = head.logits(torch.stack([head(view) for view in shown]).mean(0))
        return (apply(logits, self.match) if self.match else logits).double().cpu().numpy()

    def _groups(self, rows: np.ndarray) -> Iterator[tuple[DecisionHead, np.ndarray]]:
        """Heads, and the places of the rows that each answers."""
        assert self._own is not None
        number = np.full(len(rows), -1)
        if self.head_of is not None and self.heads:
            number = np.where(rows >= 0, self.head_of[rows], -1)
        for k in np.unique(number):
            yield (self._own if k < 0 else self.heads[k]), np.flatnonzero(number == k)

    def modules(self, rows: np.ndarray) -> Iterator[tuple[nn.Module, np.ndarray]]:
        for head, places in self._groups(rows):
            model = self._with(head)
            yield (Matched(model, self.match) if self.match else model), places

    def vision_of(self, row: int) -> VisionModel:
        ((head, _),) = self._groups(np.array([row]))
        return self._with(head)

    def _with(self, head: DecisionHead) -> VisionModel:
        own = self.vision
        assert own is not None
        if head is own.head:
            return own
        return VisionModel(
            own.backbone,
            own.name,
            classes=own.classes,
            input_size=own.input_size,
            head=head,
            mirror=own.mirror,
            crop=own.crop,
        ).to(own._mean.device)

    def target(self, label: int) -> Callable[[Tensor], Tensor]:
        match = self.match
        if match is None:
            return lambda logits: logits[label]
        return lambda logits: apply(logits[None], match)[0, label]


class DeployedGiven(Deployed):
    """A model that was judged as it came.

    Args:
        kept: [outputs of the match] the classes of the evidence among them; they come first.
        features: number of features; 0 for a black box.
    """

    def __init__(
        self, model: GivenModel, match: Match, kept: np.ndarray, features: int = 0
    ) -> None:
        self.model, self.match = model, match
        self.order = np.concatenate([np.flatnonzero(kept), np.flatnonzero(~kept)])
        self.size, self.crop = model.input_size, model.crop
        self.differentiable = model.differentiable
        self.classes = tuple(match.names[column] for column in self.order)
        self.layout = {"pooled": slice(0, features)} if features else {}
        if isinstance(model, TorchModel) and model.kind == "timm":
            self.vision = _seen_through(model, match)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return self.model.prepare(image)

    def ask(
        self, pixels: Sequence[np.ndarray], rows: np.ndarray, progress: Progress = quiet
    ) -> Answer:
        logits, features = [], []
        for start in range(0, len(pixels), AsGiven.batch):
            part = np.stack(pixels[start : start + AsGiven.batch])
            found, described = asked(self.model, torch.from_numpy(part).permute(0, 3, 1, 2))
            logits.append(apply(found.float().cpu(), self.match).double().numpy()[:, self.order])
            if described is not None:
                features.append(described.flatten(1).float().cpu().numpy())
            progress(len(part))
        whole = np.concatenate(logits) if logits else np.zeros((0, len(self.classes)))
        return Answer(whole, np.concatenate(features) if features else None)

    def modules(self, rows: np.ndarray) -> Iterator[tuple[nn.Module, np.ndarray]]:
        if not self.differentiable:
            raise ModelError(f"{self.model.name} has no gradients.", "Ask it as a black box.")
        yield Matched(self.model, self.match, self.order), np.arange(len(rows))

    def vision_of(self, row: int) -> VisionModel:
        if self.vision is None:
            raise ModelError(f"{self.model.name} is a black box.", "Explain it by occlusion.")
        return self.vision

    def target(self, label: int) -> Callable[[Tensor], Tensor]:
        output = int(self.order[label])
        return lambda logits: apply(logits[None], self.match)[0, output]


def _seen_through(model: TorchModel, match: Match) -> VisionModel | None:
    """A timm model as a `VisionModel`, if its preprocessing is the network's own."""
    outputs = 1 + max(column for columns in match.columns for column in columns)
    outputs = max(outputs, 1 + max(match.extra_columns, default=-1))
    vision = VisionModel(
        cast(Backbone, model.backbone),
        model.name,
        classes=model.classes or numbered(outputs),
        input_size=model.input_size,
        crop=model.crop,
    )
    return vision if (vision.mean, vision.std) == (tuple(model.mean), tuple(model.std)) else None


class Matched(nn.Module):
    """A model whose logits come in the order of the data's classes."""

    def __init__(self, model: nn.Module, match: Match, order: np.ndarray | None = None) -> None:
        super().__init__()
        self.model, self.match = model, match
        self.order = None if order is None else torch.from_numpy(order)

    def forward(self, images: Tensor) -> Tensor:
        logits = apply(self.model(images), self.match)
        return logits if self.order is None else logits[:, self.order]


@dataclass
class Subject:
    """What a section that measures anew works with.

    Attributes:
        data: rows as in `evidence.frame`: readable images, sorted by id.
        evidence: what is known before the section.
        model: as deployed; without labels it has no classes; None where no model is at hand.
        features: of all images, with the layout of `model`; None for a black box.
        labelled, fitted: what the head was trained on, and the head with its kind; None for a
            given model.
        place: directory of cached features; None = the shared cache.
        run: the run directory, for files that a section writes.
        allowance: of this section.
        progress: told how much of the total of `expect` is done.
        expect: told what there is to do.
    """

    data: Scanned
    evidence: Evidence
    options: Options
    model: Deployed | None
    features: Features | None
    labelled: Labelled | None
    fitted: Fitted | None
    device: str
    workers: int
    place: Path | None
    run: Path
    allowance: Allowance
    progress: Progress = quiet
    expect: Progress = quiet

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def images(self) -> Images:
        return self.data.images

    def judged_rows(self) -> np.ndarray:
        """Rows of the images that are judged: labelled, answered, not learned from."""
        return np.flatnonzero(np.isin(self.images.table["id"], self.evidence.judged["id"]))

    def prepared(self, rows: Sequence[int] | np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The images at the model's size, and their rows; those that vanished are left out."""
        assert self.model is not None
        pixels, found = [], []
        for row in rows:
            try:
                pixels.append(self.model.prepare(self.images.read(int(row))))
            except Unreadable:
                continue
            found.append(int(row))
        return pixels, np.array(found, int)

    def price(self) -> float:
        """Seconds for one answer."""
        assert self.model is not None
        if self.model._price is None:
            rows = np.linspace(0, len(self.data) - 1, min(PROBE, len(self.data))).astype(int)
            return self.model.price(self.prepared(rows)[0])
        return self.model._price


def sampled(rows: np.ndarray, labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of `rows`, every class in proportion, by chance; sorted. `labels`: of these rows."""
    if count >= len(rows):
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))
    position = np.empty(len(rows))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        position[own] = (np.arange(len(own)) + 0.5) / len(own)
    rank = np.empty(len(rows), int)
    rank[order] = np.arange(len(rows))
    return np.sort(rows[np.lexsort((rank, position))[:count]])

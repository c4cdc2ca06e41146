"""The role of a compressor: a smaller model of the same kind, and what the smallness costs.

The trade-off is measured on the machine, on images that decided nothing: before and after in one
process, in turns.
"""

from __future__ import annotations

import copy
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from safetensors.torch import save

from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.core.files import digest
from beholder.core.images import Images
from beholder.core.model import VisionModel, encoder_state
from beholder.core.registry import Entry
from beholder.core.sections import Figure, Section, Table, Value
from beholder.metrics.bootstrap import paired
from beholder.metrics.cost import macs
from beholder.metrics.intervals import share
from beholder.train.validation import answers

WARM_UP, ROUNDS, RUNS = 10, 5, 10
"""Of the timing: passes first, then rounds of so many passes of one model and then the other."""


@dataclass(frozen=True)
class Budget:
    """What the compressed model may cost; None = no limit.

    Attributes:
        max_drop: points of accuracy (0.01 = one of a hundred) that may be lost, on the images that
            choose.
        max_parameters: those that are not zero.
    """

    max_drop: float = 0.01
    max_parameters: int | None = None
    max_macs: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise ArgumentError(f"A drop of {self.max_drop} is not in 0 .. 1.", "For example 0.01.")


@dataclass(frozen=True)
class Cost:
    """What a model costs, and what it is worth.

    Attributes:
        stored_bytes: of its safetensors.
        packed_bytes: of those, compressed by zlib: what travels.
        macs: multiply-adds per image, as if no weight were zero (so they are done).
        latency_ms: median and 90 % quantile of one image.
        right: bool [N], answers on the images that judge.
    """

    parameters: int
    nonzero_parameters: int
    stored_bytes: int
    packed_bytes: int
    macs: int
    latency_ms: tuple[float, float]
    right: np.ndarray = field(repr=False)

    @property
    def accuracy(self) -> Value:
        return share(self.right)


@dataclass(frozen=True)
class Compressed:
    """A compressed model and the one that it was made of.

    Attributes:
        tried: what was tried on the images that choose: setting, accuracy, nonzero_parameters,
            packed_bytes, chosen.
    """

    method: str
    setting: str
    model: VisionModel
    before: Cost
    after: Cost
    tried: pl.DataFrame
    assumptions: tuple[str, ...] = ()

    def report(self) -> Section:
        """Cost before and after, the accuracy lost with its interval, and what was tried."""
        a, b = self.before, self.after
        rows = np.arange(len(a.right))
        lost = paired(b.right, a.right, rows, unit="points")
        names = ("parameters", "nonzero_parameters", "stored_bytes", "packed_bytes", "macs")
        quantiles = zip(("p50", "p90"), a.latency_ms, b.latency_ms, strict=True)
        costs = [(name, float(getattr(a, name)), float(getattr(b, name))) for name in names]
        costs += [(f"latency_{name}_ms", one, other) for name, one, other in quantiles]
        columns = {"what": pl.String, "before": pl.Float64, "after": pl.Float64}
        finding = (
            f"{self.setting}: {b.nonzero_parameters:,} of {b.parameters:,} parameters are not "
            f"zero, the packed file is {b.packed_bytes / 1e6:.2g} instead of "
            f"{a.packed_bytes / 1e6:.2g} MB; accuracy {b.accuracy.text()} instead of "
            f"{a.accuracy.text()}, a difference of {lost.text()}; a pass takes "
            f"{b.latency_ms[0]:.3g} instead of {a.latency_ms[0]:.3g} ms."
        )
        dots = self.tried.select(
            x="nonzero_parameters",
            y="accuracy",
            series=pl.when("chosen").then(pl.lit("chosen")).otherwise(pl.lit("tried")),
            label="setting",
        )
        return Section(
            id="compress",
            title=self.method.replace("_", " "),
            finding=finding,
            severity="look" if lost.high is not None and lost.high < 0 else "good",
            n=len(rows),
            values={"accuracy_before": a.accuracy, "accuracy_after": b.accuracy, "lost": lost},
            tables={
                "cost": Table(frame=pl.DataFrame(costs, columns, orient="row")),
                "tried": Table(frame=self.tried, units={"accuracy": "share"}),
            },
            figures={
                "trade_off": Figure(
                    kind="scatter",
                    data=dots,
                    title="What was tried, on the images that choose",
                    x="parameters that are not zero",
                    y="accuracy",
                )
            },
            assumptions=list(self.assumptions),
        )


class Compressor(ABC):
    """Base of every compressor.

    Attributes:
        assumptions: sentences for the report.
    """

    role: ClassVar[str] = "compressor"
    entry: ClassVar[Entry]
    assumptions: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def compress(
        self, model: VisionModel, data: Images, *, budget: Budget | None = None, seed: int = 0
    ) -> Compressed:
        """A smaller model within the budget; `model` itself stays as it is.

        Half of the images (by chance) choose, the other half judge.

        Raises:
            DataError: no labels, or classes that are not the model's.
            ArgumentError: nothing keeps to the budget; the nearest is named.
        """


class Graded(Compressor):
    """A compressor with settings from mild to strong, of which the strongest that keeps to the
    budget is taken; its file holds `settings`, `apply` and `named`."""

    @abstractmethod
    def settings(self) -> Sequence[float]:
        """How strongly to compress, from the mildest on."""

    @abstractmethod
    def apply(self, model: VisionModel, setting: float) -> None:
        """Compress `model` in place."""

    @abstractmethod
    def named(self, setting: float) -> str:
        """The setting in words."""

    def compress(
        self, model: VisionModel, data: Images, *, budget: Budget | None = None, seed: int = 0
    ) -> Compressed:
        budget = budget or Budget()
        choose, judge = halves(data, model, seed)
        base = float(right(model, choose).mean())
        tried, best = [], None
        for setting in self.settings():
            smaller = copied(model)
            self.apply(smaller, setting)
            accuracy = float(right(smaller, choose).mean())
            count, packed = nonzero(smaller), len(packed_state(smaller))
            tried.append((self.named(setting), accuracy, count, packed, False))
            fits = base - accuracy <= budget.max_drop and within(budget, smaller, count)
            if fits:
                best = len(tried) - 1, smaller
        if best is None:
            name, accuracy, count, *_ = max(tried, key=lambda row: row[1])
            raise ArgumentError(
                f"No setting keeps to the budget: {name} loses {base - accuracy:.1%} with "
                f"{count:,} parameters.",
                "Allow more: a larger max_drop or max_parameters.",
            )
        place, smaller = best
        tried[place] = (*tried[place][:-1], True)
        before, after = measured(model, smaller, judge)
        columns = ["setting", "accuracy", "nonzero_parameters", "packed_bytes", "chosen"]
        return Compressed(
            self.entry.name,
            tried[place][0],
            smaller,
            before,
            after,
            pl.DataFrame(tried, columns, orient="row"),
            self.assumptions,
        )


def within(budget: Budget, model: VisionModel, parameters: int) -> bool:
    """Whether the size keeps to the budget."""
    if budget.max_parameters is not None and parameters > budget.max_parameters:
        return False
    return budget.max_macs is None or macs(model, blank(model)) <= budget.max_macs


def halves(data: Images, model: VisionModel, seed: int) -> tuple[Images, Images]:
    """Two halves of the labelled images, by blake2b of seed and id."""
    if tuple(data.classes) != tuple(model.classes):
        raise DataError(
            f"{model.name} knows {len(model.classes)} classes, {data.name} has others.",
            "Give the data that it was trained for.",
        )
    labelled = data.where(pl.col("label").is_not_null())
    if len(labelled) < 2:
        raise DataError(f"{data.name} has {len(labelled)} labelled images.", "Two are needed.")
    order = np.argsort([digest(str(seed), id) for id in labelled.table["id"]])
    first = np.zeros(len(order), bool)
    first[order[: len(order) // 2]] = True
    return labelled.where(pl.Series(first)), labelled.where(pl.Series(~first))


def right(model: VisionModel, images: Images) -> np.ndarray:
    """Whether the answer is the label, bool [N] of the readable images."""
    logits, seen = answers(model, images)
    return (logits.argmax(1) == images.table["label"].to_numpy())[seen]


def copied(model: VisionModel) -> VisionModel:
    """A model of its own with the same weights."""
    return copy.deepcopy(model).eval()


def nonzero(model: VisionModel) -> int:
    """Parameters of the encoder that are not zero."""
    return sum(
        int(value.count_nonzero())
        for value in encoder_state(model.backbone).values()
        if value.is_floating_point()
    )


def packed_state(model: VisionModel) -> bytes:
    """The encoder's safetensors, compressed by zlib."""
    return zlib.compress(stored_state(model), 6)


def stored_state(model: VisionModel) -> bytes:
    return save({key: x.contiguous() for key, x in encoder_state(model.backbone).items()})


def blank(model: VisionModel) -> torch.Tensor:
    return torch.zeros(1, 3, *model.input_size, device=model._mean.device)


def measured(before: VisionModel, after: VisionModel, images: Images) -> tuple[Cost, Cost]:
    """Cost of both on the same images; timed in turns."""
    times = alternating([before, after])
    costs = [
        _cost(model, images, spent) for model, spent in zip((before, after), times, strict=True)
    ]
    return costs[0], costs[1]


def alternating(models: Sequence[VisionModel]) -> list[np.ndarray]:
    """Milliseconds of single passes, [ROUNDS * RUNS] per model: A B A B ..."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            for _ in range(WARM_UP):
                model(blank(model))
        for _ in range(ROUNDS):
            for model, spent in zip(models, times, strict=True):
                image = blank(model)
                for _ in range(RUNS):
                    begun = time.perf_counter()
                    model(image)
                    spent.append(1000 * (time.perf_counter() - begun))
    return [np.array(spent) for spent in times]


def _cost(model: VisionModel, images: Images, times: np.ndarray) -> Cost:
    return Cost(
        parameters=model.parameters_count,
        nonzero_parameters=nonzero(model),
        stored_bytes=len(stored_state(model)),
        packed_bytes=len(packed_state(model)),
        macs=macs(model, blank(model)),
        latency_ms=(float(np.median(times)), float(np.quantile(times, 0.9))),
        right=right(model, images),
    )


def prunable(model: VisionModel) -> dict[str, torch.Tensor]:
    """Weights of convolutions and linear layers of the encoder, without its classifier.

    Raises:
        ModelError: there are none.
    """
    inside = encoder_state(model.backbone)
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    found = {
        f"{name}.weight": layer.weight
        for name, layer in model.backbone.named_modules()
        if isinstance(layer, kinds) and f"{name}.weight" in inside
    }
    if not found:
        raise ModelError(f"{model.name} has no convolution and no linear layer to compress.")
    return found

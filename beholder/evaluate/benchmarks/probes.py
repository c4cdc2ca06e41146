"""Probes: what a frozen backbone's features are worth, by readers that cannot make up for them.

Features are taken once, float32, and cached. Each probe also reads the same backbone with random
weights: what it scores there is due to the data and the architecture.

Example:
    >>> from beholder.data.sources import open_images
    >>> from beholder.models.open import open_vision
    >>> digits = open_images("digits")
    >>> encoder = open_vision("untrained:test_resnet", input_size=(32, 32))
    >>> section = Probes(("knn",)).run(encoder, digits, limit=100)
    >>> sorted(section.values)
    ['knn', 'knn_gain', 'knn_untrained']
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import timm
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from beholder.core.engines import Engine, FromBytes, fastest
from beholder.core.errors import ArgumentError, DataError
from beholder.core.features import Features, batches, extract
from beholder.core.files import digest
from beholder.core.images import Images
from beholder.core.model import Backbone, VisionModel, encoder_state
from beholder.core.registry import system
from beholder.core.sections import Section, Table, Unit, Value
from beholder.core.split import folds
from beholder.data.scanned import Scanned
from beholder.metrics.bootstrap import bootstrap_shares, paired
from beholder.metrics.intervals import share
from beholder.train.loop import Probe
from beholder.train.made import subset
from beholder.train.objectives.base import Objective, Step
from beholder.train.validation import judging

from .benchmark import Benchmark, compare
from .readers import Answer, Part, knn, linear, linear_sgd, svm

Kind = Literal["linear", "linear_sgd", "knn", "layers", "svm"]
READERS = {"linear": linear, "knn": knn, "svm": svm}
"""Probes of features [N, D] alone."""

LARGEST_STAGE = 9216
TUNING = 5
"""One of so many folds of the training part chooses a probe's setting."""
WORKERS = 2
BATCH = 32


class Stages(nn.Module):
    """Every stage of `feature_info`, max-pooled to the largest p x p with C p p <= 9,216: [B, F].

    Attributes:
        layout: name of a stage -> its columns.
    """

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model
        with torch.inference_mode():
            blank = torch.zeros(1, 3, *model.input_size, device=model._mean.device)
            shapes = [tuple(x.shape[1:]) for x in model.feature_maps(blank).values()]
        info = model.backbone.feature_info
        names = [str(stage.get("module", i)) for i, stage in enumerate(info)]
        self.sides = [side_of(*shape) for shape in shapes]
        sizes = [shape[0] * side**2 for shape, side in zip(shapes, self.sides, strict=True)]
        ends = np.cumsum(sizes).tolist()
        places = zip(names, sizes, ends, strict=True)
        self.layout = {name: slice(end - size, end) for name, size, end in places}

    def forward(self, images: Tensor) -> Tensor:
        stages = zip(self.model.feature_maps(images).values(), self.sides, strict=True)
        return torch.cat([F.adaptive_max_pool2d(x, side).flatten(1) for x, side in stages], 1)


def side_of(channels: int, height: int, width: int) -> int:
    """The largest p with channels p p <= 9,216, at most that of the map and at least 1."""
    return max(1, min(int((LARGEST_STAGE / channels) ** 0.5), height, width))


def untrained(model: VisionModel, seed: int = 0) -> VisionModel:
    """The same architecture at the same size and normalisation, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _redrawn(model.backbone)
    backbone.pretrained_cfg = model.backbone.pretrained_cfg
    name = f"untrained {model.name}"
    found = VisionModel(backbone, name, input_size=model.input_size, crop=model.crop)
    return found.to(model._mean.device)


def _redrawn(backbone: Backbone) -> Any:
    """As timm makes it; what timm does not make in this form is drawn by each layer's own rule."""
    architecture = str(backbone.pretrained_cfg.get("architecture", ""))
    if timm.is_model(architecture):
        fresh: Any = timm.create_model(architecture, pretrained=False, num_classes=0)
        ours, theirs = encoder_state(backbone), encoder_state(fresh)
        if {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}:
            return fresh
    fresh = copy.deepcopy(backbone)
    for layer in fresh.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    return fresh


@dataclass
class Subject:
    """Scanned images, and which of them a probe learns from and is judged on."""

    data: Scanned
    seed: int

    @classmethod
    def of(cls, images: Images, seed: int, limit: int | None) -> Subject:
        """At most `limit` of the images, classes in proportion."""
        if limit is not None and limit < len(images):
            chosen = subset(images, limit, lambda id: digest(str(seed), id))
            images = images.where(pl.Series(chosen))
        data = Scanned(images, max_pixels=images.max_pixels, workers=WORKERS, use_cache=True)
        data.find_units(seed)
        return cls(data, seed)

    def parts(self) -> list[Part]:
        """The held-out part, or one per fold where there are few images.

        Raises:
            DataError: nothing can be judged.
        """
        found = self.data.splits(range(self.seed, self.seed + 1))[0]
        label = self.data.images.table["label"].fill_null(-1).to_numpy()
        judged = (found.roles == "test") & (label >= 0)
        if not judged.any():
            raise DataError("No image could be judged.", " ".join(found.notes))
        crossed = found.kind == "cross_fit"
        held = [found.folds == k for k in np.unique(found.folds[judged])] if crossed else [judged]
        return [self._part(label, judged & out) for out in held]

    def _part(self, label: np.ndarray, test: np.ndarray) -> Part:
        """Learns from the labelled images of other units."""
        unit = self.data.unit
        train = np.flatnonzero((label >= 0) & ~np.isin(unit, unit[test]))
        tune = folds(unit[train], label[train], TUNING, self.seed) == 0
        return Part(train, np.flatnonzero(test), label, unit, tune)

    def features(self, model: VisionModel, module: nn.Module, layout: dict[str, slice]) -> Features:
        """What the module gives for every image, float32, cached."""
        images = self.data.images
        describe = {**model.describe(), "output": type(module).__name__}

        def engine() -> Engine:
            rows = np.linspace(0, len(images) - 1, min(8, len(images))).astype(int)
            sample = np.stack([model.prepare(images.read(int(row))) for row in rows])
            device = str(model._mean.device)
            return fastest(FromBytes(module, "forward").eval(), sample, describe, device)[0]

        found = extract(
            engine,
            images,
            self.data.hashes,
            describe=describe,
            prepare=model.prepare,
            size=model.input_size,
            layout=layout,
            views=("image",),
            workers=WORKERS,
            dtype=np.dtype(np.float32),
        )
        if found.gone:
            raise DataError(f"{len(found.gone):,} images vanished while they were looked at.")
        return found


class Pooled(nn.Module):
    """`model.features` as a module."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)


@system(name="probes")
class Probes(Benchmark):
    """Accuracy of simple classifiers on frozen features, trained backbone against untrained.

    Args:
        kinds: 'linear' (logistic regression on standardised features), 'linear_sgd' (the protocol
            of self-supervised papers: new crops and mirrors every epoch, SGD), 'knn' (20 weighted
            neighbours by cosine), 'layers' ('linear' on every stage), 'svm' (row 24).
        epochs: of `linear_sgd`.
        norm: `linear_sgd` has a BatchNorm without affine before its layer.
    """

    title: ClassVar[str] = "Probes of the features"

    def __init__(
        self, kinds: Sequence[Kind] = ("linear", "knn"), epochs: int = 100, norm: bool = False
    ) -> None:
        self.kinds, self.epochs, self.norm = tuple(kinds), epochs, norm

    def can_run(self, model: VisionModel, data: Images) -> str | None:
        if data.kind != "classes" or len(data.classes) < 2:
            return "Probes need images of two classes or more, with one label each."
        return None

    def records(
        self, model: VisionModel, data: Images, *, seed: int = 0, limit: int | None = None
    ) -> pl.DataFrame:
        """One row per judged image, probe and backbone: id, unit, label, predicted, score."""
        subject = Subject.of(data, seed, limit)
        frames = [
            self._asked(backbone, name, subject)
            for name, backbone in (("trained", model), ("untrained", untrained(model, seed)))
        ]
        return pl.concat(frames)

    def _asked(self, model: VisionModel, name: str, subject: Subject) -> pl.DataFrame:
        model.eval()
        parts = subject.parts()
        frames = []
        for probe, ask in self._probes(model, subject):
            for part in parts:
                with threadpool_limits(1, user_api="blas"):  # small products: threads only cost
                    predicted, setting = ask(part)
                frame = pl.DataFrame(
                    {
                        "id": subject.data.images.table["id"].gather(part.test),
                        "unit": part.unit[part.test],
                        "label": part.label[part.test].astype(np.int64),
                        "predicted": predicted.astype(np.int64),
                    }
                )
                frames.append(
                    frame.with_columns(
                        pl.lit(probe).alias("probe"),
                        pl.lit(name).alias("backbone"),
                        pl.lit(setting).alias("setting"),
                        (pl.col("label") == pl.col("predicted")).cast(pl.Float64).alias("score"),
                    )
                )
        return pl.concat(frames)

    def _probes(
        self, model: VisionModel, subject: Subject
    ) -> Iterator[tuple[str, Callable[[Part], Answer]]]:
        """Name of each probe, and what answers the test rows of a part."""
        if "layers" in self.kinds:
            stages = Stages(model)
            found = subject.features(model, stages, stages.layout)
            for stage, columns in stages.layout.items():
                yield f"layers:{stage}", partial(linear, found.take(columns=columns))
        if set(self.kinds) == {"layers"}:
            return
        with torch.inference_mode():
            blank = torch.zeros(1, 3, *model.input_size, device=model._mean.device)
            dim = model.features(blank).shape[1]
        x = subject.features(model, Pooled(model), {"pooled": slice(0, dim)}).take()
        for kind in self.kinds:
            if kind in READERS:
                yield kind, partial(READERS[kind], x)
            elif kind == "linear_sgd":
                views = Crops(model, subject.data.images, subject.seed)
                options = {"epochs": self.epochs, "normed": self.norm, "seed": subject.seed}
                yield kind, partial(linear_sgd, x, views=views, **options)

    def differences(self, ours: pl.DataFrame, theirs: pl.DataFrame) -> dict[str, Value]:
        """Of the trained backbones, by probe."""
        trained = [frame.filter(pl.col("backbone") == "trained") for frame in (ours, theirs)]
        shared = [x for x in ours["probe"].unique(maintain_order=True) if x in theirs["probe"]]
        return {
            probe: compare(*(frame.filter(pl.col("probe") == probe) for frame in trained))
            for probe in shared
        }

    def summarise(self, records: pl.DataFrame) -> Section:
        values: dict[str, Value] = {}
        rows = []
        for probe in records["probe"].unique(maintain_order=True):
            of = {
                name: records.filter((pl.col("probe") == probe) & (pl.col("backbone") == name))
                for name in ("trained", "untrained")
            }
            trained, fresh = of["trained"], of["untrained"]
            unit = trained["unit"].to_numpy()
            hits, chance = (frame["score"].to_numpy() for frame in (trained, fresh))
            values[probe] = share(hits, unit)
            values[f"{probe}_untrained"] = share(chance, unit)
            gain = paired(hits, chance, unit, unit="points")
            values[f"{probe}_gain"] = gain
            balanced = bootstrap_shares(trained["label"].to_numpy(), hits, units=unit)
            row = {"probe": probe}
            for name, value in (
                ("accuracy", values[probe]),
                ("balanced_accuracy", balanced),
                ("accuracy_untrained", values[f"{probe}_untrained"]),
                ("gain", gain),
            ):
                row |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
            settings = trained["setting"].unique(maintain_order=True).to_list()
            rows.append(row | {"setting": "; ".join(settings)})
        table = pl.DataFrame(rows)
        first = rows[0]["probe"]
        section = self.section(
            f"The {first.replace('_', ' ')} probe is right on {values[first].text()} of "
            f"{values[first].n:,} held-out images; on the untrained backbone on "
            f"{values[f'{first}_untrained'].text()}."
        )
        section.n, section.values = values[first].n, values
        shares = ("accuracy", "balanced_accuracy", "accuracy_untrained", "gain")
        units: dict[str, Unit] = dict.fromkeys(shares, "share")
        section.tables["probes"] = Table(frame=table, units=units)
        return section


class Crops:
    """Features of a new random resized crop, mirrored or not, of each image in every epoch."""

    def __init__(self, model: VisionModel, images: Images, seed: int) -> None:
        self.model, self.images, self.seed = model, images, seed
        size = list(model.input_size)
        self.view = v2.Compose(
            [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        )

    def __call__(self, epoch: int, rows: np.ndarray) -> Tensor:
        """[B, D]; chance depends on seed, epoch and image alone."""
        found = []
        for start in range(0, len(rows), BATCH):
            views = [self._crop(epoch, int(row)) for row in rows[start : start + BATCH]]
            with torch.no_grad():
                batch = torch.stack(views).to(self.model._mean.device)
                found.append(self.model.features(batch).float().cpu())
        return torch.cat(found)

    def _crop(self, epoch: int, row: int) -> Tensor:
        image = torch.from_numpy(self.images.read(row)).permute(2, 0, 1)
        id = self.images.table["id"][row]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(digest(str(self.seed), str(epoch), id)[:8], 16))
            return self.view(image)


class ProbeCallback:
    """Accuracy of probes on a model that changes; see `probe_callback`.

    Nothing is cached, and there is no untrained twin: a call before the training is that.
    """

    def __init__(self, images: Images, kinds: Sequence[Kind], seed: int, limit: int | None) -> None:
        for kind in set(kinds) - set(READERS):
            known = ", ".join(READERS)
            raise ArgumentError(f"The probe {kind!r} cannot follow a training.", f"Known: {known}.")
        self.kinds = tuple(kinds)
        self.subject = Subject.of(images, seed, limit)
        self.part = self.subject.parts()[0]

    def __call__(self, model: VisionModel, objective: Objective, step: Step) -> dict[str, float]:
        """Probe -> accuracy of `objective.features`. The model's mode is left as it was."""
        x = self._features(model, objective)
        label = self.part.label[self.part.test]
        found = {kind: READERS[kind](x, self.part)[0] for kind in self.kinds}
        return {kind: float((answer == label).mean()) for kind, answer in found.items()}

    @torch.no_grad()
    def _features(self, model: VisionModel, objective: Objective) -> np.ndarray:
        device, images, gone = model._mean.device, self.subject.data.images, {}
        rows = range(len(images))
        source = batches(images, rows, model.prepare, model.input_size, BATCH, WORKERS, gone)
        with judging(model, objective):
            found = [
                objective.features(model, torch.from_numpy(batch).permute(0, 3, 1, 2).to(device))
                for batch in source
            ]
        return torch.cat(found)[: len(images)].float().cpu().numpy()


def probe_callback(
    images: Images, kinds: Sequence[Kind] = ("knn",), *, seed: int = 0, limit: int | None = 2000
) -> Probe:
    """For `probes=` of a training: after every epoch, probe -> accuracy on held-out images.

    Args:
        kinds: 'linear', 'knn', 'svm'.
        limit: at most so many of the images.

    Raises:
        ArgumentError: a probe that needs more than features.
        DataError: no image can be judged.
    """
    return ProbeCallback(images, kinds, seed, limit)

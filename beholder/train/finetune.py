"""Fine-tuning: the encoder's last stages, or all of it on a GPU, learn with a linear classifier.

On a CPU the stages before stride 16 stay as they are, so what comes out of them is computed once
(image and mirror image, float16) and only the rest is trained. A quarter of the training part is
kept aside: the frozen encoder is left only for one that is better there, and no judged image is
asked before that is decided (specs/study.md, section 3).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import polars as pl
import torch
from torch import nn

from beholder.core.engines import FromBytes, fastest
from beholder.core.errors import DataError, ModelError
from beholder.core.features import Features, View, extract
from beholder.core.model import VisionModel
from beholder.core.split import Sealed, Split
from beholder.models.classifier_heads import LinearHead, copy_calibration
from beholder.models.run import attach_portable

from .answers import (
    REFERENCE_STRENGTH,
    Answers,
    Labelled,
    Trainer,
    hits_of,
    parts,
    predictions_of,
)
from .heads import Candidate, Fitted, decide, probability, raw_logits, training_folds
from .passes import FeaturePass
from .tail import Tail, Taught, Trunk, cut, learn
from .tuning import CPU, GPU, PILOT, WARM, Recipe, affordable, weights_of
from .validation import answers as ask
from .whole import train_all


@dataclass
class Tuned:
    """What fine-tuning came to.

    Attributes:
        found: encoder, features and answers; None = the frozen ones stay.
        note: one sentence.
    """

    found: tuple[VisionModel, Features, Answers] | None
    note: str


def finetune(
    vision: VisionModel,
    features: Features,
    labelled: Labelled,
    answers: Answers,
    split: Split,
    passed: FeaturePass,
    seconds: float,
) -> Tuned:
    """The encoder trained on the training part of the first split, if that makes it better.

    Args:
        vision, features, answers: of the frozen encoder.
        passed: how features are computed.
        seconds: for the training.

    Raises:
        BudgetError: not even four epochs fit.
        ModelError: the encoder cannot be trained in this way.
    """
    end = time.monotonic() + seconds
    if split.kind == "cross_fit":
        return Tuned(None, "Not fine-tuned: every image is needed to judge by (cross-fitting).")
    frozen, data = answers.shipped, labelled
    ((train, judged),) = parts(split, data)
    Sealed(data.ids[judged]).check(data.ids[train])
    aside = split.roles[train] == "val"
    if not aside.any():
        aside = training_folds(data.unit[train], data.label[train], passed.seed) == 0
    rows = train[~aside]
    recipe = GPU if passed.device.startswith("cuda") else CPU
    tuned = _started(vision, features, data, rows, recipe, passed, frozen.mirror)
    if recipe.cached:
        epochs = _train_tail(tuned, data, rows, recipe, passed, end)
    else:
        epochs = train_all(tuned, data, rows, recipe, passed, end)
    tuned.to(passed.device)
    tuned.head, kept = _head(tuned), train[aside]
    scores = {
        "fine-tuned": _score(_asked(tuned, kept, passed).argmax(1), data.label[kept], frozen),
        "frozen": _score(
            frozen.probability(frozen.decisions[aside]).argmax(1), data.label[kept], frozen
        ),
    }
    said = (
        f"fine-tuned for {epochs} epochs: on {len(kept):,} training images kept aside its "
        f"{frozen.metric} is {100 * scores['fine-tuned']:.1f} %, that of the frozen one "
        f"{100 * scores['frozen']:.1f} %."
    )
    if scores["fine-tuned"] <= scores["frozen"]:
        return Tuned(None, f"The encoder stays as it was. It was {said}")
    found = _adopted(tuned, data, answers, rows, kept, judged, passed)
    found[2].shipped.scores = {f"{name}, kept aside": x for name, x in scores.items()}
    return Tuned(
        found, f"The encoder was {said} One split is judged, as each would be trained anew."
    )


def _score(predicted: np.ndarray, labels: np.ndarray, like: Fitted) -> float:
    """By the metric that the frozen head was chosen by."""
    hits = predicted == labels
    if like.metric == "accuracy":
        return float(hits.mean())
    return float(np.mean([hits[labels == k].mean() for k in np.unique(labels)]))


def _head(tuned: VisionModel) -> LinearHead:
    """The trained classifier as a head on the descriptor, of which it sees the pooled final map."""
    classifier = tuned.backbone.get_classifier()
    assert isinstance(classifier, nn.Linear)
    weight, bias = classifier.weight.detach().float(), classifier.bias.detach().float()
    if len(bias) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    columns, count = tuned.layout["pooled"], max(part.stop for part in tuned.layout.values())
    wide = weight.new_zeros(len(bias), count)
    wide[:, columns] = weight
    zeros, ones = weight.new_zeros(count), weight.new_ones(count)
    head = LinearHead(zeros, ones, wide, bias.clone(), len(tuned.classes), joint=True)
    return head.eval()


def _asked(tuned: VisionModel, rows: np.ndarray, passed: FeaturePass) -> np.ndarray:
    """Logits [n, C] of these images, as deployed."""
    mask = np.isin(np.arange(len(passed.data)), rows)
    logits, there = ask(tuned, passed.data.images.where(pl.Series(mask)), workers=passed.workers)
    if not there.all():
        raise DataError(f"{(~there).sum():,} images vanished while the encoder was trained.")
    return logits


def _adopted(
    tuned: VisionModel,
    data: Labelled,
    before: Answers,
    rows: np.ndarray,
    kept: np.ndarray,
    judged: np.ndarray,
    passed: FeaturePass,
) -> tuple[VisionModel, Features, Answers]:
    """The tuned encoder's features, and its answers to all images that it did not learn from."""
    count = len(passed.data)
    tuned, features = passed.run(tuned, lambda: float("inf"))
    if len(passed.data) < count:
        raise DataError(f"{count - len(passed.data):,} images vanished since they were read.")
    head = _head(tuned).cpu()
    views: list[View] = ["image", "mirror"] if tuned.mirror else ["image"]

    def decided(some: np.ndarray) -> np.ndarray:
        return np.mean([decide(head, features, some, view) for view in views], 0)

    head.fit_calibration(decided(kept), data.label[kept])
    unseen = np.setdiff1d(np.arange(count), rows)
    decisions = decided(unseen)
    logits = np.full((count, data.classes), np.nan)
    chances = logits.copy()
    logits[unseen], chances[unseen] = raw_logits(head, decisions), probability(head, decisions)
    pooled = features.layout["pooled"]
    portable = LinearHead(
        head.mean[pooled],
        head.scale[pooled],
        head.weight[:, pooled],
        head.bias,
        data.classes,
        joint=True,
    )
    copy_calibration(head, portable)
    single = probability(head, decide(head, features, judged)).argmax(1)
    old = before.baselines.filter(pl.col("name") != "portable")
    own = [
        predictions_of(data, "portable", judged, single),
        predictions_of(data, "frozen", judged, before.probability[judged].argmax(1)),
    ]
    head_of = np.full(count, -1)
    head_of[judged] = 0
    shipped = Fitted(
        head,
        Candidate("logistic", REFERENCE_STRENGTH),
        mirror=tuned.mirror,
        rows=kept,
        decisions=decided(kept),
        scores={},
        metric=before.shipped.metric,
    )
    return (
        tuned,
        features,
        Answers(
            logits,
            chances,
            hits_of(data, judged, chances[judged].argmax(1), seed=0).cast(before.repeats.schema),
            pl.concat([old, *own]),
            before.learning.head(0),
            shipped,
            portable,
            [head],
            head_of,
        ),
    )


def _started(
    vision: VisionModel,
    features: Features,
    data: Labelled,
    rows: np.ndarray,
    recipe: Recipe,
    passed: FeaturePass,
    mirror: bool,
) -> VisionModel:
    """A copy of the encoder at the recipe's size, with a linear classifier learned from `rows`."""
    fixed = bool(vision.backbone.pretrained_cfg.get("fixed_input_size"))
    own = vision.input_size
    size = own if fixed or max(own) <= recipe.largest else (recipe.side, recipe.side)
    backbone = copy.deepcopy(vision.backbone).cpu()
    trainer = Trainer(features, data, passed.seed)
    start = trainer.linear(features, rows, trainer.pooled, REFERENCE_STRENGTH)
    assert isinstance(start, LinearHead)
    if not attach_portable(backbone, start, data.classes):
        raise ModelError(
            f"{vision.name} has no linear classifier on its pooled features to train.",
            "Leave out --finetune, or use another encoder.",
        )
    return VisionModel(
        backbone,
        vision.name,
        classes=passed.data.images.classes,
        input_size=size,
        mirror=mirror,
        crop=vision.crop,
    ).to(passed.device)


def _train_tail(
    tuned: VisionModel,
    data: Labelled,
    rows: np.ndarray,
    recipe: Recipe,
    passed: FeaturePass,
    end: float,
) -> int:
    """Train what follows stride 16; the epochs that there was time for."""
    trunk, tail, shape = cut(tuned)
    views: list[View] = ["image", "mirror"] if tuned.mirror else ["image"]
    maps = _cached(trunk, rows, shape, views, passed)
    taught = Taught(maps, tuple(shape), data.soft[rows], weights_of(data.label[rows]))
    steps = -(-len(rows) // recipe.batch)

    def training(some: Tail, epochs: int) -> Iterator[int]:
        return learn(some, taught, recipe, epochs, passed.seed)

    pilot = training(copy.deepcopy(tail), recipe.epochs)
    for _ in islice(pilot, WARM):
        pass
    begun = time.monotonic()
    timed = sum(1 for _ in islice(pilot, PILOT))
    price = (time.monotonic() - begun) / max(timed, 1) * steps
    epochs = affordable(price, end - time.monotonic(), recipe.epochs)
    with passed.stage("finetune", epochs * steps, f"{epochs} epochs") as stage:
        for _ in training(tail, epochs):
            stage.advance(1)
    tail.to_backbone(tuned.backbone)
    return epochs


def _cached(
    trunk: Trunk, rows: np.ndarray, shape: torch.Size, views: list[View], passed: FeaturePass
) -> Features:
    """Maps of these images by the trunk, float16."""
    data, vision = passed.data, trunk.vision
    mask = np.isin(np.arange(len(data)), rows)
    images = data.images.where(pl.Series(mask))
    describe = vision.describe() | {"maps": trunk.names}
    some = np.linspace(0, len(images) - 1, min(8, len(images))).astype(int)
    sample = np.stack([vision.prepare(images.read(int(row))) for row in some])

    with passed.stage("maps", len(images) * len(views), f"{vision.input_size[0]} px") as stage:
        found = extract(
            lambda: fastest(FromBytes(trunk, "flat").eval(), sample, describe, passed.device)[0],
            images,
            [data.hashes[row] for row in rows],
            describe=describe,
            prepare=vision.prepare,
            size=vision.input_size,
            layout={"maps": slice(0, shape.numel())},
            views=views,
            workers=passed.workers,
            directory=passed.place,
            progress=stage.advance,
        )
    if found.gone:
        raise DataError(f"{next(iter(found.gone))} vanished while it was learned from.")
    return found

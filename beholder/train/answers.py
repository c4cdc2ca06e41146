"""Out-of-sample answers for every image of a data set, from heads on frozen features.

What is fitted for one split (head, hyper-parameters, calibration) sees its training part only; a
`Sealed` guard stands before every fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.errors import DataError
from beholder.core.features import Features, View
from beholder.core.split import Sealed, Split
from beholder.models.classifier_heads import Head, copy_calibration

from .heads import (
    Candidate,
    Fitted,
    Problem,
    decide,
    probability,
    raw_logits,
    select,
    training_folds,
)

THUMBNAIL_STRENGTH = 1e-2
REFERENCE_STRENGTH = 1e-3
LEARNING_SHARES = (0.25, 0.5, 1.0)
LEARNING_DRAWS = 3


@dataclass(frozen=True)
class Labelled:
    """What heads learn from: per image id, class (-1 = none), label distribution, unit."""

    ids: np.ndarray
    label: np.ndarray
    soft: np.ndarray
    unit: np.ndarray

    @property
    def classes(self) -> int:
        return self.soft.shape[1]


@dataclass
class Answers:
    """Rows in the order of `Labelled`; NaN where there is no answer.

    Attributes:
        logits, probability: [N, C] before and after calibration, of the first split; those of an
            image that is not judged come from cross-fitting the training part.
        repeats: seed, id, correct.
        baselines: name, id, predicted (judged images of the first split).
        learning: share, draw, id, correct.
        shipped: the head that is saved.
        heads, head_of: [N] which of the heads has not seen the image (-1 = the shipped one).
        portable: linear head on the pooled final map.
    """

    logits: np.ndarray
    probability: np.ndarray
    repeats: pl.DataFrame
    baselines: pl.DataFrame
    learning: pl.DataFrame
    shipped: Fitted
    portable: Head
    heads: list[Head]
    head_of: np.ndarray


class Trainer:
    """Fits heads for the splits of one data set, never on a sealed image."""

    def __init__(self, features: Features, data: Labelled, seed: int) -> None:
        self.features, self.data, self.seed = features, data, seed
        self.pooled = features.layout["pooled"]

    def train(
        self, rows: np.ndarray, sealed: Sealed, candidates: list[Candidate] | None = None
    ) -> Fitted:
        """A head selected and calibrated on these rows.

        Raises:
            DataError: there are none.
        """
        if not len(rows):
            raise DataError(
                "No image with a label is there to train on.",
                "Give the training part some, or judge a model of yours: --model.",
            )
        sealed.check(self.data.ids[rows])
        return select(
            self.features,
            rows,
            self.data.label[rows],
            self.data.soft[rows],
            self.data.unit[rows],
            seed=self.seed,
            candidates=candidates,
            harden=self.features.has("copy"),
        )

    def linear(self, features: Features, rows: np.ndarray, columns: slice, strength: float) -> Head:
        """Logistic regression on some columns, calibrated by 4-fold cross-fitting."""
        data = self.data
        fold = training_folds(data.unit[rows], data.label[rows], self.seed)
        views: list[View] = ["image", "mirror"] if features.has("mirror") else ["image"]
        problem = Problem(
            features, rows, data.label[rows], data.soft[rows], fold, views, columns, self.seed
        )
        candidate = Candidate("logistic", strength)
        decisions = problem.cross_fit(candidate)
        head = problem.fit(candidate)
        head.fit_calibration(decisions, data.label[rows])
        return head


def parts(split: Split, data: Labelled) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, judged rows) of a split: one pair, or one per fold of a cross-fit."""
    labelled = data.label >= 0
    if split.kind == "cross_fit":
        judged = labelled & (split.folds >= 0)
        return [
            (
                np.flatnonzero(labelled & (split.folds != k)),
                np.flatnonzero(judged & (split.folds == k)),
            )
            for k in range(int(split.folds.max()) + 1)
        ]
    test = split.roles == "test"
    return [(np.flatnonzero(labelled & ~test), np.flatnonzero(labelled & test))]


def answer(
    features: Features,
    data: Labelled,
    splits: list[Split],
    thumbnails: np.ndarray,
    seed: int,
    progress: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Answers of heads made for every split; everything but `repeats` is of the first one.

    Args:
        thumbnails: [N, 256] grey, for the baseline that sees only colour and layout.
        progress: told 1 after every split.
    """
    trainer = Trainer(features, data, seed)
    count = len(data.label)
    logits = np.full((count, data.classes), np.nan)
    probability = np.full((count, data.classes), np.nan)
    repeats: list[pl.DataFrame] = []
    baselines: list[pl.DataFrame] = []
    learning: list[pl.DataFrame] = []
    shipped: Fitted | None = None
    portable: Head | None = None
    heads: list[Head] = []
    head_of = np.full(count, -1)
    for number, split in enumerate(splits):
        for train, judged in parts(split, data):
            sealed = Sealed(data.ids[judged])
            fitted = trainer.train(train, sealed)
            decisions = fitted.decide(features, judged)
            chosen = fitted.probability(decisions)
            repeats.append(hits_of(data, judged, chosen.argmax(1), seed=number))
            if number > 0:
                continue
            logits[judged] = raw_logits(fitted.head, decisions)
            probability[judged] = chosen
            head_of[judged] = len(heads)
            heads.append(fitted.head)
            if split.kind != "cross_fit":
                shipped = fitted
                logits[train] = raw_logits(fitted.head, fitted.decisions)
                probability[train] = fitted.probability(fitted.decisions)
            reference = trainer.linear(features, train, trainer.pooled, REFERENCE_STRENGTH)
            portable = portable if split.kind == "cross_fit" else reference
            baselines += _baselines(trainer, train, judged, reference, thumbnails)
            if split.kind != "cross_fit":
                learning += _learning(trainer, fitted, train, judged)
        progress(1)
    everything = np.flatnonzero(data.label >= 0)
    shipped = shipped or trainer.train(everything, Sealed([]))
    portable = portable or trainer.linear(features, everything, trainer.pooled, REFERENCE_STRENGTH)
    rest = np.isnan(probability[:, 0])
    others = np.setdiff1d(np.flatnonzero(rest), shipped.rows)
    for rows, decisions in (
        (shipped.rows, shipped.decisions),
        (others, shipped.decide(features, others)),
    ):
        fill = rest[rows]
        logits[rows[fill]] = raw_logits(shipped.head, decisions[fill])
        probability[rows[fill]] = shipped.probability(decisions[fill])
    nobody = everything[:0]
    return Answers(
        logits,
        probability,
        pl.concat([hits_of(data, nobody, nobody, seed=0), *repeats]),
        pl.concat([predictions_of(data, "majority", nobody, nobody), *baselines]),
        pl.concat([hits_of(data, nobody, nobody, share=1.0, draw=0), *learning]),
        shipped,
        portable,
        heads,
        head_of,
    )


def hits_of(
    data: Labelled, rows: np.ndarray, predicted: np.ndarray, **columns: float
) -> pl.DataFrame:
    """`columns`, id, correct of these rows."""
    correct = predicted == data.label[rows]
    return pl.DataFrame(
        {"id": pl.Series(data.ids[rows].tolist(), dtype=pl.String), "correct": correct}
    ).select(*(pl.lit(value).alias(name) for name, value in columns.items()), "id", "correct")


def predictions_of(data: Labelled, name: str, rows: np.ndarray, found: np.ndarray) -> pl.DataFrame:
    """name, id, predicted of these rows."""
    ids = pl.Series(data.ids[rows].tolist(), dtype=pl.String)
    return pl.DataFrame({"id": ids, "predicted": found.astype(np.int32)}).select(
        pl.lit(name).alias("name"), "id", "predicted"
    )


def _baselines(
    trainer: Trainer,
    train: np.ndarray,
    judged: np.ndarray,
    reference: Head,
    thumbnails: np.ndarray,
) -> list[pl.DataFrame]:
    data, features = trainer.data, trainer.features
    pooled = trainer.pooled
    single = both = decide(reference, features, judged, "image", pooled)
    if features.has("mirror"):
        both = (single + decide(reference, features, judged, "mirror", pooled)) / 2
    small = Features.of(thumbnails)
    colours = trainer.linear(small, train, slice(None), THUMBNAIL_STRENGTH)
    predicted = {
        "majority": np.full(len(judged), np.bincount(data.label[train]).argmax()),
        "thumbnail": probability(colours, decide(colours, small, judged)).argmax(1),
        "reference": probability(reference, both).argmax(1),
        "portable": probability(reference, single).argmax(1),
    }
    return [predictions_of(data, name, judged, found) for name, found in predicted.items()]


def _learning(
    trainer: Trainer, fitted: Fitted, train: np.ndarray, judged: np.ndarray
) -> list[pl.DataFrame]:
    """The chosen head refitted on a share of the training units, judged on the same images."""
    data = trainer.data
    views: list[View] = ["image", "mirror"] if fitted.mirror else ["image"]
    problem = Problem(
        trainer.features,
        train,
        data.label[train],
        data.soft[train],
        np.zeros(len(train), int),
        views,
        seed=trainer.seed,
        copies=fitted.copies,
    )
    names = np.unique(data.unit[train])
    whole = fitted.probability(fitted.decide(trainer.features, judged)).argmax(1)
    found = [hits_of(data, judged, whole, share=1.0, draw=0)]
    for share in LEARNING_SHARES[:-1]:
        for draw in range(LEARNING_DRAWS):
            rng = np.random.default_rng([trainer.seed, draw])
            kept = rng.permutation(names)[: max(1, round(share * len(names)))]
            keep = np.isin(data.unit[train], kept)
            if len(np.unique(data.label[train][keep])) < 2:
                continue
            head = problem.fit(fitted.candidate, keep)
            copy_calibration(fitted.head, head)
            decisions = np.mean([decide(head, trainer.features, judged, view) for view in views], 0)
            predicted = probability(head, decisions).argmax(1)
            found.append(hits_of(data, judged, predicted, share=share, draw=draw))
    return found

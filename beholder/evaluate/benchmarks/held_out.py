"""Unknown classes that are close to the known: one class held out at a time, detectors refitted."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import polars as pl
import torch

from beholder.core.features import View
from beholder.evaluate.subject import Subject, sampled
from beholder.metrics.detection import conformal_threshold, references_needed
from beholder.train.heads import Problem, decide
from beholder.trust.detectors.answers import Energy, MaxSoftmax
from beholder.trust.detectors.base import FeatureDetector

from .trusted import Trusted, as_logits, data_levels, feature_detectors

CLASSES = 5
LEARNED = 1_000
"""Images that a refitted head and detectors learn from."""

FEWEST = 10
"""Images of a class, and of the others in each part, below which it is not held out."""


def held_out(subject: Subject, trust: Trusted, count: int) -> Iterator[pl.DataFrame]:
    """One frame per class (set, detector, bad, score, refused): its images and, to be let pass,
    some of the other classes. As many classes as there is time for, at most `CLASSES`.

    Args:
        count: images of either kind, at most.
    """
    label = subject.evidence.frame["label"].fill_null(-1).to_numpy()
    fit, aside, judged = _roles(trust)
    names = subject.images.classes
    sizes = {k: int((label[judged] == k).sum()) for k in range(len(names))}
    fitting = [k for k, size in sizes.items() if size >= FEWEST]
    picks = np.linspace(0, len(fitting) - 1, min(CLASSES, len(fitting))).round().astype(int)
    price = 0.0
    for k in (fitting[pick] for pick in picks):
        if price > max(subject.allowance.left, 0):
            break
        start = time.perf_counter()
        known = [rows[(label[rows] != k) & (label[rows] >= 0)] for rows in (fit, aside, judged)]
        known[0] = sampled(known[0], label[known[0]], LEARNED, subject.seed)
        known[2] = sampled(known[2], label[known[2]], count, subject.seed)
        needed = max(2 * FEWEST, references_needed(subject.options.fpr))
        if min(map(len, known)) < needed or len(np.unique(label[known[0]])) < 2:
            continue
        own = judged[label[judged] == k]
        own = sampled(own, label[own], count, subject.seed)
        yield _without(subject, k, label, known, own)
        price = time.perf_counter() - start


def _roles(trust: Trusted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to fit on, for the threshold, and to judge by: none in two of them."""
    fold = trust.fold[trust.learned]
    if not trust.crossed:
        return trust.learned[fold > 0], trust.learned[fold == 0], trust.judged
    return trust.learned[fold > 1], trust.learned[fold == 0], trust.learned[fold == 1]


def _without(
    subject: Subject, k: int, label: np.ndarray, known: list[np.ndarray], own: np.ndarray
) -> pl.DataFrame:
    """Scores of detectors that never saw class `k`."""
    assert subject.model is not None
    parts = [data_levels(subject, rows) for rows in (*known, own)]
    makes: dict[str, FeatureDetector] = {
        name: make() for name, make in feature_detectors(subject).items()
    }
    if subject.fitted is not None and subject.labelled is not None:
        for levels, logits in zip(parts, _logits(subject, k, label, known, own), strict=True):
            levels["logits"] = as_logits(logits)
        makes |= {"max_softmax": MaxSoftmax(), "energy": Energy()}
    frames = []
    for name, detector in makes.items():
        detector.fit_levels(detector.wanted(parts[0]))
        aside, judged, bad = (
            detector.score_levels(detector.wanted(part)).image.double().numpy()
            for part in parts[1:]
        )
        score = np.concatenate([judged, bad])
        frames.append(
            pl.DataFrame(
                {
                    "set": f"class {subject.images.classes[k]}",
                    "detector": name,
                    "bad": np.arange(len(score)) >= len(judged),
                    "score": score,
                    "refused": score > conformal_threshold(aside, subject.options.fpr),
                }
            )
        )
    return pl.concat(frames)


def _logits(
    subject: Subject, k: int, label: np.ndarray, known: list[np.ndarray], own: np.ndarray
) -> list[np.ndarray]:
    """[n, C - 1] of every part by the chosen kind of head, refitted without class `k` and
    calibrated on the images kept aside."""
    features, fitted, data = subject.features, subject.fitted, subject.labelled
    assert features is not None
    assert fitted is not None
    assert data is not None
    rows = known[0]
    views: list[View] = ["image", "mirror"] if fitted.mirror else ["image"]
    soft = np.delete(data.soft, k, 1)

    def numbers(some: np.ndarray) -> np.ndarray:
        return label[some] - (label[some] > k)

    mass = soft[rows].sum(1, keepdims=True)
    hard = np.eye(soft.shape[1], dtype=soft.dtype)[numbers(rows)]
    targets = np.where(mass > 0, soft[rows] / np.where(mass > 0, mass, 1), hard)
    nobody = np.zeros(len(rows), int)
    problem = Problem(features, rows, numbers(rows), targets, nobody, views, seed=subject.seed)
    head = problem.fit(fitted.candidate)
    decisions = [
        np.mean([decide(head, features, part, view) for view in views], 0) for part in (*known, own)
    ]
    head.fit_calibration(decisions[1], numbers(known[1]))
    with torch.inference_mode():
        return [head.logits(torch.from_numpy(each)).numpy() for each in decisions]

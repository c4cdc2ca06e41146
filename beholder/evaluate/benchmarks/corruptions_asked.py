"""What the model answers to changed images: mild changes first, then damage by severity."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import torch

from beholder.core.errors import DataError
from beholder.core.features import View
from beholder.core.sections import Spent
from beholder.core.split import Split
from beholder.data.augment.corruptions import CORRUPTIONS, corrupt, draw_of
from beholder.data.augment.pipelines import DECIDING, EDITS, PIPELINES
from beholder.evaluate.subject import Allowance, Answer, Subject, sampled
from beholder.models.classifier_heads import Head
from beholder.train.answers import REFERENCE_STRENGTH, parts
from beholder.train.heads import Candidate, Problem

from .base import Records
from .corruptions_tables import CLEAN, ORDER, SHOWN_SEVERITY, asked_of

WANTED, FLOOR = 200, 32
ANSWERS = {
    "id": pl.String,
    "change": pl.String,
    "kind": pl.String,
    "severity": pl.Int8,
    "predicted": pl.Int32,
    "correct": pl.Boolean,
    "reference": pl.Int32,
}


@dataclass(frozen=True)
class Cell:
    """One change of all images. `change`: (pixels, id) -> pixels; `severity` 0 = it has none."""

    name: str
    kind: str
    severity: int
    change: Callable[[np.ndarray, str], np.ndarray]


def blocks(seed: int) -> list[list[Cell]]:
    """What is asked together, the most useful first: mild changes, those that decide before all."""

    def mild(kind: str, changes: dict[str, Callable[[np.ndarray], np.ndarray]]) -> list[Cell]:
        return [
            Cell(name, kind, 0, lambda pixels, id, change=change: change(pixels))
            for name, change in changes.items()
        ]

    def damage(severity: int) -> list[Cell]:
        return [
            Cell(name, "corruption", severity, partial(_corrupted, name, severity, seed))
            for name in CORRUPTIONS
        ]

    pipelines = mild("pipeline", PIPELINES)
    first = [cell for cell in pipelines if cell.name in DECIDING]
    return [
        [Cell(CLEAN, CLEAN, 0, lambda pixels, id: pixels), *first],
        [cell for cell in pipelines if cell not in first],
        damage(ORDER[0]),
        mild("edit", EDITS),
        *map(damage, ORDER[1:]),
    ]


def _corrupted(name: str, severity: int, seed: int, pixels: np.ndarray, id: str) -> np.ndarray:
    return corrupt(pixels, name, severity, draw_of(seed, id, name))


def planned(allowance: Allowance, prices: Sequence[float], available: int) -> tuple[int, int]:
    """Images and blocks that there is time for: first blocks on the least images, then images.

    Args:
        prices: seconds per image of each block.

    Raises:
        TooLittleTimeError: not even the first block on the least number of images.
    """
    wanted = min(WANTED, available)
    floor = min(FLOOR, wanted)
    allowance.count(prices[0], wanted, floor)
    count, left = 1, allowance.left
    while count < len(prices) and floor * sum(prices[: count + 1]) <= left:
        count += 1
    return int(max(floor, min(wanted, left / max(sum(prices[:count]), 1e-9)))), count


class Reference:
    """Logistic regression on the pooled final map, fitted without the images that it answers.

    Its answers cost no further pass through the encoder. Uncalibrated: a temperature changes no
    answer.
    """

    def __init__(self, subject: Subject) -> None:
        features, data, frame = subject.features, subject.labelled, subject.evidence.frame
        assert features is not None
        assert data is not None
        folds = frame["fold"].fill_null(-1).to_numpy()
        kind = "cross_fit" if (folds >= 0).any() else "holdout"
        views: list[View] = ["image", "mirror"] if features.has("mirror") else ["image"]
        self.columns = features.layout["pooled"]
        self.heads: list[Head] = []
        self.head_of = np.full(len(frame), -1)
        for train, judged in parts(Split(frame["split"].to_numpy(), folds, kind, (), ()), data):
            label, soft, fold = data.label[train], data.soft[train], np.zeros(len(train), int)
            problem = Problem(features, train, label, soft, fold, views, self.columns, subject.seed)
            self.head_of[judged] = len(self.heads)
            self.heads.append(problem.fit(Candidate("logistic", REFERENCE_STRENGTH)))

    @torch.inference_mode()
    def __call__(self, answer: Answer, rows: np.ndarray) -> np.ndarray:
        """Classes [N] of the images that these answers are of."""
        assert answer.features is not None
        found = np.empty(len(rows), int)
        for number, head in enumerate(self.heads):
            own = np.flatnonzero(self.head_of[rows] == number)
            decisions = head(torch.from_numpy(answer.features[own][:, self.columns]))
            found[own] = head.raw_logits(decisions).argmax(1).numpy()
        return found


def reference_of(subject: Subject) -> Reference | None:
    """The reference head, where the answers come from a head on features that were trained here."""
    if subject.labelled is None or subject.features is None or not subject.evidence.has_labels:
        return None
    return Reference(subject) if "pooled" in subject.features.layout else None


def measure(subject: Subject) -> Records:
    """Answers to the same images under every change that there is time for."""
    model, evidence = subject.model, subject.evidence
    assert model is not None
    asked = asked_of(evidence)
    row_of = {id: row for row, id in enumerate(evidence.frame["id"])}
    rows = np.array([row_of[id] for id in asked["id"]])
    known = asked["label"] if evidence.has_labels else asked["predicted"]
    reference = reference_of(subject)
    todo = blocks(subject.seed)
    an_answer = subject.price()
    probe, probed = subject.prepared(rows[:8])  # some may have vanished
    if not len(probed):
        raise DataError("The images cannot be read any more.")
    prices = [_price(block, probe[0], an_answer) for block in todo]
    images, count = planned(subject.allowance, prices, len(rows))
    pixels, rows = subject.prepared(sampled(rows, known.to_numpy(), images, subject.seed))
    ids = [evidence.frame["id"][int(row)] for row in rows]
    labels = evidence.frame["label"].to_numpy()[rows] if evidence.has_labels else None
    wanted = min(WANTED, len(asked)) * sum(map(len, todo))
    subject.expect(len(rows) * sum(map(len, todo[:count])))
    found: list[pl.DataFrame] = []
    for number, block in enumerate(todo[:count]):
        if number and len(rows) * prices[number] > subject.allowance.left:
            break
        for cell in block:
            changed = [cell.change(image, id) for image, id in zip(pixels, ids, strict=True)]
            answer = model.ask(changed, rows, subject.progress)
            predicted = answer.logits.argmax(1)
            columns = {
                "id": ids,
                "change": [cell.name] * len(ids),
                "kind": [cell.kind] * len(ids),
                "severity": [cell.severity] * len(ids),
                "predicted": predicted,
                "correct": [None] * len(ids) if labels is None else predicted == labels,
                "reference": [None] * len(ids) if reference is None else reference(answer, rows),
            }
            found.append(pl.DataFrame(columns, ANSWERS))
    answers = pl.concat(found)
    example, pictures = _example(answers, dict(zip(ids, pixels, strict=True)), todo[2])
    return Records(
        {"answers": answers, "example": example},
        Spent(wanted=wanted, used=len(answers), what="answers"),
        pictures,
    )


def _price(block: list[Cell], image: np.ndarray, an_answer: float) -> float:
    """Seconds per image; the changes are tried on one."""
    start = time.perf_counter()
    for cell in block:
        cell.change(image, "")
    return len(block) * an_answer + time.perf_counter() - start


def _example(
    answers: pl.DataFrame, pixels: dict[str, np.ndarray], block: list[Cell]
) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """One image under all damage that was measured: the first that is answered rightly."""
    clean = answers.filter(pl.col("kind") == CLEAN)
    right = clean.filter(pl.col("correct").fill_null(True))
    id = (right if len(right) else clean)["id"][0]
    example = pl.DataFrame({"id": [id]})
    if not len(answers.filter(pl.col("severity") == SHOWN_SEVERITY)):
        return example, {}
    pictures = {f"corruptions/{cell.name}": cell.change(pixels[id], id) for cell in block}
    return example, {f"corruptions/{CLEAN}": pixels[id]} | pictures

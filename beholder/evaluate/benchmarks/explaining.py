"""Makes heat maps within the budget: those that are shown, and a test of maps drawn by chance.

The measuring half of the section `explanations` (specs/study.md, 4.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from beholder.core.errors import DataError
from beholder.core.sections import Spent
from beholder.evaluate.heat_maps import (
    ByGradient,
    ByOcclusion,
    Design,
    Mapper,
    areas,
    border_ratio,
    laid_over,
)
from beholder.metrics.explanation import spearman

from .base import Evidence, Records
from .mistakes import shown, triaged

if TYPE_CHECKING:
    from beholder.evaluate.subject import Allowance, Subject

MAPS, LEAST_MAPS = 16, 8  # images that are shown
TESTED, LEAST_TESTED = 64, 20  # fewer than 20 give no interval
DESIGNS = (Design(8, 3, True), Design(8, 1, True), Design(3, 1, False))
"""From thorough to quick; the first that the budget allows on the least number of images."""
PROBE = 4  # images that may be tried to learn the price
FORGETFUL = 4  # images whose maps are made again with shuffled weights
EACH = 4  # right and sure, right and unsure; twice as many mistakes
SURE, UNSURE, WORST, MISTAKE = ROLES = (
    *("right and sure", "right and unsure", "worst mistakes"),
    "mistake",  # shown by the section of mistakes
)
COLUMNS = ("deletion", "insertion", "deletion_random", "insertion_random")
CENTRE = ("deletion_centre", "insertion_centre")


def explained(evidence: Evidence) -> pl.DataFrame:
    """The rows whose answers are explained: the judged ones, without labels all answers."""
    frame = evidence.judged if evidence.has_labels else evidence.frame
    there = pl.col("probability").is_not_null() & pl.col("predicted").is_not_null()
    return frame.filter(there) if "probability" in frame.columns else frame.head(0)


def wished(evidence: Evidence) -> list[tuple[str, str, tuple[int, ...]]]:
    """Images to be shown, the most telling first: id, role, classes whose maps are wanted."""
    rows = explained(evidence).sort(["confidence", "id"], descending=[True, False])
    errors = triaged(evidence).head(2 * EACH) if evidence.has_labels else None
    right = rows.filter(pl.col("correct")) if errors is not None else rows
    each = EACH if errors is not None else 2 * EACH
    sure = right.head(each)
    unsure = right.slice(len(sure)).reverse().head(each)
    mistakes = [] if errors is None else errors.select("id", "predicted", "true").rows()
    queues: list[list[tuple[str, str, tuple[int, ...]]]] = [
        [(id, WORST, (predicted, true)) for id, predicted, true in mistakes[start::2]]
        for start in (0, 1)
    ]
    queues[1:1] = [[(id, SURE, (label,)) for id, label in sure.select("id", "predicted").rows()]]
    queues += [[(id, UNSURE, (label,)) for id, label in unsure.select("id", "predicted").rows()]]
    longest = max(map(len, queues))
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def planned(
    allowance: Allowance, a_map: float, an_answer: float, available: int
) -> tuple[Design, int]:
    """The test that there is time for, and on how many images.

    Args:
        a_map, an_answer: seconds.
        available: images.

    Raises:
        TooLittleTimeError: not even the quickest test on the least number of images.
    """
    floor = min(LEAST_TESTED, available)
    kept = 1.5 * a_map * min(LEAST_MAPS, available)  # mistakes have two maps
    left = allowance.left - kept
    prices = {design: a_map + design.answers * an_answer for design in DESIGNS}
    fitting = [design for design in DESIGNS if floor * prices[design] <= left]
    if not fitting:
        allowance.count((kept + floor * prices[DESIGNS[-1]]) / floor, floor, floor)
    design = fitting[0] if fitting else DESIGNS[-1]
    return design, int(min(TESTED, available, max(floor, left / prices[design])))


def measure(subject: Subject) -> Records:
    """Maps of the images that are shown, and the test of maps on images drawn by chance."""
    from beholder.evaluate.subject import TooLittleTimeError, sampled  # they import this package

    model, evidence = subject.model, subject.evidence
    assert model is not None
    mapper: Mapper = ByOcclusion(model) if model.vision is None else ByGradient(model)
    row_of = {id: row for row, id in enumerate(evidence.frame["id"])}
    answers = dict(explained(evidence).select("id", "predicted").iter_rows())
    rows = np.array([row_of[id] for id in answers])
    labels = np.array(list(answers.values()))
    an_answer = subject.price()
    probe, known = subject.prepared(rows[:PROBE])
    if not len(known):
        raise DataError("The images cannot be read any more.")
    a_map = mapper.price(probe[0], int(known[0]), an_answer)
    available = len(rows)
    try:
        design, tested = planned(subject.allowance, a_map, an_answer, available)
    except TooLittleTimeError as error:
        if model.vision is not None:
            raise
        times = pl.DataFrame({"needs": [error.needs], "left": [max(error.left, 0.0)]})
        return Records({"too_long": times})
    subject.expect(tested + min(MAPS, available))
    label_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    faithfulness, sanity = [], []
    for row in sampled(rows, labels, tested, subject.seed).tolist():
        pixels, known = subject.prepared([row])
        subject.progress(1)
        if not len(known):
            continue
        label = label_of[row]
        (heatmap,) = mapper(pixels, known, np.array([label]))
        found = areas(model, pixels[0], row, label, heatmap, design, subject.seed)
        found |= {"id": evidence.frame["id"][row], "answer": label}
        faithfulness.append(found | {"border": border_ratio(heatmap)})
        if isinstance(mapper, ByGradient) and len(sanity) < FORGETFUL:
            other = mapper.forgetful(pixels, known, np.array([label]), subject.seed)
            kept = spearman(torch.from_numpy(heatmap[None]), torch.from_numpy(other))
            sanity.append((evidence.frame["id"][row], float(torch.nan_to_num(kept))))
    if not faithfulness:
        raise DataError("The images cannot be read any more.")
    maps, pictures = _pictured(subject, mapper, a_map, tested)
    schema = {"id": pl.String, "answer": pl.Int64}
    schema |= dict.fromkeys((*COLUMNS, *CENTRE, "border"), pl.Float64)
    how = {"method": [mapper.name], "steps": [design.steps], "moves": [design.moves]}
    return Records(
        {
            "faithfulness": pl.DataFrame(faithfulness, schema),
            "sanity": pl.DataFrame(sanity, {"id": pl.String, "survives": pl.Float64}, orient="row"),
            "maps": maps,
            "how": pl.DataFrame(how),
        },
        Spent(wanted=min(TESTED, available), used=tested, what="images"),
        pictures,
    )


def _pictured(
    subject: Subject, mapper: Mapper, a_map: float, done: int
) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """Maps to be shown, as many as there is time for: rows (picture, id, role, label, empty), and
    picture -> RGBA."""
    evidence, model, allowance = subject.evidence, subject.model, subject.allowance
    assert model is not None
    wishes = wished(evidence)
    count = int(min(MAPS, max(LEAST_MAPS, allowance.left / (1.5 * a_map))))
    row_of = {id: row for row, id in enumerate(evidence.frame["id"])}
    maps, pictures = [], {}

    def make(id: str, role: str, labels: Sequence[int]) -> None:
        pixels, known = subject.prepared([row_of[id]])
        if not len(known):
            return
        heat = mapper(pixels * len(labels), np.repeat(known, len(labels)), np.array(labels))
        height, width = evidence.frame.select("height", "width").row(row_of[id])
        for label, heatmap in zip(labels, heat, strict=True):
            name = f"explanations/{len(maps)}"
            pictures[name] = laid_over(heatmap, height, width, model.crop)
            maps.append((name, id, role, label, bool(heatmap.max() <= 0)))

    subject.expect(done + len(wishes[:count]))
    for id, role, labels in wishes[:count]:
        make(id, role, labels)
        subject.progress(1)
    if evidence.has_labels:
        there = {id for id, *_ in wishes[:count]}
        more = shown(triaged(evidence)).filter(~pl.col("id").is_in(there))
        for id, label in (
            more.select("id", "predicted")
            .head(int(min(len(more), max(allowance.left, 0) / a_map)))
            .rows()
        ):
            make(id, MISTAKE, [label])
    schema = {"picture": pl.String, "id": pl.String, "role": pl.String}
    schema |= {"label": pl.Int64, "empty": pl.Boolean}
    return pl.DataFrame(maps, schema, orient="row"), pictures

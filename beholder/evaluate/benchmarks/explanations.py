"""Heat maps of answers, and whether they are evidence (specs/study.md, 4.8).

Grad-CAM where the model can be looked into, occlusion of one cell after the other where it cannot.
The maps are tested on images drawn by chance: the cells of a 14 x 14 grid are blurred from the
hottest on (deletion), or made sharp from the hottest on (insertion), while the probability of the
answer is followed. They are evidence if both go better than with the cells in an order by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from beholder.core.errors import DataError
from beholder.core.options import Options
from beholder.core.sections import (
    Figure,
    Picture,
    Section,
    Severity,
    Spent,
    Table,
    Value,
    share_text,
)
from beholder.evaluate.heat_maps import (
    ByGradient,
    ByOcclusion,
    Design,
    Mapper,
    areas,
    border_ratio,
    laid_over,
)
from beholder.metrics.bootstrap import paired
from beholder.metrics.explanation import spearman

from .base import Evidence, Records, limited, plural, section, unit_of
from .mistakes import shown, triaged

if TYPE_CHECKING:
    from beholder.evaluate.subject import Allowance, Subject

MAPS, LEAST_MAPS = 16, 8  # images that are shown
TESTED, LEAST_TESTED = 64, 20  # fewer than 20 give no interval
DESIGNS = (Design(8, 3, True), Design(8, 1, True), Design(3, 1, False))
"""From thorough to quick; the first that the budget allows on the least number of images."""
PROBE = 4
FORGETFUL = 4  # images whose maps are made again with shuffled weights
SURVIVES, LEANS, LEAST_OF_CLASS = 0.5, 2.0, 5
EACH = 4  # right and sure, right and unsure; twice as many mistakes
SURE, UNSURE, WORST, MISTAKE = ROLES = (
    *("right and sure", "right and unsure", "worst mistakes"),
    "mistake",  # shown by the section of mistakes
)
FRAME_AREA = 0.36
COLUMNS = ("deletion", "insertion", "deletion_random", "insertion_random")
CENTRE = ("deletion_centre", "insertion_centre")


def finding(
    gains: Mapping[str, Value],
    survives: float | None,
    border: tuple[str, float] | None,
    tested: int,
) -> tuple[Severity, str]:
    """`good` where the maps beat chance in deletion and in insertion, and nothing else is odd.

    Args:
        gains: deletion_gain, insertion_gain and, where measured, deletion_gain_centre and
            insertion_gain_centre: in points, above 0 = the map is better.
        survives: rank correlation of the maps with those of a model with shuffled weights.
        border: the class that leans most on the border, and its `border_ratio`.
        tested: images.
    """
    both = [gains["deletion_gain"], gains["insertion_gain"]]
    images = plural(tested, "image")
    if any(gain.low is None for gain in both):
        ahead = all((gain.estimate or 0) > 0 for gain in both)
        said = "better than" if ahead else "no better than"
        return "none", f"On {images}, too few to judge by, the heat maps did {said} chance."
    if any((gain.low or 0) <= 0 for gain in both):
        return "look", (
            f"The heat maps are not evidence on this model: on {images} the hottest places tell "
            "no more of the answer than places by chance."
        )
    if survives is not None and survives >= SURVIVES:
        return "look", (
            "The heat maps are not evidence on this model: they stay much the same when its "
            f"weights are shuffled (rank correlation {survives:.2f})."
        )
    lost, gained = (share_text(gain.estimate or 0, unit=False) for gain in both)
    said = (
        f"The heat maps show what the model uses: on {images}, blurring the hottest places costs "
        f"the answer {lost} points of probability more than blurring others, and "
        f"showing them first brings {gained} more"
    )
    middle = [gains[f"{kind}_gain_centre"] for kind in ("deletion", "insertion")
              if f"{kind}_gain_centre" in gains]  # fmt: skip
    if middle and not any((gain.low or 0) > 0 for gain in middle):
        said += "; a spot in the middle of the image does as well"
    if border is not None and border[1] > LEANS:
        name, ratio = border
        return "look", (
            f"{said}. The answer '{name}' leans on the border: the outer tenth of each side holds "
            f"{share_text(min(ratio * FRAME_AREA, 1), width=1)} of the heat."
        )
    return "good", f"{said}."


def explained(evidence: Evidence) -> pl.DataFrame:
    """The rows whose answers are explained: the judged ones, without labels all answers."""
    frame = evidence.judged if evidence.has_labels else evidence.frame
    there = pl.col("probability").is_not_null() & pl.col("predicted").is_not_null()
    return frame.filter(there) if "probability" in frame.columns else frame.head(0)


def explained_or_why(evidence: Evidence) -> str | None:
    """The sentence where there is no answer to explain, else None."""
    if evidence.kind == "multilabel":
        return "Several labels per image: there is no one answer to explain."
    if evidence.kind == "one_class" or len(evidence.classes) == 1:
        return "Only one class: there is no answer to explain."
    if not len(explained(evidence)):
        return "No image was answered, so there is nothing to explain."
    return None


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
        faithfulness.append(
            (
                *(evidence.frame["id"][row], label, found.deletion, found.insertion),
                *(found.chance, found.chance, found.deletion_middle, found.insertion_middle),
                border_ratio(heatmap),
            )
        )
        if isinstance(mapper, ByGradient) and len(sanity) < FORGETFUL:
            other = mapper.forgetful(pixels, known, np.array([label]), subject.seed)
            kept = spearman(torch.from_numpy(heatmap[None]), torch.from_numpy(other))
            sanity.append((evidence.frame["id"][row], float(torch.nan_to_num(kept))))
    maps, pictures = _pictured(subject, mapper, a_map)
    schema = {"id": pl.String, "answer": pl.Int64}
    schema |= dict.fromkeys((*COLUMNS, *CENTRE, "border"), pl.Float64)
    how = {"method": [mapper.name], "steps": [design.steps], "orders": [design.chance]}
    return Records(
        {
            "faithfulness": pl.DataFrame(faithfulness, schema, orient="row"),
            "sanity": pl.DataFrame(sanity, {"id": pl.String, "survives": pl.Float64}, orient="row"),
            "maps": maps,
            "how": pl.DataFrame(how),
        },
        Spent(wanted=min(TESTED, available), used=tested, what="images"),
        pictures,
    )


def _pictured(
    subject: Subject, mapper: Mapper, a_map: float
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

    for id, role, labels in wishes[:count]:
        make(id, role, labels)
        subject.progress(1)
    if evidence.has_labels:
        done = {id for id, *_ in wishes[:count]}
        more = shown(triaged(evidence)).filter(~pl.col("id").is_in(done))
        for id, label in (
            more.select("id", "predicted")
            .head(int(min(len(more), max(allowance.left, 0) / a_map)))
            .rows()
        ):
            make(id, MISTAKE, [label])
    schema = {"picture": pl.String, "id": pl.String, "role": pl.String}
    schema |= {"label": pl.Int64, "empty": pl.Boolean}
    return pl.DataFrame(maps, schema, orient="row"), pictures


def gains_of(rows: pl.DataFrame, units: np.ndarray, seed: int) -> dict[str, Value]:
    """How much better the maps are than chance and, where measured, than a spot in the middle."""
    gains = {}
    for baseline in ("random", "centre"):
        for kind in ("deletion", "insertion"):
            own, other = rows[kind], rows[f"{kind}_{baseline}"]
            if not len(rows) or other.null_count():
                continue
            better, worse = (other, own) if kind == "deletion" else (own, other)
            name = f"{kind}_gain" + ("_centre" if baseline == "centre" else "")
            gains[name] = paired(
                better.to_numpy(), worse.to_numpy(), units, unit="points", seed=seed
            )
    return gains


def borders(rows: pl.DataFrame, classes: Sequence[str]) -> pl.DataFrame:
    """class, n (maps with positive heat), border_ratio (mean): the largest first."""
    names = pl.Series(list(classes), dtype=pl.String)
    return (
        rows.filter(pl.col("border").is_not_null())
        .group_by("answer")
        .agg(pl.len().alias("n"), pl.col("border").mean().alias("border_ratio"))
        .sort(["border_ratio", "answer"], descending=[True, False])
        .with_columns(names.gather(pl.col("answer")).alias("class"))
        .select("class", "n", "border_ratio")
    )


def pictures(evidence: Evidence) -> list[Picture]:
    """Each image, and beside it the same one under the map of the answer and of the true class."""
    maps, classes = evidence.records["explanations"]["maps"], evidence.classes
    rows = evidence.frame.join(maps, on="id", how="semi").iter_rows(named=True)
    facts = {row["id"]: row for row in rows}
    cards = []
    for role in ROLES[:3]:
        of_role = maps.filter(role=role)
        for id in of_role["id"].unique(maintain_order=True):
            row = facts[str(id)]
            answer = classes[row["predicted"]]
            true = "" if row["label"] is None else classes[row["label"]]
            said = f"predicted {answer}, confidence {row['confidence']:.2f}, file {row['path']}"
            cards.append(
                Picture(
                    id=id,
                    caption=f"{true}, called {answer}" if role == WORST else answer,
                    alt=f"true {true}, {said}" if true else said,
                    bucket=role,
                    facts={"confidence": f"{row['confidence']:.2f}"},
                    beside=[
                        Picture(
                            id=id,
                            caption=f"nothing speaks for {classes[label]}"
                            if empty
                            else f"speaks for {classes[label]}",
                            alt=f"heat map of what speaks for {classes[label]}, {said}",
                            overlay=picture,
                        )
                        for picture, label, empty in of_role.filter(id=id)
                        .select("picture", "label", "empty")
                        .iter_rows()
                    ],
                )
            )
    return cards


@section(
    "explanations", "Explanations", needs=explained_or_why, measure=measure, uses="answers",
    share=0.04,
)  # fmt: skip
def summarise(evidence: Evidence, options: Options) -> Section:
    """The maps, whether they are evidence, and whether a class leans on the border."""
    records = evidence.records["explanations"]
    if "too_long" in records:
        needs, left = records["too_long"].row(0)
        why = f"Explaining a black box takes {needs:.0f} s; the budget had {left:.0f} s."
        return Section(
            id="explanations", title="Explanations", finding=why, status="not_applicable"
        )
    rows, sanity = records["faithfulness"], records["sanity"]
    method, steps, orders = records["how"].row(0)
    units = rows.join(evidence.frame.select("id", "unit"), on="id", maintain_order="left")
    gains = gains_of(rows, units["unit"].to_numpy(), options.seed)
    border = borders(rows, evidence.classes)
    leaning = next(border.filter(pl.col("n") >= LEAST_OF_CLASS).select("class", "border_ratio")
                   .iter_rows(), None)  # fmt: skip
    survives = float(np.mean(sanity["survives"].to_numpy())) if len(sanity) else None
    values = dict(gains)
    if survives is not None:
        values["survives"] = Value(
            estimate=survives, n=len(sanity), unit="", higher_is_better=False
        )
    if leaning is not None:
        values["border_ratio"] = Value(
            estimate=leaning[1], n=len(rows), unit="", higher_is_better=False
        )
    severity, sentence = limited(
        *finding(gains, survives, leaning, len(rows)), len(explained(evidence))
    )
    return Section(
        id="explanations",
        title="Explanations",
        finding=sentence,
        severity=severity,
        n=len(rows),
        unit=unit_of(evidence),
        values=values,
        tables={
            "faithfulness": Table(
                frame=rows.select(
                    "id", pl.lit(method).alias("method"), *COLUMNS,
                    *(name for name in CENTRE if not rows[name].null_count()),
                ),
                units=dict.fromkeys((*COLUMNS, *CENTRE), "share"),
            ),
            "border": Table(frame=border),
        },
        figures={"gains": _figure(gains)},
        pictures=pictures(evidence),
        method=_method(method, steps, orders, len(rows)),
    )  # fmt: skip


def _figure(gains: Mapping[str, Value]) -> Figure:
    words = {"deletion": "hottest blurred first", "insertion": "hottest shown first"}
    data = [
        (
            f"{words[name.split('_')[0]]}, against "
            + ("the middle" if name.endswith("centre") else "chance"),
            *(gain.estimate, gain.low, gain.high),
        )
        for name, gain in gains.items()
    ]
    schema = {"label": pl.String} | dict.fromkeys(("value", "low", "high"), pl.Float64)
    return Figure(
        kind="dots",
        data=pl.DataFrame(data, schema, orient="row"),
        title="How much more of the answer the heat maps hold",
        x="probability of the answer gained, mean over the curve",
        note="Above 0: the map finds what the model uses better than the baseline.",
    )


def _method(method: str, steps: int, orders: int, tested: int) -> list[str]:
    made = (
        "Grad-CAM on the last map of the network, both views of a mirrored answer added; of two "
        "classes the logit less the other's is explained."
        if method == "gradcam"
        else "A black box: each of 14 x 14 cells is covered with the image's mean colour; the heat "
        "is how far the probability falls."
    )
    return [
        made,
        f"Tested on {plural(tested, 'image')} drawn by chance, class by class: a 14 x 14 grid is "
        f"blurred (sigma a twentieth of the side) in {steps} steps from the hottest cell on, and "
        "the other way round made sharp; the mean probability of the answer along the way is the "
        "figure.",
        f"Chance: the same cells in {plural(orders, 'other order')} per image. An order by chance "
        "read backwards is one as well, so both ways have one figure.",
        "Shuffled weights: the maps of the same network with the values of every layer in another "
        "order; a map that survives this (rank correlation 0.5 or more) explains nothing learnt.",
        "Border ratio: share of the positive heat in the outer tenth of each side over that "
        f"frame's share of the area; classes with at least {LEAST_OF_CLASS} maps are judged.",
        "Each map is scaled by itself: colours do not compare across pictures.",
    ]

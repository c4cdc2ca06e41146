"""Heat maps of answers, and whether they are evidence (specs/study.md, 4.8).

Grad-CAM where the model can be looked into, occlusion of one cell after the other where it cannot.
The maps are tested on images drawn by chance: the cells of a 14 x 14 grid are blurred from the
hottest on (deletion), or made sharp from the hottest on (insertion), while the probability of the
answer is followed. They are evidence if both go better than with the same maps moved elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Figure, Picture, Section, Severity, Table, Value, share_text
from beholder.metrics.bootstrap import paired

from .base import Evidence, limited, plural, section, unit_of
from .explaining import CENTRE, COLUMNS, ROLES, WORST, explained, measure

SURVIVES, LEANS, LEAST_OF_CLASS = 0.5, 2.0, 5
FRAME_AREA = 0.36


def finding(
    gains: Mapping[str, Value],
    survives: float | None,
    border: tuple[str, float] | None,
    tested: int,
) -> tuple[Severity, str]:
    """`good` where the maps beat themselves moved elsewhere in both curves, and nothing is odd.

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
        return "none", (
            f"On {images}, too few to judge by, the heat maps did {said} the same maps moved "
            "elsewhere."
        )
    if any((gain.low or 0) <= 0 for gain in both):
        return "look", (
            f"The heat maps are not evidence on this model: on {images} they tell as much of the "
            "answer when they are moved elsewhere."
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


def explained_or_why(evidence: Evidence) -> str | None:
    """The sentence where there is no answer to explain, else None."""
    if evidence.kind == "multilabel":
        return "Several labels per image: there is no one answer to explain."
    if evidence.kind == "one_class" or len(evidence.classes) == 1:
        return "Only one class: there is no answer to explain."
    if not len(explained(evidence)):
        return "No image was answered, so there is nothing to explain."
    return None


def gains_of(rows: pl.DataFrame, units: np.ndarray, seed: int) -> dict[str, Value]:
    """How much better the maps are than moved elsewhere and, where tried, than the middle."""
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
    found = (
        rows.filter(pl.col("border").is_not_null())
        .group_by("answer")
        .agg(pl.len().alias("n"), pl.col("border").mean().alias("border_ratio"))
        .sort(["border_ratio", "answer"], descending=[True, False])
    )
    names = pl.Series("class", list(classes), dtype=pl.String).gather(found["answer"])
    return found.select(names, "n", "border_ratio")


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
                    bucket=role if evidence.has_labels else role.removeprefix("right and "),
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
    method, steps, moves = records["how"].row(0)
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
        method=_method(method, steps, moves, len(rows)),
    )  # fmt: skip


def _figure(gains: Mapping[str, Value]) -> Figure:
    words = {
        "deletion_gain": "blurred, vs moved map",
        "insertion_gain": "shown, vs moved map",
        "deletion_gain_centre": "blurred, vs the middle",
        "insertion_gain_centre": "shown, vs the middle",
    }
    data = [(words[name], gain.estimate, gain.low, gain.high) for name, gain in gains.items()]
    schema = {"label": pl.String} | dict.fromkeys(("value", "low", "high"), pl.Float64)
    return Figure(
        kind="dots",
        data=pl.DataFrame(data, schema, orient="row"),
        title="How much more of the answer the hottest places hold",
        x="points of probability gained, mean over the way",
        note="The hottest places blurred first, or shown first. Above 0: better than the same map "
        "moved elsewhere, or than a round spot in the middle.",
    )


def _method(method: str, steps: int, moves: int, tested: int) -> list[str]:
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
        f"Compared with the same map in {plural(moves, 'other place')} per image, moved over the "
        "edge and perhaps mirrored, and with a round spot in the middle where there was time.",
        "Shuffled weights: the maps of the same network with the values of every layer in another "
        "order; a map that survives this (rank correlation 0.5 or more) explains nothing learnt.",
        "Border ratio: share of the positive heat in the outer tenth of each side over that "
        f"frame's share of the area; classes with at least {LEAST_OF_CLASS} maps are judged.",
        "Each map is scaled by itself: colours do not compare across pictures.",
    ]

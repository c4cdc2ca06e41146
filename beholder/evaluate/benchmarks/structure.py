"""What is in images that bear no labels, and which to label first (specs/study.md, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Figure, Picture, Section, Table, Value, share_text

from .base import Evidence, plural, section
from .structure_found import FILE, MOST_LOOKED_AT, measure

FEWEST = 20
STABLE = 0.6
CENTRAL = BORDER = 3
MOST_LONE = 8
MOST_FIRST = 12
BINS = 20
SHOWN_CLASSES = 3


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        groups: sizes of the stable groups, largest first; () = none is stable.
        lone: images that are far from all others. looked_at: among so many.
        answers: (class, share of the images that are called so), most frequent first.
        accuracy: estimated, not measured; None without a source.
    """

    groups: tuple[int, ...] = ()
    lone: int = 0
    looked_at: int = 0
    answers: tuple[tuple[str, float], ...] = ()
    accuracy: float | None = None


def finding(facts: Facts) -> str:
    """What the images are like, then what the model answers; never a severity."""
    said = []
    if facts.looked_at and facts.groups:
        sizes = ", ".join(f"{size:,}" for size in facts.groups[:6])
        more = ", ..." if len(facts.groups) > 6 else ""
        said.append(f"{len(facts.groups)} stable groups of alike images ({sizes}{more})")
    elif facts.looked_at:
        said.append("No stable groups of alike images")
    if facts.looked_at:
        count = plural(facts.lone, "image") if facts.lone else "no image"
        verb = "is" if facts.lone <= 1 else "are"
        said[-1] += f"; {count} {verb} far from all others."
    if facts.answers:
        shares = ", ".join(
            f"{name} ({share_text(share)})" for name, share in facts.answers[:SHOWN_CLASSES]
        )
        said.append(f"The model answers {shares}.")
    if facts.accuracy is not None:
        said.append(
            f"It is right on about {100 * facts.accuracy:.0f} % (an estimate, not a measurement)."
        )
    return " ".join(said)


def lone(distance: np.ndarray) -> np.ndarray:
    """[N] bool: above the third quartile by more than three times the quartiles' difference."""
    low, high = np.quantile(distance, (0.25, 0.75))
    return distance > high + 3 * (high - low)


def needs(evidence: Evidence) -> str | None:
    """The sentence for data with labels, or with too little to see."""
    if evidence.kind != "unlabelled":
        return "The images have labels: see groups and confusion."
    if evidence.embeddings is None and "predicted" not in evidence.frame.columns:
        return "The model gives neither features nor answers."
    few = len(evidence.frame)
    return f"Too few images to look for groups ({few} < {FEWEST})." if few < FEWEST else None


@section(
    "structure",
    "Structure",
    needs,
    measure=measure,
    uses="features",
    share=0.03,
    only="unlabelled",
)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Stable groups, lone images, what to label first, and what a model answers."""
    records = evidence.records["structure"]
    shell = Section(
        id="structure",
        title="Structure",
        finding="",
        n=len(evidence.frame),
        method=method_lines(evidence),
    )
    groups: tuple[int, ...] = ()
    alone = pl.DataFrame(schema={"id": pl.String})
    if "assigned" in records:
        groups = _add_groups(shell, records)
    if "nearest" in records:
        alone = _add_neighbours(shell, records["nearest"])
        first = records["label_first"]
        shell.tables["label_first"] = Table(frame=first)
        shell.files.append(FILE)
        shell.pictures += pictures(evidence, first["id"].to_list()[:MOST_FIRST], "label first")
    answers = _add_answers(shell, evidence, records)
    estimate = shell.values.get("estimated_accuracy")
    facts = Facts(
        groups=groups,
        lone=len(alone),
        looked_at=len(records["nearest"]) if "nearest" in records else 0,
        answers=answers,
        accuracy=estimate.estimate if estimate else None,
    )
    shell.finding = finding(facts)
    steps = what_to_label(shell, len(groups), len(alone))
    shell.tables["to_label"] = Table(frame=pl.DataFrame({"what": steps}, {"what": pl.String}))
    return shell


def _add_groups(shell: Section, records: dict[str, pl.DataFrame]) -> tuple[int, ...]:
    """Values, tables and pictures of the groups; their sizes if they are stable."""
    assigned, silhouettes = records["assigned"], records["silhouettes"]
    agreement = records["agreement"]["agreement"].to_numpy()
    stable = float(agreement.mean())
    shell.values["stability"] = Value(estimate=stable, n=len(agreement), unit="")
    shell.figures["silhouettes"] = Figure(
        kind="lines",
        data=silhouettes.select(
            pl.col("groups").cast(pl.Float64).alias("x"), pl.col("silhouette").alias("y")
        ).with_columns(pl.lit("").alias("series")),
        title="How well so many groups part",
        x="groups",
        y="silhouette",
    )
    if stable < STABLE:
        return ()
    sizes = assigned.group_by("group").len("images").sort("group")
    total = len(assigned)
    shell.tables["groups"] = Table(
        frame=sizes.with_columns((pl.col("images") / total).alias("share")),
        units={"share": "share"},
    )
    shell.values["groups"] = Value(estimate=len(sizes), n=total, unit="count")
    for number in sizes["group"]:
        inside = assigned.filter(pl.col("group") == number)
        central = inside.sort("distance", "id")["id"].to_list()[:CENTRAL]
        border = inside.sort("margin", "id").filter(~pl.col("id").is_in(central))
        shell.pictures += pictures(None, central, f"group {number}: most typical")
        shell.pictures += pictures(None, border["id"].to_list()[:BORDER], f"group {number}: border")
    return tuple(sizes["images"].sort(descending=True))


def _add_neighbours(shell: Section, nearest: pl.DataFrame) -> pl.DataFrame:
    """Distances to the nearest other image; those that are alone."""
    distance = nearest["distance"].to_numpy()
    counts, edges = np.histogram(distance, BINS)
    alone = nearest.filter(pl.Series(lone(distance))).sort("distance", "id", descending=True)
    shell.values["nearest"] = Value(
        estimate=float(np.median(distance)), n=len(distance), unit="", higher_is_better=None
    )
    shell.values["lone"] = Value(
        estimate=len(alone), n=len(distance), unit="count", higher_is_better=False
    )
    shell.figures["coverage"] = Figure(
        kind="histogram",
        data=pl.DataFrame(
            {"left": edges[:-1], "right": edges[1:], "count": counts, "series": [""] * len(counts)}
        ),
        title="Distance to the nearest other image",
        x="1 - cosine of the features",
        y="images",
    )
    if len(alone):
        shell.tables["lone"] = Table(frame=alone)
        shell.pictures += pictures(None, alone["id"].to_list()[:MOST_LONE], "far from all others")
    return alone


def _add_answers(
    shell: Section, evidence: Evidence, records: dict[str, pl.DataFrame]
) -> tuple[tuple[str, float], ...]:
    """What a given model answers: shares of the classes, confidences, estimated accuracy."""
    frame = evidence.frame
    if "predicted" not in frame.columns or not frame["predicted"].count():
        return ()
    answered = frame.drop_nulls("predicted")
    names = dict(enumerate(evidence.classes))
    counts = (
        answered.group_by(pl.col("predicted").replace_strict(names).alias("class"))
        .len("images")
        .with_columns((pl.col("images") / len(answered)).alias("share"))
        .sort("images", "class", descending=[True, False])
    )
    shell.tables["answers"] = Table(frame=counts, units={"share": "share"})
    confidence = answered["confidence"].to_numpy()
    count, edges = np.histogram(confidence, BINS, (0, 1))
    shell.figures["confidence"] = Figure(
        kind="histogram",
        data=pl.DataFrame(
            {"left": edges[:-1], "right": edges[1:], "count": count, "series": [""] * BINS}
        ),
        title="How sure the model is",
        x="confidence",
        y="images",
    )
    unsure = answered.sort("confidence", "id")["id"].to_list()[:MOST_LONE]
    shell.pictures += pictures(evidence, unsure, "least sure")
    unseen = answered.filter(pl.col("split") == "test")["confidence"].to_numpy()
    if "source" in records and len(unseen):
        n, accuracy, threshold = records["source"].row(0)
        shell.values["estimated_accuracy"] = Value(
            estimate=float((unseen > threshold).mean()),
            n=len(unseen),
            why=f"estimated from confidences, not measured; {share_text(accuracy)} on the "
            f"{n:,} unseen images of the model's own run",
        )
    return tuple(counts.select("class", "share").rows())


def pictures(evidence: Evidence | None, ids: list[str], bucket: str) -> list[Picture]:
    """Images of a bucket, with the model's answer where there is one."""
    said: dict[str, str] = {}
    if evidence is not None and "predicted" in evidence.frame.columns:
        rows = evidence.frame.filter(pl.col("id").is_in(ids)).drop_nulls("predicted")
        for id, predicted, sure in rows.select("id", "predicted", "confidence").iter_rows():
            said[id] = f"{evidence.classes[predicted]}, {share_text(sure)}"
    return [
        Picture(
            id=id,
            caption=said.get(id, ""),
            alt=f"{bucket}{', ' + said[id] if id in said else ''}, file {id}",
            bucket=bucket,
        )
        for id in ids
    ]


def what_to_label(shell: Section, groups: int, alone: int) -> list[str]:
    """At most three sentences, most useful first."""
    steps = []
    if "label_first" in shell.tables:
        first = shell.frame("label_first")
        steps.append(
            f"Label first the {plural(len(first), 'image')} of {FILE}: together they are close to "
            "all others."
        )
    if "answers" in shell.tables:
        steps.append("Then the images on which the model is least sure: see structure.")
    if groups:
        steps.append(
            f"Then some at the borders of the {groups} groups: they show where a class ends."
        )
    if alone:
        steps.append(
            f"Look at the {plural(alone, 'image')} far from all others: rare cases, or not yours."
        )
    return steps[:3]


def method_lines(evidence: Evidence) -> list[str]:
    return [
        "Groups: k-means of the model's features, 2 to 12 groups, that number at which they part "
        f"best (silhouette), on at most {MOST_LOOKED_AT:,} images. Stable: ten random halves give "
        f"the same groups (mean adjusted Rand index of at least {STABLE}).",
        "Far from all others: the distance to the nearest other image lies above the third "
        "quartile by more than three times the difference of the quartiles.",
        f"{FILE}: starts with the most central image, then always the one farthest from all "
        "chosen (k-centre); one of each group of copies, none that is odd.",
    ]

"""The errors one by one: what kind each is, the worst as pictures (specs/study.md, 4.6)."""

from __future__ import annotations

import numpy as np
import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Figure, Picture, Section, Severity, Table, share_text
from beholder.metrics.intervals import share

from .base import Evidence, errors_or_why, limited, plural, scores_or_why, section, unit_of

LABEL, UNCERTAIN, UNLIKE, BAD, BETWEEN, CONFIDENT = BUCKETS = (
    "label looks wrong",
    "uncertain label",
    "unlike anything in training",
    "bad picture",
    "between the classes",
    "confidently wrong",
)
PICTURES, PER_BUCKET = 24, 4


def finding(errors: int, shares: dict[str, float]) -> tuple[Severity, str]:
    """`look` where more than half of the errors are confidently wrong.

    Args:
        errors: their number.
        shares: share of errors per bucket that occurs, 0..1.
    """
    said = ", ".join(
        f"{share_text(x, width=1)} {bucket}"
        for bucket, x in sorted(shares.items(), key=lambda s: -s[1])
    )
    severity: Severity = "look" if shares.get(CONFIDENT, 0) > 0.5 else "good"
    return severity, f"{plural(errors, 'error')}: {said}."


def triaged(evidence: Evidence) -> pl.DataFrame:
    """Every error, worst first: id, path, true, predicted (indices), p_true, p_predicted, bucket.

    Worst: p(predicted) - p(true) after calibration. The first bucket that fits is taken; those
    whose column (`label_issue`, `p_unknown`, `oddity`) was not measured are left out.
    """
    wrong = evidence.judged.filter(~pl.col("correct"))
    probability = evidence.matrix("probability", wrong)
    rows, true, predicted = np.arange(len(wrong)), wrong["label"], wrong["predicted"]
    wrong = wrong.with_columns(
        pl.Series("p_true", probability[rows, true.to_numpy()]),
        pl.Series("p_predicted", probability[rows, predicted.to_numpy()]),
    )
    severity = pl.col("p_predicted") - pl.col("p_true")
    rules = {
        LABEL: ("label_issue", pl.col("label_issue").fill_null(False)),
        UNCERTAIN: ("certainty", pl.col("certainty") <= 1 - 1e-6),
        UNLIKE: ("p_unknown", pl.col("p_unknown") < 0.05),
        BAD: ("oddity", pl.col("oddity").fill_null(False)),
        BETWEEN: ("p_true", severity.abs() < 0.2),
    }
    fitting = [
        pl.when(rule).then(pl.lit(bucket))
        for bucket, (column, rule) in rules.items()
        if column in wrong.columns
    ]
    return (
        wrong.with_columns(pl.coalesce(*fitting, pl.lit(CONFIDENT)).alias("bucket"))
        .sort(severity, "id", descending=[True, False])
        .select(
            "id",
            "path",
            pl.col("label").alias("true"),
            "predicted",
            "p_true",
            "p_predicted",
            "bucket",
        )
    )


def shown(errors: pl.DataFrame) -> pl.DataFrame:
    """The four worst of each bucket, filled up by the worst of all; buckets in order."""
    ranked = errors.with_row_index("rank").with_columns(
        pl.int_range(pl.len()).over("bucket").alias("turn")
    )
    order = {bucket: i for i, bucket in enumerate(BUCKETS)}
    return (
        ranked.sort(pl.col("turn") >= PER_BUCKET, "rank")
        .head(PICTURES)
        .sort(pl.col("bucket").replace_strict(order, return_dtype=pl.Int32), "rank")
        .drop("rank", "turn")
    )


class Neighbours:
    """Looks up the training image of a class that is most like a given image (cosine)."""

    def __init__(self, evidence: Evidence, embeddings: np.ndarray) -> None:
        frame = evidence.frame
        length = np.linalg.norm(embeddings, axis=1, keepdims=True)
        self.unit = embeddings / np.maximum(length, 1e-12)
        self.label = frame["label"].fill_null(-1).to_numpy()
        self.group = frame["unit"].to_numpy()
        seen = (frame["split"] != "test").to_numpy() & (self.label >= 0)
        self.train = seen if seen.any() else self.label >= 0  # cross-fitted: all train each other
        self.ids, self.paths = frame["id"].to_list(), frame["path"].to_list()
        self.row = {image: i for i, image in enumerate(self.ids)}

    def nearest(self, image: str, label: int, class_name: str) -> Picture | None:
        """The nearest training image of class `label` from another unit; None if there is none."""
        row = self.row[image]
        rows = np.flatnonzero(self.train & (self.label == label) & (self.group != self.group[row]))
        if not len(rows):
            return None
        best = int(rows[(self.unit[rows] @ self.unit[row]).argmax()])
        return Picture(
            id=self.ids[best],
            caption=f"nearest {class_name}",
            alt=f"nearest training image of {class_name}, file {self.paths[best]}",
        )


def heat_maps(evidence: Evidence) -> dict[tuple[str, int], str]:
    """(image, class) -> the made picture of what speaks for it; empty where none were made."""
    maps = evidence.records.get("explanations", {}).get("maps")
    rows = () if maps is None else maps.select("id", "label", "picture").iter_rows()
    return {(id, label): picture for id, label, picture in rows}


def pictures(evidence: Evidence, errors: pl.DataFrame) -> list[Picture]:
    """Cards with true class, answer, confidence, its heat map where there is one, and the nearest
    image of either class."""
    classes, near, heat = evidence.classes, None, heat_maps(evidence)
    if evidence.embeddings is not None:
        near = Neighbours(evidence, evidence.embeddings)
    cards = []
    for row in shown(errors).iter_rows(named=True):
        true, predicted = classes[row["true"]], classes[row["predicted"]]
        both = [(row["true"], true), (row["predicted"], predicted)]
        beside = [near.nearest(row["id"], i, name) for i, name in both] if near else []
        confidence = f"{row['p_predicted']:.2f}"
        cards.append(
            Picture(
                id=row["id"],
                caption=f"{true}, called {predicted}",
                alt=f"true {true}, predicted {predicted}, confidence {confidence}, "
                f"file {row['path']}",
                bucket=row["bucket"],
                facts={"confidence": confidence},
                large=True,
                overlay=heat.get((row["id"], row["predicted"]), ""),
                beside=[picture for picture in beside if picture is not None],
            )
        )
    return cards


def buckets_table(errors: pl.DataFrame, units: np.ndarray) -> pl.DataFrame:
    """bucket, errors, share of all errors with its interval; buckets that occur, in order."""
    rows = []
    for bucket in BUCKETS:
        inside = (errors["bucket"] == bucket).to_numpy()
        if inside.any():
            value = share(inside, units)
            rows.append((bucket, int(inside.sum()), value.estimate, value.low, value.high))
    schema = {"bucket": pl.String, "errors": pl.Int64}
    schema |= dict.fromkeys(("share", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def errors_and_scores_or_why(evidence: Evidence) -> str | None:
    """The sentence for data without errors or without scores to sort them by, else None."""
    return errors_or_why(evidence) or scores_or_why(evidence)


@section("mistakes", "Mistakes", needs=errors_and_scores_or_why)
def summarise(evidence: Evidence, options: Options) -> Section:
    """All errors sorted into kinds; the table's `bucket` goes back into the predictions."""
    errors = triaged(evidence)
    units = errors.join(evidence.frame.select("id", "unit"), on="id", maintain_order="left")
    buckets = buckets_table(errors, units["unit"].to_numpy())
    n = len(evidence.judged)
    shares = dict(buckets.select("bucket", "share").iter_rows())
    severity, sentence = limited(*finding(len(errors), shares), n)
    names = pl.Series(list(evidence.classes), dtype=pl.String)
    confident = (errors["bucket"] == CONFIDENT).to_numpy()
    return Section(
        id="mistakes",
        title="Mistakes",
        finding=sentence,
        severity=severity,
        n=n,
        unit=unit_of(evidence),
        values={
            "confidently_wrong": share(confident, units["unit"].to_numpy(), higher_is_better=False)
        },
        tables={
            "mistakes": Table(
                frame=errors.with_columns(
                    names.gather(errors["true"]).alias("true"),
                    names.gather(errors["predicted"]).alias("predicted"),
                )
            ),
            "buckets": Table(frame=buckets, units={"share": "share"}),
        },
        figures={
            "buckets": Figure(
                kind="bars",
                data=buckets.select(
                    pl.col("bucket").alias("label"), pl.col("share").alias("value"), "low", "high"
                ),
                title="What kind of errors they are",
                x="share of the errors",
            )
        },
        pictures=pictures(evidence, errors),
        method=[
            "Every error goes to the first kind that fits: the label looks wrong; it was "
            "uncertain; unlike any training image; a bad picture; the two classes nearly equal "
            "(less than .2 apart in probability); else confidently wrong.",
            "Worst first: by how much more probability the answer got than the true class.",
            "Beside each: the most alike training image of the true and of the answered class, "
            "by the angle between their final features.",
        ],
    )

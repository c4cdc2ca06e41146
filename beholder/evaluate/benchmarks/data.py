"""What the images and labels are, before any model is asked (specs/study.md, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.files import digest
from beholder.core.options import Options
from beholder.core.sections import Figure, Picture, Section, Severity, Table, Value, share_text
from beholder.metrics.bootstrap import bootstrap, mean_of
from beholder.metrics.groups import cramers_v

from .base import Evidence, plural, section, unit_of

READ_ANYWAY = ("animated_extra",)  # noted by the reader, not a reason to leave the image out
PICTURES = 24
SIZES_SHOWN = 10


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        images: readable images.
        skipped: share of all files that could not be used, 0..1.
        counts: images per class name, in class order; empty without labels.
        association: largest Cramer's V of a group column with the label, 0..1, and its name.
        several_labels: whether an image may have more than one of the classes.
    """

    images: int
    skipped: float = 0.0
    counts: dict[str, int] | None = None
    association: tuple[str, float] | None = None
    several_labels: bool = False


def finding(facts: Facts) -> tuple[Severity, str]:
    """The gravest thing about the data. Borders as in 4.2; the first of equal gravity is said."""
    counts = facts.counts or {}
    candidates: list[tuple[Severity, str]] = []
    if facts.skipped > 0.2:
        share = share_text(facts.skipped)
        candidates.append(
            ("act", f"{share} of the files could not be used: see the skipped table.")
        )
    if facts.association and facts.association[1] >= 0.3:
        name, v = facts.association
        if v >= 0.7:
            text = f"{name} almost decides the label (V = {v:.2f}): accuracy says little."
            candidates.append(("act", text))
        else:
            text = f"{name} goes together with the label (V = {v:.2f}): compare within its groups."
            candidates.append(("look", text))
    if len(counts) > 1 and not facts.several_labels:
        rarest, commonest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        ratio = counts[commonest] / max(counts[rarest], 1)
        if counts[rarest] < 10:
            text = f"{rarest} has only {plural(counts[rarest], 'image')}: too few to judge a class."
            candidates.append(("act", text))
        elif ratio > 5:
            text = f"{commonest} has {ratio:.0f} times as many images as {rarest}."
            candidates.append(("act" if ratio > 50 else "look", text))
    for severity in ("act", "look"):
        for candidate in candidates:
            if candidate[0] == severity:
                return candidate
    return "good", _plain_sentence(facts.images, counts, facts.several_labels)


def _plain_sentence(images: int, counts: dict[str, int], several_labels: bool) -> str:
    said = plural(images, "image")
    if not counts:
        return f"{said}, no labels."
    if several_labels:
        return f"{said}, {len(counts)} classes, several labels per image."
    if len(counts) == 1:
        return f"{said}, one class: {next(iter(counts))}."
    rarest = min(counts, key=counts.__getitem__)
    return f"{said} in {len(counts)} classes; the rarest, {rarest}, has {counts[rarest]:,}."


def with_names(evidence: Evidence) -> pl.DataFrame:
    """The frame with `class` (a row per image and class) and `group` (all group columns in one)."""
    names = pl.Series("names", list(evidence.classes), dtype=pl.String)
    columns = group_columns(evidence)
    group = [pl.format("{} {}", pl.lit(c[6:]), pl.col(c).fill_null("unknown")) for c in columns]
    frame = evidence.frame.with_columns(
        (pl.concat_str(group, separator=", ") if group else pl.lit("all")).alias("group")
    )
    if evidence.kind == "multilabel":
        frame = frame.explode("labels")
    index = frame["labels" if evidence.kind == "multilabel" else "label"].to_list()
    label = ["no label" if i is None else names[i] for i in index]
    return frame.with_columns(pl.Series("class", label, dtype=pl.String))


def own_classes(evidence: Evidence) -> list[str]:
    """The classes of the data; a given model's other classes may stand behind them in `classes`."""
    return [item["name"] for item in evidence.data.get("classes", ())] or list(evidence.classes)


def group_columns(evidence: Evidence) -> list[str]:
    """The given group columns, in order."""
    return [name for name in evidence.frame.columns if name.startswith("group_")]


def random_pictures(named: pl.DataFrame, limit: int = PICTURES) -> list[Picture]:
    """One image per class and group, chosen by the hash of its id; every class once, then on."""
    hashed = named.with_columns(
        pl.col("id").map_elements(digest, return_dtype=pl.String).alias("h")
    )
    cells = (
        hashed.sort("h")
        .group_by("class", "group", maintain_order=True)
        .first()
        .with_columns(pl.col("h").rank("ordinal").over("class").alias("turn"))
        .sort("turn", "class")
        .head(limit)
        .sort("class", "group")
    )
    return [
        Picture(
            id=row["id"],
            caption=row["class"] if row["group"] == "all" else f"{row['class']}, {row['group']}",
            alt=f"{row['class']}, file {row['path']}",
            bucket="one image per class and group, chosen at random",
        )
        for row in cells.iter_rows(named=True)
    ]


def associations(evidence: Evidence) -> pl.DataFrame:
    """Cramer's V (Bergsma's correction) of the label with each given group column."""
    frame = evidence.frame.filter(pl.col("label").is_not_null())
    rows = []
    for column in group_columns(evidence):
        both = frame.filter(pl.col(column).is_not_null())
        if both[column].n_unique() > 1 and both["label"].n_unique() > 1:
            cells = both.group_by("label", column).len().sort("label", column)
            wide = cells.pivot(column, index="label", values="len", sort_columns=True)
            table = wide.drop("label").fill_null(0).to_numpy()
            rows.append({"group": column[6:], "v": float(cramers_v(table)), "n": len(both)})
    return pl.DataFrame(rows, schema={"group": pl.String, "v": pl.Float64, "n": pl.Int64})


def skipped_table(skipped: pl.DataFrame) -> pl.DataFrame:
    """Reason, count, and the first five paths of each."""
    return (
        skipped.sort("path")
        .group_by("reason")
        .agg(pl.len().alias("count"), pl.col("path").head(5).alias("first_paths"))
        .sort("count", "reason", descending=[True, False])
    )


def formats_table(frame: pl.DataFrame) -> pl.DataFrame:
    """The commonest sizes, the colour modes and the file types, with counts of images."""
    size = pl.format("{} x {}", "width", "height")
    parts = [
        frame.select(pl.lit(name).alias("property"), value.cast(pl.String).alias("value"))
        .group_by("property", "value")
        .agg(pl.len().alias("images"))
        .sort("images", "value", descending=[True, False])
        .head(SIZES_SHOWN)
        for name, value in (("size", size), ("mode", pl.col("mode")), ("type", pl.col("format")))
    ]
    return pl.concat(parts)


def label_sureness(labelled: pl.DataFrame) -> np.ndarray:
    """Share of the likeliest class in each label, [rows]; 1 where no distribution is given."""
    return labelled["q"].list.max().fill_null(1.0).to_numpy().astype(np.float64)


def label_ceiling(evidence: Evidence) -> Value:
    """Agreement of a perfect model with a fresh draw of each label: the mean of max q."""
    labelled = evidence.frame.filter(pl.col("label").is_not_null())
    if not len(labelled):
        return Value.undefined("no label to agree with")
    top = label_sureness(labelled)
    if np.allclose(top, 1):
        return Value(estimate=1.0, n=len(top), method="exact", why="every label is certain")
    return bootstrap(mean_of(top), labelled["unit"].to_numpy())


def uncertainty_figure(evidence: Evidence) -> Figure | None:
    """Histogram of max q, or None where every label is certain."""
    top = label_sureness(evidence.frame.filter(pl.col("label").is_not_null()))
    if not len(top) or np.allclose(top, 1):
        return None
    count, edges = np.histogram(top.clip(0, 1), bins=20, range=(0.0, 1.0))
    data = pl.DataFrame({"left": edges[:-1], "right": edges[1:], "count": count})
    return Figure(
        kind="histogram",
        data=data.with_columns(pl.lit("images").alias("series")),
        title="How sure the labels are",
        x="share of the likeliest class in the label",
        y="images",
    )


@section("data", "Data", uses="data")
def summarise(evidence: Evidence, options: Options) -> Section:
    """Counts, sizes, skipped files, imbalance, label uncertainty, label x group association."""
    frame, named = evidence.frame, with_names(evidence)
    labelled = evidence.kind != "unlabelled"
    per_class = dict.fromkeys(own_classes(evidence), 0) if labelled else {}
    per_class |= {
        name: n for name, n in named.group_by("class").len().iter_rows() if name in per_class
    }
    lost = evidence.skipped.filter(~pl.col("reason").is_in(READ_ANYWAY))
    share_lost = len(lost) / max(len(lost) + len(frame), 1)
    linked = associations(evidence)
    strongest = linked.sort("v", descending=True).row(0)[:2] if len(linked) else None
    severity, sentence = finding(
        Facts(len(frame), share_lost, per_class, strongest, evidence.kind == "multilabel")
    )
    counts = (
        named.group_by("class", "split", "group")
        .agg(pl.len().alias("images"), (pl.col("certainty") > 1 - 1e-6).sum().alias("certain"))
        .with_columns((pl.col("images") / max(len(frame), 1)).alias("share"))
        .select("class", "split", "group", "images", "share", "certain")
    )
    order = {name: i for i, name in enumerate(evidence.classes)}
    place = pl.col("class").replace_strict(order, default=len(order), return_dtype=pl.Int32)
    bars = named.group_by("class", "split").len("value").sort(place, "split")
    figures = {
        "classes": Figure(
            kind="bars",
            data=bars.select(
                pl.col("class").alias("label"), "value", pl.col("split").alias("series")
            ),
            title="Images per class and split",
            x="images",
        )
    }
    if uncertainty := uncertainty_figure(evidence):
        figures["uncertainty"] = uncertainty
    values = {
        "images": Value(estimate=len(frame), n=len(frame), unit="count", method="exact"),
        "skipped": Value(
            estimate=share_lost, n=len(lost) + len(frame), method="exact", higher_is_better=False
        ),
        "ceiling": label_ceiling(evidence),
    }
    if len(per_class) > 1 and min(per_class.values()):
        ratio = max(per_class.values()) / min(per_class.values())
        values["imbalance"] = Value(
            estimate=ratio, n=len(frame), unit="", method="exact", higher_is_better=False
        )
    if strongest:
        values["association"] = Value(
            estimate=strongest[1], n=len(frame), unit="", method="exact", higher_is_better=False
        )
    tables = {
        "images": Table(frame=counts.sort(place, "split", "group"), units={"share": "share"}),
        "formats": Table(frame=formats_table(frame)),
        "skipped": Table(frame=skipped_table(evidence.skipped)),
        "association": Table(frame=linked),
    }
    return Section(
        id="data",
        title="Data",
        finding=sentence,
        severity=severity,
        n=len(frame),
        unit=unit_of(evidence),
        values=values,
        tables={name: table for name, table in tables.items() if len(table.frame)},
        figures=figures,
        pictures=random_pictures(named),
        method=[
            "Every file is read and decoded once; what cannot be read is counted and listed.",
            "Ceiling: how often a perfect model would agree with one more draw of each label, the "
            "mean share of the likeliest class.",
            "V: how far a group column and the label go together, 0 not at all, 1 wholly (Cramer's "
            "V, Bergsma's correction for chance).",
        ],
        files=["skipped.csv"] if len(evidence.skipped) else [],
    )

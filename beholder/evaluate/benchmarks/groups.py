"""Is the model worse on some of the images: given groups, image properties, clusters (4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from sklearn.cluster import KMeans

from beholder.core.options import Options
from beholder.core.sections import Figure, Picture, Section, Severity, Table, Value, share_text
from beholder.metrics.groups import compare_slices
from beholder.metrics.intervals import smallest_gap

from .base import Evidence, judged_or_why, limited, plural, section, unit_of
from .data import group_columns

MIN_JUDGED = 40
MAX_PAIR_CELLS = 50
PROPERTIES = (
    "brightness",
    "contrast",
    "sharpness",
    "colourfulness",
    "file_size",
    "width",
    "aspect",
)
CLUSTER = "cluster"
CENTRAL_PICTURES = 4
ACT_GAP = 0.10
COLUMNS = (
    "slice",
    "n",
    "raw",
    "raw_low",
    "raw_high",
    "estimate",
    "low",
    "high",
    "gap",
    "p_holm",
    "gap_same_mix",
)

Slice = tuple[str, str, np.ndarray]  # attribute, name, mask [judged rows]


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by: the slice to name, if any.

    Attributes:
        slice: its name, or None where no slice is named.
        given: whether it is a given group, not one that we made from the pixels.
        n: its judged images.
        estimate: its shrunken accuracy; `gap`: how much the rest is better, both 0..1.
        mix_class: class of which it holds more, where most of the gap comes from that.
        visible: smallest gap that the median slice could have shown.
        errors: of all judged images.
        shown: ('mono', .857) pairs worth saying where nothing is named.
    """

    slice: str | None = None
    given: bool = True
    n: int = 0
    estimate: float = 0.0
    gap: float = 0.0
    mix_class: str | None = None
    visible: float = 0.0
    errors: int = 1
    shown: tuple[tuple[str, float], ...] = ()


def finding(facts: Facts) -> tuple[Severity, str]:
    """Given groups named with a gap of 10 points: act; any other named one: look; none: good."""
    if facts.slice is None and not facts.errors:
        return "good", "No group differs: there is not one error."
    if facts.slice is None:
        shown = ", ".join(f"{name} {share_text(share)}" for name, share in facts.shown)
        return "good", (
            "No group differs by more than chance; a gap below "
            f"{100 * facts.visible:.1f} points could not have been seen"
            + (f" ({shown})." if shown else ".")
        )
    why = f", mostly because it holds more of class {facts.mix_class}" if facts.mix_class else ""
    severity: Severity = "act" if facts.given and facts.gap >= ACT_GAP else "look"
    return severity, (
        f"On {facts.slice} the model is right {share_text(facts.estimate)} of the time, "
        f"{100 * facts.gap:.1f} points less than on the rest ({plural(facts.n, 'image')}){why}."
    )


def given_slices(judged: pl.DataFrame, columns: list[str]) -> Iterator[Slice]:
    """Every value of every group column, then the largest cells of each pair of columns."""
    for column in columns:
        for value in judged[column].drop_nulls().unique().sort():
            yield column, f"{column[6:]} {value}", _equals(judged, column, value)
    cells = [
        (count, (a, x), (b, y))
        for a, b in combinations(columns, 2)
        for x, y, count in judged.drop_nulls([a, b]).group_by(a, b).len().sort(a, b).iter_rows()
    ]
    for _, (a, x), (b, y) in sorted(cells, key=lambda cell: -cell[0])[:MAX_PAIR_CELLS]:
        name = f"{a[6:]} {x}, {b[6:]} {y}"
        yield f"{a} x {b}", name, _equals(judged, a, x) & _equals(judged, b, y)


def _equals(frame: pl.DataFrame, column: str, value: str) -> np.ndarray:
    return (frame[column] == value).fill_null(False).to_numpy()


def quartile_slices(judged: pl.DataFrame) -> Iterator[Slice]:
    """Quartiles of each image property; a constant property has none, tied quartiles are one."""
    frame = judged
    if {"width", "height"} <= set(frame.columns):
        frame = frame.with_columns((pl.col("width") / pl.col("height")).alias("aspect"))
    for name in PROPERTIES:
        if name not in frame.columns or frame[name].null_count() == len(frame):
            continue
        values = frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known = np.isfinite(values)
        if not known.any():
            continue
        edges = np.unique(np.quantile(values[known], (0.25, 0.5, 0.75)))
        quartile = np.searchsorted(edges, values, side="left")
        quartile[~known] = -1
        present = [q for q in range(len(edges) + 1) if (quartile == q).any()]
        if len(present) > 1:
            for rank, q in enumerate(present, 1):
                yield name, f"{name.replace('_', ' ')} Q{rank}", quartile == q


def clusters(embeddings: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """k-means of L2-normalised embeddings [n, D], k = min(8, n // 50): cluster and distance [n]."""
    k = min(8, len(embeddings) // 50)
    if k < 2:
        return None
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = np.asarray(embeddings / np.maximum(length, 1e-12), np.float32)
    fitted = KMeans(k, n_init=3, random_state=seed).fit(unit)  # pyright: ignore[reportArgumentType]
    assert fitted.labels_ is not None
    labels = np.asarray(fitted.labels_)
    distance = np.linalg.norm(unit - fitted.cluster_centers_[labels], axis=1)
    return labels, distance


def cluster_pictures(
    judged: pl.DataFrame, labels: np.ndarray, distance: np.ndarray
) -> list[Picture]:
    """The most central images of each cluster."""
    rows = judged.select("id", "path").with_columns(
        pl.Series("cluster", labels), pl.Series("distance", distance)
    )
    central = rows.sort("distance", "id").group_by("cluster").head(CENTRAL_PICTURES)
    return [
        Picture(
            id=row["id"],
            caption=f"{CLUSTER} {row['cluster'] + 1}",
            alt=f"central image of cluster {row['cluster'] + 1}, file {row['path']}",
            bucket=f"{CLUSTER} {row['cluster'] + 1}",
        )
        for row in central.sort("cluster", "distance", "id").iter_rows(named=True)
    ]


def overfull_class(evidence: Evidence, mask: np.ndarray) -> str:
    """The class whose surplus in the slice costs it most accuracy."""
    judged = evidence.judged
    true, hits = judged["label"].to_numpy(), judged["correct"].to_numpy()
    c = len(evidence.classes)
    inside, outside = (np.bincount(true[m], minlength=c) / m.sum() for m in (mask, ~mask))
    total = np.bincount(true, minlength=c)
    recall = np.bincount(true, hits, c) / np.maximum(total, 1)
    cost = (inside - outside) * (hits.mean() - recall)
    return evidence.classes[int(cost.argmax())]


def named_slices(table: pl.DataFrame, given: set[str]) -> pl.DataFrame:
    """The named rows of `compare_slices` and whether they are `given`: act first, worst first."""
    given_one = pl.col("attribute").is_in(list(given))
    return (
        table.filter(pl.col("named"))
        .with_columns(
            given_one.alias("given"), (given_one & (pl.col("gap") >= ACT_GAP)).alias("act")
        )
        .sort(["act", "estimate"], descending=[True, False], maintain_order=True)
    )


def facts_of(
    table: pl.DataFrame, given: set[str], slices: dict[str, np.ndarray], evidence: Evidence
) -> Facts:
    """The gravest named slice, or what could have been seen."""
    hits = evidence.judged["correct"].to_numpy()
    errors = int((~hits).sum())
    if len(named := named_slices(table, given)):
        row = named.row(0, named=True)
        mix = overfull_class(evidence, slices[row["slice"]]) if row["because_of_mix"] else None
        return Facts(
            slice=row["slice"],
            given=row["given"],
            n=row["n"],
            estimate=row["estimate"],
            gap=row["gap"],
            mix_class=mix,
            errors=errors,
        )
    tested = table.filter(pl.col("p_holm").is_not_null())
    if not len(tested):
        return Facts(errors=errors)
    median = int(np.sort(tested["n"].to_numpy())[len(tested) // 2])
    visible = smallest_gap(float(hits.mean()), median, len(hits) - median)
    own = tested.filter(pl.col("attribute").is_in(list(given)))
    shown = tuple(own.select("slice", "raw").sort("slice").iter_rows()) if len(own) <= 3 else ()
    return Facts(errors=errors, visible=visible, shown=shown)


def enough_or_why(evidence: Evidence) -> str | None:
    """The sentence for data that is not judged or too small to be cut up, else None."""
    if why := judged_or_why(evidence):
        return why
    n = len(evidence.judged)
    return (
        f"Too few judged images to compare groups ({n} < {MIN_JUDGED})." if n < MIN_JUDGED else None
    )


@section("groups", "Groups", needs=enough_or_why)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Shrunken accuracy of every slice, tested against the rest, Holm over all slices."""
    judged = evidence.judged
    given = list(given_slices(judged, group_columns(evidence)))
    made, pictures = list(quartile_slices(judged)), []
    if evidence.embeddings is not None:
        rows = np.flatnonzero(evidence.frame["id"].is_in(judged["id"].to_list()).to_numpy())
        found = clusters(evidence.embeddings[rows], options.seed)
        if found is not None:
            labels, distance = found
            made += [(CLUSTER, f"{CLUSTER} {k + 1}", labels == k) for k in range(labels.max() + 1)]
            pictures = cluster_pictures(judged, labels, distance)
    slices = [s for s in given + made if 0 < s[2].sum() < len(judged)]
    method = [
        "Slices: every given group and pair of groups; quartiles of brightness, contrast, "
        "sharpness, colours, file size, width and shape; clusters of alike images.",
        "Small groups differ by luck, so each share is drawn towards that of all groups by as much "
        "as its size demands (hollow mark: as counted; filled: drawn).",
        "A group is named only if a test against the rest, corrected for all slices together, "
        "gives p < .05 and the gap is at least 3 points. Below 5 images: listed, not tested.",
    ]
    if evidence.source_given:
        method.append("group: images to be compared; source: what must not straddle a split.")
    if evidence.weighted:
        method.append("Given weights are not used here: every image counts once.")
    shell = Section(
        id="groups",
        title="Groups",
        finding="There is nothing to compare: no group column, no property that varies.",
        n=len(judged),
        unit=unit_of(evidence),
        method=method,
    )
    if not slices:
        return shell
    table = compare_slices(
        slices,
        judged["correct"].to_numpy(),
        judged["label"].to_numpy(),
        judged["unit"].to_numpy(),
        options.seed,
    )
    attributes = {s[0] for s in given}
    facts = facts_of(table, attributes, {s[1]: s[2] for s in slices}, evidence)
    severity, sentence = limited(*finding(facts), len(judged))
    tested = pl.col("p_holm").is_not_null()
    ranked = table.sort(tested, "estimate", descending=[True, False], maintain_order=True)
    first = ranked.row(0, named=True)
    worst = Value.undefined("every slice has fewer than 5 images", len(judged))
    if first["p_holm"] is not None:
        worst = Value(
            estimate=first["estimate"],
            low=first["low"],
            high=first["high"],
            n=first["n"],
            method="beta",
        )
    figures = {}
    if len(drawn := ranked.filter(tested)):
        figures["slices"] = Figure(
            kind="forest",
            data=drawn.select(
                pl.col("slice").alias("label"),
                pl.col("estimate").alias("value"),
                "low",
                "high",
                "raw",
                "n",
            ),
            title="Accuracy of each slice",
            x="accuracy",
            note="Hollow: as counted. Filled: drawn towards the mean of all groups.",
        )
    tables = {"slices": Table(frame=ranked.select(COLUMNS))}
    if len(named := named_slices(table, attributes)):
        tables["named"] = Table(frame=named.select("slice", "given", "gap", "because_of_mix"))
    return shell.model_copy(
        update={
            "finding": sentence,
            "severity": severity,
            "values": {"worst": worst},
            "tables": tables,
            "figures": figures,
            "pictures": pictures,
        }
    )

"""Images unlike the others: by simple measures, and by their features (specs/study.md, 4.14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

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
from beholder.data.curate.outliers import FEWEST, FOLDS, distances, improbable, rejected
from beholder.metrics.intervals import fisher_less, share
from beholder.trust.detectors.gaussian_ad import Gaussian

from .base import Evidence, Records, plural, section, unit_of

if TYPE_CHECKING:
    from beholder.evaluate.subject import Subject

MEASURES = (
    *("brightness", "contrast", "clipped", "sharpness", "entropy", "width", "height", "aspect"),
    "colourfulness",
)
FAR = 6.0
"""Robust z from which a measure is odd."""
RARE = 0.01
"""Share of the images; where at least half have one value, others are odd if they are rarer."""
DARK, BRIGHT, FLAT, SMALL, LONG = 8.0, 247.0, 1.0, 32, 4.0

BLANK, TINY, LENGTHY = "blank", "small", "long"
NEIGHBOURS, GAUSSIAN = "far from its neighbours", "far from all (Gaussian)"
RATE = 0.10
"""Share of false alarms among the outliers that is allowed, for each of the two kinds."""
K, BANK, DIRECTIONS = 10, 4_000, 128
PICTURES, ROWS, HISTOGRAMS, BINS = 24, 500, 4, 30
WORTH = 0.01
UNREADABLE = ("empty_file", "not_an_image", "truncated", "zero_size", "decode_error")

SCHEMA = {"id": pl.String, "measure": pl.String} | dict.fromkeys(("value", "z", "p"), pl.Float64)


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        n: images; odd: of them, flagged; blank: of them, (nearly) one colour, black or white.
        unreadable: files that were no readable image, beside the n.
        accuracy: of the flagged and of the rest; None where not both were judged.
        p: one-sided, that the flagged are not worse.
        searched: whether features were looked at too.
    """

    n: int
    odd: int = 0
    blank: int = 0
    unreadable: int = 0
    accuracy: tuple[float, float] | None = None
    p: float = 1.0
    searched: bool = True


def finding(facts: Facts) -> tuple[Severity, str]:
    """`act` for more than 1 % blank or unreadable, `look` for more than 1 % flagged."""
    said = []
    severity: Severity = "look" if facts.odd > WORTH * facts.n else "good"
    if facts.blank + facts.unreadable > WORTH * (facts.n + facts.unreadable):
        severity = "act"
    for count, what in ((facts.unreadable, "cannot be read"), (facts.blank, "blank")):
        if count:
            verb = "" if what.startswith("cannot") else "is " if count == 1 else "are "
            noun = plural(count, "file" if not verb else "image")
            said.append(f"{noun} {verb}{what}.")
    if facts.odd:
        verb = "is" if facts.odd == 1 else "are"
        said.append(f"{facts.odd:,} of {plural(facts.n, 'image')} {verb} unlike the others.")
    elif not said:
        said.append(f"None of {plural(facts.n, 'image')} stands out.")
    if facts.accuracy is not None and facts.odd:
        odd, rest = (share_text(x) for x in facts.accuracy)
        less = ", less than chance explains" if facts.p < 0.05 else ""
        said.append(f"On these the model is right {odd} of the time, on the rest {rest}{less}.")
    if not facts.searched:
        said.append(f"Features were not compared: that needs {FEWEST} images and their features.")
    return severity, " ".join(said)


def robust_z(values: np.ndarray) -> np.ndarray:
    """.6745 (v - median) / MAD [N]. Where the MAD is 0, other values than the median are infinite
    if together they are rarer than 1 %, else 0.

    >>> robust_z(np.array([1.0, 2, 3, 4, 100])).round(4).tolist()
    [-1.349, -0.6745, 0.0, 0.6745, 65.4265]
    """
    apart = values - np.median(values)
    spread = float(np.median(np.abs(apart)))
    if spread > 0:
        return 0.6745 * apart / spread
    other = apart != 0
    return np.where(other & (other.mean() < RARE), np.copysign(np.inf, apart), 0.0)


def by_measures(frame: pl.DataFrame) -> pl.DataFrame:
    """Flags of single images (`SCHEMA`, without p): by robust z, and by bounds that hold anywhere.

    Where most images are small, or long, none of them is odd for it.

    Args:
        frame: id, width, height, brightness, entropy, and other `MEASURES` that are known.
    """
    frame = frame.with_columns((pl.col("width") / pl.col("height")).alias("aspect"))
    flags = []
    for name in MEASURES:
        if name not in frame.columns:
            continue
        values = frame[name].cast(pl.Float64)
        z = robust_z(values.to_numpy())
        flags.append(_flags(frame, name, values, pl.Series(z).abs() > FAR, z))
    bright, side = pl.col("brightness"), pl.min_horizontal("width", "height")
    long = pl.max_horizontal("aspect", 1 / pl.col("aspect"))
    bounds = {
        BLANK: (bright, (bright < DARK) | (bright > BRIGHT) | (pl.col("entropy") < FLAT)),
        TINY: (side, side < SMALL),
        LENGTHY: (long, long > LONG),
    }
    for name, (value, rule) in bounds.items():
        if {*value.meta.root_names(), *rule.meta.root_names()} <= set(frame.columns):
            values = frame.select(value.cast(pl.Float64).alias(name))[name]
            inside = frame.select(rule.alias("inside"))["inside"]
            if name == BLANK or inside.to_numpy().mean() <= 0.5:
                flags.append(_flags(frame, name, values, inside))
    return pl.concat([pl.DataFrame(schema=SCHEMA), *flags])


def _flags(
    frame: pl.DataFrame,
    name: str,
    values: pl.Series,
    flagged: pl.Series,
    z: np.ndarray | None = None,
    p: np.ndarray | None = None,
) -> pl.DataFrame:
    nothing = np.full(len(frame), np.nan)
    table = frame.select(
        "id",
        pl.lit(name).alias("measure"),
        values.alias("value"),
        pl.Series("z", nothing if z is None else z).fill_nan(None),
        pl.Series("p", nothing if p is None else p).fill_nan(None),
    )
    return table.filter(flagged.fill_null(False)).cast(SCHEMA)  # pyright: ignore[reportArgumentType]


def by_features(x: np.ndarray, unit: np.ndarray, seed: int) -> dict[str, tuple[np.ndarray, ...]]:
    """Distance [N], p [N] and flag [N] of outliers in feature space, of both kinds.

    Features are standardised; neighbours, and the Gaussian of the rest, come from other folds, so
    that no image vouches for itself or its copies. p is that of the tail of the bulk: ranks among
    the images themselves (conformal p) are evenly spread whatever the images are, and would never
    flag one.

    Args:
        x: [N, D]; unit: [N].
    """
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 1e-6, deviation, 1)
    rng = np.random.default_rng(seed)
    fold = rng.permutation(int(unit.max()) + 1)[unit] % FOLDS
    bank = np.sort(rng.permutation(len(x))[:BANK])
    found = {NEIGHBOURS: distances(x, fold, x[bank], fold[bank], K)}
    _, directions = np.linalg.eigh(x[bank].T @ x[bank])
    small = x @ directions[:, -DIRECTIONS:]
    gaussian = np.empty(len(x))
    for k in np.unique(fold):
        model = Gaussian.fit(small[fold != k].astype(np.float64))
        gaussian[fold == k] = model.distance(torch.from_numpy(small[fold == k])).numpy()
    found[GAUSSIAN] = gaussian
    p = {name: improbable(distance, distance) for name, distance in found.items()}
    return {name: (found[name], p[name], rejected(p[name], RATE)) for name in found}


def measure(subject: Subject) -> Records:
    """Every flag of every image."""
    frame = subject.evidence.frame
    flags = [by_measures(frame)]
    x = subject.evidence.embeddings
    searched = x is not None and len(frame) >= FEWEST
    if x is not None and searched:
        unit = np.unique(frame["unit"].to_numpy(), return_inverse=True)[1]
        found = by_features(x.astype(np.float32), unit, subject.seed)
        for name, (distance, p, flagged) in found.items():
            flags.append(_flags(frame, name, pl.Series(distance), pl.Series(flagged), p=p))
    oddities = pl.concat(flags)
    odd = frame["id"].is_in(oddities["id"].unique().to_list())
    return Records(
        {
            "images": frame.select("id", odd.alias("oddity")),
            "oddities": oddities,
            "searched": pl.DataFrame({"features": [searched]}),
        },
        Spent(wanted=len(frame), used=len(frame)),
    )


def ranked(oddities: pl.DataFrame) -> pl.DataFrame:
    """One row per flagged image, oddest first: blank, small and long ones, then by z or p."""
    # a normal tail makes z and p comparable
    from_p = pl.col("p").clip(1e-300, 1).log().neg().mul(2).sqrt()
    bound = pl.col("z").is_null() & pl.col("p").is_null()
    depth = pl.coalesce(pl.col("z").abs(), from_p).fill_null(float("inf"))
    return (
        oddities.with_columns(depth.alias("depth"), bound.alias("bound"))
        .sort("bound", "depth", "id", "measure", descending=[True, True, False, False])
        .unique("id", keep="first", maintain_order=True)
    )


def pictures(first: pl.DataFrame, frame: pl.DataFrame) -> list[Picture]:
    """The oddest images and what is odd about them."""
    paths = dict(frame.select("id", "path").iter_rows())
    return [
        Picture(
            id=row["id"],
            caption=f"{row['measure']} {row['value']:.4g}",
            alt=f"{row['measure']} {row['value']:.4g}, file {paths[row['id']]}",
            bucket=row["measure"],
            large=True,
        )
        for row in first.head(PICTURES).iter_rows(named=True)
    ]


def histograms(oddities: pl.DataFrame, frame: pl.DataFrame) -> dict[str, Figure]:
    """The measures with most flags, with the values from which they are odd."""
    counts = oddities.filter(pl.col("measure").is_in(MEASURES))["measure"].value_counts()
    names = counts.sort("count", "measure", descending=[True, False])["measure"].to_list()
    figures = {}
    for name in names[:HISTOGRAMS] or ["brightness"]:
        values = (frame["width"] / frame["height"] if name == "aspect" else frame[name]).to_numpy()
        count, edges = np.histogram(values.astype(float), BINS)
        centre = float(np.median(values))
        reach = FAR * float(np.median(np.abs(values - centre))) / 0.6745
        marks = [x for x in (centre - reach, centre + reach) if reach and edges[0] < x < edges[-1]]
        data = pl.DataFrame({"left": edges[:-1], "right": edges[1:], "count": count.astype(float)})
        marked = pl.Series("mark", [*marks, *[None] * (BINS - len(marks))], pl.Float64)
        figures[name] = Figure(
            kind="histogram",
            data=data.with_columns(marked),
            title=f"{name.capitalize()} of the images",
            x=name,
            y="images",
            note="Dashed: beyond it is odd." if marks else "",
        )
    return figures


@section("oddities", "Oddities", measure=measure, uses="features", share=0.01)
def summarise(evidence: Evidence, options: Options) -> Section:
    """How many images stand out, and whether the model does worse on them."""
    records, frame = evidence.records["oddities"], evidence.frame
    oddities, first = records["oddities"], ranked(records["oddities"])
    blank = oddities.filter(pl.col("measure") == BLANK)["id"].n_unique()
    n, odd = len(frame), len(first)
    unreadable = int(evidence.skipped["reason"].is_in(UNREADABLE).sum())
    judged = evidence.judged.with_columns(pl.col("oddity").fill_null(False))
    values = {
        "odd": Value(estimate=odd / n, n=n, method="exact", higher_is_better=False),
        "blank": Value(estimate=float(blank), n=n, unit="count", higher_is_better=False),
    }
    p, accuracy = 1.0, None
    sides = [judged.filter(side) for side in (pl.col("oddity"), ~pl.col("oddity"))]
    for name, part in zip(("accuracy_odd", "accuracy_rest"), sides, strict=True):
        values[name] = share(part["correct"].to_numpy(), part["unit"].to_numpy())
    if all(len(part) for part in sides):
        (k, size), (k_rest, rest) = ((int(part["correct"].sum()), len(part)) for part in sides)
        p, accuracy = fisher_less(k, size, k_rest, rest), (k / size, k_rest / rest)
        values["p_worse"] = Value(estimate=p, n=len(judged), unit="", higher_is_better=None)
    searched = bool(records["searched"]["features"][0])
    severity, sentence = finding(Facts(n, odd, blank, unreadable, accuracy, p, searched))
    listed = oddities.join(frame.select("id", "path"), on="id", how="left", maintain_order="left")
    order = first.select("id").with_row_index("place")
    listed = listed.join(order, on="id").sort("place", "measure")
    return Section(
        id="oddities",
        title="Oddities",
        finding=sentence,
        severity=severity,
        n=n,
        unit=unit_of(evidence),
        values=values,
        tables={
            "oddities": Table(
                frame=listed.select("id", "path", "measure", "value", "z", "p").head(ROWS)
            )
        },
        figures=histograms(oddities, frame) if n else {},
        pictures=pictures(first, frame),
        method=METHOD,
    )


METHOD = [
    f"Odd by a measure: more than {FAR:g} robust standard deviations from the median (z). Where "
    "half of the images have one value, the others are odd if they are fewer than 1 %.",
    f"Blank: mean luma below {DARK:g} or above {BRIGHT:g}, or less than {FLAT:g} bit of entropy. "
    f"Small: a side below {SMALL} pixels. Long: one side more than {LONG:g} times the other.",
    f"Unlike in features: distance to {K} neighbours, or to the Gaussian of the others in "
    f"{DIRECTIONS} directions, beyond what the bulk lets expect; at most {100 * RATE:g} % of each "
    "kind are expected to be false alarms (Benjamini and Hochberg).",
    "An oddity is unlike the others; whether it is wrong, only a person can say.",
]

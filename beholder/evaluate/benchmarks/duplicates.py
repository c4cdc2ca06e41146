"""Pictures that are there more than once: copies, conflicts, leakage (specs/study.md, 4.13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from beholder.core.files import write_atomic
from beholder.core.options import Options
from beholder.core.sections import (
    Figure,
    Section,
    SelfTest,
    Severity,
    Spent,
    Table,
    Value,
    share_text,
)
from beholder.data.curate.duplicates import DECIDING, DISTANCE, LOOK_ALIKE, SAME_HASH
from beholder.metrics.intervals import wilson

from .base import Evidence, Records, plural, section, unit_of
from .duplicates_shown import histogram, pictures, recalls
from .labels import accuracy_without

if TYPE_CHECKING:
    from beholder.evaluate.subject import Subject

FILE = "duplicates.parquet"
ROWS = 500
WORTH = 0.01
"""Share of the images (or test images) from which copies matter."""


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        n: images; exact: those that equal another; changed: further ones that are a copy.
        groups: pictures that are there more than once.
        conflicts: of them, those under two certain labels.
        tested: test images of a given split (0 = the split was made here).
        leaked: of them, those with a copy in the training part; `leaked_exact`: an equal one.
        leaked_sources: those whose source is in the training part.
        accuracy: with and without the leaked ones, where both are known.
        look_alike: copies cannot be told from neighbours.
        planted, found: copies made for the test (JPEG 75, half size), and those found.
    """

    n: int
    exact: int = 0
    changed: int = 0
    groups: int = 0
    conflicts: int = 0
    tested: int = 0
    leaked: int = 0
    leaked_exact: int = 0
    leaked_sources: int = 0
    accuracy: tuple[float, float] | None = None
    look_alike: bool = False
    planted: int = 0
    found: int = 0


def finding(facts: Facts) -> tuple[Severity, str]:
    """`act` for leakage and for one picture under two labels; `look` for look-alikes and many
    copies."""
    severities: list[Severity] = ["good"]
    said = []
    if facts.leaked:
        severities.append(_leak(facts.leaked, facts.tested, facts.leaked_exact > 0))
        said.append(_leaked(facts))
    if facts.leaked_sources:
        severities.append(_leak(facts.leaked_sources, facts.tested))
        of = f"{facts.leaked_sources:,} of {plural(facts.tested, 'test image')}"
        said.append(f"{of} come from a source that the training part has too.")
    if facts.conflicts:
        severities.append("act")
        which = "1 picture is" if facts.conflicts == 1 else f"{facts.conflicts:,} pictures are"
        said.append(f"{which} there under two labels.")
    if facts.look_alike:
        severities.append("look")
        said.append(f"{LOOK_ALIKE}.")
    copies = facts.exact + facts.changed
    if copies > WORTH * facts.n:
        severities.append("look")
    if copies:
        said.append(
            f"{copies:,} of {plural(facts.n, 'image')} show {plural(facts.groups, 'picture')} more "
            f"than once: {facts.exact:,} equal, {facts.changed:,} changed."
        )
    else:
        same = "are equal" if facts.look_alike else "show the same picture"
        said.append(f"No two images {same}.")
    if facts.planted:
        said.append(f"Of {facts.planted:,} planted copies {facts.found:,} were found.")
    worst = max(severities, key=("good", "look", "act").index)
    return worst, " ".join(said)


def _leak(leaked: int, tested: int, exact: bool = False) -> Severity:
    return "act" if exact or leaked > WORTH * tested else "look"


def _leaked(facts: Facts) -> str:
    told = (
        f"{facts.leaked:,} of {plural(facts.tested, 'test image')} "
        f"{'is' if facts.leaked == 1 else 'are'} in the training part too"
    )
    if facts.accuracy is None:
        return f"{told}."
    both, without = (share_text(x) for x in facts.accuracy)
    return f"{told}: without them the model is right {without} of the time, with them {both}."


def measure(subject: Subject) -> Records:
    """What the search for the split found, as tables; writes `duplicates.parquet`."""
    copies = subject.data.copies
    if copies is None:
        raise RuntimeError("the copies were not searched: call Scanned.find_units first")
    frame, ids = subject.evidence.frame, subject.evidence.frame["id"]
    pairs = copies.pairs.select(
        ids.gather(copies.pairs["i"]).alias("a"),
        ids.gather(copies.pairs["j"]).alias("b"),
        "ncc",
        "kind",
    )
    found = pl.col("ncc") >= copies.threshold
    found &= pl.col("hash_distance") <= (SAME_HASH if copies.look_alike else DISTANCE)
    given = subject.images.table["split"]
    given = given if given.null_count() == len(given) else given.fill_null("train")
    roles = frame.select("id", given.alias("given"))
    members = grouped(frame.join(roles, on="id", how="left", maintain_order="left"), pairs)
    write_atomic(subject.run / FILE, lambda out: members.write_parquet(out))
    return Records(
        {
            "members": members,
            "pairs": pairs,
            "roles": roles,
            "similarity": pl.DataFrame({"id": ids, "best": copies.best.astype(np.float32)}),
            "planted": copies.planted.select("edit", "ncc", found.alias("found")),
            "search": pl.DataFrame(
                {"threshold": [copies.threshold], "look_alike": [copies.look_alike]}
            ),
        },
        Spent(wanted=len(frame), used=len(frame)),
    )


def grouped(frame: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Every image that has a copy: group, id, path, label, split, ncc (of its best), kind.

    Args:
        frame: of the evidence, with the column `given` (role that came with the data).
    """
    ends = [pairs.select(pl.col(end).alias("id"), "ncc", "kind") for end in ("a", "b")]
    best = pl.concat(ends).sort("ncc", descending=True).unique("id", keep="first")
    return (
        frame.filter(pl.col("copy_group").is_not_null())
        .join(best, on="id", how="left")
        .sort("copy_group", "id")
        .select(
            pl.col("copy_group").alias("group"),
            "id",
            "path",
            pl.col("label_name").alias("label"),
            pl.coalesce("given", "split").alias("split"),
            "ncc",
            "kind",
        )
    )


def leaked(frame: pl.DataFrame, column: str) -> pl.Series:
    """Ids of given test images that share a value of `column` with given training images.

    Args:
        frame: column `given` = train, val, test or null (then nothing is known).
    """
    rows = frame.drop_nulls([column, "given"])
    seen = rows.filter(pl.col("given") != "test")[column].unique()
    test = rows.filter(pl.col("given") == "test")
    return test.filter(pl.col(column).is_in(seen.to_list()))["id"]


def conflicts(frame: pl.DataFrame) -> pl.Series:
    """The copy groups that hold two or more certain labels."""
    certain = frame.filter(
        pl.col("copy_group").is_not_null()
        & pl.col("label").is_not_null()
        & (pl.col("certainty") > 1 - 1e-6)
    )
    labels = certain.group_by("copy_group").agg(pl.col("label").n_unique())
    return labels.filter(pl.col("label") > 1)["copy_group"].sort()


def facts_of(evidence: Evidence, frame: pl.DataFrame, values: dict[str, Value]) -> Facts:
    """The facts of the finding; `frame`: of the evidence, with `given`."""
    inside = frame.filter(pl.col("copy_group").is_not_null())
    exact = int(frame["exact_hash"].is_duplicated().sum())
    planted = evidence.records["duplicates"]["planted"]
    deciding = planted.filter(pl.col("edit").is_in(DECIDING))["found"]
    tested = int((frame["given"] == "test").sum())
    whole, part = values["accuracy"].estimate, values["accuracy_without"].estimate
    return Facts(
        n=len(frame),
        exact=exact,
        changed=len(inside) - exact,
        groups=inside["copy_group"].n_unique(),
        conflicts=len(conflicts(frame)),
        tested=tested,
        leaked=len(leaked(frame, "copy_group")),
        leaked_exact=len(leaked(frame, "exact_hash")),
        leaked_sources=len(leaked(frame, "source")) if evidence.source_given else 0,
        accuracy=None if whole is None or part is None else (whole, part),
        look_alike=bool(evidence.records["duplicates"]["search"]["look_alike"][0]),
        planted=len(deciding),
        found=int(deciding.sum()),
    )


@section("duplicates", "Duplicates and leakage", measure=measure, uses="data", share=0.01)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Groups, each image counted once; conflicts; copies across a given split; the self-test."""
    records = evidence.records["duplicates"]
    frame = evidence.frame.join(records["roles"], on="id", how="left", maintain_order="left")
    look_alike = bool(records["search"]["look_alike"][0])
    if look_alike:  # then only equal pictures are certainly copies
        equal = pl.when(pl.col("exact_hash").is_duplicated()).then(
            pl.col("exact_hash").rank("dense")
        )
        frame = frame.with_columns(equal.cast(pl.Int32).alias("copy_group"))
    out = leaked(frame, "copy_group")
    hits = evidence.judged["correct"]
    accuracy = Value.undefined("nothing was judged")
    if len(hits):
        accuracy = Value(estimate=float(hits.mean()), n=len(hits))  # pyright: ignore[reportArgumentType]
    values = {"accuracy": accuracy, **accuracy_without(evidence, out)}
    facts = facts_of(evidence, frame, values)
    severity, sentence = finding(facts)
    planted, threshold = records["planted"], records["search"]["threshold"][0]
    best, tested = records["similarity"]["best"], recalls(planted)
    copies = facts.exact + facts.changed

    def count(number: int) -> Value:
        return Value(estimate=number, n=facts.n, unit="count", higher_is_better=None)

    def part(number: int, of: int, why: str) -> Value:
        if not of:
            return Value.undefined(why)
        return Value(estimate=number / of, n=of, method="exact", higher_is_better=False)

    whole = int(tested["planted"].sum()), int(tested["found"].sum())
    recall = Value.undefined("no image to make copies of")
    if whole[0]:
        low, high = wilson(whole[1], whole[0])
        recall = Value(
            estimate=whole[1] / whole[0], low=low, high=high, n=whole[0], method="wilson"
        )
    values |= {
        "images": part(copies, facts.n, "no images"),
        "exact": count(facts.exact),
        "pictures": count(facts.n - copies + facts.groups),
        "conflicts": count(facts.conflicts),
        "straddling": part(facts.leaked, facts.tested, "the split was made here, copies together"),
        "look_alike": part(int((best >= threshold).sum()), facts.n, "no images"),
    }
    figures = {"similarity": histogram(best, planted["ncc"], threshold)}
    if len(tested):
        figures["recall"] = Figure(
            kind="bars",
            data=tested.select(
                pl.col("kind").alias("label"), pl.col("recall").alias("value"), "low", "high"
            ),
            title="The search, tested on copies made of the images",
            x="share found",
        )
    return Section(
        id="duplicates",
        title="Duplicates and leakage",
        finding=sentence,
        severity=severity,
        n=facts.n,
        unit=unit_of(evidence),
        values=values,
        tables={
            "copies": Table(frame=records["members"].head(ROWS)),
            "self_test": Table(frame=tested, units={"recall": "share"}),
        },
        figures={name: figure for name, figure in figures.items() if len(figure.data)},
        pictures=pictures(
            records["pairs"], frame, set(conflicts(frame).to_list()), set(out.to_list())
        ),
        method=METHOD,
        files=[FILE],
        assumptions=["Not searched: crops, and rotations other than quarter turns."],
        self_test=SelfTest(planted=whole[0], found=whole[1], recall=recall) if whole[0] else None,
    )


METHOD = [
    "Equal: the decoded pixels are the same. Changed: candidates by perceptual hash (also mirrored "
    "and turned), decided by the correlation of what is left of small grey pictures when their "
    "blur, and what all images share, are taken away.",
    "The threshold is measured on these images: low enough for copies saved as JPEG 75 or at half "
    "the size, high enough for different pictures. Groups hold only images that are all copies of "
    "one another.",
    "Copies never lie in two parts of a split that was made here; a given split is taken as it is.",
]

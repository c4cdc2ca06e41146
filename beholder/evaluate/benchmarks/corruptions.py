"""What changed images cost: mild changes that nobody would call damage, then damage (4.9).

The fifteen kinds of damage are those of ImageNet-C, at the model's input size. Records: one row per
image and change, see `corruptions_asked.measure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from beholder.core.options import Options
from beholder.core.sections import (
    Figure,
    Picture,
    Section,
    Severity,
    Table,
    Value,
    share_text,
)
from beholder.data.augment.corruptions import CORRUPTIONS, shown_as
from beholder.metrics.bootstrap import bootstrap, paired
from beholder.metrics.intervals import share
from beholder.metrics.robustness import mean_corruption_error, retained_of

from .base import Evidence, Records, judged_or_why, limited, plural, section, unit_of
from .corruptions_tables import (
    CLEAN,
    SHOWN_SEVERITY,
    Measured,
    asked_of,
    cell_table,
    edit_table,
    kind_table,
    mild_table,
)

if TYPE_CHECKING:
    from beholder.evaluate.subject import Subject

GOOD, GOOD_EACH, ACT_EACH = 0.85, 0.6, 0.3
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        labels: without, the same answer as to the unchanged image counts as right.
        mild: the costliest mild change and what it costs, 0..1.
        costly: it costs more than 5 points, beyond chance; deciding: nobody can avoid it.
        kept: skill retained, None where there is none to lose or no damage was tried.
        shown: what is said of it: `kept`, without labels the share of answers that stay.
        least, least_shown: the kind of damage that leaves least, and what `shown` is of it.
        least_kept, least_camera: smallest share kept of any kind, and of what cameras do.
        damaged: kinds of damage tried.
        one_answer: class, and the kinds of damage under which it takes more than 3 answers in 4.
        skilled: better than one answer to all.
    """

    labels: bool
    mild: tuple[str, float]
    costly: bool = False
    deciding: bool = False
    kept: float | None = None
    shown: float = 0.0
    least: str = ""
    least_shown: float = 0.0
    least_kept: float = 1.0
    least_camera: float = 1.0
    damaged: int = 0
    one_answer: tuple[str, list[str]] | None = None
    skilled: bool = True


def severity_of(facts: Facts) -> Severity:
    """`act`: a mild change that nobody can avoid is costly, or what cameras do leaves below .3."""
    if facts.deciding or (facts.kept is not None and facts.least_camera < ACT_EACH):
        return "act"
    if facts.costly:
        return "look"
    if facts.kept is None:
        return "none"
    return "good" if facts.kept >= GOOD and facts.least_kept >= GOOD_EACH else "look"


def finding(facts: Facts) -> tuple[Severity, str]:
    """What mild changes cost, what damage leaves, and the one answer that damaged images get."""
    name, cost = facts.mild[0], max(0.0, facts.mild[1])
    if facts.labels:
        price = f"{share_text(cost, unit=False)} points"
        said = f"costs {price}" if facts.costly else f"cost at most {price}"
    else:
        answers = f"{share_text(cost)} of the answers"
        said = f"changes {answers}" if facts.costly else f"change at most {answers}"
    start = f"A change as small as {name}" if facts.costly else "Mild changes, such as re-saving,"
    clauses = [f"{start} {said}"]
    if not facts.skilled:
        same = "the model is no better than one answer to all"
        same = same if facts.labels else "all images get one answer"
        clauses.append(f"{same}, so damage cannot be judged")
    elif facts.kept is not None:
        whole, least = (share_text(x, width=1) for x in (facts.shown, facts.least_shown))
        what = "of the skill" if facts.labels else "of the answers unchanged"
        clauses.append(f"damage leaves {whole} {what}, {facts.least} least ({least})")
    if facts.one_answer:
        answer, kinds = facts.one_answer
        of = f"{len(kinds)} of {facts.damaged} kinds of damage" if len(kinds) > 1 else kinds[0]
        clauses.append(f"under {of} the model answers {answer} to more than three images in four")
    return severity_of(facts), f"{'; '.join(clauses)}."


def changeable_or_why(evidence: Evidence) -> str | None:
    """The sentence where there is no answer that could change, else None."""
    if evidence.kind != "unlabelled":
        return judged_or_why(evidence)
    return None if len(asked_of(evidence)) else "No labels and no model: no answer could change."


def facts_of(measured: Measured, mild: pl.DataFrame, kinds: pl.DataFrame) -> Facts:
    """What the finding needs; a costly change that nobody can avoid goes before a costlier one."""
    first = mild.sort(
        ["to_act_on", "costly", "difference"], descending=[True, True, False], maintain_order=True
    ).row(0, named=True)
    labels = measured.label is not None
    clean, majority = measured.hits(CLEAN).mean(), measured.common.mean()
    base = {
        "labels": labels,
        "mild": (first["change"], -first["difference"]),
        "costly": first["costly"],
        "deciding": first["to_act_on"],
        "damaged": len(kinds),
        "skilled": bool(clean > majority),
    }
    if not len(kinds) or clean <= majority:
        return Facts(**base)
    column = "retained" if labels else "accuracy"
    least = kinds.sort(column, maintain_order=True).row(0, named=True)
    cameras = [shown_as(name) for name in measured.corruptions if CORRUPTIONS[name].camera]
    camera = kinds.filter(pl.col("corruption").is_in(cameras))["retained"].to_numpy()
    taken = kinds.filter("dominated").group_by("top_answer").agg("corruption")
    taken = taken.sort(pl.col("corruption").list.len(), "top_answer")
    return Facts(
        **base,
        kept=float(kinds["retained"].to_numpy().mean()),
        shown=float(kinds[column].to_numpy().mean()),
        least=least["corruption"],
        least_shown=least[column],
        least_kept=float(kinds["retained"].to_numpy().min()),
        least_camera=float(camera.min()),
        one_answer=taken.row(-1) if len(taken) else None,
    )


def measure(subject: Subject) -> Records:
    """See `corruptions_asked.measure`."""
    from .corruptions_asked import measure  # asks with what imports this package

    return measure(subject)


def values_of(measured: Measured, facts: Facts, kinds: pl.DataFrame, seed: int) -> dict[str, Value]:
    """Skill retained, mCE, the worst kind of damage, the costliest mild change."""
    n, unit = len(measured.unit), measured.unit
    cells = [(name, s) for name in measured.corruptions for s in measured.severities]
    none = Value.undefined("no damage was tried: too little time", n)
    kept, mce, worst = none, none.model_copy(update={"unit": ""}), none
    clean = measured.hits(CLEAN)
    if cells:
        hits = np.column_stack([measured.hits(*cell) for cell in cells])
        kept = bootstrap(retained_of(hits, clean, measured.common), unit, seed=seed)
        if not facts.skilled:
            kept = Value.undefined("no better than one answer to all", n)
        mce = _mce(measured)
        named = kinds.filter(pl.col("p_holm") < SIGNIFICANT).sort(
            "accuracy_at_3", "p_holm", maintain_order=True
        )
        worst = Value.undefined("none is worse than no damage beyond chance", n)
        if len(named):
            shown = {shown_as(name): name for name in measured.corruptions}
            worst = share(measured.hits(shown[named["corruption"][0]], SHOWN_SEVERITY), unit)
    mild = paired(measured.hits(facts.mild[0]), clean, unit, unit="points", seed=seed)
    return {"retained": kept, "mce_reference": mce, "worst": worst, "costliest_mild_change": mild}


def _mce(measured: Measured) -> Value:
    n = len(measured.unit)
    if not measured.has_reference:
        return Value.undefined("there is no reference head", n, "")
    own, other = (
        [[1 - of(name, s).mean() for s in measured.severities] for name in measured.corruptions]
        for of in (measured.hits, measured.reference_hits)
    )
    found = mean_corruption_error(np.array(own), np.array(other))
    if np.isnan(found):
        return Value.undefined("under one kind of damage the reference head makes no error", n, "")
    return Value(estimate=found, n=n, unit="", higher_is_better=False)


def figures(measured: Measured, tables: Mapping[str, pl.DataFrame], noun: str) -> dict[str, Figure]:
    """Heat table, accuracy by severity of each family, and the mild changes."""
    clean = measured.hits(CLEAN).mean()
    mild = tables["pipeline"].with_columns(pl.lit(clean).alias("reference"))
    found = {
        "pipeline": Figure(
            kind="dots",
            data=mild.select(
                pl.col("change").alias("label"), pl.col("accuracy").alias("value"), "low", "high",
                "reference",
            ),
            title="Another pipeline: mild changes",
            x=noun,
            note="Line: without a change." if measured.label is not None else "",
        )
    }  # fmt: skip
    if not measured.corruptions:
        return found
    cells = tables["corruptions"]
    found["heat"] = Figure(
        kind="grid",
        data=cells.select(
            pl.col("corruption").alias("row"),
            pl.col("severity").cast(pl.String).alias("column"),
            pl.col("accuracy").alias("value"),
            pl.Series("text", [f"{100 * a:.0f}" for a in cells["accuracy"]], pl.String),
        ),
        title=f"Fifteen kinds of damage: {noun} in per cent",
        x="severity",
        y="damage",
        note=f"Without damage: {share_text(clean)}." if measured.label is not None else "",
    )
    families = {shown_as(name): CORRUPTIONS[name].family for name in measured.corruptions}
    lines = (
        cells.with_columns(pl.col("corruption").replace_strict(families).alias("series"))
        .group_by("series", "severity", maintain_order=True)
        .agg(pl.col("accuracy").mean())
    )
    start = lines.select("series").unique(maintain_order=True)
    start = start.with_columns(
        pl.lit(0, pl.Int64).alias("severity"), pl.lit(clean).alias("accuracy")
    )
    found["severity"] = Figure(
        kind="lines",
        data=pl.concat([start, lines.select(start.columns)]).select(
            pl.col("severity").cast(pl.Float64).alias("x"), pl.col("accuracy").alias("y"), "series"
        ),
        title=f"{noun.capitalize()} as damage grows",
        x="severity",
        y=noun,
    )
    return found


def pictures(evidence: Evidence, measured: Measured) -> list[Picture]:
    """One image under every kind of damage, and what is answered."""
    if not measured.corruptions:
        return []
    id = evidence.records["corruptions"]["example"]["id"][0]
    path = evidence.frame.filter(pl.col("id") == id)["path"][0]
    cards = []
    for name, severity in [(CLEAN, 0), *((name, SHOWN_SEVERITY) for name in measured.corruptions)]:
        row = measured.answers[name, severity].filter(pl.col("id") == id).row(0, named=True)
        answer = evidence.classes[row["predicted"]]
        what = "no damage" if name == CLEAN else shown_as(name)
        cards.append(
            Picture(
                id=f"corruptions/{name}",
                caption=f"{what}: {answer}",
                alt=f"{what}, answered {answer}, file {path}",
                bucket=f"one image, severity {SHOWN_SEVERITY}",
            )
        )
    return cards


@section("corruptions", "Corruptions", needs=changeable_or_why, measure=measure, share=0.13)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Mild changes, fifteen kinds of damage, and edits."""
    measured = Measured.of(evidence)
    labels = measured.label is not None
    noun = "accuracy" if labels else "same answer"
    kinds = kind_table(measured, evidence.classes)
    tables = {
        "pipeline": mild_table(measured, options.seed),
        "corruptions": cell_table(measured),
        "kinds": kinds,
        "edits": edit_table(measured),
    }
    facts = facts_of(measured, tables["pipeline"], kinds)
    severity, sentence = limited(*finding(facts), len(measured.unit))
    return Section(
        id="corruptions",
        title="Corruptions",
        finding=sentence,
        severity=severity,
        n=len(measured.unit),
        unit=unit_of(evidence),
        values=values_of(measured, facts, kinds, options.seed),
        tables={name: _table(frame, labels) for name, frame in tables.items() if len(frame)},
        figures=figures(measured, tables, noun),
        pictures=pictures(evidence, measured),
        method=_method(evidence, measured),
    )


def _table(frame: pl.DataFrame, labels: bool) -> Table:
    frame = frame if labels else frame.rename({"accuracy": "consistency"}, strict=False)
    floats = [name for name, kind in frame.schema.items() if kind.is_float() and name != "p_holm"]
    return Table(frame=frame, units=dict.fromkeys(floats, "share"))


def _method(evidence: Evidence, measured: Measured) -> list[str]:
    n, cells = len(measured.unit), measured.severities
    asked = len(asked_of(evidence))
    said = [
        f"The same {plural(n, 'image')} (of {asked:,}) under every change, at the size that the "
        "model looks at; drawn by chance, class by class. A seed per image and kind: severity "
        "changes how strong a draw is, not the draw.",
        "Another pipeline: changes that no one would call damage. To be acted on if JPEG 90, half "
        "size or 10 % of brightness costs more than 5 points beyond chance.",
    ]
    if measured.label is None:
        said.append("No labels: counted is whether the answer stays that to the unchanged image.")
    if cells:
        shown = ", ".join(map(str, cells))
        said += [
            f"Damage: the fifteen kinds of ImageNet-C (Hendrycks and Dietterich 2019) at severity "
            f"{shown}, lengths in proportion to the image; frost is drawn, not photographed.",
            "Skill retained: (accuracy - m) / (accuracy without damage - m), at least 0, averaged "
            "over severities and kinds; m = always giving the most frequent answer.",
            f"Worst kind: least accuracy at severity {SHOWN_SEVERITY} among those that lose beyond "
            "chance (exact McNemar against no damage, Holm over all kinds).",
            "mCE: errors over those of the reference head (logistic regression on the same "
            "features), averaged over kinds, times 100. Not comparable with figures that are "
            "relative to AlexNet.",
        ]
    if "edit" in measured.kinds:
        said.append(
            "Edits (turned, mirrored, squeezed) may change what is right: only whether the answer "
            "stays is counted."
        )
    if evidence.weighted:
        said.append("Given weights are not used here: every image counts once.")
    return said

"""Are defects found by someone who has only seen good images (specs/study.md, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from beholder.core.options import Options
from beholder.core.sections import (
    Figure,
    Picture,
    Section,
    SelfTest,
    Severity,
    Table,
    Value,
    share_text,
)
from beholder.metrics.detection import auroc
from beholder.metrics.detection import value as rate
from beholder.metrics.groups import compare_slices
from beholder.metrics.intervals import share

from .base import Evidence, limited, section, unit_of
from .inspection_asked import DETECTOR, STRICT, measure
from .trusted import too_few

GOOD, ACT = 0.9, 0.5
SHARES = ("auroc", "auroc_low", "auroc_high", "refused", "low", "high", "refused_strict")


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        found: share of the given defects that are refused, None without any; `auroc` of them.
        alarms: share of good images that are refused. fpr: what was asked for.
        worst: the type that is found least, and the share (drawn towards that of all types); None
            where types do not differ by more than chance.
        planted: kind -> share of planted defects that are found.
    """

    found: float | None
    auroc: float | None
    alarms: Value
    fpr: float = 0.05
    worst: tuple[str, float] | None = None
    planted: dict[str, float] = field(default_factory=dict)


def finding(facts: Facts) -> tuple[Severity, str]:
    """Of given defects, or of one type of them, less than half: act; nine tenths, and no more false
    alarms than were asked for: good. Planted ones alone are no reason to act."""
    alarms = facts.alarms.text(interval=False)
    kept = facts.alarms.low is None or facts.alarms.low <= facts.fpr
    if facts.found is None:
        least = min(facts.planted, key=lambda kind: facts.planted[kind])
        severity: Severity = "good" if facts.planted[least] >= GOOD and kept else "look"
        found = _list([f"{share_text(x, width=1)} of {kind}" for kind, x in facts.planted.items()])
        return severity, (
            f"No defects are given. Of planted ones it finds {found}, at {alarms} false alarms."
        )
    weakest = min(facts.found, facts.worst[1] if facts.worst else 1.0)
    severity = "act" if weakest < ACT else "good" if weakest >= GOOD and kept else "look"
    said = f"Finds {share_text(facts.found, width=1)} of the defects at {alarms} false alarms"
    if facts.auroc is not None:
        said += f" (AUROC {facts.auroc:.2f})"
    if facts.worst:
        said += f"; least of {facts.worst[0]} ({share_text(facts.worst[1], width=1)})"
    return severity, f"{said}."


def _list(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def by_type(scores: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Type x detector, all defects first: n, AUROC, share refused at the two rates, each with its
    interval, and false alarms. `scores`: `inspection_asked.SCORES`."""
    rows = []
    types = scores.filter("bad")["type"].unique(maintain_order=True).to_list()
    for detector in scores["detector"].unique(maintain_order=True):
        mine = scores.filter(pl.col("detector") == detector)
        good = mine.filter(~pl.col("bad"))
        for name in ["all", *types] if len(types) > 1 else types:
            bad = mine.filter(pl.col("bad") & ((pl.col("type") == name) | (name == "all")))
            area = rate("auroc", good["score"].to_numpy(), bad["score"].to_numpy(), seed=seed)
            refused = share(bad["refused"].to_numpy(), bad["unit"].to_numpy())
            strict = bad["refused_strict"].drop_nulls()
            rows.append(
                {
                    "type": name,
                    "n": len(bad),
                    "detector": detector,
                    "auroc": area.estimate,
                    "auroc_low": area.low,
                    "auroc_high": area.high,
                    "refused": refused.estimate,
                    "low": refused.low,
                    "high": refused.high,
                    "refused_strict": float(strict.to_numpy().mean()) if len(strict) else None,
                }
            )
    return pl.DataFrame(rows, TYPES)


TYPES = {"type": pl.String, "n": pl.Int64, "detector": pl.String}
TYPES |= dict.fromkeys(SHARES, pl.Float64)


def worst_type(scores: pl.DataFrame, seed: int) -> tuple[str, float] | None:
    """The type of defect that is found least, by the rule for groups (4.4): shrunken, and named
    only where a test against the rest says so."""
    bad = scores.filter(pl.col("bad") & (pl.col("detector") == DETECTOR))
    types = bad["type"].unique(maintain_order=True).to_list()
    if len(types) < 2:
        return None
    of = bad["type"].to_numpy()
    table = compare_slices(
        [("type", name, of == name) for name in types],
        bad["refused"].to_numpy(),
        np.zeros(len(bad), int),
        bad["unit"].to_numpy(),
        seed,
    )
    named = table.filter("named").sort("estimate")
    return None if not len(named) else (named["slice"][0], named["estimate"][0])


def planted_table(planted: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Kind x detector: n, AUROC, share found with Wilson's interval."""
    rows = []
    for (kind, detector), one in planted.group_by("kind", "detector", maintain_order=True):
        good = scores.filter((pl.col("detector") == detector) & ~pl.col("bad"))
        found = share(one["refused"].to_numpy())
        area = auroc(good["score"].to_numpy(), one["score"].to_numpy())
        rows.append((kind, len(one), detector, area, found.estimate, found.low, found.high))
    columns = {"kind": pl.String, "n": pl.Int64, "detector": pl.String}
    columns |= dict.fromkeys(("auroc", "found", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, columns, orient="row")


def good_images_or_why(evidence: Evidence) -> str | None:
    """The sentence for data that does not say which images are good, else None."""
    if evidence.kind == "one_class":
        return None
    if evidence.has_labels:
        return "There are classes to tell apart, so nothing is inspected for defects."
    return "No labels say which images are good, so nothing is inspected for defects."


@section(
    "inspection",
    "Inspection",
    needs=good_images_or_why,
    measure=measure,
    uses="features",
    share=0.15,
    only="one_class",
)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Given defects by type, planted defects by kind, false alarms, and where defects lie."""
    shell = Section(id="inspection", title="Inspection", finding="", status="not_applicable")
    records = evidence.records.get("inspection")
    if records is None:
        return shell.model_copy(update={"finding": "No model was asked about these images."})
    scores, how = records["scores"], records["how"].row(0, named=True)
    if not len(scores):
        why = "The model gives no features to tell defects by."
        if how["features"]:
            why = too_few(how["learned"], options.fpr)
        return shell.model_copy(update={"finding": why})
    types = by_type(scores, options.seed)
    planted = planted_table(records["planted"], scores)
    mine = scores.filter(pl.col("detector") == DETECTOR)
    good, bad = mine.filter(~pl.col("bad")), mine.filter("bad")
    alarms = share(good["refused"].to_numpy(), good["unit"].to_numpy(), higher_is_better=False)
    own = planted.filter(pl.col("detector") == DETECTOR)
    found = records["planted"].filter(pl.col("detector") == DETECTOR)["refused"].to_numpy()
    recall = share(found)
    values = {"false_refusals": alarms, "planted_found": recall}
    area = None
    if len(bad):
        area = rate("auroc", good["score"].to_numpy(), bad["score"].to_numpy(), seed=options.seed)
        refused = share(bad["refused"].to_numpy(), bad["unit"].to_numpy())
        values = {"auroc": area, "refused": refused} | values
        if not bad["refused_strict"].null_count():
            values["refused_strict"] = share(
                bad["refused_strict"].to_numpy(), bad["unit"].to_numpy()
            )
    facts = Facts(
        found=values["refused"].estimate if len(bad) else None,
        auroc=area.estimate if area else None,
        alarms=alarms,
        fpr=options.fpr,
        worst=worst_type(scores, options.seed),
        planted=dict(own.select("kind", "found").iter_rows()),
    )
    n = len(bad) + len(good)
    severity, said = limited(*finding(facts), n)
    tables = {
        "planted": Table(
            frame=planted, units=dict.fromkeys(("auroc", "found", "low", "high"), "share")
        )
    }
    if len(types):
        tables = {"types": Table(frame=types, units=dict.fromkeys(SHARES, "share"))} | tables
    pixels = records.get("pixels")
    if pixels is not None:
        tables["pixels"] = Table(frame=pixels, units={"aupro": "share"})
        values["aupro"] = Value(estimate=pixels["aupro"][0], n=pixels["n"][0])
    return Section(
        id="inspection",
        title="Inspection",
        finding=said,
        severity=severity,
        n=n,
        unit=unit_of(evidence),
        values=values,
        tables=tables,
        figures={"found": found_figure(types, own)},
        pictures=pictures(records["shown"], evidence),
        method=methods(how["how"], evidence, options, pixels is not None),
        self_test=SelfTest(planted=len(found), found=int(found.sum()), recall=recall),
    )


def found_figure(types: pl.DataFrame, planted: pl.DataFrame) -> Figure:
    """Share found of every given type and planted kind."""
    given = types.filter(pl.col("detector") == DETECTOR).select(
        pl.format("given: {}", "type").alias("label"),
        pl.col("refused").alias("value"),
        "low",
        "high",
    )
    made = planted.select(
        pl.format("planted: {}", "kind").alias("label"),
        pl.col("found").alias("value"),
        "low",
        "high",
    )
    return Figure(
        kind="dots", data=pl.concat([given, made]), title="Defects found", x="share found"
    )


def methods(how: str, evidence: Evidence, options: Options, masks: bool) -> list[str]:
    """How this was measured."""
    lines = [
        f"Learned from good images only ({evidence.classes[0] if evidence.classes else 'good'}). "
        + how,
        "Detectors: the distance to a Gaussian of the features (gaussian_ad, of which the finding "
        "speaks), and to the 10th nearest good image (knn).",
        f"Thresholds refuse {100 * options.fpr:g} % of good images (split-conformal); "
        f"refused_strict: {100 * STRICT:g} %.",
        "Planted: a piece of another image turned by a quarter, a blurred, a brighter or darker "
        "rectangle (2 to 10 % of the area each), a scratch, the image in shuffled tiles.",
        "Heat: how far every place is from the Gaussian of whole good images, in standard "
        "deviations above what is usual there; faint red from 2 on, full red from 6.",
    ]
    if masks:
        lines.append(
            "AUPRO: share of each marked region that is covered, over thresholds that mark up to "
            "30 % of the good pixels."
        )
    return lines


def pictures(shown: pl.DataFrame, evidence: Evidence) -> list[Picture]:
    """Missed defects, false alarms and found defects, each with its heat map beside it."""
    path = dict(evidence.frame.select("id", "path").iter_rows())
    cards = []
    for id, why, kind, score, mapped in shown.iter_rows():
        alt = f"{kind}, {why}, score {score:.3g}, file {path[id]}"
        heat = Picture(id=f"inspection/{id}", caption="where", alt=f"heat map of {path[id]}")
        cards.append(
            Picture(
                id=id,
                caption=f"{kind}, {why}",
                alt=alt,
                bucket=why,
                facts={"score": f"{score:.3g}"},
                large=True,
                beside=[heat] if mapped else [],
            )
        )
    return cards

"""How little it takes to change right answers on purpose (specs/study.md, 4.10).

PGD by the margin, or the Square attack on a black box, on pictures of 8 bits. An attack that fails
proves nothing, so controls tell whether it was a fair one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Figure, Picture, Section, Severity, Table, Value
from beholder.metrics.intervals import share

from .base import Evidence, Records, judged_or_why, limited, plural, section, unit_of, weights_of

if TYPE_CHECKING:
    from beholder.evaluate.subject import Subject

SIZES = (1, 2, 4)
"""Largest change of a value, of 255."""
DECISIVE = 2
CONTROL_STEPS = 40
MAGNIFIED = 10
KEEPS, NOISE_FOOLS, GAINS = 0.8, 0.2, 0.1
NOTHING = "No image is answered rightly, so there is nothing to attack."
LINES = {
    "accuracy": "attack",
    "fgsm_accuracy": "one step",
    "noise_accuracy": "random noise",
}
SHARES = ("accuracy", "low", "high", "noise_accuracy", "fgsm_accuracy")


def measure(subject: Subject) -> Records:
    """See `adversarial_asked.measure`."""
    from . import adversarial_asked  # here, because subjects import sections

    return adversarial_asked.measure(subject)


def name_of(id: str, part: str) -> str:
    """Id of a picture of this section."""
    return f"adversarial/{id}/{part}"


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        kept: share of the right answers that stay at 2/255, with its interval.
        warning: what to know before (see `warning`); '' = nothing.
        threat: attackers are expected.
    """

    kept: Value
    warning: str = ""
    threat: bool = False


def finding(facts: Facts) -> tuple[Severity, str]:
    """`good` where 80 % of the right answers stay at 2/255, and no control speaks against it;
    `act` only where attackers are expected."""
    left = facts.kept.text(interval=False)
    said = f"changes of at most {DECISIVE}/255 made on purpose leave {left} of the right answers"
    said += facts.kept.text().removeprefix(left)
    severity: Severity
    if (facts.kept.estimate or 0.0) >= KEEPS:
        severity = "look" if facts.warning else "good"
        said = f"not broken by this attack: {said}; another attack may do more."
    elif facts.threat:
        severity, said = "act", f"{said}, and attackers are expected."
    else:
        severity, said = "look", f"{said}, as in most models without adversarial training."
    said = f"{facts.warning}; {said}" if facts.warning else said
    return severity, said[0].upper() + said[1:]


def warning(tried: pl.DataFrame, control: pl.DataFrame) -> str:
    """What the controls say against the attack, or of how little it needed; '' = nothing.

    Args:
        tried, control: see `adversarial_asked.recorded`.
    """
    masked = "masking suspected, so the attack may be too weak"
    sizes = [(size, rows) for (size,), rows in tried.group_by("eps", maintain_order=True)]
    for size, rows in sizes:
        one, many = rows["fgsm_success"], rows["success"]
        if not one.null_count() and one.sum() > many.sum():
            return f"{masked} (a single step fools more images at {size}/255)"
    gain = int((control["success_longer"] & ~control["success"]).sum())
    if gain > GAINS * len(control):
        return f"{masked} ({CONTROL_STEPS} steps fool {gain} of {len(control)} images more)"
    for size, rows in sizes:
        fooled = int(rows["noise_success"].sum())
        if fooled > NOISE_FOOLS * len(rows):
            return f"random noise of {size}/255 alone fools {fooled} of {len(rows)} images"
    return ""


def smallest_of_half(tried: pl.DataFrame) -> int | None:
    """The smallest size that fools at least half of the images; None = none of those tried."""
    shares = tried.group_by("eps").agg(pl.col("success").mean()).sort("eps")
    enough = shares.filter(pl.col("success") >= 0.5)["eps"]
    return int(enough[0]) if len(enough) else None


def attackable_or_why(evidence: Evidence) -> str | None:
    """The sentence for data of which no answer can be spoiled, else None."""
    return judged_or_why(evidence) or (None if evidence.judged["correct"].any() else NOTHING)


def times(value: Value, factor: float) -> Value:
    """The value and its interval, multiplied."""
    ends = {name: getattr(value, name) for name in ("estimate", "low", "high")}
    scaled = {name: None if x is None else factor * x for name, x in ends.items()}
    return value.model_copy(update=scaled)


@section("adversarial", "Adversarial", needs=attackable_or_why, measure=measure, share=0.06)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Accuracy under attack by size, with the controls beside it."""
    records = evidence.records["adversarial"]
    tried, control, setting = (records[name] for name in ("tried", "control", "setting"))
    title = "Adversarial"
    if not len(tried):
        return Section(id="adversarial", title=title, finding=NOTHING, status="not_applicable")
    judged = evidence.judged
    units = judged["unit"].to_numpy()
    clean = share(judged["correct"].to_numpy(), units, weights_of(evidence, judged))
    assert clean.estimate is not None
    values = {size: times(share_kept(evidence, tried, size), clean.estimate) for size in SIZES}
    table = by_size(evidence, tried, clean, values)
    how = setting.row(0, named=True)
    n = tried["id"].n_unique()
    kept, threat = share_kept(evidence, tried, DECISIVE), options.threat == "adversarial"
    facts = Facts(kept, warning(tried, control), threat)
    severity, sentence = limited(*finding(facts), n)
    half = smallest_of_half(tried)
    return Section(
        id="adversarial",
        title="Adversarial",
        finding=sentence,
        severity=severity,
        n=n,
        unit=unit_of(evidence),
        values={
            **{f"eps{size}": value for size, value in values.items()},
            "median_eps": Value(estimate=half, n=n, unit="", higher_is_better=True)
            if half
            else Value.undefined(f"half of the images stand {SIZES[-1]}/255", n, ""),
        },
        tables={
            "accuracy": Table(frame=table, units=dict.fromkeys(SHARES, "share")),
            **({"control": Table(frame=longer(control))} if len(control) else {}),
        },
        figures={"accuracy": figure(table)},
        pictures=shown(evidence, records["shown"]),
        method=method(how, n, len(judged), half),
    )


def share_kept(
    evidence: Evidence, tried: pl.DataFrame, size: int, column: str = "success"
) -> Value:
    """Share of the right answers that stay at this size; undefined where it was not tried."""
    own = tried.filter(pl.col("eps") == size)
    if own[column].null_count():
        return Value.undefined("needs gradients", len(own))
    own = own.join(evidence.frame.select("id", "unit", "weight"), on="id", maintain_order="left")
    return share(~own[column].to_numpy(), own["unit"].to_numpy(), weights_of(evidence, own))


def by_size(
    evidence: Evidence, tried: pl.DataFrame, clean: Value, attacked: dict[int, Value]
) -> pl.DataFrame:
    """Accuracy of all judged images (that without attack x share kept); first without attack."""
    assert clean.estimate is not None
    rows: list[tuple[str | int | float | None, ...]] = [
        ("0", clean.n, clean.estimate, clean.low, clean.high, None, None)
    ]
    for size, value in attacked.items():
        controls = (
            times(share_kept(evidence, tried, size, column), clean.estimate).estimate
            for column in ("noise_success", "fgsm_success")
        )
        rows.append((f"{size}/255", value.n, value.estimate, value.low, value.high, *controls))
    schema = {"eps": pl.String, "n": pl.Int64} | dict.fromkeys(SHARES, pl.Float64)
    return pl.DataFrame(rows, schema, orient="row")


def longer(control: pl.DataFrame) -> pl.DataFrame:
    """The longer attack beside the usual one, on the same images."""
    usual, more = control["success"].sum(), control["success_longer"].sum()
    size = f"{DECISIVE}/255"
    return pl.DataFrame(
        {
            "eps": [size],
            "n": [len(control)],
            "fooled": [usual],
            f"fooled_by_{CONTROL_STEPS}_steps": [more],
        }
    )


def figure(table: pl.DataFrame) -> Figure:
    """Accuracy against the size of the change, by the attack and the controls."""
    x, start = pl.Series("x", [0, *SIZES]), table["accuracy"][0]
    parts = []
    for column, series in LINES.items():
        if table[column].count():
            banded = pl.lit(column == "accuracy")
            parts.append(
                table.select(
                    x,
                    pl.col(column).fill_null(start).alias("y"),
                    pl.when(banded).then("low").alias("low"),
                    pl.when(banded).then("high").alias("high"),
                    pl.lit(series).alias("series"),
                )
            )
    return Figure(
        kind="lines",
        data=pl.concat(parts),
        title="Accuracy under attack",
        x="largest change of a value, of 255",
        y="accuracy",
    )


def shown(evidence: Evidence, rows: pl.DataFrame) -> list[Picture]:
    """Image, difference and attacked image of each."""
    frame = rows.join(evidence.frame.select("id", "label"), on="id", maintain_order="left")
    pictures = []
    for id, size, answer, label in frame.select("id", "eps", "answer", "label").iter_rows():
        true = evidence.classes[label]
        captions = {
            "image": (f"{true}, answered rightly", f"{id} as the model sees it"),
            "change": (f"what is added, {MAGNIFIED} times as strong", f"what is added to {id}"),
            "attacked": (f"changed by at most {size}/255: {answer}", f"{id}, called {answer}"),
        }
        first, *beside = (
            Picture(id=name_of(id, part), caption=caption, alt=alt)
            for part, (caption, alt) in captions.items()
        )
        pictures.append(first.model_copy(update={"beside": beside}))
    return pictures


def method(how: dict[str, Any], n: int, judged: int, half: int | None) -> list[str]:
    """How it was attacked, and what the controls were."""
    fools = f"{half}/255 does" if half else f"not even {SIZES[-1]}/255 does"
    lines = [
        f"Attacked: {plural(n, 'image')} of those that are answered rightly, by chance, every "
        f"class in proportion ({judged:,} were judged).",
        "Accuracy under attack: the share of them that stay right, times the accuracy without "
        "attack; the interval is that of the share.",
        "Attacked images have 8 bits and the size that the model looks at; what is fooled at one "
        "size counts as fooled at the larger ones.",
        f"What fools half of the images: among the sizes tried, {fools}.",
        "An attack that fails proves nothing: another one may succeed.",
    ]
    effort, restarts = how["effort"], how["restarts"]
    if how["attack"] == "square":
        return [
            *lines,
            f"There are no gradients, so the Square attack: at most {effort} answers per image and "
            "size. Control: random signs of each size.",
        ]
    return [
        *lines,
        f"PGD: at most {effort} steps of {2.5 / effort:.3g} times the size, by the sign of the "
        "gradient of the margin (largest other logit - own logit); "
        f"{plural(restarts, 'random start')} per size, larger sizes go on from smaller ones.",
        "Controls: random signs of each size; one step (FGSM); "
        f"{CONTROL_STEPS} steps at {DECISIVE}/255 on the first images.",
    ]

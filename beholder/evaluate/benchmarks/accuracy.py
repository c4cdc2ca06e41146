"""How often the model is right, against chance, simple baselines and a target (study.md, 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Figure, Section, Severity, Table, Value, share_text, worst
from beholder.metrics.bootstrap import (
    auroc_macro_of,
    bootstrap,
    bootstrap_shares,
    macro_f1_of,
    over_seeds,
    paired,
)
from beholder.metrics.classification import (
    affordable_resamples,
    best_assignment,
    confusion,
    per_class,
)
from beholder.metrics.intervals import (
    binomial_greater,
    images_needed,
    mcnemar,
    share,
    sign_flip,
)

from .base import Evidence, judged_or_why, limited, scores_or_why, section, unit_of, weights_of
from .data import label_ceiling

TOP_K_FROM = 20  # classes
LEARNING_COLUMNS = ("share", "accuracy", "low", "high")
BASELINES = {
    "majority": "always the commonest training class",
    "thumbnail": "16 x 16 grey thumbnail, logistic regression",
    "reference": "final features' mean, logistic regression",
    "portable": "the model as plain timm opens it",
    "frozen": "the encoder before it was fine-tuned, with its head",
}


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        n: judged images.
        accuracy: as reported (over seeds where there are several).
        unseen: whether it is known that the model never saw them.
        skill: (balanced accuracy - 1/C) / (1 - 1/C); its lower bound is None for too few units.
        p_chance: one-sided binomial p against always answering `majority`.
        majority: the commonest class of the judged images.
        ceiling: accuracy of a perfect model on these labels, or None where they are certain.
        target: accuracy wanted, or None.
        thumbnail: (accuracy of the thumbnail baseline, lower bound of the model's on the same
            images), or None where not measured.
        more_images: whether the last doubling of the training set gained beyond chance.
        wrong_order: 'a is called b, ...' where the class order is probably wrong, else None.
        splits: ways in which the images were split.
    """

    n: int
    accuracy: Value
    unseen: bool
    skill: Value
    p_chance: float
    majority: str
    ceiling: float | None = None
    target: float | None = None
    thumbnail: tuple[float, float] | None = None
    more_images: bool = False
    wrong_order: str | None = None
    splits: int = 1


def finding(facts: Facts) -> tuple[Severity, str]:
    """The rules of 4.3, in their order; the first sentence stands alone."""
    a = facts.accuracy
    seen = "unseen images" if facts.unseen else "images"
    each = f" in each of {facts.splits} splits" if facts.splits > 1 else ""
    start = (
        f"On {facts.n:,} {seen}{each} the model is right {_percent(a)} of the time{_interval(a)}"
    )
    if facts.wrong_order:
        return "act", f"The class order is probably wrong: most images of {facts.wrong_order}."
    if facts.p_chance > 0.05:
        return "act", f"{start}: no better than always answering {facts.majority}."
    severity, verdict = _against_target(facts) if facts.target else _against_chance(facts)
    if facts.ceiling is not None:
        labels = share_text(facts.ceiling)
        verdict = f"; a perfect one would agree with these labels on {labels}{verdict}"
    more = ""
    if facts.thumbnail and facts.thumbnail[0] >= facts.thumbnail[1]:
        severity = worst(severity, "look")
        better = facts.accuracy.high is not None and facts.thumbnail[0] > facts.accuracy.high
        how = "do better" if better else "do as well"
        more += f" Colour and layout alone {how} ({share_text(facts.thumbnail[0])})."
    if facts.more_images:
        more += " More images would help."
    return severity, f"{start}{verdict}.{more}"


def _percent(value: Value) -> str:
    return "?" if value.estimate is None else share_text(value.estimate, value.width)


def _interval(value: Value) -> str:
    if value.low is None or value.high is None:
        return ""
    low, high = (share_text(x, value.width, unit=False) for x in (value.low, value.high))
    return f" ({low} to {high})"


def _against_target(facts: Facts) -> tuple[Severity, str]:
    a, target = facts.accuracy, facts.target or 0.0
    wanted = f"the target of {100 * target:g} %"
    if a.estimate is None or a.low is None or a.high is None:
        return "look", f"; too few independent images to hold against {wanted}"
    if a.low >= target:
        return "good", f"; {wanted} is reached"
    if a.high < target:
        return "act", f"; {wanted} is not reached"
    needed = images_needed(a.estimate, target)
    return (
        "look",
        f"; whether {wanted} is reached cannot be told at this n; about {needed:,} images would",
    )


def _against_chance(facts: Facts) -> tuple[Severity, str]:
    skill, low = facts.skill.estimate, facts.skill.low
    if low is None:
        return "look", ""
    if low >= 0.5:
        return ("good" if low >= 0.8 else "look"), ""
    if skill is not None and skill >= 0.5:
        return "act", "; so few images cannot rule out little more than guessing"
    if low >= 0.2:
        return "act", "; better than guessing, too often wrong to rely on"
    return "act", "; little better than guessing"


def class_permutation(judged: pl.DataFrame, classes: Sequence[str]) -> np.ndarray | None:
    """What the images of each true class are called, [C], where the class order looks wrong.

    The class order is suspected where accuracy is below 1.5 x chance, and the best assignment of
    predicted to true classes (Hungarian method) would be right on 3 x as many, and above that
    bar itself. The assignment is found on every other image and scored on the rest, both ways:
    found and scored on the same few images it would always look good.
    """
    true, predicted, c = judged["label"].to_numpy(), judged["predicted"].to_numpy(), len(classes)
    bar = 1.5 / c
    accuracy = float((true == predicted).mean())
    if accuracy >= bar or len(np.unique(true)) < 2:
        return None
    even = np.arange(len(true)) % 2 == 0
    hits = 0
    for part in (even, ~even):
        means = best_assignment(confusion(true[part], predicted[part], c))
        hits += int((means[predicted[~part]] == true[~part]).sum())
    if hits / len(true) <= max(3 * accuracy, bar):
        return None
    return np.argsort(best_assignment(confusion(true, predicted, c)))


def permutation_text(permutation: np.ndarray, classes: Sequence[str], limit: int = 4) -> str:
    """'a are called b, b are called c', at most `limit` of them."""
    moved = [(i, int(j)) for i, j in enumerate(permutation) if i != j]
    said = [f"{classes[i]} are called {classes[j]}" for i, j in moved[:limit]]
    return ", ".join(said) + (f" and {len(moved) - limit} more" if len(moved) > limit else "")


def accuracies(evidence: Evidence) -> dict[str, Value]:
    """The values that rest on hits: all seeds, first split, weighted by certainty, certain only."""
    judged = evidence.judged
    units, hits = judged["unit"].to_numpy(), judged["correct"].to_numpy()
    certain = judged["certainty"].to_numpy() > 1 - 1e-6
    weights = weights_of(evidence, judged)
    first = share(hits, units, weights)
    sure = share(hits[certain], units[certain], None if weights is None else weights[certain])
    by_certainty = judged["certainty"].to_numpy().astype(np.float64)
    by_certainty = by_certainty if weights is None else by_certainty * weights
    if evidence.repeats is None or evidence.repeats["seed"].n_unique() < 2:
        weighted = share(hits, units, None if certain.all() and weights is None else by_certainty)
        return _named(first, first, weighted, sure)
    columns = ("unit", "certainty", "weight")
    joined = evidence.repeats.join(evidence.frame.select("id", *columns), on="id").sort("id")
    seeds = joined.partition_by("seed", maintain_order=True)
    unit, hit, sureness, weight = (
        [seed[name].to_numpy() for seed in seeds] for name in ("unit", "correct", *columns[1:])
    )
    both = [s * w for s, w in zip(sureness, weight, strict=True)]
    return _named(
        over_seeds(unit, hit, weight if evidence.weighted else None),
        first,
        over_seeds(unit, hit, both if evidence.weighted else sureness),
        sure,
    )


def _named(all_seeds: Value, first: Value, weighted: Value, certain: Value) -> dict[str, Value]:
    return {
        "accuracy": all_seeds,
        "accuracy_first_split": first,
        "accuracy_weighted": weighted,
        "accuracy_certain": certain,
    }


def values_of(evidence: Evidence) -> dict[str, Value]:
    """All values of the section, by their fixed names."""
    judged = evidence.judged
    c, units = len(evidence.classes), judged["unit"].to_numpy()
    true, predicted = judged["label"].to_numpy(), judged["predicted"].to_numpy()
    values = hit_values(evidence) | {
        "f1_macro": bootstrap(macro_f1_of(true, predicted, c), units, unit=""),
        "auroc": Value.undefined("The model gives no scores.", len(true), unit=""),
    }
    if scores_or_why(evidence) is None:
        probability = evidence.matrix("probability", judged)
        if judged["label"].n_unique() < 2:
            values["auroc"] = Value.undefined("only one class was judged", len(true), unit="")
        else:
            draws = affordable_resamples(len(true), c if c > 2 else 1)
            statistic = auroc_macro_of(probability, true)
            values["auroc"] = bootstrap(statistic, units, resamples=draws, unit="")
        if c >= TOP_K_FROM:
            rank = (probability > probability[np.arange(len(true)), true][:, None]).sum(1)
            values["top5"] = share(rank < 5, units, weights_of(evidence, judged))
    return values


def hit_values(evidence: Evidence) -> dict[str, Value]:
    """The values that rest on hits alone, with which the severity is decided."""
    judged = evidence.judged
    balanced = bootstrap_shares(
        judged["label"].to_numpy(),
        judged["correct"].to_numpy(),
        weights_of(evidence, judged),
        judged["unit"].to_numpy(),
    )
    return accuracies(evidence) | {
        "balanced": balanced,
        "kappa_chance": _above_chance(balanced, len(evidence.classes)),
        "ceiling": label_ceiling(evidence),
    }


def _above_chance(balanced: Value, classes: int) -> Value:
    """(balanced accuracy - 1/C) / (1 - 1/C), interval likewise."""
    scaled = {
        name: None if x is None else (x - 1 / classes) / (1 - 1 / classes)
        for name in ("estimate", "low", "high")
        for x in [getattr(balanced, name)]
    }
    return balanced.model_copy(update={**scaled, "unit": ""})


def judge(evidence: Evidence, options: Options, values: dict[str, Value]) -> Facts:
    """The facts that the finding rests on, from the values and the baselines."""
    judged = evidence.judged
    hits, n = int(judged["correct"].sum()), len(judged)
    counts = np.bincount(judged["label"].to_numpy(), minlength=len(evidence.classes))
    permutation = None
    if evidence.model.get("origin") == "given":
        permutation = class_permutation(judged, evidence.classes)
    order = None if permutation is None else permutation_text(permutation, evidence.classes)
    gain, thumbnail = last_doubling(evidence), None
    if evidence.baselines is not None:
        row = baselines_table(evidence).filter(pl.col("name") == "thumbnail")
        low = values["accuracy_first_split"].low
        thumbnail = (row["accuracy"][0], low) if len(row) and low is not None else None
    return Facts(
        n=n,
        accuracy=values["accuracy"],
        unseen=evidence.model.get("origin") != "given",
        skill=values["kappa_chance"],
        p_chance=float(binomial_greater(hits, n, counts.max() / n)),
        majority=evidence.classes[int(counts.argmax())],
        ceiling=None if values["ceiling"].estimate == 1 else values["ceiling"].estimate,
        target=options.target,
        thumbnail=thumbnail,
        more_images=gain is not None and (gain.low or 0) > 0,
        wrong_order=order,
        splits=1 if evidence.repeats is None else max(1, evidence.repeats["seed"].n_unique()),
    )


def severity_of(evidence: Evidence, options: Options) -> Severity:
    """The severity of this section, for those that follow it."""
    facts = judge(evidence, options, hit_values(evidence))
    return limited(*finding(facts), facts.n)[0]


def baselines_table(evidence: Evidence) -> pl.DataFrame:
    """Each baseline on the judged images of the first split, and how much better the model is."""
    rows, judged, answers = [], evidence.judged, evidence.baselines
    for name in BASELINES:
        if answers is None or not len(rival := answers.filter(pl.col("name") == name)):
            continue
        both = judged.join(rival.select("id", pl.col("predicted").alias("other")), on="id")
        units, own = both["unit"].to_numpy(), both["correct"].to_numpy()
        other, weights = (both["other"] == both["label"]).to_numpy(), weights_of(evidence, both)
        value = share(other, units, weights)
        difference = paired(own, other, units, weights=weights)
        if both["unit"].n_unique() < len(both):
            p = sign_flip(own.astype(np.float64) - other, units)
        else:
            p = mcnemar(int((own & ~other).sum()), int((other & ~own).sum()))
        rows.append(
            {
                "name": name,
                "what": BASELINES[name],
                "n": len(both),
                "accuracy": value.estimate,
                "low": value.low,
                "high": value.high,
                "difference": difference.estimate,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "p": p,
            }
        )
    numbers = ("accuracy", "low", "high", "difference", "difference_low", "difference_high", "p")
    words = {"name": pl.String, "what": pl.String, "n": pl.Int64}
    schema = words | dict.fromkeys(numbers, pl.Float64)
    return pl.DataFrame(rows, schema=schema)


def learning_table(evidence: Evidence) -> pl.DataFrame:
    """Accuracy of the head when refitted on a share of the training units, mean over draws."""
    schema: dict[str, type[pl.DataType]] = dict.fromkeys(LEARNING_COLUMNS, pl.Float64)
    if evidence.learning is None or evidence.learning.is_empty():
        return pl.DataFrame(schema=schema)
    joined = evidence.learning.join(evidence.frame.select("id", "unit"), on="id").sort("id")
    rows = []
    for part in joined.partition_by("share"):
        draws = part.partition_by("draw")
        hits, units = ([d[name].to_numpy() for d in draws] for name in ("correct", "unit"))
        value = over_seeds(units, hits)
        rows.append((part["share"][0], value.estimate, value.low, value.high))
    return pl.DataFrame(rows, schema=schema, orient="row").sort("share")


def last_doubling(evidence: Evidence) -> Value | None:
    """What the second half of the training units gained (paired, mean over draws), or None."""
    if evidence.learning is None or evidence.learning.is_empty():
        return None
    mean = evidence.learning.group_by("share", "id").agg(pl.col("correct").cast(pl.Float64).mean())
    half, whole = (mean.filter(pl.col("share") == share) for share in (0.5, 1.0))
    both = whole.join(half, on="id", suffix="_half").join(
        evidence.frame.select("id", "unit"), on="id"
    )
    if not len(both):
        return None
    both = both.sort("id")
    gain = paired(
        both["correct"].to_numpy(), both["correct_half"].to_numpy(), both["unit"].to_numpy()
    )
    return gain.model_copy(update={"unit": "points"})


def per_class_table(evidence: Evidence) -> pl.DataFrame:
    """Recall, precision, F1 and AUROC of each class, each with its interval."""
    judged = evidence.judged
    scores = evidence.matrix("probability", judged) if scores_or_why(evidence) is None else None
    table = per_class(
        judged["label"].to_numpy(),
        judged["predicted"].to_numpy(),
        scores,
        len(evidence.classes),
        units=judged["unit"].to_numpy(),
    )
    names = [evidence.classes[i] for i in table["class"]]
    return table.with_columns(pl.Series("class", names, dtype=pl.String))


def splits_table(evidence: Evidence) -> pl.DataFrame:
    """Accuracy of each split seed."""
    if evidence.repeats is None:
        return pl.DataFrame(schema={"seed": pl.Int64, "n": pl.UInt32, "accuracy": pl.Float64})
    return (
        evidence.repeats.group_by("seed")
        .agg(pl.len().alias("n"), pl.col("correct").mean().alias("accuracy"))
        .sort("seed")
    )


def effective_size(weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2: how many equally weighted images tell as much. `weights` [N] >= 0."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def method_lines(evidence: Evidence, splits: pl.DataFrame) -> list[str]:
    """How it was measured, in plain words."""
    lines = [
        "A share of images answered rightly; the interval would hold the true share in 95 of 100 "
        "such studies (Wilson, or 2,000 redraws of whole units).",
        "Weighted: each image counts by how sure its label is; certain: only images whose label "
        "is beyond doubt.",
    ]
    if len(splits) > 1:
        low, high = splits["accuracy"].min(), splits["accuracy"].max()
        said = f"{share_text(float(low), unit=False)} to {share_text(float(high))}"  # pyright: ignore
        lines.append(f"Mean over {len(splits)} ways to split the data; single splits gave {said}.")
    absent = set(evidence.classes) - {
        evidence.classes[i] for i in evidence.judged["label"].unique()
    }
    if absent:
        lines.append(f"Not judged, for lack of images: {', '.join(sorted(absent))}.")
    if (weights := weights_of(evidence, evidence.judged)) is not None:
        size = effective_size(weights)
        lines.append(
            f"Given weights multiply every count: worth {size:,.0f} equally weighted images."
        )
    return lines


@section("accuracy", "Accuracy", needs=judged_or_why)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Accuracy three ways, against chance, baselines and target; per class; learning curve."""
    values = values_of(evidence)
    facts = judge(evidence, options, values)
    severity, sentence = limited(*finding(facts), facts.n)
    classes, splits = per_class_table(evidence), splits_table(evidence)
    learning = learning_table(evidence)
    figures = {
        "per_class": Figure(
            kind="dots",
            data=classes.filter(pl.col("recall").is_not_null()).select(
                pl.col("class").alias("label"),
                pl.col("recall").alias("value"),
                pl.col("recall_low").alias("low"),
                pl.col("recall_high").alias("high"),
                pl.lit(values["accuracy_first_split"].estimate, pl.Float64).alias("reference"),
            ),
            title="Share of each class that is found",
            x="recall",
            note="The line is the accuracy over all classes.",
        )
    }
    if len(learning) > 1:
        figures["learning"] = Figure(
            kind="lines",
            data=learning.select(
                pl.col("share").alias("x"),
                pl.col("accuracy").alias("y"),
                "low",
                "high",
                pl.lit("head refitted").alias("series"),
            ),
            title="Would more images help?",
            x="share of the training images",
            y="accuracy",
        )
    if (gain := last_doubling(evidence)) is not None:
        values["gain_last_doubling"] = gain
    tables = {
        "per_class": classes,
        "baselines": baselines_table(evidence),
        "splits": splits,
        "learning": learning,
    }
    if facts.wrong_order:
        tables["permutation"] = permutation_table(evidence)
    return Section(
        id="accuracy",
        title="Accuracy",
        finding=sentence,
        severity=severity,
        n=facts.n,
        unit=unit_of(evidence),
        values=values,
        tables={name: Table(frame=table) for name, table in tables.items() if len(table)},
        figures=figures,
        method=method_lines(evidence, splits),
    )


def permutation_table(evidence: Evidence) -> pl.DataFrame:
    """Which predicted class most images of each true class get."""
    judged, classes = evidence.judged, evidence.classes
    true, predicted = judged["label"].to_numpy(), judged["predicted"].to_numpy()
    table = confusion(true, predicted, len(classes))
    called = np.argsort(best_assignment(table))
    return pl.DataFrame(
        {
            "class": list(classes),
            "called": [classes[j] for j in called],
            "count": [int(table[i, j]) for i, j in enumerate(called)],
            "n": table.sum(1),
        }
    )

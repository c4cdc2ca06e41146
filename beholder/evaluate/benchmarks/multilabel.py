"""Several labels per image: a classifier per class on frozen features (specs/study.md, section 5).

One-vs-rest logistic regression, cross-fitted; a given split is kept. The threshold of every class
is chosen where the image that it decides on had no part.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.features import Features
from beholder.core.options import Options
from beholder.core.sections import Figure, Section, Severity, Spent, Table, Value
from beholder.core.split import folds
from beholder.evaluate.subject import Subject
from beholder.metrics.bootstrap import bootstrap
from beholder.metrics.classification import affordable_resamples
from beholder.metrics.multilabel import (
    average_precision_of,
    best_threshold,
    f1_of,
    lift,
    mean_average_precision_of,
)
from beholder.train.heads import Design
from beholder.train.solvers import linear, logistic_loss

from .base import Evidence, Records, limited, plural, section, unit_of

FEWEST = 40
FOLDS = 5
STRENGTH = 1e-3
PILOT = 128
FLOOR = 200
MOST_PAIRS = 50
SCHEMA = {"id": pl.String, "fold": pl.Int64, "scores": pl.List(pl.Float64)}


def truth_of(labels: pl.Series, classes: int) -> np.ndarray:
    """[N, C] bool of a list column."""
    truth = np.zeros((len(labels), classes), bool)
    for row, found in enumerate(labels.to_list()):
        truth[row, found or []] = True
    return truth


def scored(
    features: Features, truth: np.ndarray, learn: np.ndarray, answer: np.ndarray
) -> np.ndarray:
    """Log-odds [len(answer), C] of rows `answer` by a model of rows `learn`. `truth`: [N, C]."""
    design = Design(features, learn, ["image"])
    weights = np.ones((len(learn), 1))
    solution = linear(
        design.blocks, design.dim, truth[learn].astype(float), weights, STRENGTH, logistic_loss
    )[0]
    x = (features.take(answer) - design.mean) / design.scale
    return x @ solution[:-1] + solution[-1]


def parts(truth: np.ndarray, unit: np.ndarray, seed: int) -> np.ndarray:
    """Folds [N] that keep units whole and the rarest label of each image even."""
    rare = np.argsort(np.argsort(truth.sum(0), kind="stable"), kind="stable")
    rank = np.where(truth, rare, truth.shape[1])
    return folds(unit, rank.min(1), FOLDS, seed)


def measure(subject: Subject) -> Records:
    """Scores of every labelled image by a model that has not seen it; fold -1 = the given test
    part."""
    assert subject.features is not None
    frame, seed = subject.evidence.frame, subject.seed
    features, truth = subject.features, truth_of(frame["labels"], len(subject.evidence.classes))
    labelled = np.flatnonzero(frame["labels"].is_not_null().to_numpy())
    given = subject.images.table["split"].fill_null("train").to_numpy()
    few = np.random.default_rng(seed).permutation(labelled)[:PILOT]
    begun = time.perf_counter()
    scored(features, truth, few, few[:1])
    price = FOLDS * (time.perf_counter() - begun) / len(few)
    used = subject.allowance.count(price, len(labelled), FLOOR)
    rows = np.sort(np.random.default_rng(seed).permutation(labelled)[:used])
    test = rows[given[rows] == "test"]
    pool = np.setdiff1d(rows, test)
    fold = parts(truth[pool], frame["unit"].to_numpy()[pool], seed)
    scores = np.full(truth.shape, np.nan)
    subject.expect(FOLDS + 1)
    for k in range(FOLDS):
        learn, answer = pool[fold != k], pool[fold == k]
        if len(answer) and len(learn):
            scores[answer] = scored(features, truth, learn, answer)
        subject.progress(1)
    if len(test) and len(pool):
        scores[test] = scored(features, truth, pool, test)
    subject.progress(1)
    of = np.full(len(frame), -1)
    of[pool] = fold
    known = rows[np.isfinite(scores[rows]).all(1)]
    made = pl.DataFrame(
        {"id": frame["id"].gather(known), "fold": of[known], "scores": scores[known].tolist()},
        schema=SCHEMA,
    )
    return Records({"scores": made}, Spent(wanted=len(labelled), used=used))


@dataclass(frozen=True)
class Judged:
    """What is judged: [N, C] each, `units` [N]; `threshold` [C], mean over folds."""

    truth: np.ndarray
    scores: np.ndarray
    answers: np.ndarray
    units: np.ndarray
    threshold: np.ndarray


def judged(evidence: Evidence) -> Judged:
    """The test part, or all that was cross-fitted; thresholds are those of the other folds."""
    made = evidence.records["multilabel"]["scores"].join(
        evidence.frame.select("id", "labels", "unit"), on="id"
    )
    truth = truth_of(made["labels"], len(evidence.classes))
    scores = np.array(made["scores"].to_list(), float).reshape(truth.shape)
    fold = made["fold"].to_numpy()
    deciding = [-1] if (fold == -1).any() else np.unique(fold).tolist()
    inside = np.isin(fold, deciding)
    answers, thresholds = np.zeros_like(truth), []
    for k in deciding:
        here, others = fold == k, fold != k
        found = [
            best_threshold(s[others], t[others]) for s, t in zip(scores.T, truth.T, strict=True)
        ]
        answers[here] = scores[here] >= found
        thresholds.append(found)
    return Judged(
        truth[inside],
        scores[inside],
        answers[inside],
        made["unit"].to_numpy()[inside],
        np.mean(thresholds, 0),
    )


def finding(mean: Value, chance: float, weakest: tuple[str, float], n: int) -> tuple[Severity, str]:
    """Skill = share of the way from chance to 1, its lower bound: .8 good, .5 look, else act."""
    if mean.estimate is None:
        return "none", f"Average precision cannot be told on {plural(n, 'image')}: {mean.why}."
    low = mean.estimate if mean.low is None else mean.low
    skill = (low - chance) / (1 - chance) if chance < 1 else 0.0
    severity: Severity = "good" if skill >= 0.8 else "look" if skill >= 0.5 else "act"
    interval = "" if mean.low is None else f" ({mean.low:.2f} to {mean.high:.2f})"
    return severity, (
        f"On {n:,} unseen images the mean average precision is {mean.estimate:.2f}{interval}, "
        f"{chance:.2f} by chance; weakest is {weakest[0]} ({weakest[1]:.2f})."
    )


def needs(evidence: Evidence) -> str | None:
    """The sentence for data of another kind, or of which too little is there."""
    if evidence.kind != "multilabel":
        return "Every image has one label at most: see accuracy."
    if evidence.model.get("origin") == "given":
        return "A given model answers one class per image, so several labels are not judged."
    if evidence.embeddings is None:
        return "The model gives no features to learn from."
    n = len(evidence.frame.drop_nulls("labels"))
    return f"Too few labelled images to learn from ({n} < {FEWEST})." if n < FEWEST else None


@section(
    "multilabel",
    "Several labels",
    needs,
    measure=measure,
    uses="features",
    share=0.04,
    only="multilabel",
)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Mean average precision, macro and micro F1, per class, and which labels come together."""
    found, names = judged(evidence), evidence.classes
    n, seed = len(found.truth), options.seed
    draws = affordable_resamples(n, len(names))

    def value(statistic, resamples: int = 2000) -> Value:
        return bootstrap(statistic, found.units, resamples=resamples, seed=seed, unit="")

    chance = found.truth.mean(0)
    present = chance > 0
    values = {
        "map": value(mean_average_precision_of(found.scores, found.truth), draws),
        "map_chance": Value(estimate=float(chance.sum() / max(present.sum(), 1)), n=n, unit=""),
        "f1_macro": value(f1_of(found.answers, found.truth, macro=True)),
        "f1_micro": value(f1_of(found.answers, found.truth, macro=False)),
    }
    table = per_class(found, names, draws, seed)
    known = table.drop_nulls("ap").sort("ap", "class")
    weakest = known.select("class", "ap").row(0) if len(known) else ("", 0.0)
    chance_all = values["map_chance"].estimate or 0.0
    severity, sentence = limited(*finding(values["map"], chance_all, weakest, n), n)
    missing = [names[c] for c in np.flatnonzero(~present)]
    return Section(
        id="multilabel",
        title="Several labels",
        finding=sentence,
        severity=severity,
        n=n,
        unit=unit_of(evidence),
        values=values,
        tables={
            "per_class": Table(frame=table, units={"share": "share"}),
            "together": Table(frame=together(found, names)),
        },
        figures={
            "classes": Figure(
                kind="dots",
                data=known.select(
                    pl.col("class").alias("label"),
                    pl.col("ap").alias("value"),
                    pl.col("ap_low").alias("low"),
                    pl.col("ap_high").alias("high"),
                    pl.col("share").alias("reference"),
                ),
                title="Average precision of each class",
                x="average precision",
                note="Line: by chance, the share of images that have the label.",
            )
        },
        method=method_lines(missing),
    )


def per_class(found: Judged, names: tuple[str, ...], draws: int, seed: int) -> pl.DataFrame:
    """Images, average precision with its interval, F1, precision and recall at the threshold."""
    rows = []
    for c, name in enumerate(names):
        truth, answers = found.truth[:, c], found.answers[:, c]
        ap = Value.undefined("no image has it")
        if truth.any():
            statistic = average_precision_of(found.scores[:, c], truth)
            ap = bootstrap(statistic, found.units, resamples=draws, seed=seed, unit="")
        right, said, true = int((truth & answers).sum()), int(answers.sum()), int(truth.sum())
        f1 = 2 * right / (said + true) if said + true else None
        precision, recall = right / said if said else None, right / true if true else None
        interval = ap.estimate, ap.low, ap.high
        rows.append((name, true, true / len(truth), *interval, f1, precision, recall))
    columns = ("share", "ap", "ap_low", "ap_high", "f1", "precision", "recall")
    schema = {"class": pl.String, "n": pl.Int64} | dict.fromkeys(columns, pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def together(found: Judged, names: tuple[str, ...]) -> pl.DataFrame:
    """Pairs of labels by how often they come together, in the labels and in the answers."""
    count, true = lift(found.truth)
    _, answered = lift(found.answers)
    rows = [
        (names[a], names[b], int(count[a, b]), true[a, b], answered[a, b])
        for a in range(len(names))
        for b in range(a + 1, len(names))
        if np.isfinite(true[a, b])
    ]
    numbers = {"lift": pl.Float64, "lift_answered": pl.Float64}
    schema = {"label": pl.String, "other": pl.String, "images": pl.Int64} | numbers
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.col(*numbers).fill_nan(None)
    )
    return frame.sort("images", "label", "other", descending=[True, False, False]).head(MOST_PAIRS)


def method_lines(missing: list[str]) -> list[str]:
    lines = [
        "A classifier per class: logistic regression on the encoder's features, all classes at "
        f"once; {FOLDS} folds, so that no image is judged by a model that has seen it (a given "
        "test part: by a model of the rest).",
        "Average precision: how well the images with a label stand before those without; by "
        "chance it is the share of images with the label. The mean counts every class alike.",
        "F1: at the threshold per class that gives the best F1 on the other folds; macro: mean "
        "over classes, micro: all decisions together.",
        "Lift: how many times more often two labels come together than by chance; beside it, that "
        "of the answers.",
    ]
    if missing:
        lines.append(f"Not judged, as no image has them: {', '.join(missing)}.")
    return lines

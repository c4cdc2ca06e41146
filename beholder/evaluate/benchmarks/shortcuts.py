"""Can the label be guessed without looking at the picture, from its file alone (study.md, 4.13)?

A model that is trained on such data may learn the shortcut instead of the thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from beholder.core.options import Options
from beholder.core.sections import Figure, Section, Severity, Spent, Table, Value
from beholder.core.split import folds
from beholder.data.curate.metadata import ORDER, columns, metadata
from beholder.metrics.bootstrap import auroc_macro_of, bootstrap, by_wilson
from beholder.metrics.classification import affordable_resamples, auroc_macro

from .base import Evidence, Records, limited, plural, section, unit_of
from .data import group_columns

if TYPE_CHECKING:
    from beholder.evaluate.subject import Subject

MOST = 4_000
"""Images that are looked at at most."""
FOLDS, FEWEST = 5, 10
PERMUTATIONS = 200
ROUNDS, TREES = 40, 200
"""Boosting rounds; fewer where classes times rounds would exceed `TREES`."""
ACT, LOOK, CHANCE = 0.80, 0.65, 0.01

Kind = Literal["logistic", "boosted trees", "one tree"]
KINDS: tuple[Kind, ...] = ("logistic", "boosted trees")
SCORES = pl.List(pl.Float64)
FEATURES = {"feature": pl.String} | dict.fromkeys(("drop_file", "drop", "alone"), pl.Float64)
GUESSES = {"part": pl.String, "model": pl.String, "auroc": pl.Float64, "p": pl.Float64}


HARMLESS = ("brightness", "colourfulness", "file size", ORDER)
"""Features that may go with the label for a good reason, so `act` needs others: what the picture
shows decides the first three too, and files may have been numbered class by class."""
PARTS = ("file", "all")


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        n: images looked at; 0 = too few of two classes.
        varies: whether there is anything by which files differ.
        auroc: of the guess from everything; low: its lower bound, None where there is no interval.
        file_auroc, file_low: of the guess without what is `HARMLESS`.
        p, file_p: that these are chance, given the groups.
        names, file_names: features whose loss hurts the two guesses, worst first.
    """

    n: int
    varies: bool = True
    auroc: float = 0.5
    low: float | None = None
    p: float = 1.0
    names: tuple[str, ...] = ()
    file_auroc: float = 0.5
    file_low: float | None = None
    file_p: float = 1.0
    file_names: tuple[str, ...] = ()


def finding(facts: Facts) -> tuple[Severity, str]:
    """`act`: the lower bound without what `HARMLESS` tells above .8; `look`: with it above .65."""
    if not facts.n:
        return "none", f"Too few images to try: two classes of {FEWEST} images each are needed."
    if not facts.varies:
        return "good", "Nothing to guess the label from: seen from outside all files are alike."
    if (facts.file_low or 0) > ACT and facts.file_p < CHANCE:
        return "act", _guessed(facts.file_names, facts.file_auroc)
    if (facts.low or 0) > LOOK and facts.p < CHANCE:
        return "look", _guessed(facts.names, facts.auroc)
    how = "can hardly" if facts.p < CHANCE else "cannot"
    return "good", (
        f"The label {how} be guessed from size, format, camera, path, order or brightness of the "
        f"files (AUROC {facts.auroc:.2f}; 0.5 is chance)."
    )


def _guessed(names: tuple[str, ...], auroc: float) -> str:
    listed = " and ".join(", ".join(names).rsplit(", ", 1))
    told = f"The label can be guessed from {listed} alone (AUROC {auroc:.2f})"
    if names != (ORDER,):
        told += ": a model may learn that in place of the thing"
    if ORDER in names:
        return f"{told}. If neighbours in the folder show one thing, name a source column."
    return f"{told}."


def told_by(features: pl.DataFrame, drop: str) -> tuple[str, ...]:
    """The features that carry a guess: the largest drop, and others of a quarter of it or more."""
    ranked = features.drop_nulls(drop).sort(
        drop, "alone", "feature", descending=[True, True, False]
    )
    least = max(0.01, ranked[drop].max() / 4) if len(ranked) else 0.0  # pyright: ignore[reportOperatorIssue, reportArgumentType]
    kept = ranked.filter((pl.col(drop) >= least) | (pl.int_range(pl.len()) == 0))
    return tuple(kept["feature"].head(3))


def classifier(kind: Kind, classes: int, seed: int):
    """A fresh model of `fit` and `predict_proba`."""
    if kind == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    if kind == "one tree":
        return DecisionTreeClassifier(max_depth=3, min_samples_leaf=FEWEST // 2, random_state=seed)
    trees = classes if classes > 2 else 1
    return HistGradientBoostingClassifier(
        max_depth=3,
        max_iter=max(5, min(ROUNDS, TREES // trees)),
        min_samples_leaf=FEWEST // 2,
        early_stopping=False,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )


class Guess:
    """Models of one kind, one per fold, each asked for the images it has not seen.

    Args:
        x: float64 [n, K]; y: int [n], 0..classes - 1, every class in every training part.
        fold: int [n].
    """

    def __init__(
        self, kind: Kind, x: np.ndarray, y: np.ndarray, fold: np.ndarray, seed: int
    ) -> None:
        self.kind, self.y, self.fold = kind, y, fold
        self.models = [
            classifier(kind, int(y.max()) + 1, seed).fit(x[fold != k], y[fold != k])
            for k in range(FOLDS)
        ]
        self.probability = self.ask(x)
        self.auroc = auroc_macro(self.probability, y)

    def ask(self, x: np.ndarray) -> np.ndarray:
        """[n, C] for other values `x` of the same images."""
        found = np.zeros((len(x), int(self.y.max()) + 1))
        for k, model in enumerate(self.models):
            if (held := self.fold == k).any():
                found[np.ix_(held, model.classes_)] = model.predict_proba(x[held])
        return found

    def drop(self, x: np.ndarray, own: np.ndarray, rng: np.random.Generator) -> float:
        """By how much the AUROC falls when the columns `own` are those of other images."""
        mixed = x.copy()
        mixed[:, own] = x[rng.permutation(len(x))][:, own]
        return self.auroc - auroc_macro(self.ask(mixed), self.y)


def chance(
    guesses: Sequence[np.ndarray], y: np.ndarray, strata: np.ndarray, rng: np.random.Generator
) -> float:
    """p that the best AUROC of these guesses [n, C] is luck: labels are permuted within strata."""
    ranks = [rankdata(guess, axis=0) for guess in guesses]
    classes = int(y.max()) + 1
    positive = np.bincount(y, minlength=classes)
    ones = slice(1, 2) if classes == 2 else slice(None)

    def best(labels: np.ndarray) -> float:
        found = []
        for rank in ranks:
            total = np.bincount(labels, rank[np.arange(len(y)), labels], classes)
            area = total - positive * (positive + 1) / 2
            found.append((area / (positive * (len(y) - positive)))[ones].mean())
        return max(found)

    order = np.argsort(strata, kind="stable")
    reached, own = 0, best(y)
    for _ in range(PERMUTATIONS):
        labels = np.empty_like(y)
        labels[order] = y[np.lexsort((rng.random(len(y)), strata))]
        reached += best(labels) >= own - 1e-12
    return (1 + reached) / (1 + PERMUTATIONS)


def enough(labels: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Rows of the classes that have 10 images, in 5 units at least; none unless two have.

    Args:
        labels: int [N], -1 = none; unit: [N].
    """
    rows = np.flatnonzero(labels >= 0)
    present, count = np.unique(labels[rows], return_counts=True)
    kept = [
        label
        for label, images in zip(present, count, strict=True)
        if images >= FEWEST and len(np.unique(unit[labels == label])) >= FOLDS
    ]
    return rows[np.isin(labels[rows], kept)] if len(kept) > 1 else rows[:0]


def strata_of(frame: pl.DataFrame, groups: list[str]) -> np.ndarray:
    """int [n]: one number per combination of given groups."""
    if not groups:
        return np.zeros(len(frame), int)
    return frame.select(pl.struct(groups).rank("dense")).to_series().to_numpy().astype(int)


def measure(subject: Subject) -> Records:
    """The table of metadata, two guesses from it, and what each feature is worth to the better."""
    frame, seed = subject.evidence.frame, subject.seed
    rng = np.random.default_rng(seed)
    rows = enough(frame["label"].fill_null(-1).to_numpy(), frame["unit"].to_numpy())
    rows = np.sort(rng.choice(rows, min(MOST, len(rows)), replace=False)) if len(rows) else rows
    subject.expect(len(rows))
    kept = pl.Series(np.isin(np.arange(len(frame)), rows))
    chosen = frame.filter(kept)
    table = metadata(subject.images.where(kept), subject.data.facts.filter(kept), subject.progress)
    x, names = columns(table)
    y = np.unique(chosen["label"].to_numpy(), return_inverse=True)[1]
    strata = strata_of(chosen, group_columns(subject.evidence))
    fold = folds(chosen["unit"].to_numpy(), y, FOLDS, seed) if len(y) else y
    outside = np.array([name not in HARMLESS for name in names], bool)
    guesses, scores = [], {part: pl.Series([None] * len(y), dtype=SCORES) for part in PARTS}
    worth = {name: dict[str, float]() for name in dict.fromkeys(names)}
    with threadpool_limits(1):
        for part, kept in zip(PARTS, (outside, np.ones(len(names), bool)), strict=True):
            if not kept.any():
                continue
            own = x[:, kept]
            both = [Guess(kind, own, y, fold, seed) for kind in KINDS]
            best = max(both, key=lambda guess: guess.auroc)
            p = chance([guess.probability for guess in both], y, strata, rng)
            guesses += [(part, guess.kind, guess.auroc, p) for guess in both]
            scores[part] = pl.Series(best.probability.tolist(), dtype=SCORES)
            for name in dict.fromkeys(np.array(names)[kept].tolist()):
                columns_of = np.array(names)[kept] == name
                worth[name][part] = best.drop(own, columns_of, rng)
        for name, drops in worth.items():
            drops["alone"] = Guess("one tree", x[:, np.array(names) == name], y, fold, seed).auroc
    features = [
        (name, *(drops.get(key) for key in (*PARTS, "alone"))) for name, drops in worth.items()
    ]
    return Records(
        {
            "scores": chosen.select("id", **scores),
            "features": pl.DataFrame(features, FEATURES, orient="row"),
            "guesses": pl.DataFrame(guesses, GUESSES, orient="row"),
        },
        Spent(wanted=len(rows), used=len(rows)),
    )


def auroc_value(probability: np.ndarray, y: np.ndarray, unit: np.ndarray) -> Value:
    """AUROC with its bootstrap interval; where every resample is perfect, or units are too few,
    Wilson's on the units of the rarest class.

    Args:
        probability: [n, C]; y: int [n]; unit: [n].
    """
    classes = np.unique(y)
    value = bootstrap(
        auroc_macro_of(probability, y),
        unit,
        resamples=affordable_resamples(len(y), len(classes)),
        unit="",
        higher_is_better=False,
    )
    if value.estimate is None or value.low is not None:
        return value
    return by_wilson(value, min(len(np.unique(unit[y == label])) for label in classes))


def labels_or_why(evidence: Evidence) -> str | None:
    """The sentence for data without two classes to guess, else None."""
    if evidence.kind == "multilabel":
        return "Several labels per image: guessed only where each image has one."
    return None if evidence.has_labels else "There are no two classes to guess."


@section("shortcuts", "Shortcuts", needs=labels_or_why, measure=measure, uses="data", share=0.01)
def summarise(evidence: Evidence, options: Options) -> Section:
    """AUROC of the better guess with its interval, and the worth of each feature."""
    records = evidence.records["shortcuts"]
    features, guesses = (
        records["features"].sort("alone", "feature", descending=[True, False]),
        records["guesses"],
    )
    chosen = records["scores"].join(
        evidence.frame.select("id", "label", "unit"), on="id", how="left", maintain_order="left"
    )
    n, y = len(chosen), np.unique(chosen["label"].to_numpy(), return_inverse=True)[1]
    values, p = {}, dict.fromkeys(PARTS, 1.0)
    for part in PARTS:
        if not n or chosen[part].null_count():
            values[part] = Value.undefined("nothing to guess from", n, unit="")
            continue
        values[part] = auroc_value(evidence.matrix(part, chosen), y, chosen["unit"].to_numpy())
        p[part] = guesses.filter(pl.col("part") == part)["p"][0]
    whole, file = values["all"], values["file"]
    severity, sentence = finding(
        Facts(
            n=n,
            varies=len(features) > 0,
            auroc=whole.estimate or 0.5,
            low=whole.low,
            p=p["all"],
            names=told_by(features, "drop"),
            file_auroc=file.estimate or 0.5,
            file_low=file.low,
            file_p=p["file"],
            file_names=told_by(features, "drop_file"),
        )
    )
    if n:
        severity, sentence = limited(severity, sentence, n)
    figures = {}
    if len(features):
        figures["features"] = Figure(
            kind="bars",
            data=features.select(
                pl.col("feature").alias("label"), (pl.col("alone") - 0.5).clip(0).alias("value")
            ),
            title="How well the label can be guessed from each feature alone",
            x="AUROC above .5",
        )
    return Section(
        id="shortcuts",
        title="Shortcuts",
        finding=sentence,
        severity=severity,
        n=n,
        unit=unit_of(evidence),
        values={"auroc": whole, "auroc_file": file},
        tables={"features": Table(frame=features), "guesses": Table(frame=guesses)},
        figures=figures,
        method=[
            "A logistic regression and boosted trees of depth 3 guess the label from what the file "
            "tells beside its picture: size, shape, mode, format, JPEG tables, camera and hour "
            "(EXIF), words of the path (not the class folder, not class names), place in the "
            "folder, mean brightness and colourfulness. Five folds; copies and sources stay "
            "together. The better of the two is shown.",
            f"p: {PERMUTATIONS} permutations of the labels inside the given groups, against the "
            "guesses as they are (the models are not fitted again).",
            "drop: what the AUROC loses when a feature is exchanged between images (drop_file: in "
            f"a guess without {', '.join(HARMLESS)}, which may go with the label for a good "
            "reason); alone: the AUROC of a tree of depth 3 that has nothing else.",
            f"Looked at: {plural(n, 'image')}"
            + (f", drawn by chance (at most {MOST:,})." if n == MOST else "."),
        ],
    )

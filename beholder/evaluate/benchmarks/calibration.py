"""Do the confidences mean what they say, and where to stop answering (specs/study.md, 4.7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from beholder.core.files import digest
from beholder.core.options import Options
from beholder.core.sections import Figure, Section, Severity, Table, Value, share_text
from beholder.metrics.bootstrap import bootstrap, mean_of
from beholder.metrics.calibration import (
    aurc,
    ece,
    ece_expected,
    operating_point,
    reliability,
    risk_coverage,
    softmax,
)
from beholder.metrics.intervals import share

from .base import Evidence, limited, scores_or_why, section, unit_of

SMALLEST_RISK = 0.01
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class Calibration:
    """How far confidences [N] are from the hits [N].

    Attributes:
        ece: on 15 equal-mass bins; `expected`: of a perfectly calibrated model at this n.
        p: how often such a model would show as much.
        gap: mean confidence - accuracy; above 0 = overconfident.
        brier: squared distance of the probabilities to the truth (halved for two classes).
        nll: negative log of the true class's probability.
        aurc: area under the risk-coverage curve.
    """

    ece: float
    expected: float
    p: float
    gap: float
    brier: Value
    nll: Value
    aurc: float


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the confidence, and what came of it on images that did not choose it.

    Attributes:
        wanted: error rate asked for. threshold: to be used from now on; None = there is none.
        answered: [N] bool, the judged images above the threshold found without them.
        coverage, risk: share answered, and error among them.
    """

    wanted: float
    threshold: float | None
    answered: np.ndarray
    coverage: Value
    risk: Value


def severity_of(measured: Calibration) -> Severity:
    """`act` where p < .01 and ECE exceeds its expectation by 5 points, `look` by 2."""
    excess = measured.ece - measured.expected
    if measured.p >= 0.01 or excess <= 0.02:
        return "good"
    return "act" if excess > 0.05 else "look"


def finding(measured: Calibration, point: OperatingPoint) -> tuple[Severity, str]:
    """Whether confidences can be taken at their word, and what the operating point gives."""
    severity = severity_of(measured)
    chance = f"ECE {measured.ece:.3f}, {measured.expected:.3f} expected by chance"
    if severity == "good":
        said = f"Confidences mean what they say ({chance})"
    else:
        way = "over" if measured.gap > 0 else "under"
        said = f"The model is {way}confident by {100 * abs(measured.gap):.1f} points ({chance})"
    wanted = f"{100 * point.wanted:.2g} % error"
    if point.threshold is None or point.coverage.estimate is None:
        return severity, f"{said}; no threshold on the confidence keeps {wanted}."
    realised = (
        "no error" if point.risk.estimate is None else f"{share_text(point.risk.estimate)} error"
    )
    return (
        severity,
        f"{said}; answers {share_text(point.coverage.estimate)} of images at {realised} "
        f"({100 * point.wanted:.2g} % wanted).",
    )


def measure(probability: np.ndarray, true: np.ndarray, units: np.ndarray, seed: int) -> Calibration:
    """Calibration of `probability` [N, C] against `true` [N]."""
    confidence, hits = probability.max(1), probability.argmax(1) == true
    rows, classes = np.arange(len(true)), probability.shape[1]
    distance = np.square(probability - np.eye(classes)[true]).sum(1) / (2 if classes == 2 else 1)
    surprise = -np.log(np.maximum(probability[rows, true], SMALLEST_PROBABILITY))
    observed = ece(confidence, hits)
    expected, p = ece_expected(confidence, observed, seed=seed)
    brier, nll = (
        bootstrap(mean_of(each), units, unit="", higher_is_better=False)
        for each in (distance, surprise)
    )
    gap = float(confidence.mean() - hits.mean())
    return Calibration(observed, expected, p, gap, brier, nll, aurc(confidence, hits))


def halves(frame: pl.DataFrame) -> np.ndarray:
    """0 or 1 for each row by the hash of its unit: two halves that do not depend on file order."""
    return np.array([int(digest(str(unit)), 16) % 2 for unit in frame["unit"]])


def choose(evidence: Evidence, risk: float | None) -> OperatingPoint:
    """The largest coverage whose error is at most `risk`, never chosen on the images it is told on.

    Chosen on the training and validation images (their scores are cross-fitted). Where every image
    is judged (cross-fitting, or a given model with a test set only), each fold's threshold comes
    from the others, without folds each half's from the other half; the threshold to use later is
    then that of all.

    Args:
        risk: wanted error; None = half of the error on those images, at least 1 %.
    """
    judged = evidence.judged
    frame = evidence.frame
    fit = frame.filter(
        pl.col("split").is_in(["train", "val"])
        & pl.col("label").is_not_null()
        & pl.col("probability").is_not_null()
    )
    if not len(fit):
        fit, folds = judged, halves(judged)
        if judged["fold"].null_count() == 0 and judged["fold"].n_unique() > 1:
            folds = judged["fold"].to_numpy()
        parts = [(folds != fold, folds == fold) for fold in np.unique(folds)]
    else:
        parts = []
    sure, hits = _scores(evidence, fit)
    wanted = risk if risk is not None else max(SMALLEST_RISK, float(1 - hits.mean()) / 2)
    threshold = operating_point(sure, hits, wanted)
    confidence, right = _scores(evidence, judged)
    answered = confidence >= (np.inf if threshold is None else threshold)
    for others, own in parts:
        found = operating_point(sure[others], hits[others], wanted)
        answered[own] = confidence[own] >= (np.inf if found is None else found)
    units = judged["unit"].to_numpy()
    return OperatingPoint(
        wanted=wanted,
        threshold=threshold,
        answered=answered,
        coverage=share(answered, units),
        risk=share(~right[answered], units[answered], higher_is_better=False)
        if answered.any()
        else Value.undefined("no image was answered"),
    )


def _scores(evidence: Evidence, frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and hit of each row."""
    probability = evidence.matrix("probability", frame)
    return probability.max(1), probability.argmax(1) == frame["label"].to_numpy()


def before_and_after(before: Calibration, after: Calibration) -> pl.DataFrame:
    """One row each: the figures, and how grave they would be by themselves."""
    return pl.DataFrame(
        [
            {
                "stage": stage,
                "ece": c.ece,
                "ece_expected": c.expected,
                "p": c.p,
                "confidence_minus_accuracy": c.gap,
                "brier": c.brier.estimate,
                "nll": c.nll.estimate,
                "severity": severity_of(c),
            }
            for stage, c in (("before calibration", before), ("after calibration", after))
        ]
    )


def reliability_figure(table: pl.DataFrame, stage: str) -> Figure:
    """Accuracy against confidence in bins of equal size."""
    return Figure(
        kind="reliability",
        data=table.select("confidence", "accuracy", "low", "high", "n"),
        title=f"Confidence against accuracy, {stage} calibration",
        x="confidence",
        y="accuracy",
        note="On the diagonal, confidences mean what they say.",
    )


@section("calibration", "Calibration", needs=scores_or_why)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Calibration before and after, risk against coverage, and an operating point."""
    judged = evidence.judged
    true, units = judged["label"].to_numpy(), judged["unit"].to_numpy()
    raw = softmax(evidence.matrix("logits", judged))
    probability = evidence.matrix("probability", judged)
    before, after = (measure(p, true, units, options.seed) for p in (raw, probability))
    point = choose(evidence, options.risk)
    n = len(judged)
    severity, sentence = limited(*finding(after, point), n)
    bins, raw_bins = (reliability(p.max(1), p.argmax(1) == true) for p in (probability, raw))
    curve = risk_coverage(probability.max(1), probability.argmax(1) == true)
    lines = curve.select(
        pl.col("coverage").alias("x"),
        pl.col("risk").alias("y"),
        pl.lit("all thresholds").alias("series"),
    )
    if point.threshold is not None and point.risk.estimate is not None:
        here = {"x": point.coverage.estimate, "y": point.risk.estimate, "series": "operating point"}
        lines = pl.concat([lines, pl.DataFrame([here])])

    def plain(x: float | None, why: str | None = None, better: bool | None = False) -> Value:
        return Value(estimate=x, n=n, unit="", method="none", higher_is_better=better, why=why)

    lacking = None if point.threshold is not None else f"no threshold keeps {point.wanted:.3g}"
    return Section(
        id="calibration",
        title="Calibration",
        finding=sentence,
        severity=severity,
        n=n,
        unit=unit_of(evidence),
        values={
            "ece": plain(after.ece),
            "ece_expected": plain(after.expected, better=None),
            "brier": after.brier,
            "nll": after.nll,
            "aurc": plain(after.aurc),
            "threshold": plain(point.threshold, lacking, better=None),
            "coverage": point.coverage,
            "risk": point.risk,
        },
        tables={
            "before_after": Table(frame=before_and_after(before, after)),
            "reliability": Table(frame=bins),
            "risk_coverage": Table(frame=curve),
        },
        figures={
            "reliability": reliability_figure(bins, "after"),
            "reliability_before": reliability_figure(raw_bins, "before"),
            "risk_coverage": Figure(
                kind="lines",
                data=lines,
                title="Error among the most confident answers",
                x="share of images answered",
                y="error among them",
            ),
        },
        method=[
            "ECE: distance between confidence and accuracy in 15 bins of equal size. Few images "
            "make it greater than 0 by themselves, so 1,000 draws of a perfectly calibrated model "
            "say how much to expect.",
            "The threshold is the lowest whose error stays below the wanted one with 95 % "
            "certainty; it is chosen on other images than those that tell coverage and error.",
            f"Wanted error: {100 * point.wanted:.3g} %"
            + (" (given)." if options.risk else " (half of the model's own, at least 1 %)."),
        ],
    )

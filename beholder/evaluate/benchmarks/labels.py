"""Which labels look wrong, and how many errors that search would have found (study.md, 4.12).

How many are really wrong cannot be told from scores alone, so the figure is a range: from those
that are certain (one picture with two labels, or marked by a reviewer) to flags / recall.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from beholder.data.curate.label_errors import FEWEST, WEAK
from beholder.metrics.bootstrap import mean_of, paired
from beholder.metrics.intervals import share, wilson

from .base import Evidence, limited, plural, section, unit_of
from .label_search import FILE, conflicting, measure

PICTURES, ROWS = 24, 500
LAST = 12
"""Reviewed flags of lowest rank: those beyond the review are taken to be no better."""
WORTH = 0.01
"""Share of labels from which errors matter."""


@dataclass(frozen=True)
class Facts:
    """What the finding is chosen by.

    Attributes:
        judged: certain labels that were searched.
        flagged: of them, those that look wrong.
        planted, found: errors planted for the test, and those the search found.
        precision: share of planted ones among what was flagged in the test.
        twice: labels that must be wrong, as the same picture has another.
        reviewed, wrong: flags with the verdict wrong or right, and wrong.
        most: upper end of the share of wrong labels, 0..1.
    """

    judged: int
    flagged: int = 0
    planted: int = 0
    found: int = 0
    precision: float = 1.0
    twice: int = 0
    reviewed: int = 0
    wrong: int = 0
    most: float = 0.0

    @property
    def known(self) -> int:
        """Labels that are wrong without doubt."""
        return self.twice + self.wrong

    @property
    def weak(self) -> bool:
        return self.planted > 0 and self.found < WEAK * self.planted


def finding(facts: Facts) -> tuple[Severity, str]:
    """`act` only for errors that are certain, above 1 % of the labels; `look` if there may be."""
    if not facts.judged:
        return "none", (
            "No label was judged: that needs two classes with certain labels of at least "
            f"{FEWEST} images each."
        )
    said = []
    if facts.twice:
        which = "1 label is" if facts.twice == 1 else f"{facts.twice:,} labels are"
        said.append(f"{which} certainly wrong: the same picture has another label too.")
    if facts.reviewed:
        said.append(f"Of {plural(facts.reviewed, 'reviewed label')} {facts.wrong:,} are wrong.")
    said.append(_searched(facts))
    if facts.known > WORTH * facts.judged:
        return "act", " ".join(said)
    if facts.weak:
        return "none", " ".join(said)
    return ("look" if facts.most > WORTH else "good"), " ".join(said)


def _searched(facts: Facts) -> str:
    test = f"the search found {facts.found:,} of {plural(facts.planted, 'planted error')}"
    if facts.weak:
        return f"{test[0].upper()}{test[1:]}: the model is too weak to judge labels."
    if not facts.flagged:
        why = f"; {test}" if facts.planted else ", but the search could not be tested"
        return f"Of {plural(facts.judged, 'label')} none looks wrong{why}."
    if not facts.planted:
        return f"{facts.flagged:,} of {facts.judged:,} labels look wrong; not tested."
    own = "; most flags may be errors of the model" if facts.precision < 0.5 else ""
    review = min(facts.flagged, PICTURES)
    return (
        f"{test[0].upper()}{test[1:]}; at most {share_text(facts.most)} of {facts.judged:,} labels "
        f"are wrong: review {review:,}{own}."
    )


@dataclass(frozen=True)
class Review:
    """What the verdicts say: flags reviewed, wrong among them, and what follows for all flags.

    Attributes:
        share: of the reviewed that are wrong, with Wilson's interval.
        expected, most: wrong ones among all flags: if those beyond the review are as the last 12
            reviewed, and if they are as bad as these allow.
    """

    reviewed: int
    wrong: int
    share: Value
    expected: float
    most: float


def review(flags: pl.DataFrame) -> Review:
    """Of the flags in the order of their rank, column `verdict`."""
    verdicts = flags["verdict"].to_list()
    decided = np.array([v == "wrong" for v in verdicts if v in ("wrong", "right")], bool)
    open_ones, wrong, last = len(verdicts) - len(decided), int(decided.sum()), decided[-LAST:]
    if not len(decided):
        nothing = Value.undefined("no flag was reviewed")
        return Review(0, 0, nothing, float(len(verdicts)), float(len(verdicts)))
    worst = wilson(last.sum(), len(last))[1]
    return Review(
        reviewed=len(decided),
        wrong=wrong,
        share=share(decided, higher_is_better=False),
        expected=wrong + open_ones * float(last.mean()),
        most=wrong + open_ones * worst,
    )


def facts_of(evidence: Evidence, reviewed: Review) -> Facts:
    """The facts of the finding."""
    tested = evidence.records["labels"]["self_test"].sum()
    planted, found, flagged = (tested[name][0] or 0 for name in ("planted", "found", "flagged"))
    judged = int(evidence.frame["label_issue"].is_not_null().sum())
    facts = Facts(
        judged=judged,
        flagged=int(evidence.frame["label_issue"].sum()),
        planted=planted,
        found=found,
        precision=found / flagged if flagged else 1.0,
        twice=conflicting(evidence.frame)[1],
        reviewed=reviewed.reviewed,
        wrong=reviewed.wrong,
    )
    least = least_recall(evidence.records["labels"]["self_test"])
    most = reviewed.most / least / max(judged, 1) if least else float(facts.flagged > 0)
    return replace(facts, most=min(1.0, max(most, facts.known / max(judged, 1))))


def least_recall(tested: pl.DataFrame) -> float:
    """Lower bound of the share of as many errors as were planted at a time that is found; 0 where
    nothing was planted. Several plantings make the mean sure, not the luck of a single set."""
    times, whole = max(len(tested), 1), tested.sum()
    planted, found = (int(whole[name][0] or 0) for name in ("planted", "found"))
    return wilson(found / times, planted / times)[0] if planted else 0.0


def values_of(facts: Facts, reviewed: Review, evidence: Evidence) -> dict[str, Value]:
    """Counts, the range of wrong labels, the self-test, and accuracy without flagged images."""
    n = facts.judged

    def count(number: float, of: int = n) -> Value:
        return Value(estimate=number, n=of, unit="count", method="exact", higher_is_better=False)

    most = Value.undefined("the model is too weak to judge labels", n)
    if not facts.weak and n:
        low = facts.known / n
        most = Value(estimate=facts.most, low=low, high=facts.most, n=n, higher_is_better=False)
    tested = evidence.records["labels"]["self_test"].sum()
    found = {
        "flagged": count(facts.flagged),
        "estimated_errors": most,
        "certain_errors": count(facts.known),
        "recall": _part(tested["found"][0], tested["planted"][0]),
        "recall_lowest": _part(tested["lowest"][0], tested["planted"][0]),
        "precision": _part(tested["found"][0], tested["flagged"][0]),
        "reviewed_wrong": reviewed.share,
        "expected_wrong": count(reviewed.expected, facts.flagged)
        if reviewed.reviewed
        else Value.undefined("no flag was reviewed", unit="count"),
    }
    return found | accuracy_without(evidence, evidence.frame.filter(pl.col("label_issue"))["id"])


def _part(count: int | None, of: int | None) -> Value:
    """A share of what was planted or flagged in the self-test."""
    if not count and not of:
        return Value.undefined("not tested")
    low, high = wilson(count or 0, of or 0)
    return Value(estimate=(count or 0) / (of or 1), low=low, high=high, n=of or 0, method="wilson")


def accuracy_without(evidence: Evidence, out: pl.Series) -> dict[str, Value]:
    """Accuracy on the judged images whose id is not in `out`, and its gain over that on all."""
    judged = evidence.judged
    keep = ~judged["id"].is_in(out.to_list()).to_numpy()
    if keep.all() or not keep.any():
        why = f"{'none' if keep.all() else 'all'} of the judged images are among them"
        return {name: Value.undefined(why) for name in ("accuracy_without", "gain_without")}
    hits, units = judged["correct"].to_numpy().astype(float), judged["unit"].to_numpy()
    some, whole = mean_of(hits, keep.astype(float)), mean_of(hits)
    return {
        "accuracy_without": share(hits[keep] > 0, units[keep]),
        "gain_without": paired(some, whole, units, unit="points"),
    }


def pictures(flags: pl.DataFrame) -> list[Picture]:
    """The first flags with what they are labelled and what they look like."""
    return [
        Picture(
            id=row["id"],
            caption=f"labelled {row['given']}, looks like {row['suggested']}",
            alt=f"labelled {row['given']}, believed to be {row['suggested']}, file {row['path']}",
            bucket=f"labelled {row['given']}",
            facts={
                "label believed": f"{row['p_given']:.2f}",
                "suggestion believed": f"{row['p_suggested']:.2f}",
            },
            large=True,
        )
        for row in flags.head(PICTURES).iter_rows(named=True)
    ]


def labels_or_why(evidence: Evidence) -> str | None:
    """The sentence for data or a model on which no label can be doubted, else None."""
    if not evidence.has_labels:
        if evidence.kind == "multilabel":
            return "Several labels per image: searched only where each image has one."
        return "No labels to check." if evidence.kind == "unlabelled" else "Only one class."
    if evidence.model.get("origin") == "given" and evidence.embeddings is None:
        return "The model may have memorised these labels."
    return None


@section("labels", "Label errors", needs=labels_or_why, measure=measure, share=0.02, reads=FILE)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Flags, self-test, review, and the range that follows from them."""
    records = evidence.records["labels"]
    issues, tested = records["issues"], records["self_test"]
    flagged = evidence.frame.filter(pl.col("label_issue"))["id"]
    flags = issues.filter(pl.col("rank").is_not_null() & pl.col("id").is_in(flagged.to_list()))
    flags = flags.sort("p_given", "id")
    reviewed = review(flags)
    facts = facts_of(evidence, reviewed)
    severity, sentence = finding(facts)
    if facts.judged:
        severity, sentence = limited(severity, sentence, facts.judged)
    values = values_of(facts, reviewed, evidence)
    given = evidence.model.get("origin") == "given"
    shown = {"planted errors found": "recall", "found by as many of lowest belief": "recall_lowest"}
    shown |= {"planted among the flagged": "precision"}
    bars = [
        (label, values[name].estimate, values[name].low, values[name].high)
        for label, name in shown.items()
    ]
    columns = ["label", "value", "low", "high"]
    figures = {}
    if facts.planted:
        figures["self_test"] = Figure(
            kind="bars",
            data=pl.DataFrame(bars, columns, orient="row"),
            title="The search, tested on labels that were flipped on purpose",
            x="share",
        )
    return Section(
        id="labels",
        title="Label errors",
        finding=sentence,
        severity=severity,
        n=facts.judged,
        unit=unit_of(evidence),
        values=values,
        tables={
            "issues": Table(frame=issues.head(ROWS)),
            "self_test": Table(frame=tested),
            "uncertain": Table(frame=records["uncertain"].head(ROWS)),
        },
        figures=figures,
        pictures=pictures(flags),
        method=METHOD,
        files=[FILE],
        assumptions=[MEMORISED] if given else [],
        self_test=SelfTest(
            planted=facts.planted,
            found=facts.found,
            recall=values["recall"],
            precision=values["precision"],
        )
        if facts.planted
        else None,
    )


MEMORISED = (
    "The given model may have seen these labels: errors that it memorised cannot be found. The "
    "search used a new head on its features, which has not seen the image it judges."
)
METHOD = [
    "Each label is judged by a head that has not seen the image. Flagged is what both prunings of "
    "confident learning flag (cleanlab). Labels that are uncertain by themselves are no errors; "
    "those that the model doubts are listed apart.",
    "Test: 5 % of the certain labels are flipped, the head is fitted again, and the search is "
    "repeated; nothing of that is kept.",
    "At most: flagged labels / lower bound of the share of planted errors found. From scores alone "
    "nobody can tell wrong labels from a model's own errors: the truth lies between the certain "
    "errors and that.",
    f"Review: write wrong, right or unclear into the column `verdict` of {FILE} and run the same "
    f"command again. Flags beyond the review are taken to be no better than the last {LAST} "
    "reviewed.",
    "Accuracy without the flagged images is shown, but it is not the accuracy: what is hard is "
    "flagged more often.",
]

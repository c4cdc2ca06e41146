"""One sentence, one severity, five tiles, and what to do next (specs/study.md, 4.1)."""

from __future__ import annotations

import re
import shlex
from typing import Any

import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Section, Severity, Value, worst

from .base import Evidence, plural, without_size
from .method import command, place

MAX_WORDS = 45
MAX_NEXT = 5
COUNTING = (
    *("accuracy", "inspection", "groups", "duplicates", "unknown", "labels", "corruptions"),
    *("against", "multilabel"),
)
JUDGING = ("accuracy", "multilabel")
"""How good the model is: where one of them applies, the verdict begins with it."""
ORDER = (
    "duplicates",
    "accuracy",
    "multilabel",
    "inspection",
    "against",
    "groups",
    "unknown",
    "calibration",
    "labels",
    "corruptions",
    "adversarial",
    "shortcuts",
    "data",
    "mistakes",
    "confusion",
    "oddities",
    "explanations",
    "cost",
)
WHAT_HELPS = ("duplicates", "corruptions", "unknown", "labels", "oddities")
"""Sections whose findings a command can act on, gravest first."""
HEADLINE = {
    "accuracy": ("accuracy", "accuracy"),
    "balanced_accuracy": ("accuracy", "balanced"),
    "label_errors": ("labels", "estimated_errors"),
    "refuse_threshold": ("calibration", "threshold"),
    "latency_ms": ("cost", "latency_ms"),
}


def verdict(sections: dict[str, Section], evidence: Evidence, options: Options) -> dict[str, Any]:
    """`results.json: verdict`: severity, sentence (at most 45 words), next (at most 5).

    The sentence is that of accuracy, then the worst finding to act on, else the worst to look at.
    """
    return {
        "severity": overall(sections),
        "sentence": sentence(sections, evidence),
        "next": next_steps(sections, evidence, options)[:MAX_NEXT],
    }


def overall(sections: dict[str, Section]) -> Severity:
    """Worst of those that count; the others can only raise to look."""

    def counted(section: Section) -> Severity:
        if section.id in COUNTING and not _only_damage(section):
            return section.severity
        return "look" if section.severity in ("look", "act") else "none"

    return worst(*map(counted, sections.values()))


def _only_damage(section: Section) -> bool:
    """Corruptions that no one would call mild cost much, and what other pipelines do does not."""
    if section.id != "corruptions":
        return False
    return "pipeline" not in section.tables or not section.frame("pipeline")["to_act_on"].any()


def sentence(sections: dict[str, Section], evidence: Evidence) -> str:
    """Accuracy's sentence (or what the data is), and the worst other one."""
    judging = [sections[id] for id in JUDGING if id in sections]
    judging = [section for section in judging if section.status in ("measured", "reduced")]
    if judging:
        start = first_sentence(judging[0].finding)
    else:
        start = _what_it_is(evidence, sections.get("structure"))
    against = sections.get("against")
    if against is not None and against.status == "measured":  # it was asked for
        said = first_sentence(without_size(against.finding))
        return shortened(fewer_clauses(start, MAX_WORDS - len(said.split())), said)
    others = ranked({id: s for id, s in sections.items() if id not in JUDGING})
    for severity in ("act", "look"):
        for section in others:
            if section.severity == severity:
                return shortened(start, first_sentence(without_size(section.finding)))
    return shortened(start)


def _what_it_is(evidence: Evidence, structure: Section | None = None) -> str:
    images = plural(len(evidence.frame), "image")
    if evidence.kind == "unlabelled" and structure and "to_label" in structure.tables:
        found = first_sentence(structure.finding)
        return f"{images}, no labels: {found[:1].lower()}{found[1:]}"
    if evidence.kind == "unlabelled":
        return f"{images}, no labels."
    if evidence.kind == "one_class":
        kinds = evidence.frame["label"].n_unique()
        return (
            f"{images}, one class to learn{f', {kinds - 1} to tell from it' if kinds > 1 else ''}."
        )
    if evidence.kind == "multilabel":
        return f"{images} with several labels each."
    return f"{images} in {plural(len(evidence.classes), 'class')}."


def ranked(sections: dict[str, Section]) -> list[Section]:
    """By the order of badness of 4.1; data that cannot be read first, other data findings late."""
    order = {id: place for place, id in enumerate(ORDER)}
    skipped = sections["data"].values.get("skipped") if "data" in sections else None
    if skipped is not None and (skipped.estimate or 0) > 0.2:
        order["data"] = -1
    return sorted(sections.values(), key=lambda s: order.get(s.id, len(order)))


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text, maxsplit=1)[0]


def shortened(start: str, more: str = "") -> str:
    """Both within 45 words: first the added sentence loses its clauses from the end, then words."""
    more = fewer_clauses(more, MAX_WORDS - len(start.split()))
    words = f"{start} {more}".split()
    return " ".join(words if len(words) <= MAX_WORDS else [*words[: MAX_WORDS - 1], "..."])


def fewer_clauses(text: str, words: int) -> str:
    """The sentence without as many clauses from its end as do not fit; '' if none does."""
    while text and len(text.split()) > words:
        kept = re.split(r"[;,:] |\s\(", text)
        text = text[: len(text) - len(kept[-1])].rstrip(" ;,:(") if len(kept) > 1 else ""
        text = text and text + "."
    return text


def next_steps(
    sections: dict[str, Section], evidence: Evidence, options: Options
) -> list[dict[str, Any]]:
    """What to do, gravest first: {sentence, command, gain}; command '' where none helps."""
    steps: list[dict[str, Any]] = []

    def add(text: str, gain: Value | None = None, **changed: object) -> None:
        line = another(options, **changed) if changed else ""
        steps.append({"sentence": text, "command": line, "gain": gain})

    accuracy, calibration = sections.get("accuracy"), sections.get("calibration")
    if len(evidence.skipped):
        files = plural(len(evidence.skipped), "file")
        add(f"{files} skipped: read the list in skipped.csv, mend what should be in.")
    if "structure" in sections and "to_label" in sections["structure"].tables:
        for step in sections["structure"].frame("to_label")["what"]:
            add(step)
    if "groups" in sections and "named" in sections["groups"].tables:
        named = sections["groups"].frame("named")["slice"][0]
        add(f"Look at the mistakes on {named}, and add images like them.")
    steps += [found for id in WHAT_HELPS if (found := _help(id, sections, evidence, options))]
    if accuracy and "permutation" in accuracy.tables:
        add("Put the class names into the model's order, or name them in a class map.")
    elif accuracy and "per_class" in accuracy.tables and (step := more_images(accuracy)):
        add(*step)
    threshold = calibration.values.get("threshold") if calibration else None
    if calibration and threshold and threshold.estimate is not None:
        coverage = calibration.values["coverage"]
        text = f"Refuse answers below confidence {threshold.estimate:.2f}"
        text += f": {coverage.text(interval=False)} remain"
        if options.risk is not None:
            add(f"{text}, at the error asked for.")
        elif coverage.estimate != 1:
            add(f"{text}. Or say which error you can bear:", risk=0.05)
    if accuracy and accuracy.values and options.target is None:
        add("Say which accuracy you need, and the verdict says whether it is reached:", target=0.9)
    if not evidence.source_given:
        text = "If several images show one thing (patient, module, camera), name its column:"
        add(text, source_column="NAME")
    return steps


def another(options: Options, **changed: object) -> str:
    """The command of a study like this one but for what changed, in a directory of its own."""
    elsewhere = {"out": None, "overwrite": False}
    return command(options.model_copy(update=elsewhere | changed))


def _help(
    id: str, sections: dict[str, Section], evidence: Evidence, options: Options
) -> dict[str, Any] | None:
    """What to do about a finding of this section: {sentence, command, gain}; None without one."""
    section = sections.get(id)
    if section is None or section.severity not in ("look", "act"):
        return None
    data = options.data
    values = section.values
    step: dict[str, Any] = {"command": "", "gain": None}
    if id == "corruptions":
        if options.harden or evidence.model.get("origin") != "made":
            return None
        step["sentence"] = "Train the head also on mildly changed copies, and see what it mends:"
        step["command"] = another(options, harden=True)
    elif id == "labels":
        flagged = values.get("flagged")
        if flagged is None or not flagged.estimate:
            return None
        labels = plural(int(flagged.estimate), "label")
        step["sentence"] = f"Review the {labels} that look wrong, most doubtful first:"
        step["command"] = shlex.join(
            ["beholder", "curate", place(data), "--method", "label_errors"]
        )
    elif id == "duplicates":
        if not (values["images"].estimate or 0) > 0:
            return None
        step["sentence"] = "Keep one image of every picture that is there more than once:"
        step["command"] = shlex.join(["beholder", "curate", place(data), "--method", "duplicates"])
    elif id == "unknown":
        step["sentence"] = "Put the guard before the model, and see what it refuses:"
        step["command"] = "beholder guard score RUN/guard IMAGES"
    else:
        step["sentence"] = "Look at the images that are unlike the others before you train on them:"
        step["command"] = shlex.join(["beholder", "curate", place(data), "--method", "outliers"])
    return step


def more_images(accuracy: Section) -> tuple[str, Value | None] | None:
    """Which class to add images of, and what the last doubling gained; None if none is needed."""
    gain = accuracy.values.get("gain_last_doubling")
    helps = gain is not None and (gain.low or 0) > 0
    if not helps and accuracy.severity == "good":
        return None
    classes = accuracy.frame("per_class").filter(pl.col("recall").is_not_null()).sort("recall")
    weakest = classes.row(0, named=True)
    found = f"{100 * weakest['recall']:.0f} % of {weakest['class']}"
    if helps:
        return f"Add images: more would help; least is found of one class ({found}).", gain
    return f"Add images of the weakest class: only {found} is found.", None


def worst_slice(groups: Section) -> str:
    """The name of the slice with the smallest shrunken estimate."""
    return groups.frame("slices")["slice"][0]


def headline(sections: dict[str, Section]) -> dict[str, Any]:
    """`results.json: headline`: a Value each, None where its section was not run."""
    tiles: dict[str, Any] = {
        name: sections[id].values.get(value) if id in sections else None
        for name, (id, value) in HEADLINE.items()
    }
    groups = sections.get("groups")
    tiles["worst_group"] = None
    if (
        groups is not None
        and "worst" in groups.values
        and groups.values["worst"].estimate is not None
    ):
        tiles["worst_group"] = {"name": worst_slice(groups), "estimate": groups.values["worst"]}
    return tiles

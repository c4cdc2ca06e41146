"""What was measured on what, in which words, and how to do it again (specs/study.md, 4.16)."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePath
from typing import Any

import polars as pl

from beholder.core.options import Options
from beholder.core.sections import Section, Table

from .base import Evidence, plural, section, unit_of

DEFINITIONS = {
    "accuracy": "Share of judged images that are answered rightly. Judged: labelled, and not seen "
    "by the model that answers.",
    "balanced accuracy": "Mean over classes of the share of each that is found. A rare class "
    "counts as much as a common one.",
    "interval": "Holds the true value in 95 of 100 such studies. It grows as images get fewer or "
    "hang together.",
    "unit": "What was taken independently: a source, a group of copies, or one image. A unit never "
    "lies in two splits and is redrawn as a whole.",
    "group": "Images that are compared with the rest, such as those of one site. It says nothing "
    "about the split.",
    "source": "What must not straddle a split, such as a patient or a module. Given by "
    "--source-column.",
    "shrunken accuracy": "A group's share drawn towards that of all groups, the more the smaller "
    "it is. So luck in a small group is not taken for a fault.",
    "Holm": "Correction for many tests inside one section: the chance of any false alarm stays "
    "below 5 %. There is no correction across sections.",
    "ECE": "Mean distance between confidence and accuracy in 15 bins of equal size. Even a perfect "
    "model has some at small n, so that is given too.",
    "AURC": "Mean error among the k most confident answers, over all k. 0 is perfect.",
    "certainty": "How far a label is beyond doubt: 1 certain, 0 all classes equally likely. "
    "Certainty weights are used only where it is said.",
    "severity": "good: nothing to do; look: judge for yourself; act: do not rely on the model "
    "before this is mended.",
}


def command(options: Options) -> str:
    """The command line that gives this study; absolute places by their last name only."""
    words = ["beholder", "study", place(options.data)]
    for name, field in Options.model_fields.items():
        value = getattr(options, name)
        if name == "data" or value == field.get_default(call_default_factory=True):
            continue
        flag = name.replace("_", "-")
        if value is True:
            words.append(f"--{flag}")
        elif value is False:
            words.append(f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", ",".join(map(str, value))]
        else:
            words += [f"--{flag}", place(f"{value:g}" if isinstance(value, float) else str(value))]
    return shlex.join(words)


def place(text: str) -> str:
    """A place as it may be written down: an absolute one by its last name only."""
    scheme, colon, rest = text.rpartition(":")
    return f"{scheme}{colon}{PurePath(rest).name}" if Path(rest).is_absolute() else text


def facts_table(facts: dict[str, dict[str, Any]]) -> pl.DataFrame:
    """part, name, value: every scalar or short list of each dict, nested ones by dotted name."""
    rows = []

    def walk(part: str, prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(part, f"{prefix}.{name}" if prefix else str(name), inner)
        elif isinstance(value, list | tuple):
            if all(not isinstance(x, dict | list | tuple) for x in value):
                rows.append((part, prefix, ", ".join(map(str, value))))
        elif value is not None:
            rows.append((part, prefix, f"{value:,}" if type(value) is int else str(value)))

    for part, values in facts.items():
        walk(part, "", values)
    return pl.DataFrame(
        rows, schema=dict.fromkeys(("part", "name", "value"), pl.String), orient="row"
    )


def finding(judged: int, images: int, kind: str | None, seeds: int) -> str:
    """What was judged, in one sentence.

    Args:
        judged: images with a label answered by a model that had not seen them.
        images: readable images. kind: of split, or None. seeds: ways the data was split.
    """
    if not judged:
        return f"{plural(images, 'image')}; none was judged."
    how = {
        "holdout": "held back from training",
        "cross_fit": "each by a model that had not seen it",
        "given": "the given test part",
    }.get(kind or "", "by the given model")
    repeated = f", split in {seeds} ways" if seeds > 1 else ""
    return f"{judged:,} of {plural(images, 'image')} were judged, {how}{repeated}."


@section("method", "Method", uses="data")
def summarise(evidence: Evidence, options: Options) -> Section:
    """Splits, seeds, units, model, versions, assumptions, definitions, command."""
    judged, split = len(evidence.judged), evidence.split
    whole = split.get("test") == len(evidence.frame)
    kind = None if whole and split.get("kind") == "given" else split.get("kind")
    seeds = 0 if evidence.repeats is None else evidence.repeats["seed"].n_unique()
    facts = {
        "data": {k: v for k, v in evidence.data.items() if k not in ("classes", "groups")},
        "split": split,
        "model": evidence.model,
        # the load differs from run to run; cost and environment.json tell it
        "environment": {k: v for k, v in evidence.environment.items() if k != "load_at_start"},
    }
    tables = {
        "facts": Table(frame=facts_table(facts)),
        "definitions": Table(
            frame=pl.DataFrame({"term": list(DEFINITIONS), "meaning": list(DEFINITIONS.values())})
        ),
    }
    return Section(
        id="method",
        title="Method",
        finding=finding(judged, len(evidence.frame), kind, seeds),
        n=judged,
        unit=unit_of(evidence),
        tables={name: table for name, table in tables.items() if len(table.frame)},
        method=[f"Command: {command(options)}"],
        assumptions=list(evidence.notes),
    )

"""`results.json`: every figure of a run, for machines (specs/study.md, section 7).

The number in `SCHEMA` grows with any removal or change of meaning; additions leave it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from beholder.core.files import write_bytes
from beholder.core.images import DataKind
from beholder.core.sections import Section, SelfTest, Severity, Spent, Status, Unit, Value

SCHEMA = "beholder.study/1"
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")

VALUE_NAMES: dict[str, dict[str, str]] = {
    "accuracy": {
        "accuracy": "Accuracy",
        "accuracy_weighted": "Accuracy, weighted by certainty",
        "accuracy_certain": "Accuracy, certain labels only",
        "accuracy_first_split": "Accuracy, first split",
        "balanced": "Balanced accuracy",
        "f1_macro": "Macro F1",
        "auroc": "AUROC",
        "kappa_chance": "Skill above chance",
    },
    "inspection": {
        "auroc": "AUROC, defects against good images",
        "refused": "Defects found",
        "false_refusals": "False alarms",
        "planted_found": "Planted defects found",
    },
    "groups": {"worst": "Worst group"},
    "calibration": {
        "ece": "ECE",
        "ece_expected": "ECE expected by chance",
        "brier": "Brier score",
        "nll": "Log loss",
        "aurc": "AURC",
        "threshold": "Answer above",
        "coverage": "Share answered",
        "risk": "Error among the answered",
    },
    "explanations": {
        "deletion_gain": "Hottest blurred, against moved maps",
        "insertion_gain": "Hottest shown, against moved maps",
        "deletion_gain_centre": "Hottest blurred, against the middle",
        "insertion_gain_centre": "Hottest shown, against the middle",
        "survives": "Likeness with shuffled weights",
        "border_ratio": "Heat at the border, highest class",
    },
    "corruptions": {
        "retained": "Skill retained",
        "mce_reference": "mCE, relative to the reference head",
        "worst": "Worst corruption",
    },
    "adversarial": {
        "eps1": "Accuracy at 1/255",
        "eps2": "Accuracy at 2/255",
        "eps4": "Accuracy at 4/255",
    },
    "unknown": {"refused_worst": "Refused, worst set", "false_refusals": "False refusals"},
    "labels": {
        "flagged": "Labels flagged",
        "estimated_errors": "Wrong labels, at most",
        "certain_errors": "Wrong labels, certain",
        "recall": "Planted errors found",
        "recall_lowest": "Planted errors among as many least believed",
        "precision": "Planted errors among the flagged",
        "reviewed_wrong": "Wrong among the reviewed",
        "expected_wrong": "Wrong flags, by the review",
        "accuracy_without": "Accuracy without flagged images",
        "gain_without": "Gain without flagged images",
    },
    "duplicates": {
        "images": "Images with a copy",
        "straddling": "Copies across the split",
        "look_alike": "Look-alikes",
        "exact": "Equal images",
        "pictures": "Different pictures",
        "conflicts": "Pictures under two labels",
        "accuracy": "Accuracy",
        "accuracy_without": "Accuracy without copies across the split",
        "gain_without": "Gain without copies across the split",
    },
    "shortcuts": {
        "auroc": "AUROC of a guess from all that files tell",
        "auroc_file": "AUROC of a guess from format, size, camera and path",
    },
    "oddities": {
        "odd": "Odd images",
        "blank": "Blank images",
        "accuracy_odd": "Accuracy on the odd",
        "accuracy_rest": "Accuracy on the rest",
        "p_worse": "p that the odd are not worse",
    },
    "multilabel": {
        "map": "Mean average precision",
        "map_chance": "Mean average precision by chance",
        "f1_macro": "Macro F1",
        "f1_micro": "Micro F1",
    },
    "structure": {
        "groups": "Stable groups",
        "stability": "Agreement of halves",
        "nearest": "Typical distance to the nearest",
        "lone": "Far from all others",
        "estimated_accuracy": "Accuracy, estimated",
    },
    "against": {
        "accuracy": "Accuracy, difference",
        "balanced": "Balanced accuracy, difference",
        "auroc": "AUROC, difference",
        "brier": "Brier score, difference",
        "retained": "Skill retained, difference",
        "refused": "Share refused, difference",
    },
    "cost": {"latency_ms": "Latency, one image"},
}
"""Names of values that keep their meaning, and how they are shown; a section may bring more."""


class Part(BaseModel):
    """A part of `results.json`: the keys named here and no others."""

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, json_schema_serialization_defaults_required=True
    )


class Next(Part):
    """A thing to do: why, the command that does it, and what it gains where that was measured."""

    sentence: str
    command: str = ""
    gain: Value | None = None


class Verdict(Part):
    """One sentence on the whole, how bad it is, and at most five things to do next."""

    severity: Severity = "none"
    sentence: str = ""
    next: list[Next] = Field(default_factory=list, max_length=5)


class WorstGroup(Part):
    """The group with the smallest shrunken estimate."""

    name: str
    estimate: Value


class Headline(Part):
    """The figures of the tiles; None where nothing was measured."""

    accuracy: Value | None = None
    balanced_accuracy: Value | None = None
    worst_group: WorstGroup | None = None
    label_errors: Value | None = None
    refuse_threshold: Value | None = None
    latency_ms: Value | None = None


class ClassCount(Part):
    """A class, its images, and how many of their labels are certain."""

    name: str
    images: int
    certain: int


class GroupCount(Part):
    """A group and its images."""

    name: str
    images: int


class DataFacts(Part):
    """What the data set is."""

    name: str
    root_label: str = ""
    format: str = ""
    fingerprint: str = ""
    images: int = 0
    read: int = 0
    skipped: dict[str, int] = Field(default_factory=dict)
    classes: list[ClassCount] = Field(default_factory=list)
    groups: dict[str, list[GroupCount]] = Field(default_factory=dict)
    uncertain: bool = False
    ceiling: Value | None = None
    kind: DataKind = "classes"


class SplitFacts(Part):
    """Which images were learned from, and which judged."""

    kind: Literal["holdout", "given", "cross_fit"] = "holdout"
    seed: int = 0
    seeds: list[int] = Field(default_factory=list)
    train: int = 0
    val: int = 0
    test: int = 0
    units: int = 0
    folds: int | None = None


class HeadFacts(Part):
    """The classifier on top of the features."""

    name: str
    options: dict[str, JsonValue] = Field(default_factory=dict)


class ModelFacts(Part):
    """What the model is and how images reach it."""

    name: str = ""
    origin: Literal["made", "given"] = "made"
    weights_hash: str = ""
    head: HeadFacts | None = None
    input: tuple[int, int] = (0, 0)
    preprocessing: dict[str, JsonValue] = Field(default_factory=dict)
    classes: list[str] = Field(default_factory=list)
    class_match: Literal["exact", "normalised", "wordnet", "map", "position"] = "exact"
    parameters: int = 0
    macs: int | None = None
    finetuned: bool = False
    portable_accuracy: Value | None = None


class Column(Part):
    """A column of a table."""

    name: str
    type: str
    unit: Unit = ""


class TableRecord(Part):
    """A table: columns, and rows in their order."""

    columns: list[Column]
    rows: list[list[JsonValue]]


class SectionRecord(Part):
    """A section without its drawings."""

    id: str
    version: int
    title: str
    status: Status
    severity: Severity
    finding: str
    n: int
    unit: Literal["image", "source", "copy_group"]
    values: dict[str, Value]
    tables: dict[str, TableRecord]
    files: list[str]
    assumptions: list[str]
    self_test: SelfTest | None
    budget: Spent


class PairedValue(Part):
    """A figure of both models, their difference, and the p of the paired test."""

    a: Value
    b: Value
    difference: Value
    p: float | None


class Against(Part):
    """The other run of a comparison."""

    run: str
    fingerprint_equal: bool
    common_images: int
    values: dict[str, PairedValue]


class BudgetFacts(Part):
    """Seconds allowed (0 = no limit) and used; ids of shortened and of skipped sections."""

    limit_s: float = 0.0
    used_s: float = 0.0
    shortened: list[str] = Field(default_factory=list)
    skipped: list[str] = Field(default_factory=list)


class Results(Part):
    """`results.json`."""

    schema_: Literal["beholder.study/1"] = Field(default=SCHEMA, alias="schema")
    created: str
    beholder: str
    command: list[str]
    verdict: Verdict
    headline: Headline
    data: DataFacts
    split: SplitFacts
    model: ModelFacts
    sections: list[SectionRecord]
    against: Against | None = None
    budget: BudgetFacts
    timing: dict[str, float]


def section_record(section: Section) -> SectionRecord:
    """The keys of a section that `results.json` keeps."""
    whole = section.to_dict()
    tables = {
        name: {
            "columns": [
                column | {"unit": table["units"].get(column["name"], "")}
                for column in table["frame"]["columns"]
            ],
            "rows": table["frame"]["rows"],
        }
        for name, table in whole["tables"].items()
    }
    kept = {key: whole[key] for key in SectionRecord.model_fields}
    return SectionRecord.model_validate(kept | {"tables": tables})


def finite(value: Any) -> Any:
    """The same JSON value with null for every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def to_json(results: Results) -> dict[str, Any]:
    """The value that `results.json` holds."""
    return finite(results.model_dump(mode="json", by_alias=True))


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `results.json`."""
    made = Results.model_json_schema(mode="serialization", by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        "valueNames": {section: list(names) for section, names in VALUE_NAMES.items()},
    } | made


def write_schema(path: Path = SCHEMA_FILE) -> None:
    """Write `schema()` beside this file; a test tells when it is out of date."""
    text = json.dumps(schema(), indent=1, sort_keys=True, ensure_ascii=False)
    write_bytes(path, text.encode() + b"\n")

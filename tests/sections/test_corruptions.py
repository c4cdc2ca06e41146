"""Changed images: what is said at each border, what is measured, and a model fragile to JPEG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from planted import answers, evidence, of_kind
from scipy import ndimage

from beholder.core.features import Features
from beholder.core.options import Options
from beholder.core.sections import Section
from beholder.data.augment.corruptions import CORRUPTIONS
from beholder.data.augment.pipelines import DECIDING, EDITS, PIPELINES
from beholder.evaluate.benchmarks.base import Evidence
from beholder.evaluate.benchmarks.corruptions import (
    Facts,
    changeable_or_why,
    finding,
    summarise,
)
from beholder.evaluate.benchmarks.corruptions_asked import ANSWERS, measure, planned
from beholder.evaluate.benchmarks.corruptions_tables import CLEAN
from beholder.evaluate.subject import (
    PROBE,
    Allowance,
    Answer,
    Deployed,
    Progress,
    Subject,
    TooLittleTimeError,
    quiet,
)
from beholder.train.answers import Labelled

OPTIONS = Options.parse(data="x")
ALL_CELLS = 1 + len(PIPELINES) + len(EDITS) + 75
FINE = Facts(True, ("JPEG 90", 0.01), kept=0.9, shown=0.9, least="snow", least_shown=0.7,
             least_kept=0.7, least_camera=0.7, damaged=15)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "severity"),
    [
        ({}, "good"),
        ({"kept": 0.85, "least_kept": 0.6}, "good"),
        ({"kept": 0.849}, "look"),
        ({"least_kept": 0.599}, "look"),
        ({"least_kept": 0.1, "kept": 0.5, "least_camera": 0.3}, "look"),
        ({"least_kept": 0.1, "kept": 0.5, "least_camera": 0.299}, "act"),
        ({"costly": True}, "look"),
        ({"costly": True, "deciding": True}, "act"),
        ({"kept": None, "damaged": 0}, "none"),
        ({"kept": None, "damaged": 0, "costly": True}, "look"),
        ({"kept": None, "damaged": 0, "costly": True, "deciding": True}, "act"),
        ({"kept": None, "skilled": False}, "none"),
    ],
)
def test_severity_at_the_borders(changed: dict[str, Any], severity: str) -> None:
    assert finding(replace(FINE, **changed))[0] == severity


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            FINE,
            "Mild changes, such as re-saving, cost at most 1.0 points; damage leaves 90 % of the "
            "skill, snow least (70 %).",
        ),
        (
            replace(FINE, mild=("JPEG 90", 0.115), costly=True, kept=0.06, shown=0.06,
                    least="fog", least_shown=0.0, one_answer=("defect", ["fog", "snow"])),
            "A change as small as JPEG 90 costs 11.5 points; damage leaves 6 % of the skill, fog "
            "least (0 %); under 2 of 15 kinds of damage the model answers defect to more than "
            "three images in four.",
        ),
        (
            replace(FINE, one_answer=("defect", ["fog"])),
            "Mild changes, such as re-saving, cost at most 1.0 points; damage leaves 90 % of the "
            "skill, snow least (70 %); under fog the model answers defect to more than three "
            "images in four.",
        ),
        (
            replace(FINE, mild=("gamma 0.9", -0.02), kept=None),
            "Mild changes, such as re-saving, cost at most 0.0 points.",
        ),
        (
            replace(FINE, kept=None, skilled=False),
            "Mild changes, such as re-saving, cost at most 1.0 points; the model is no better than "
            "one answer to all, so damage cannot be judged.",
        ),
        (
            replace(FINE, mild=("JPEG 95", -0.0), labels=False, kept=None, skilled=False),
            "Mild changes, such as re-saving, change at most 0.0 % of the answers; all images get "
            "one answer, so damage cannot be judged.",
        ),
        (
            replace(FINE, labels=False, costly=True),
            "A change as small as JPEG 90 changes 1.0 % of the answers; damage leaves 90 % of the "
            "answers unchanged, snow least (70 %).",
        ),
    ],
)  # fmt: skip
def test_sentences(facts: Facts, sentence: str) -> None:
    assert finding(facts)[1] == sentence


def changed(
    plain: Evidence,
    cells: Mapping[tuple[str, str, int], np.ndarray],
    reference: np.ndarray | None = None,
) -> Evidence:
    """With these answers to changed images: (change, kind, severity) -> [N]; clean ones as they
    are, and mild changes that change nothing."""
    frame = plain.frame
    before = frame["predicted"].to_numpy()
    labels = frame["label"].to_numpy() if plain.has_labels else None
    quiet_ones = {(name, "pipeline", 0): before for name in PIPELINES}
    whole = {(CLEAN, CLEAN, 0): before} | quiet_ones | dict(cells)
    rows = [
        pl.DataFrame(
            {
                "id": frame["id"],
                "change": [name] * len(frame),
                "kind": [kind] * len(frame),
                "severity": [severity] * len(frame),
                "predicted": predicted,
                "correct": [None] * len(frame) if labels is None else predicted == labels,
                "reference": [None] * len(frame) if reference is None else reference,
            },
            ANSWERS,
        )
        for (name, kind, severity), predicted in whole.items()
    ]
    records = {"answers": pl.concat(rows), "example": pl.DataFrame({"id": frame["id"][:1]})}
    return replace(plain, records={"corruptions": records})


def hit(labels: np.ndarray, count: int, classes: int = 2) -> np.ndarray:
    """Right on the first `count` images."""
    wrong = (labels + 1) % classes
    return np.where(np.arange(len(labels)) < count, labels, wrong)


def shares(accuracy: Mapping[int, Sequence[float]] | Sequence[float], n: int = 100) -> Evidence:
    """Clean .9, one answer to all .5; every kind of damage has these accuracies by severity."""
    labels = np.arange(n) % 2
    plain = evidence(labels, answers(hit(labels, round(0.9 * n)), 2))
    cells = {
        (name, "corruption", severity): hit(labels, round(share * n))
        for name in CORRUPTIONS
        for severity, share in enumerate(accuracy, 1)
    }
    return changed(plain, cells, reference=hit(labels, round(0.8 * n)))


def test_retained_and_mce_by_hand() -> None:
    section = summarise(shares([0.9, 0.8, 0.7, 0.6, 0.5]), OPTIONS)
    assert section.values["retained"].estimate == pytest.approx(0.5)
    assert section.values["retained"].low is not None
    # own errors .1 .2 .3 .4 .5, of the reference .2 each: 1.5 / 1.0
    assert section.values["mce_reference"].estimate == pytest.approx(150)
    table = section.frame("corruptions")
    assert table.columns == [
        *("corruption", "severity", "n", "accuracy", "low", "high", "retained"),
        "reference_accuracy",
    ]
    assert len(table) == 75
    assert table["retained"][:5].to_list() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert table["reference_accuracy"].unique().to_list() == [0.8]
    assert section.severity == "look"


def test_the_reference_head_against_itself_has_an_mce_of_100() -> None:
    labels = np.arange(60) % 3
    own = hit(labels, 40, 3)
    plain = evidence(labels, answers(hit(labels, 50, 3), 3))
    cells = {(name, "corruption", 3): own for name in CORRUPTIONS}
    section = summarise(changed(plain, cells, reference=own), OPTIONS)
    assert section.values["mce_reference"].estimate == 100


def test_without_a_reference_there_is_no_mce() -> None:
    plain = shares([0.9] * 5)
    rows = plain.records["corruptions"]
    rows["answers"] = rows["answers"].with_columns(pl.lit(None, pl.Int32).alias("reference"))
    mce = summarise(plain, OPTIONS).values["mce_reference"]
    assert mce.estimate is None
    assert mce.why == "there is no reference head"


def test_what_nothing_harms_is_good() -> None:
    section = summarise(shares([0.9] * 5), OPTIONS)
    assert section.severity == "good"
    assert section.values["worst"].estimate is None
    assert section.values["costliest_mild_change"].estimate == 0


def test_the_class_that_takes_over_is_named() -> None:
    labels = (np.arange(90) % 3 == 0).astype(int)
    plain = evidence(labels, answers(labels, 2), classes=["good", "defect"])
    cells = {(name, "corruption", 3): labels for name in CORRUPTIONS}
    cells |= {(name, "corruption", 3): np.ones(90, int) for name in ("fog", "jpeg")}
    section = summarise(changed(plain, cells), OPTIONS)
    assert "under 2 of 15 kinds of damage the model answers defect to more" in section.finding
    assert section.severity == "act"
    assert section.values["worst"].estimate == pytest.approx(1 / 3)
    kinds = section.frame("kinds")
    assert kinds.filter("dominated")["corruption"].to_list() == ["fog", "jpeg"]
    assert kinds.filter("dominated")["p_holm"].max() < 1e-9


def test_a_class_that_already_takes_most_answers_does_not_take_over() -> None:
    labels = (np.arange(100) < 20).astype(int)
    plain = evidence(labels, answers(labels, 2))
    cells = {(name, "corruption", 3): labels for name in CORRUPTIONS}
    assert not summarise(changed(plain, cells), OPTIONS).frame("kinds")["dominated"].any()


@pytest.mark.parametrize(
    ("change", "lost", "severity"),
    [
        ("JPEG 90", 12, "act"),
        ("half size, Lanczos", 12, "act"),
        ("brightness -10 %", 12, "act"),
        ("JPEG 75", 12, "look"),
        ("JPEG 90", 5, "good"),
    ],
)
def test_a_costly_mild_change_is_named(change: str, lost: int, severity: str) -> None:
    labels = np.arange(100) % 2
    plain = evidence(labels, answers(labels, 2))
    cells = {(name, "corruption", s): labels for name in CORRUPTIONS for s in range(1, 6)}
    section = summarise(
        changed(plain, cells | {(change, "pipeline", 0): hit(labels, 100 - lost)}), OPTIONS
    )
    assert section.severity == severity
    to_act_on = section.frame("pipeline").filter("to_act_on")["change"].to_list()
    assert to_act_on == ([change] if severity == "act" else [])
    if lost > 5:
        assert section.finding.startswith(f"A change as small as {change} costs 12.0 points;")
        assert section.values["costliest_mild_change"].estimate == pytest.approx(-0.12)


def test_a_change_that_cannot_be_avoided_is_named_before_a_costlier_one() -> None:
    labels = np.arange(100) % 2
    plain = evidence(labels, answers(labels, 2))
    cells = {
        ("JPEG 75", "pipeline", 0): hit(labels, 60),
        ("JPEG 90", "pipeline", 0): hit(labels, 88),
    }
    section = summarise(changed(plain, cells), OPTIONS)
    assert section.finding == "A change as small as JPEG 90 costs 12.0 points."
    assert section.severity == "act"
    assert "heat" not in section.figures
    assert section.values["retained"].why == "no damage was tried: too little time"


def test_a_model_without_skill_has_none_to_lose() -> None:
    labels = np.arange(80) % 2
    plain = evidence(labels, answers(np.zeros(80, int), 2))
    cells = {(name, "corruption", 3): np.zeros(80, int) for name in CORRUPTIONS}
    section = summarise(changed(plain, cells), OPTIONS)
    assert section.severity == "none"
    assert section.values["retained"].estimate is None
    assert "no better than one answer to all" in section.finding


def test_few_images_are_said_first_and_are_at_most_to_be_looked_at() -> None:
    labels = np.arange(24) % 2
    plain = evidence(labels, answers(labels, 2))
    section = summarise(changed(plain, {("JPEG 90", "pipeline", 0): hit(labels, 10)}), OPTIONS)
    assert section.finding.startswith("With only 24 images, take this as a hint: A change")
    assert section.severity == "look"


def test_without_labels_the_same_answer_counts() -> None:
    plain = of_kind("unlabelled", 60)
    frame = plain.frame.with_columns(
        pl.Series("predicted", np.arange(60) % 3, pl.Int32), pl.lit("a").alias("path")
    )
    plain = replace(plain, frame=frame, classes=("a", "b", "c"))
    before = frame["predicted"].to_numpy()
    cells = {(name, "corruption", 3): hit(before, 45, 3) for name in CORRUPTIONS}
    cells[("mirrored", "edit", 0)] = hit(before, 30, 3)
    section = summarise(changed(plain, cells), OPTIONS)
    assert "damage leaves 75 % of the answers unchanged" in section.finding
    assert section.frame("corruptions")["consistency"].unique().to_list() == [0.75]
    assert section.frame("edits")["same_answer"].to_list() == [0.5]
    assert section.values["mce_reference"].estimate is None
    # (.75 - 1/3) / (1 - 1/3)
    assert section.values["retained"].estimate == pytest.approx(0.625)


@pytest.mark.parametrize("kind", ["unlabelled", "one_class", "multilabel"])
def test_where_no_answer_could_change(kind: Any) -> None:
    plain = of_kind(kind)
    plain.frame = plain.frame.with_columns(pl.lit(None, pl.Int32).alias("predicted"))
    assert changeable_or_why(plain)
    assert changeable_or_why(shares([0.9] * 5)) is None


def test_the_section_survives_being_written() -> None:
    section = summarise(shares([0.9, 0.8, 0.7, 0.6, 0.5]), OPTIONS)
    again = Section.model_validate(section.to_dict())
    assert again.frame("kinds").equals(section.frame("kinds"))
    for figure in section.figures.values():
        assert "<svg" in figure.to_svg()
    assert [picture.id for picture in section.pictures[:2]] == [
        *("corruptions/clean", "corruptions/gaussian_noise"),
    ]


def test_time_goes_to_blocks_and_then_to_images() -> None:
    prices = [1.0, 1.0, 1.0]
    assert planned(Allowance(float("inf")), prices, 500) == (200, 3)
    assert planned(Allowance(float("inf")), prices, 10) == (10, 3)
    assert planned(Allowance(40.0), prices, 500) == (39, 1)
    assert planned(Allowance(70.0), prices, 500) == (34, 2)
    assert planned(Allowance(150.0), prices, 500) == (49, 3)
    assert planned(Allowance(12.0), prices, 10) == (10, 1)
    with pytest.raises(TooLittleTimeError):
        planned(Allowance(31.0), prices, 500)


SIDE = 64


class Blocky(Deployed):
    """Tells dark from bright, but answers 'bright' where it sees the edges of 8 x 8 blocks."""

    classes, size, differentiable = ("dark", "bright"), (SIDE, SIDE), False

    def __init__(self, fragile: bool = True) -> None:
        self.layout = {"pooled": slice(0, 2)}
        self.fragile = fragile
        self.asked = 0

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def ask(
        self, pixels: Sequence[np.ndarray], rows: np.ndarray, progress: Progress = quiet
    ) -> Answer:
        self.asked += len(pixels)
        assert len(pixels) == len(rows)
        values = np.array([self.described(image) for image in pixels])
        bright = values[:, 0] > 0
        if self.fragile:
            bright |= values[:, 1] > 1.15
        progress(len(pixels))
        return Answer(np.column_stack([~bright, bright]).astype(float), values)

    def described(self, image: np.ndarray) -> tuple[float, float]:
        grey = image.mean(2)
        step = np.abs(np.diff(grey, n=2, axis=1)).mean(0)
        edge = np.isin(np.arange(len(step)) % 8, (6, 7))
        return float(grey.mean() / 128 - 1), float(step[edge].mean() / (step[~edge].mean() + 0.2))

    def modules(self, rows: np.ndarray) -> Any:
        raise NotImplementedError

    def vision_of(self, row: int) -> Any:
        raise NotImplementedError


def scenes(n: int) -> list[np.ndarray]:
    """Smooth colours, dark and bright in turn."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (2, 2, 0))
        level = 160 if number % 2 else 96
        found.append((level + 25 * noise / noise.std()).clip(0, 255).astype(np.uint8))
    return found


class Data(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.images.table)


def subject(model: Blocky, n: int = 40, seconds: float = float("inf"), **more: Any) -> Subject:
    pictures = scenes(n)
    labels = np.arange(n) % 2
    predicted = model.ask(pictures, np.arange(n)).logits.argmax(1)
    made = evidence(labels, answers(predicted, 2), classes=model.classes)
    images = SimpleNamespace(read=lambda row: pictures[row], table=made.frame)
    base: dict[str, Any] = {"features": None, "labelled": None, "place": None, "run": None}
    return Subject(
        data=Data(images=images),
        evidence=made,
        options=OPTIONS,
        model=model,
        fitted=None,
        device="cpu",
        workers=1,
        allowance=Allowance(seconds),
        **base | more,
    )


def test_a_model_fragile_to_jpeg_is_found() -> None:
    asked = subject(Blocky())
    records = measure(asked)
    asked.evidence.records["corruptions"] = records.frames
    section = summarise(asked.evidence, OPTIONS)
    assert section.severity == "act"
    assert section.finding.startswith("A change as small as JPEG 90 costs")
    mild = section.frame("pipeline")
    calm = mild.filter(~pl.col("change").str.contains("JPEG|WebP"))
    assert calm["difference"].to_list() == [0] * len(calm)


def test_everything_is_measured_on_the_same_images_and_told() -> None:
    told: list[int] = []
    totals: list[int] = []
    asked = subject(Blocky(fragile=False))
    asked.progress, asked.expect = told.append, totals.append
    records = measure(asked)
    rows = records.frames["answers"]
    assert len(rows) == 40 * ALL_CELLS == sum(told) == totals[0]
    assert (records.spent.wanted, records.spent.used) == (len(rows), len(rows))
    each = rows.group_by("change", "severity").agg(pl.col("id").sort().str.join(","))
    assert len(each) == ALL_CELLS
    assert each["id"].n_unique() == 1
    assert rows["change"].unique(maintain_order=True).to_list()[:2] == [CLEAN, "JPEG 90"]
    assert set(records.pictures) == {f"corruptions/{name}" for name in (CLEAN, *CORRUPTIONS)}
    assert measure(subject(Blocky(fragile=False))).frames["answers"].equals(rows)


def test_with_little_time_mild_changes_are_measured_and_the_rest_is_dropped() -> None:
    model = Blocky(fragile=False)
    model._price = 1.0
    records = measure(subject(model, seconds=40 * (1 + len(PIPELINES)) + 30))
    rows = records.frames["answers"]
    assert set(rows["kind"]) == {CLEAN, "pipeline"}
    assert rows["change"].n_unique() == 1 + len(PIPELINES)
    assert records.spent.used == len(rows) < records.spent.wanted == 40 * ALL_CELLS
    assert records.pictures == {}
    least = measure(subject(model, seconds=40 * (1 + len(DECIDING)) + 30)).frames["answers"]
    assert set(least["change"]) == {CLEAN, *DECIDING}


def test_too_little_time_for_the_mild_changes_is_said() -> None:
    model = Blocky()
    model._price = 1.0
    with pytest.raises(TooLittleTimeError):
        measure(subject(model, seconds=100))


def test_the_reference_head_answers_from_the_same_pass() -> None:
    n = 80
    model = Blocky(fragile=False)
    described = np.array([model.described(image) for image in scenes(n)], np.float32)
    features = replace(Features.of(described), layout={"pooled": slice(0, 2)})
    split = ["train", "train", "test", "test"] * (n // 4)
    labels = np.arange(n) % 2
    made = subject(model, n, features=features)
    made.evidence.frame = made.evidence.frame.with_columns(pl.Series("split", split))
    ids = made.evidence.frame["id"].to_numpy()
    made.labelled = Labelled(ids, labels, np.eye(2, dtype=np.float32)[labels], np.arange(n))
    before = model.asked
    rows = measure(made).frames["answers"]
    assert rows["id"].n_unique() == n // 2
    assert model.asked - before == len(rows) + 1 + PROBE  # and what it took to know the price
    clean = rows.filter(pl.col("kind") == CLEAN)
    truth = clean.join(made.evidence.frame.select("id", "label"), on="id", maintain_order="left")
    assert (truth["reference"] == truth["label"]).mean() == 1
    assert rows["reference"].null_count() == 0

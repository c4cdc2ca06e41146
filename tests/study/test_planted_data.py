"""Faults planted in data, and what its sections say of them (specs/study.md, section 10)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from study.world import SMALL, draw

from beholder.core.features import Features
from beholder.core.images import Images
from beholder.core.options import Options
from beholder.core.scan import thumbnails
from beholder.core.sections import Section
from beholder.data.curate.duplicates import LOOK_ALIKE
from beholder.data.curate.label_errors import plant
from beholder.data.scanned import Scanned
from beholder.data.sources import open_images
from beholder.evaluate.benchmarks import SECTIONS
from beholder.evaluate.evidence import Answered, add, assemble, soft_labels
from beholder.evaluate.subject import Allowance, Subject
from beholder.study import study
from beholder.train.answers import Labelled
from beholder.train.heads import Candidate, select

CLASSES = ("one", "seven")
MEASURED_HERE = ("labels", "duplicates", "shortcuts", "oddities")


@pytest.fixture(autouse=True)
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beholder.data.curate.duplicates.SELF_MADE", 16)


def noisy(digit: int, number: int) -> Image.Image:
    return draw(digit, number, 64)


def soft(digit: int, number: int) -> Image.Image:
    """With noise that half the size still shows."""
    return draw(digit, number, 8).resize((64, 64), Image.Resampling.BICUBIC)


def drawn(
    root: Path,
    each: int = 60,
    first: int = 0,
    save: dict[str, dict] | None = None,
    make: Callable[[int, int], Image.Image] = noisy,
) -> Path:
    """Class folders of digits at 64 px; `save`: class -> options of the JPEG (else PNG)."""
    for digit, name in zip((1, 7), CLASSES, strict=True):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + each):
            form = "jpg" if save else "png"
            path = root / name / f"{digit}{number:03d}.{form}"
            make(digit, number).save(path, **(save or {}).get(name, {}))
    return root


def subject_of(data: Path | Images, run: Path, head: bool = False) -> Subject:
    """What the sections measure with; with `head` a logistic regression on grey thumbnails (of
    digits: their pixels) has answered every image out of sample."""
    images = data if isinstance(data, Images) else open_images(str(data))
    scanned = Scanned(images, max_pixels=10**8, workers=1, use_cache=False)
    scanned.find_units(0)
    images, grey = scanned.images, thumbnails(scanned.facts, 16)
    features = Features.of(grey.reshape(len(images), -1).astype(np.float32) / 255)
    labels = images.table["label"].fill_null(-1).to_numpy()
    data_of_head = Labelled(
        images.table["id"].to_numpy(), labels, soft_labels(images), scanned.unit
    )
    fitted, answered = None, None
    if head:
        rows = np.arange(len(images))
        fitted = select(
            features, rows, labels, data_of_head.soft, scanned.unit, seed=0,
            candidates=[Candidate("logistic", 1e-2)],
        )  # fmt: skip
        probability = fitted.probability(fitted.decisions)
        answered = Answered(
            classes=images.classes,
            logits=np.log(probability),
            probability=probability,
            roles=np.full(len(images), "test"),
            fold=np.zeros(len(images), int),
            kind="cross_fit",
            seeds=[0],
            embeddings=features.take(),
        )
    evidence = assemble(images, scanned.facts, scanned.unit, scanned.copy_group, answered)
    run.mkdir(parents=True, exist_ok=True)
    return Subject(
        data=scanned,
        evidence=evidence,
        options=Options.parse(data="planted"),
        model=None,
        features=features,
        labelled=data_of_head if head else None,
        fitted=fitted,
        device="cpu",
        workers=1,
        place=None,
        run=run,
        allowance=Allowance(0),
    )


def measured(subject: Subject, *ids: str) -> list[Section]:
    """These sections, measured and summarised."""
    found = []
    for id in ids:
        spec = SECTIONS[id]
        assert spec.measure is not None
        add(subject.evidence, id, spec.measure(subject))
        section, trace = spec.run(subject.evidence, subject.options)
        assert trace is None, trace
        found.append(section)
    return found


@pytest.fixture(scope="module")
def digits() -> Images:
    return open_images("digits").where(pl.col("id") < "digits-1200")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_per_cent_wrong_labels_are_listed(digits: Images, tmp_path: Path, seed: int):
    true = digits.table["label"].to_numpy()
    rows = np.arange(len(true))
    given, flipped = plant(true, rows, rows, 0.05, 100 + seed)
    wrong = replace(digits, table=digits.table.with_columns(pl.Series("label", given, pl.Int32)))
    subject = subject_of(wrong, tmp_path, head=True)
    (section,) = measured(subject, "labels")
    frame, k = subject.evidence.frame, len(flipped)
    ids = set(digits.table["id"].gather(flipped))
    flagged = set(frame.filter("label_issue")["id"])
    recall = len(ids & flagged) / k
    assert recall >= 0.7
    lowest = frame.sort("label_quality").head(2 * k)["id"]
    assert len(ids & set(lowest)) >= 0.8 * k
    assert abs((section.values["recall"].estimate or 0) - recall) <= 0.15
    assert (section.values["estimated_errors"].estimate or 0) >= k / len(true)
    assert section.severity == "look"
    right = frame.filter("label_issue").select(
        pl.col("suggested"), pl.Series("true", true[frame["label_issue"].to_numpy()])
    )
    assert (right["suggested"] == right["true"]).mean() > 0.7  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]


def test_one_picture_under_two_labels_is_to_act_on_in_both_sections(tmp_path: Path):
    data = drawn(tmp_path / "data", 147)
    for number in range(6):
        shutil.copy(data / "one" / f"1{number:03d}.png", data / "seven" / f"again-{number}.png")
    subject = subject_of(data, tmp_path / "run", head=True)
    labels, duplicates = measured(subject, "labels", "duplicates")
    assert duplicates.severity == "act"
    assert duplicates.values["conflicts"].estimate == 6
    assert labels.severity == "act"
    assert labels.values["certain_errors"].estimate == 6
    assert labels.finding.startswith("6 labels are certainly wrong")


def test_exact_duplicates_are_all_found_and_images_counted_once(tmp_path: Path):
    data = drawn(tmp_path / "data", 60)
    (data / "one" / "deeper").mkdir()
    for number in range(30):
        image = Image.open(data / "one" / f"1{number:03d}.png")
        folder = data / "one" / ("deeper" if number % 2 else "")
        image.save(folder / f"other-{number}.png", compress_level=1)
    (section,) = measured(subject_of(data, tmp_path / "run"), "duplicates")
    values = section.values
    assert values["exact"].estimate == 60
    assert values["pictures"].estimate == 120
    assert (values["images"].estimate or 2) <= 1
    assert section.severity == "look"
    written = pl.read_parquet(tmp_path / "run" / "duplicates.parquet")
    assert len(written) == 60
    assert written["group"].n_unique() == 30


@pytest.mark.parametrize("edit", ["half size", "JPEG 75"])
def test_changed_copies_are_found_and_hardly_anything_else(tmp_path: Path, edit: str):
    data = drawn(tmp_path / "data", 60, make=soft if edit == "half size" else noisy)
    for number in range(30):
        image = Image.open(data / "seven" / f"7{number:03d}.png")
        if edit == "half size":
            image.resize((32, 32), Image.Resampling.LANCZOS).save(
                data / "seven" / f"h{number:03d}.png"
            )
        else:
            image.save(data / "seven" / f"j{number:03d}.jpg", quality=75)
    subject = subject_of(data, tmp_path / "run")
    (section,) = measured(subject, "duplicates")
    pairs = subject.evidence.records["duplicates"]["pairs"]
    shown = [{Path(id).stem[-3:] for id in pair} for pair in pairs.select("a", "b").iter_rows()]
    assert sum(len(pair) == 1 for pair in shown) >= 29
    assert sum(len(pair) == 2 for pair in shown) <= 10
    assert section.severity == "look"


def test_look_alikes_are_told_and_no_unit_grows_large(tmp_path: Path):
    """200 variants of one picture, noise of deviation 1."""
    rng = np.random.default_rng(0)
    base = np.asarray(draw(7, 0, 64)).astype(float)
    (tmp_path / "data").mkdir()
    for number in range(200):
        noisy = (base + rng.normal(0, 1, base.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / "data" / f"{number:03d}.png")
    subject = subject_of(tmp_path / "data", tmp_path / "run")
    (section,) = measured(subject, "duplicates")
    assert section.severity == "look"
    assert LOOK_ALIKE in section.finding
    assert np.bincount(subject.data.unit).max() <= 20


def test_a_class_saved_as_another_jpeg_is_a_shortcut(tmp_path: Path):
    data = drawn(tmp_path / "data", 60, save={"one": {"quality": 95}, "seven": {"quality": 60}})
    (section,) = measured(subject_of(data, tmp_path / "run"), "shortcuts")
    assert (section.values["auroc_file"].estimate or 0) >= 0.95
    assert section.severity == "act"
    assert "JPEG tables" in section.finding


def test_classes_saved_alike_have_no_shortcut_to_act_on(tmp_path: Path):
    """File size alone tells the digits apart, as PNG counts their ink: that is no shortcut."""
    data = drawn(tmp_path / "data", 60, make=soft)
    (section,) = measured(subject_of(data, tmp_path / "run"), "shortcuts")
    assert section.severity != "act"


def test_blank_images_are_odd_and_to_act_on(tmp_path: Path):
    data = drawn(tmp_path / "data", 60)
    for number in range(4):
        Image.new("RGB", (64, 64), "black").save(data / "one" / f"blank-{number}.png")
    subject = subject_of(data, tmp_path / "run")
    (section,) = measured(subject, "oddities")
    odd = subject.evidence.frame.filter("oddity")["id"]
    assert {f"one/blank-{number}.png" for number in range(4)} <= set(odd)
    assert section.severity == "act"
    assert "4 images are blank." in section.finding


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A given split: 20 of the 60 test images lie in the training part too, as JPEG 75."""
    data = tmp_path_factory.mktemp("leaky")
    drawn(data / "train", 40)
    drawn(data / "test", 30, first=40)
    for name, digit in zip(CLASSES, (1, 7), strict=True):
        for number in range(40, 50):
            image = Image.open(data / "test" / name / f"{digit}{number:03d}.png")
            image.save(data / "train" / name / f"again-{number}.jpg", quality=75)
    return data


def test_leakage_across_a_given_split_is_found(leaky: Path, tmp_path: Path):
    (section,) = measured(subject_of(leaky, tmp_path), "duplicates")
    assert section.severity == "act"
    assert (section.values["straddling"].estimate or 0) >= 17 / 60
    assert "of 60 test images are in the training part too" in section.finding


def test_a_split_made_here_never_parts_copies(leaky: Path, tmp_path: Path):
    flat = tmp_path / "flat"
    for name in CLASSES:
        for role in ("train", "test"):
            shutil.copytree(leaky / role / name, flat / name, dirs_exist_ok=True)
    subject = subject_of(flat, tmp_path / "run")
    roles = subject.data.splits(range(1))[0]
    part = roles.folds if roles.kind == "cross_fit" else roles.roles
    group = subject.data.copy_group
    assert (group >= 0).sum() >= 34
    assert all(len(set(part[group == number])) == 1 for number in range(group.max() + 1))


def test_a_whole_study_tells_of_leaks_and_takes_up_verdicts(fresh, leaky: Path, tmp_path: Path):
    options = SMALL | {"without": (), "sections": (*MEASURED_HERE, "accuracy")}
    first = {part.id: part for part in study(leaky, out=tmp_path / "run", **options).sections}
    assert {first[id].status for id in MEASURED_HERE} <= {"measured", "reduced"}
    assert first["duplicates"].severity == "act"
    assert "without them the model is right" in first["duplicates"].finding
    path = tmp_path / "run" / "label_issues.parquet"
    issues = pl.read_parquet(path)
    row = pl.read_parquet(tmp_path / "run" / "predictions.parquet").row(0, named=True)
    told = {"id": row["id"], "path": row["path"], "given": row["label_name"], "verdict": "wrong"}
    others = issues.filter(pl.col("id") != row["id"])
    mine = pl.DataFrame([dict.fromkeys(issues.columns) | told], issues.schema)
    pl.concat([others, mine]).write_parquet(path)
    second = {part.id: part for part in study(leaky, out=tmp_path / "run", **options).sections}
    kept = second["labels"].frame("issues").filter(pl.col("verdict") == "wrong")
    assert kept["id"].to_list() == [row["id"]]
    assert pl.read_parquet(path)["verdict"].to_list().count("wrong") == 1
    assert second["duplicates"].finding == first["duplicates"].finding

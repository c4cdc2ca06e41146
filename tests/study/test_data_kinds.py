"""Data of every kind and state, studied from beginning to end."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl
import pytest
from planted_files import mangled, picture
from study.world import SMALL, draw, folders

from beholder.core.errors import AmbiguousDataError, BeholderError, DataError
from beholder.evaluate.report import Report
from beholder.study import study


def statuses(report: Report) -> dict[str, str]:
    return {section.id: section.status for section in report.sections}


def not_failed(report: Report) -> None:
    """No section failed, and everything can be written in every form."""
    assert "failed" not in statuses(report).values(), (report.directory / "log.txt").read_text()
    assert report.verdict.sentence
    assert report.to_html()
    assert report.to_markdown()


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def loose(root: Path, count: int, digits: tuple[int, ...] = (0, 1)) -> list[tuple[str, int]]:
    """Files without class folders: (name, digit)."""
    root.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        digit = digits[number % len(digits)]
        name = f"{number:03d}.png"
        draw(digit, number).save(root / name)
        made.append((name, digit))
    return made


def test_mangled_files_are_skipped_with_their_reasons_and_the_others_used(fresh, tmp_path: Path):
    data = folders(tmp_path / "data", ["one", "two"], 12)
    expected = mangled(data / "one" / "odd") | {
        f"two/{name}": reason for name, reason in mangled(data / "two" / "odd").items()
    }
    expected = {
        (name.replace("two/", "two/odd/") if name.startswith("two/") else f"one/odd/{name}"): reason
        for name, reason in expected.items()
    }
    assert len(expected) > 60
    report = study(data, out=tmp_path / "run", **SMALL)
    not_failed(report)
    skipped = pl.read_csv(tmp_path / "run" / "skipped.csv")
    assert dict(skipped.select("path", "reason").iter_rows()) == {
        name: reason for name, reason in expected.items() if reason != "read"
    }
    usable = {name for name, reason in expected.items() if reason == "read"}
    paths = set(report.predictions["path"])
    assert usable <= paths
    assert len(paths) == len(usable) + 24 == report.data.read
    assert report.data.images == report.data.read + len(skipped)
    assert sum(report.data.skipped.values()) == len(skipped)


def test_files_read_twice_under_other_names_share_a_unit(fresh, tmp_path: Path):
    data = folders(tmp_path / "data", ["one", "two"], 12)
    mangled(data / "one" / "odd")
    rows = study(data, out=tmp_path / "run", sections=("data",), **SMALL).predictions
    same = rows.filter(pl.col("path").str.contains(r"odd/(100%|png_inside|a\.jpg)"))
    assert len(same) == 3
    assert same["exact_hash"].n_unique() == 1
    assert same["unit"].n_unique() == 1


def test_one_class_is_described_and_not_judged(fresh, tmp_path: Path):
    data = folders(tmp_path / "good_parts", ["good"], 20)
    report = study(data, out=tmp_path / "run", classes=None, **SMALL)
    not_failed(report)
    assert report.data.kind in ("one_class", "unlabelled")
    assert statuses(report)["accuracy"] == "not_applicable"
    assert statuses(report)["data"] == "measured"


def test_mvtec_layout_is_one_class(fresh, tmp_path: Path):
    data = tmp_path / "screws"
    folders(data / "train", ["good"], 12)
    folders(data / "test", ["good", "scratch"], 8, first=12)
    report = study(data, out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert report.data.kind == "one_class"
    assert report.accuracy.finding == "Only one class: see unknown inputs."


def test_a_table_with_one_class_is_described_and_not_judged(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 12, (0,))
    place = table(
        tmp_path / "t.csv", [{"path": f"img/{name}", "label": "good"} for name, _ in made]
    )
    report = study(place, out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert statuses(report)["accuracy"] == "not_applicable"
    assert statuses(report)["data"] == "measured"


@pytest.mark.parametrize("few", [1, 2])
def test_a_class_of_one_or_two_images_is_named_and_breaks_nothing(fresh, tmp_path: Path, few: int):
    data = folders(tmp_path / "data", {"one": 10, "rare": few, "two": 10})
    report = study(data, out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert "rare" in report["data"].finding
    assert report.split.kind == "cross_fit"


def test_two_classes_of_one_image_have_no_accuracy(fresh, tmp_path: Path):
    data = folders(tmp_path / "data", {"one": 1, "two": 1})
    report = study(data, out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert statuses(report)["accuracy"] == "not_applicable"
    assert report.headline.accuracy is None


def test_three_classes_of_thirteen_images_are_cross_fitted(fresh, tmp_path: Path):
    data = folders(tmp_path / "data", ["one", "two", "three"], 13)
    report = study(data, out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert (report.split.kind, report.split.folds, report.split.test) == ("cross_fit", 5, 39)
    fold = report.predictions.group_by("fold", "label").len()
    assert fold["len"].min() >= 2
    assert fold["len"].max() <= 3


def test_a_flat_folder_is_described_without_labels(fresh, tmp_path: Path):
    loose(tmp_path / "heap", 20)
    report = study(tmp_path / "heap", out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert report.data.kind == "unlabelled"
    assert report.accuracy.finding == "No labels, so nothing can be called right or wrong."
    assert report.headline.accuracy is None
    assert report.verdict.sentence.startswith("20 images")


def test_a_single_image_is_described(fresh, tmp_path: Path):
    loose(tmp_path / "heap", 1)
    report = study(tmp_path / "heap", out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert report.data.read == 1


def test_nothing_there_or_nothing_of_use_is_a_data_error(fresh, tmp_path: Path):
    fresh.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in empty"):
        study("empty", **SMALL)
    with pytest.raises(DataError, match="There is no emtpy") as missing:
        study("emtpy", **SMALL)
    assert "Did you mean empty" in missing.value.hint
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    with pytest.raises(DataError) as broken:
        study("broken", **SMALL)
    assert "1 x empty_file" in broken.value.hint
    assert not (tmp_path / "runs").exists()


def test_two_readings_are_named_with_the_option_that_picks(fresh, tmp_path: Path):
    data = folders(tmp_path / "mixed", ["cat", "dog"], 3)
    draw(0, 50).save(data / "stray.png")
    with pytest.raises(AmbiguousDataError) as error:
        study(data, **SMALL)
    assert "--format folders" in error.value.hint
    report = study(data, out=tmp_path / "run", format="flat", **SMALL)
    assert report.data.kind == "unlabelled"
    assert report.data.read == 7


def test_missing_files_of_a_table_are_skipped_up_to_half(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 24)
    rows = [{"path": f"img/{name}", "label": "ab"[digit]} for name, digit in made]
    rows += [{"path": f"img/lost{i}.png", "label": "a"} for i in range(5)]
    report = study(table(tmp_path / "t.csv", rows), out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert report.data.skipped == {"missing_file": 5}
    assert report.data.read == 24
    rows += [{"path": f"img/more{i}.png", "label": "a"} for i in range(30)]
    with pytest.raises(DataError) as error:
        study(table(tmp_path / "t.csv", rows), out=tmp_path / "run2", **SMALL)
    assert "--root" in str(error.value)


def test_a_measurement_as_label_is_refused_and_can_be_binned(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 60)
    rows = [
        {"path": f"img/{name}", "label": f"{number * 1.37 + digit:.3f}"}
        for number, (name, digit) in enumerate(made)
    ]
    place = table(tmp_path / "t.csv", rows)
    with pytest.raises(BeholderError) as error:
        study(place, out=tmp_path / "run", **SMALL)
    assert "60 different numbers" in str(error.value)
    assert "--bins 5" in str(error.value)
    report = study(place, out=tmp_path / "run", bins=3, sections=("data",), **SMALL)
    assert len(report.data.classes) == 3


def test_several_labels_per_image_are_described_and_not_judged(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 20)
    rows = [
        {"path": f"img/{name}", "labels": "a|b" if number % 3 else "b"}
        for number, (name, _) in enumerate(made)
    ]
    report = study(table(tmp_path / "t.csv", rows), out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert report.data.kind == "multilabel"
    assert statuses(report)["accuracy"] == "not_applicable"


def test_uncertain_labels_have_a_ceiling_and_three_accuracies(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 60)
    rows = [
        {"path": f"img/{name}", "probability": (0.9 if digit else 0.2) if number % 3 else digit}
        for number, (name, digit) in enumerate(made)
    ]
    place = table(tmp_path / "t.csv", rows)
    report = study(place, out=tmp_path / "run", classes=("good", "defect"), **SMALL)
    not_failed(report)
    sure = (20 + 20 * 0.9 + 20 * 0.8) / 60
    assert report.data.ceiling.estimate == pytest.approx(sure, abs=0.01)
    assert {"accuracy", "accuracy_weighted", "accuracy_certain"} <= set(report.accuracy.values)
    assert report.accuracy.values["accuracy_certain"].n == 20


def test_no_patient_straddles_a_split_and_the_patient_is_resampled(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 60)
    rows = [
        {"path": f"img/{name}", "label": "ab"[digit], "patient": f"P{number // 3}"}
        for number, (name, digit) in enumerate(made)
    ]
    place = table(tmp_path / "t.csv", rows)
    report = study(place, out=tmp_path / "run", source_column="patient", **SMALL)
    not_failed(report)
    per_patient = report.predictions.group_by("source").agg(
        pl.col("fold").n_unique(), pl.col("split").n_unique().alias("splits")
    )
    assert len(per_patient) == 20
    assert per_patient["fold"].max() == 1
    assert per_patient["splits"].max() == 1
    assert report.accuracy.unit == "source"
    assert report.accuracy.values["accuracy"].method == "bootstrap"


def test_weights_count(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 40)
    rows = [
        {"path": f"img/{name}", "label": "ab"[digit], "weight": 1 + number % 3}
        for number, (name, digit) in enumerate(made)
    ]
    report = study(table(tmp_path / "t.csv", rows), out=tmp_path / "run", **SMALL)
    not_failed(report)
    rows = report.predictions
    expected = (rows["correct"].cast(pl.Float64) * rows["weight"]).sum() / rows["weight"].sum()
    assert report.accuracy.values["accuracy"].estimate == pytest.approx(expected, abs=1e-6)


def test_weights_that_are_all_zero_are_refused(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 8)
    rows = [{"path": f"img/{name}", "label": "ab"[digit], "weight": 0} for name, digit in made]
    with pytest.raises(DataError, match="Every weight is 0"):
        study(table(tmp_path / "t.csv", rows), out=tmp_path / "run", **SMALL)


def test_only_a_test_part_and_no_model_says_what_is_missing(fresh, tmp_path: Path):
    made = loose(tmp_path / "img", 20)
    rows = [{"path": f"img/{name}", "label": "ab"[digit], "split": "test"} for name, digit in made]
    with pytest.raises(DataError) as error:
        study(table(tmp_path / "t.csv", rows), out=tmp_path / "run", **SMALL)
    assert "train" in str(error.value)
    assert "--model" in error.value.hint


def test_a_class_that_only_the_test_part_has_is_told(fresh, tmp_path: Path):
    data = tmp_path / "data"
    folders(data / "train", ["one", "two"], 12)
    folders(data / "test", ["one", "two", "new"], 8, first=12)
    report = study(data, out=tmp_path / "run", **SMALL)
    not_failed(report)
    judged = report.predictions.filter(pl.col("label_name") == "new")
    assert set(judged["correct"].to_list()) <= {False, None}


def test_equal_pictures_of_all_images_break_nothing(fresh, tmp_path: Path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(picture()).save(tmp_path / "data" / name / f"{number}.png")
    report = study(tmp_path / "data", out=tmp_path / "run", **SMALL)
    not_failed(report)
    assert report.split.units == 1

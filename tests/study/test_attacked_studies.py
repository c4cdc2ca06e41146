"""Attacks in whole studies: made models, given models, black boxes, and too little time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from study.conftest import Studied
from study.test_models import DIGITS, NAMES, ByPatterns, as_callable
from study.world import SMALL, draw

from beholder.evaluate.benchmarks import adversarial_asked
from beholder.evaluate.measuring import Plan
from beholder.evaluate.report import Report
from beholder.evaluate.subject import Allowance
from beholder.study import study

ONLY = ("accuracy", "adversarial")
MADE = {key: value for key, value in SMALL.items() if key != "without"} | {"sections": ONLY}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight images are all that is wanted."""
    monkeypatch.setattr(adversarial_asked, "WANTED", 8)
    monkeypatch.setattr(adversarial_asked, "QUERIES", (12, 6))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 8 digits."""
    place = tmp_path_factory.mktemp("digits") / "three"
    for name, digit in zip(NAMES, DIGITS, strict=True):
        (place / name).mkdir(parents=True)
        for number in range(8):
            draw(digit, number).save(place / name / f"{number}.png")
    return place


def kept(run: Path) -> Path:
    return run / "records" / "measured" / "adversarial"


def records(run: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(kept(run) / f"{name}.parquet")


def test_a_made_model_is_attacked_on_what_it_answers_rightly(known, small: Studied, tmp_path):
    run = tmp_path / "run"
    report = study(small.data, out=run, **MADE)
    section = report["adversarial"]
    rows = pl.read_parquet(run / "predictions.parquet")
    right = rows.filter((pl.col("split") == "test") & pl.col("correct"))
    tried = records(run, "tried")
    assert section.status == "measured"
    assert section.n == tried["id"].n_unique() == 8
    assert set(tried["id"]) <= set(right["id"])
    fooled = tried.group_by("eps").agg(pl.col("success").sum()).sort("eps")["success"].to_list()
    assert fooled == sorted(fooled)
    assert fooled[-1] > 0
    clean = section.frame("accuracy")["accuracy"][0]
    assert section.values["eps4"].estimate == pytest.approx(clean * (1 - fooled[2] / 8))
    assert {picture.id for picture in section.pictures} <= set(report.pictures)
    assert_in_ball(run, classes=("one", "seven"))
    assert Report.load(run)["adversarial"].finding == section.finding


def assert_in_ball(run: Path, classes: tuple[str, ...]) -> None:
    pictures = {
        id: np.asarray(Image.open(io.BytesIO(png))).astype(int)
        for id, png in pl.read_parquet(kept(run) / "pictures").iter_rows()
    }
    shown = records(run, "shown")
    assert len(pictures) == 3 * len(shown) > 0
    for id, size, answer in shown.iter_rows():
        before, change, after = (
            pictures[f"adversarial/{id}/{part}"] for part in ("image", "change", "attacked")
        )
        assert 0 < np.abs(after - before).max() <= size
        assert np.array_equal(change, 128 + 10 * (after - before))
        assert answer in classes
        assert f"/{answer}/" not in f"/{id}"


def test_the_same_seed_gives_the_same_attacks(known, small: Studied, tmp_path):
    for run in ("one", "other"):
        study(small.data, out=tmp_path / run, budget=0, **MADE)  # the clock decides nothing
    for name in ("tried", "control", "shown", "setting"):
        assert records(tmp_path / "one", name).equals(records(tmp_path / "other", name))
    one, other = ((kept(tmp_path / run) / "pictures").read_bytes() for run in ("one", "other"))
    assert one == other


def test_a_given_module_is_attacked_through_its_gradients(fresh, digits: Path, tmp_path):
    fresh.setattr(adversarial_asked, "STEPS", (3, 2))
    told = {"classes": NAMES, "sections": ONLY, "quiet": True}
    section = study(digits, ByPatterns(), out=tmp_path / "run", **told)["adversarial"]
    assert section.status == "measured", section.finding
    assert records(tmp_path / "run", "setting").row(0) == ("pgd", 3, 1)
    assert section.frame("accuracy")["fgsm_accuracy"].null_count() == 1


def test_a_black_box_is_attacked_by_its_answers(fresh, digits: Path, tmp_path):
    told = {"classes": NAMES, "sections": ONLY, "quiet": True}
    section = study(digits, as_callable, out=tmp_path / "run", **told)["adversarial"]
    assert section.status == "measured", section.finding
    assert records(tmp_path / "run", "setting").row(0, named=True)["attack"] == "square"
    assert records(tmp_path / "run", "tried")["fgsm_success"].null_count() == 3 * section.n
    assert "Square attack" in " ".join(section.method)


def test_too_little_time_is_said_with_what_it_needs(known, small: Studied, tmp_path):
    known.setattr(Plan, "allowance", lambda *_: Allowance(0.001))
    section = study(small.data, out=tmp_path / "run", **MADE)["adversarial"]
    assert section.status == "skipped_budget"
    assert section.finding.startswith("Skipped: needs ")


def test_fewer_steps_are_made_where_time_could_run_out(known, small: Studied, tmp_path):
    known.setattr(adversarial_asked, "price", lambda *_: 1.0)
    known.setattr(Plan, "allowance", lambda *_: Allowance(8 * 3 * 10))
    section = study(small.data, out=tmp_path / "run", **MADE)["adversarial"]
    assert records(tmp_path / "run", "setting")["effort"].to_list() == [10]
    assert "at most 10 steps of 0.25 times the size" in " ".join(section.method)

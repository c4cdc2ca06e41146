"""Options of a study: what they leave out, keep, refuse and repeat."""

from __future__ import annotations

import errno
import json
import os
import random
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from study.conftest import Studied
from study.world import MODEL, SMALL, cli, folders, same_figures

import beholder.train.passes
from beholder.core.engines import Eager
from beholder.core.errors import ArgumentError, BudgetError, StorageError
from beholder.study import study


@pytest.fixture
def never_runs(known: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The cache of `small`; an encoder that runs is an error."""

    def run(self: Eager, batches: object) -> None:
        raise AssertionError("the encoder ran")

    known.setattr(Eager, "run", run)
    return known


def test_a_second_study_of_the_same_data_runs_no_encoder(never_runs, small: Studied, tmp_path):
    report = study(small.data, out=tmp_path / "run", risk=0.2, target=0.9, **SMALL)
    assert report.accuracy.values["accuracy"] == small.report.accuracy.values["accuracy"]


def test_a_second_study_reads_no_pixel_twice(known, small: Studied, tmp_path):
    def decode(*_: object) -> None:
        raise AssertionError("an image was decoded")

    known.setattr("beholder.core.scan.decode", decode)
    study(small.data, out=tmp_path / "run", sections=("data",), **SMALL)


def test_the_data_section_alone_needs_no_encoder(never_runs, tmp_path):
    data = folders(tmp_path / "unseen", ["one", "two"], 6)
    report = study(data, out=tmp_path / "run", sections=("data",), **SMALL)
    assert [section.id for section in report.sections] == ["data"]
    assert report.split.kind == "given"
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_section_left_out_is_not_there(small: Studied):
    assert "cost" not in small.report
    with pytest.raises(KeyError, match="there are: data, accuracy"):
        _ = small.report["cost"]
    assert small.report.headline.latency_ms is None


def test_an_unknown_section_is_refused_with_the_known_ones(fresh, tmp_path):
    for name in ("sections", "without"):
        with pytest.raises(ArgumentError) as error:
            study(tmp_path, model=MODEL, **{name: ("acuracy",)})
        assert "'acuracy'" in str(error.value)
        assert "accuracy" in error.value.hint


def test_an_unknown_option_is_refused(fresh, tmp_path):
    with pytest.raises(ArgumentError, match="--speed"):
        study(tmp_path, speed=3)


def test_workers_and_directory_change_no_figure(fresh, small: Studied, tmp_path):
    for workers in (1, 4):
        place = tmp_path / str(workers)
        place.mkdir()
        fresh.chdir(place)
        fresh.setenv("BEHOLDER_CACHE", str(place / "cache"))
        report = study(os.path.relpath(small.data), out=small.run.name, workers=workers, **SMALL)
        assert same_figures(report.to_dict(), small.report.to_dict())
        mine = (place / small.run.name / "predictions.parquet").read_bytes()
        assert mine == (small.run / "predictions.parquet").read_bytes()


def test_a_moved_folder_keeps_its_fingerprint_and_its_features(
    never_runs, small: Studied, tmp_path
):
    import shutil

    moved = shutil.copytree(small.data, tmp_path / small.data.name)
    report = study(moved, out=tmp_path / "run", **SMALL)
    assert report.data.fingerprint == small.report.data.fingerprint


def test_another_seed_gives_another_split(known, three_classes: Path, tmp_path):
    options = SMALL | {"sections": ("accuracy",)}
    runs = [study(three_classes, out=tmp_path / str(s), seed=s, **options) for s in (0, 1)]
    first, second = (run.predictions["fold"].to_list() for run in runs)
    assert first != second


def test_three_splits_are_averaged(known, three_classes: Path, tmp_path):
    report = study(three_classes, out=tmp_path / "run", **SMALL | {"splits": 3})
    repeats = pl.read_parquet(tmp_path / "run" / "records" / "splits.parquet")
    assert repeats["seed"].n_unique() == 3
    by_seed = repeats.group_by("seed").agg(pl.col("correct").mean())["correct"]
    value = report.accuracy.values["accuracy"]
    assert value.estimate == pytest.approx(by_seed.mean(), abs=1e-12)
    assert report.split.seeds == [0, 1, 2]


def test_the_same_command_goes_on_and_another_is_refused_by_name(known, small: Studied, tmp_path):
    out = tmp_path / "run"
    study(small.data, out=out, **SMALL)
    study(small.data, out=out, budget=3, workers=1, **SMALL)
    before = (out / "results.json").read_bytes()
    with pytest.raises(ArgumentError, match=r"--risk = None there, 0.1 here") as error:
        study(small.data, out=out, risk=0.1, **SMALL)
    assert "--overwrite" in error.value.hint
    assert (out / "results.json").read_bytes() == before
    study(small.data, out=out, risk=0.1, overwrite=True, **SMALL)
    assert "risk = 0.1" in (out / "run.toml").read_text()


def test_other_data_in_the_same_directory_is_refused(known, small: Studied, tmp_path):
    out = tmp_path / "run"
    study(small.data, out=out, **SMALL)
    other = folders(tmp_path / "other", ["one", "seven"], 5)
    with pytest.raises(ArgumentError, match="fingerprint"):
        study(other, out=out, **SMALL)


def test_a_directory_that_holds_something_else_is_not_written_to(known, small: Studied, tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("years of work")
    with pytest.raises(ArgumentError, match="holds no run"):
        study(small.data, out=out, **SMALL)
    assert {path.name for path in out.iterdir()} <= {"chapter.txt", ".lock"}


def test_overwriting_leaves_nothing_of_the_run_before(known, small: Studied, tmp_path):
    out = tmp_path / "run"
    study(small.data, out=out, **SMALL)
    study(small.data, out=out, overwrite=True, sections=("data",), **SMALL)
    assert {path.stem for path in (out / "records").glob("*.json")} == {"data"}
    assert not (out / "model.safetensors").exists()


def test_a_run_without_a_name_gets_one_and_latest_points_to_it(known, small: Studied, tmp_path):
    known.chdir(tmp_path)
    report = study(small.data, **SMALL)
    assert report.directory.parent == Path("runs")
    assert report.directory.name.startswith("given-test_resnet-")
    assert Path("runs/latest").resolve() == report.directory.resolve()


def test_run_toml_repeats_the_run(known, small: Studied, tmp_path):
    known.chdir(small.data.parent)
    words = ["study", small.data.name, "--quiet", "--model", MODEL, "--splits", 1, "--risk", "0.2"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli([*words, "--sections", "data,accuracy,groups,method", "--out", first], known) == 0
    words = ["study", "--config", first / "run.toml", "--quiet", "--out", second]
    assert cli(words, known) == 0
    one, two = (json.loads((run / "results.json").read_bytes()) for run in (first, second))
    assert same_figures(one, two)


def test_run_toml_names_every_option(small: Studied):
    import tomllib

    from beholder.core.options import Options

    written = tomllib.loads((small.run / "run.toml").read_text())
    left_out = set(Options.model_fields) - set(written)
    assert all(Options.model_fields[name].default is None for name in left_out)
    assert written["model"] == MODEL


def test_nothing_is_written_outside_of_run_and_cache(fresh, tmp_path):
    data = folders(tmp_path / "data", ["one", "two"], 8)
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    for place in (home, temporary, tmp_path / "cwd"):
        place.mkdir()
    fresh.setenv("HOME", str(home))
    fresh.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    fresh.setattr("tempfile.tempdir", str(temporary))
    fresh.chdir(tmp_path / "cwd")
    before = sorted(data.rglob("*"))
    study(data, out=tmp_path / "cwd" / "run", **SMALL)
    study(data, out=tmp_path / "cwd" / "run2", cache=False, **SMALL)
    assert sorted(data.rglob("*")) == before
    assert list(home.rglob("*")) == []
    assert list(temporary.rglob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "data",
        "home",
        "temporary",
        "cwd",
        "cache",
    }
    assert {path.name for path in (tmp_path / "cwd").iterdir()} == {"run", "run2", "latest"}


def test_without_a_cache_none_is_written_and_the_figures_are_the_same(fresh, small, tmp_path):
    out = tmp_path / small.run.name
    report = study(small.data, out=out, cache=False, **SMALL)
    assert not (tmp_path / "cache").exists()
    assert same_figures(report.to_dict(), small.report.to_dict())


def test_a_cache_that_cannot_be_written_costs_time_and_no_result(fresh, small, tmp_path):
    read_only(fresh, tmp_path / "cache")
    report = study(small.data, out=tmp_path / small.run.name, **SMALL)
    assert report.accuracy.values == small.report.accuracy.values
    told = " ".join(report["method"].assumptions)
    assert "cache" in told


def read_only(patch: pytest.MonkeyPatch, place: Path) -> None:
    """As if `place` were on a disk that may only be read (root may write to any directory)."""
    make, write = Path.mkdir, tempfile.mkstemp

    def refuse(path: object) -> None:
        if Path(str(path)).is_relative_to(place):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def mkdir(self: Path, *args: object, **options: object) -> None:
        refuse(self)
        make(self, *args, **options)

    def mkstemp(*args: object, dir: object = None, **options: object) -> tuple[int, str]:
        refuse(dir)
        return write(*args, dir=dir, **options)

    patch.setattr(Path, "mkdir", mkdir)
    patch.setattr(tempfile, "mkstemp", mkstemp)


def test_a_budget_that_is_too_small_is_refused_or_shortens_and_says_so(fresh, tmp_path):
    data = folders(tmp_path / "data", ["one", "two"], 20)
    choose = beholder.train.passes.choose_engine

    def dear(*what: object) -> tuple:
        """An engine that takes a second for an image, by its own account: 80 s in all."""
        engine, _, notes = choose(*what)
        return engine, 1.0, notes

    fresh.setattr("beholder.train.passes.choose_engine", dear)
    with pytest.raises(BudgetError) as error:
        study(data, out=tmp_path / "run", budget=0.5, **SMALL)
    assert "40 images" in str(error.value)
    assert "--budget" in error.value.hint
    report = study(data, out=tmp_path / "run", budget=2, **SMALL)
    assert "accuracy" in report.budget.shortened
    assert report.accuracy.status == "reduced"
    assert any("no mirror images" in words for words in report["method"].assumptions)
    assert "shortened" in report.verdict.sentence or "shortened" in report.to_html()


def test_no_limit_shortens_nothing(small: Studied, known, tmp_path):
    report = study(small.data, out=tmp_path / "run", budget=0, **SMALL)
    assert report.budget.shortened == []
    assert report.budget.limit_s == 0


def test_progress_is_told_by_stage_and_ends_whole(known, small: Studied, tmp_path, capfd):
    calls = []
    study(
        small.data,
        out=tmp_path / "run",
        on_progress=lambda stage, done, total, left: calls.append((stage, done, total)),
        **SMALL,
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages[0] == "read"
    assert stages[-1] == "report"
    assert "heads" in stages
    last = {stage: (done, total) for stage, done, total in calls}
    assert all(done == total for done, total in last.values()), last
    assert capfd.readouterr() == ("", "")


def numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002


def test_a_study_leaves_the_random_states_as_they_were(known, small: Studied, tmp_path):
    import torch

    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    random.seed(7)
    before = numpy_state(), torch.get_rng_state(), random.getstate()
    threads, flag = torch.get_num_threads(), torch.is_grad_enabled()
    known.setenv("BEHOLDER_CACHE", str(tmp_path / "cache"))
    study(small.data, out=tmp_path / "run", **SMALL)
    assert numpy_state() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, flag)


def test_an_image_deleted_after_the_scan_is_counted_as_missing(fresh, tmp_path):
    data = folders(tmp_path / "data", ["one", "two"], 16)
    gone = data / "one" / "one_003.png"

    def deletes(stage: str, done: int, total: int, left: float | None) -> None:
        if stage == "features":
            gone.unlink(missing_ok=True)

    report = study(data, out=tmp_path / "run", on_progress=deletes, **SMALL)
    assert report.data.skipped == {"missing_file": 1}
    assert report.data.read == 31
    assert "one/one_003.png" not in report.predictions["id"].to_list()
    assert "failed" not in {section.status for section in report.sections}
    skipped = pl.read_csv(tmp_path / "run" / "skipped.csv")
    assert skipped.select("path", "reason").rows() == [("one/one_003.png", "missing_file")]


@pytest.mark.parametrize("when", ["copies", "heads", "cost", "sections"])
def test_an_image_deleted_at_any_time_ends_in_no_traceback(fresh, tmp_path, when: str):
    data = folders(tmp_path / "data", ["one", "two"], 8)
    fresh.setattr("beholder.study.COST_SECONDS", 0.2)
    fresh.setattr("beholder.evaluate.costs.peak_memory", lambda setup, work: 30.0)

    def deletes(stage: str, done: int, total: int, left: float | None) -> None:
        if stage == when:
            (data / "one" / "one_000.png").unlink(missing_ok=True)

    options = SMALL | {"without": () if when == "cost" else ("cost",), "budget": 0.1}
    report = study(data, out=tmp_path / "run", on_progress=deletes, **options)
    assert report.data.read + report.data.skipped.get("missing_file", 0) == 16
    assert "failed" not in {section.status for section in report.sections}


def test_images_opened_in_python_are_studied(known, small: Studied, tmp_path):
    from beholder.data.sources import open_images

    report = study(open_images(small.data), out=tmp_path / "run", **SMALL)
    assert report.accuracy.values["accuracy"] == small.report.accuracy.values["accuracy"]


def test_a_directory_that_cannot_be_written_is_a_storage_error(known, small: Studied, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, ArgumentError)):
        study(small.data, out=tmp_path / "file" / "run", **SMALL)
    with pytest.raises((StorageError, ArgumentError)):
        study(small.data, out=tmp_path / "file", **SMALL)


def test_cost_says_what_engine_was_measured(whole: Studied):
    rows = whole.report["cost"].frame("engines")
    engines = rows["engine"].to_list()
    assert engines[0] == "eager"
    assert "end to end" in engines
    assert whole.report.headline.latency_ms.estimate > 0
    assert whole.report.headline.latency_ms.unit == "ms"

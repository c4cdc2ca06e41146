"""Studies that are stopped, killed, run out of disk or run twice at once."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from study.conftest import Studied
from study.world import MODEL, SMALL, Apart, alone, at_write, cli, folders, same_figures, torn

from beholder.core.errors import StorageError
from beholder.study import study

WORDS = ["--model", MODEL, "--splits", "1", "--without", ",".join(SMALL["without"])]


def written(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_bytes())


@pytest.fixture
def words(small: Studied) -> list[str | Path]:
    """The command whose undisturbed result is `small`."""
    return ["study", small.data, *WORDS, "--out", small.run.name]


@pytest.mark.parametrize("write", [1, 5, 16])
def test_killed_at_any_write_the_same_command_gives_the_same_figures(
    small: Studied, words: list, tmp_path: Path, write: int
):
    cache = tmp_path / "cache"
    assert Apart(words, tmp_path, cache, killed_at_write=write).wait() == -9
    run = tmp_path / small.run.name
    assert not (run / "results.json").exists()
    with alone(cache) as patch:
        patch.chdir(tmp_path)
        assert cli([*words, "--quiet"], patch) == 0
    assert same_figures(written(run), small.report.to_dict())
    assert [path for path in torn(run, cache) if path.suffix != ".tmp"] == []


def test_ctrl_c_writes_a_report_that_says_so_and_the_same_command_finishes(
    small: Studied, words: list, tmp_path: Path
):
    cache, run = tmp_path / "cache", tmp_path / small.run.name
    stopped = Apart(words, tmp_path, cache, pause=0.5)
    stopped.wait_for("features ")
    stopped.interrupt()
    assert stopped.wait() == 130
    assert "The same command goes on from here." in stopped.stderr
    assert "Traceback" not in stopped.stderr
    results = json.loads((run / "results.json").read_bytes())
    assert results["verdict"]["sentence"].startswith("Stopped after ")
    assert "Stopped after" in (run / "report.html").read_text()
    assert torn(run, cache) == []
    with alone(cache) as patch:
        patch.chdir(tmp_path)
        assert cli([*words, "--quiet"], patch) == 0
    assert same_figures(written(run), small.report.to_dict())
    assert "Stopped" not in (run / "report.html").read_text()


def test_ctrl_c_in_the_scan_ends_with_130_and_no_traceback(fresh, tmp_path: Path, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    fresh.setattr("beholder.data.scanned.scan", interrupted)
    fresh.chdir(tmp_path)
    data = folders(tmp_path / "data", ["one", "two"], 3)
    assert cli(["study", data, *WORDS, "--quiet"], fresh) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["copies", "heads"])
def test_stopped_in_any_stage_there_is_a_report(known, small: Studied, tmp_path: Path, stage: str):
    def stops(name: str, done: int, total: int, left: float | None) -> None:
        if name == stage:
            raise KeyboardInterrupt

    known.setenv("BEHOLDER_CACHE", str(tmp_path / "cache"))
    run = tmp_path / small.run.name
    with pytest.raises(KeyboardInterrupt):
        study(small.data, out=run, on_progress=stops, **SMALL)
    results = json.loads((run / "results.json").read_bytes())
    assert results["verdict"]["sentence"].startswith("Stopped after ")
    assert torn(run) == []


@pytest.mark.parametrize("write", [1, 4, 9, 20])
def test_a_full_disk_exits_4_and_leaves_nothing_half_written(
    small: Studied, words: list, tmp_path: Path, write: int, capsys
):
    cache, run = tmp_path / "cache", tmp_path / small.run.name

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with alone(cache) as patch:
        patch.chdir(tmp_path)
        count = at_write(patch, write, full)
        assert cli([*words, "--quiet"], patch) == 4
    assert count[0] >= write
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert torn(run, cache) == []


def test_a_disk_that_stays_full_is_one_storage_error(small: Studied, tmp_path: Path):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with alone(tmp_path / "cache") as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError):
            study(small.data, out=tmp_path / "run", **SMALL)
    assert torn(tmp_path / "run", tmp_path / "cache") == []


def test_a_run_that_was_whole_stays_whole_when_the_disk_fills_up(small: Studied, tmp_path: Path):
    run = tmp_path / small.run.name
    with alone(small.cache) as patch:
        study(small.data, out=run, **SMALL)
        before = (run / "results.json").read_bytes()

        def full() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        at_write(patch, 12, full)
        with pytest.raises(StorageError):
            study(small.data, out=run, **SMALL)
    assert (run / "results.json").read_bytes() == before
    assert torn(run) == []


def test_two_processes_on_one_directory_give_one_whole_run(
    small: Studied, words: list, tmp_path: Path
):
    cache, run = tmp_path / "cache", tmp_path / small.run.name
    both = [Apart(words, tmp_path, cache, pause=0.05) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert same_figures(written(run), small.report.to_dict())
    assert torn(run, cache) == []


def test_two_processes_on_the_same_data_share_one_pass(small: Studied, words: list, tmp_path: Path):
    cache = tmp_path / "cache"
    places = [tmp_path / "a", tmp_path / "b"]
    both = [Apart(words, place, cache, pause=0.05) for place in places]
    assert [one.wait() for one in both] == [0, 0]
    for place in places:
        assert same_figures(written(place / small.run.name), small.report.to_dict())
    assert torn(cache) == []
    assert not list((cache / "features").rglob("*.lock"))


def test_a_torn_shard_is_computed_again(small: Studied, tmp_path: Path):
    run = tmp_path / small.run.name
    with alone(tmp_path / "cache"):
        study(small.data, out=run, **SMALL)
        shards = sorted((tmp_path / "cache" / "features").rglob("*.float16"))
        whole = [shard.read_bytes() for shard in shards]
        assert len(whole) == 2
        shards[0].write_bytes(whole[0][:-100])
        shards[1].write_bytes(whole[1][:10] + bytes([whole[1][10] ^ 255]) + whole[1][11:])
        report = study(small.data, out=run, **SMALL)
    assert same_figures(report.to_dict(), small.report.to_dict())
    assert [shard.read_bytes() for shard in shards] == whole


def test_a_damaged_record_of_scanned_images_is_told_and_read_again(small: Studied, tmp_path: Path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "images.sqlite").write_bytes(b"no database" * 1000)
    with alone(cache):
        report = study(small.data, out=tmp_path / "run", **SMALL)
    assert report.accuracy.values == small.report.accuracy.values
    assert "images.sqlite" in " ".join(report["method"].assumptions)


def test_a_report_can_be_drawn_in_two_threads_at_once(small: Studied):
    pages: list[str] = []
    threads = [threading.Thread(target=lambda: pages.append(small.report.to_html())) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pages[0] == pages[1]


def test_a_report_survives_pickling(small: Studied):
    import pickle

    again = pickle.loads(pickle.dumps(small.report))
    assert again.to_dict() == small.report.to_dict()
    assert again.model.classes == ("one", "seven")

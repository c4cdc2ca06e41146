"""The command line: quick to start, and each kind of ending with its own exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study.world import MODEL, alone, cli, folders, python

import beholder
from beholder.core.errors import StorageError

HEAVY = "{'torch', 'timm', 'lightning', 'sklearn', 'scipy.stats'} & set(sys.modules)"
WORDS = ["--model", MODEL, "--splits", "1", "--without", "cost"]


@pytest.fixture
def here(tmp_path: Path):
    """An empty working directory with a cache of its own beside it."""
    with alone(tmp_path / "cache") as patch:
        (tmp_path / "work").mkdir()
        patch.chdir(tmp_path / "work")
        yield patch


def test_import_is_light():
    assert python(f"import sys, beholder; print({HEAVY})") == "set()\n"


def test_help_is_light_and_names_the_commands():
    said = python(
        "import sys\nfrom beholder.cli import main\nsys.argv = ['beholder', '--help']\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\nprint({HEAVY})"
    )
    assert said.splitlines()[-1] == "set()"
    assert all(word in said for word in ("study", "report", "doctor", "cache"))


def test_every_public_name_is_there():
    for name in beholder.__all__:
        assert getattr(beholder, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = beholder.nothing
    assert set(beholder.__all__) <= set(dir(beholder))


def test_missing_folder_exits_3_and_names_its_neighbours(here, capsys):
    (Path.cwd() / "pictures").mkdir()
    assert cli(["study", "pictuers"], here) == 3
    said = capsys.readouterr().err
    assert "There is no pictuers." in said
    assert "Did you mean pictures?" in said


def test_empty_folder_exits_3(here, capsys):
    (Path.cwd() / "empty").mkdir()
    assert cli(["study", "empty"], here) == 3
    assert "It is empty." in capsys.readouterr().err


def test_nothing_readable_exits_3_and_counts_the_reasons(here, capsys):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        path = Path.cwd() / "broken" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "b/1.png" else b"no picture at all")
    assert cli(["study", "broken"], here) == 3
    said = capsys.readouterr().err
    assert "None of 3 images can be read." in said
    assert "2 x not_an_image; 1 x empty_file" in said
    assert not Path("runs").exists()


def test_images_beside_class_folders_exit_2_and_name_both_readings(here, capsys):
    data = folders(Path.cwd() / "mixed", ["cat", "dog"], 2)
    (data / "cat" / "cat_000.png").rename(data / "stray.png")
    assert cli(["study", "mixed"], here) == 2
    said = capsys.readouterr().err
    assert "--format folders" in said
    assert "--format flat" in said


def test_part_of_a_split_beside_classes_exits_2(here, capsys):
    folders(Path.cwd() / "odd", ["train", "cat", "dog"], 2)
    assert cli(["study", "odd"], here) == 2
    assert "--format split_folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study"], "There is no DATA."),
        (["study", "digits", "--target", "1.5"], "--target = 1.5"),
        (["study", "digits", "--splits", "0"], "--splits = 0"),
        (["study", "digits", "--crop", "oval"], "--crop = 'oval'"),
        (["study", "digits", "--sections", "acuracy"], "There is no section 'acuracy'."),
        (["study", "digits", "--format", "zip"], "--format zip is not known."),
        (["study", "digits", "--fail-on", "never"], "--fail-on = 'never'"),
        (["study", "digits", "--config", "none.toml"], "none.toml"),
        (["study", "digits", "--device", "abacus"], "--device abacus cannot be used"),
        (["study", "digits", "--nonsense"], "--nonsense"),
        (["cache", "prune", "--older", "soon"], "--older = 'soon'"),
        (["report", "nowhere"], "There is no results.json in nowhere."),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_bad_argument_is_told_in_a_line_and_exits(here, capsys, words, said):
    assert cli(words, here) == (3 if words[0] == "report" else 2)
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_quiet_prints_the_verdict_and_nothing_else(here, capfd):
    folders(Path.cwd() / "data", ["one", "two"], 12)
    assert cli(["study", "data", "--quiet", "--sections", "data", *WORDS[:4]], here) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "24 images in 2 classes." in out
    assert out.count("\n") == 1


def test_json_is_results_json_and_the_only_output(here, capfd):
    folders(Path.cwd() / "data", ["one", "two"], 12)
    words = ["study", "data", "--json", "--out", "run", "--sections", "data", *WORDS[:4]]
    assert cli(words, here) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert json.loads(out) == json.loads(Path("run/results.json").read_bytes())


def test_fail_on_exits_6_from_that_severity_on(here, capsys):
    folders(Path.cwd() / "data", {"one": 40, "two": 7})
    words = ["study", "data", "-q", "--sections", "data", *WORDS[:4], "--fail-on"]
    assert cli([*words, "look"], here) == 6
    assert cli([*words, "act"], here) == 0
    assert capsys.readouterr().out.startswith("LOOK")


def test_a_failed_section_exits_5_under_strict_and_0_without(here, capsys):
    from beholder.evaluate.benchmarks import SECTIONS

    def breaks(evidence, options):
        raise ValueError("planted")

    spec = SECTIONS["data"]
    here.setitem(SECTIONS, "data", type(spec)(spec.id, spec.title, spec.needs, breaks))
    folders(Path.cwd() / "data", ["one", "two"], 12)
    words = ["study", "data", "-q", "--out", "run", "--sections", "data,method", *WORDS[:4]]
    assert cli(words, here) == 0
    assert "Traceback" in Path("run/log.txt").read_text()
    assert cli([*words, "--strict"], here) == 5
    results = json.loads(Path("run/results.json").read_bytes())
    assert [part["status"] for part in results["sections"]] == ["failed", "measured"]
    assert Path("run/report.html").exists()


def test_an_unexpected_error_exits_1_with_its_traceback_in_the_log(here, capsys):
    def breaks(*_, **__):
        raise RuntimeError("planted")

    here.setattr("beholder.data.scanned.scan", breaks)
    folders(Path.cwd() / "data", ["one", "two"], 2)
    assert cli(["study", "data", "-q", *WORDS], here) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: planted" in error
    assert error.count("\n") == 1
    assert "planted" in (Path.cwd().parent / "cache" / "log.txt").read_text()


def test_out_of_memory_exits_4(here, capsys):
    def breaks(*_, **__):
        raise MemoryError

    here.setattr("beholder.data.scanned.scan", breaks)
    folders(Path.cwd() / "data", ["one", "two"], 2)
    assert cli(["study", "data", "-q", *WORDS], here) == 4
    assert "out of memory" in capsys.readouterr().err


def test_a_storage_error_exits_4(here, capsys):
    def breaks(*_, **__):
        raise StorageError("Cannot write it.", "Free some space.")

    here.setattr("beholder.data.scanned.scan", breaks)
    folders(Path.cwd() / "data", ["one", "two"], 2)
    assert cli(["study", "data", "-q", *WORDS], here) == 4
    assert "Free some space." in capsys.readouterr().err


def test_doctor_names_versions_and_what_is_missing(here, capsys):
    assert cli(["doctor"], here) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("torch", "cpu", "[demo]", "[export]"))


def test_cache_size_and_clear(here, capsys):
    kept = Path.cwd().parent / "cache" / "features" / "ab"
    kept.mkdir(parents=True)
    (kept / "shard").write_bytes(bytes(2**20))
    assert cli(["cache", "size"], here) == 0
    assert cli(["cache", "prune", "--older", "12h"], here) == 0
    assert (kept / "shard").exists()
    assert cli(["cache", "clear"], here) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 MiB in ")
    assert said[1:] == ["0 MiB freed", "1 MiB freed"]
    assert not (kept / "shard").exists()

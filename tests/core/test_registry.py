"""The registry: systems are found by name, options are checked, files outside take part."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from beholder.core.errors import ArgumentError, MissingExtraError
from beholder.core.registry import (
    PACKAGE,
    ROLES,
    Entry,
    checked,
    find,
    load_file,
    make,
    parse_flags,
    system,
    systems,
)

GUIDE = PACKAGE.parent / "docs" / "guides" / "adding_a_system.md"


def detector(eps: float = 0.1, name: str | None = None, layers: tuple[str, ...] = ()) -> None: ...


def objective(
    jitter: int = 0, eps: float = 1.0, robust: bool = False, mode: Literal["a", "b"] = "a"
) -> None: ...


CHOSEN = {"detector": detector, "objective": objective}


def test_every_system_has_a_known_role_and_a_name_of_its_own_in_it():
    known = [(entry.role, entry.name) for entry in systems()]
    assert known
    assert {role for role, _ in known} <= set(ROLES)
    assert len(set(known)) == len(known)


def test_names_are_snake_case():
    assert [entry.name for entry in systems() if not re.fullmatch(r"[a-z0-9_]+", entry.name)] == []


@pytest.mark.parametrize("entry", systems(), ids=lambda entry: f"{entry.role}-{entry.name}")
def test_what_the_source_says_is_what_the_decorator_registers(entry: Entry):
    try:
        assert entry.load().entry == entry
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_listing_imports_no_system():
    code = (
        "import sys\nfrom beholder.core.registry import systems\n"
        "assert systems()\nassert not {e.module for e in systems()} & set(sys.modules)\n"
        "assert 'torch' not in sys.modules"
    )
    _python(code)


def test_dashes_find_the_system_too():
    assert find("detector", "gaussian-ad") == find("detector", "gaussian_ad")


def test_an_unknown_name_shows_the_nearest():
    with pytest.raises(ArgumentError, match="There is no detector 'gausian'") as raised:
        find("detector", "gausian")
    assert "gaussian_ad" in raised.value.hint


def test_make_checks_its_options():
    with pytest.raises(ArgumentError, match="has no option --nothing"):
        make("detector", "gaussian_ad", nothing=1)


def test_a_class_of_no_role_is_refused():
    with pytest.raises(TypeError, match="names no role"):
        system(1)(type("Stray", (), {}))


def test_a_missing_package_names_the_extra():
    entry = Entry(None, "x", "detector", "beholder.nothing_here:X", extra="detectors")
    with pytest.raises(ModuleNotFoundError):
        entry.load()
    outside = Entry(None, "x", "detector", "nothing_here_either:X", extra="detectors")
    with pytest.raises(MissingExtraError, match=r"beholder\[detectors\]"):
        outside.load()


def test_a_flag_goes_to_the_system_that_has_it():
    words = ["--jitter", "16", "--layers", "a,b", "--robust"]
    assert parse_flags(words, CHOSEN) == {
        "detector": {"layers": ("a", "b")},
        "objective": {"jitter": 16, "robust": True},
    }


def test_a_flag_of_several_must_say_whose():
    with pytest.raises(ArgumentError, match="--eps is an option of several") as raised:
        parse_flags(["--eps", "1"], CHOSEN)
    assert raised.value.hint == "Write --detector.eps or --objective.eps."
    found = parse_flags(["--objective.eps", "2", "--detector.eps=3"], CHOSEN)
    assert found == {"detector": {"eps": 3.0}, "objective": {"eps": 2.0}}


def test_a_flag_of_nobody_shows_the_nearest():
    with pytest.raises(ArgumentError, match="There is no option --jiter") as raised:
        parse_flags(["--jiter", "1"], CHOSEN)
    assert raised.value.hint == "Near: --jitter."


def test_a_role_that_is_not_chosen_is_refused():
    with pytest.raises(ArgumentError, match="no head is chosen"):
        parse_flags(["--head.eps", "1"], CHOSEN)


def test_a_word_without_a_flag_is_refused():
    with pytest.raises(ArgumentError, match="'stray' is one argument too many"):
        parse_flags(["stray"], CHOSEN)


def test_a_negative_number_is_a_value():
    assert parse_flags(["--detector.eps", "-0.5"], CHOSEN)["detector"] == {"eps": -0.5}


def test_a_bare_flag_is_no_number():
    with pytest.raises(ArgumentError, match="--jitter needs a value"):
        parse_flags(["--jitter"], CHOSEN)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("0.5", float, 0.5),
        ("3", str, "3"),
        ("3", str | None, "3"),
        ("None", str | None, None),
        ("none", str, "none"),
        ("(1, 2)", tuple[int, int], (1, 2)),
        ("1,2", tuple[int, ...], (1, 2)),
        ("4", tuple[int, ...], (4,)),
        ("layer3", tuple[str, ...], ("layer3",)),
        ("no", bool, False),
        ("7", Path, Path("7")),
        ("b", Literal["a", "b"], "b"),
    ],
)
def test_text_becomes_what_the_signature_asks_for(text: str, hint: Any, value: Any):
    def target(x): ...

    target.__annotations__["x"] = hint
    found = checked(target, {"x": text}, "detector")["x"]
    assert found == value
    assert type(found) is type(value)


def test_a_value_of_another_type_is_refused_with_the_reason():
    with pytest.raises(ArgumentError, match="--mode = 'c': Input should be 'a' or 'b'"):
        checked(objective, {"mode": "c"}, "objective")


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path):
    with pytest.raises(ArgumentError, match=r"There is no .*gone\.py"):
        load_file(tmp_path / "gone.py")


def test_the_guides_system_works_from_outside_on_every_surface(tmp_path: Path):
    source = re.search(r'```python title="blur.py"\n(.*?)```', GUIDE.read_text(), re.S)
    assert source
    assert 30 <= len(source[1].splitlines()) <= 55
    (tmp_path / "blur.py").write_text(source[1])
    code = """
import contextlib, io, json, sys
from beholder.cli.app import app
import beholder.cli
from beholder.core.registry import find

def said(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(list(words), standalone_mode=False)
    return json.loads(out.getvalue())

listed = said("systems", "detector", "--json")
shown = said("systems", "blur", "--json")
words = ("--detector", "blur", "--scale", "2", "--out", "g", "--json")
fitted = said("guard", "fit", "digits", *words)
scored = said("guard", "score", "g", "photos", "--json")
import doctest
examples = doctest.testmod(sys.modules[find("detector", "blur").module])
print(json.dumps([listed, shown, fitted, scored, examples]))
"""
    out = _python(code, cwd=tmp_path, BEHOLDER_SYSTEMS=str(tmp_path / "blur.py"))
    listed, shown, fitted, scored, (failed, tried) = json.loads(out.splitlines()[-1])
    assert "blur" in [entry["name"] for entry in listed]
    assert shown[0]["options"] == {"scale": {"type": "int", "default": "1"}}
    assert fitted["detector"] == "blur"
    assert json.loads((tmp_path / "g" / "detector.json").read_text())["options"] == {"scale": 2}
    assert scored
    assert failed == 0
    assert tried == 2


def _python(code: str, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

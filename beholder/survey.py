"""The state of the survey, measured: 76 papers, and what of each is really there.

Nothing here is declared. A system counts as importable when its modules import, a golden file as
compared when a test calls `golden("...")` with its name, a claim as judged when its result says
so. Tests, claims and golden files stand in a checkout; in an installed package alone those fields
are None.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .core.errors import ArgumentError, DataError
from .core.files import digest
from .core.registry import PACKAGE, ROLES, Entry, arguments, systems
from .core.sections import Value


@dataclass(frozen=True)
class Paper:
    """What is known of a row before any of it is built: a table of papers.toml."""

    row: int
    name: str
    title: str
    authors: str
    year: int
    venue: str
    arxiv: str
    repository: str
    purpose: str
    homes: tuple[str, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Where it stands, or will stand."""
        return tuple(_module(home) for home in self.homes)


@functools.cache
def papers() -> tuple[Paper, ...]:
    """The 76 rows in order."""
    tables = tomllib.loads((PACKAGE / "papers.toml").read_text())["paper"]
    return tuple(Paper(**table | {"homes": tuple(table["homes"])}) for table in tables)


def paper(row: int) -> Paper:
    """The paper of a row.

    Raises:
        ArgumentError: there is no such row.
    """
    found = {paper.row: paper for paper in papers()}
    if row not in found:
        raise ArgumentError(f"There is no row {row}.", f"Rows are 1 to {len(found)}.")
    return found[row]


def checkout() -> Path | None:
    """The directory with `claims/` and `tests/`: beside the package, or the working directory."""
    for place in (PACKAGE.parent, Path.cwd()):
        if (place / "claims" / "verdict.py").is_file():
            return place
    return None


def survey() -> list[dict[str, Any]]:
    """One object per row, whether anything of it is built or not.

    Each has `row, name, title, role, systems, module, importable, why, golden, golden_unread,
    tests, claim, docs, complete`. `why` names what keeps it from importing; `golden` are the files
    that a test compares, `golden_unread` those that none does; `claim` is `{"verdict", "date",
    "stale"}`; `complete`: all of it is there.
    """
    known = systems()
    place = checkout()
    tests = None if place is None else read_tests(place / "tests")
    return [_state(paper, known, place, tests) for paper in papers()]


def lacks(state: Mapping[str, Any]) -> list[str]:
    """What keeps a row from being complete, in words."""
    if not state["systems"]:
        return ["missing"]
    claim = state["claim"]
    reasons = [
        (not state["importable"], state["why"]),
        (state["tests"] == [], "no test"),
        (bool(state["golden_unread"]), f"not compared: {', '.join(state['golden_unread'] or [])}"),
        (state["tests"] is not None and claim is None, "claim not measured"),
        (bool(claim and claim["stale"]), "claim changed since it was measured"),
        (not state["docs"], "no example"),
    ]
    return [str(reason) for missing, reason in reasons if missing]


def counts(states: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows have each property."""
    states = list(states)
    return {
        "rows": len(states),
        "importable": sum(bool(s["importable"]) for s in states),
        "tested": sum(bool(s["tests"]) for s in states),
        "judged": sum(s["claim"] is not None for s in states),
        "complete": sum(bool(s["complete"]) for s in states),
    }


def options(entry: Entry) -> dict[str, dict[str, str]]:
    """The arguments of a system: name -> type and default, as text."""
    return {
        name: {
            "type": inspect.formatannotation(p.annotation).replace("'", "")
            if p.annotation is not p.empty
            else "",
            "default": "" if p.default is p.empty else repr(p.default),
        }
        for name, p in arguments(entry.load()).items()
    }


@dataclass
class Tests:
    """What the test files say of themselves.

    Attributes:
        modules: file -> modules that it imports.
        golden: names of golden files that are read.
        files: names of the golden files that there are.
    """

    modules: dict[str, set[str]] = field(default_factory=dict)
    golden: set[str] = field(default_factory=set)
    files: tuple[str, ...] = ()

    def of(self, modules: Iterable[str]) -> list[str]:
        """Files that import one of the modules."""
        wanted = set(modules)
        return sorted(file for file, imported in self.modules.items() if imported & wanted)


def read_tests(place: Path) -> Tests:
    """Parse `test_*.py` under a directory; nothing is run."""
    found = Tests(files=tuple(sorted(path.stem for path in (place / "golden").glob("*.json"))))
    for path in sorted(place.rglob("test_*.py")):
        file = str(path.relative_to(place.parent))
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found.modules[file] = {name for node in nodes for name in _imported(node)}
        found.golden |= {name for node in nodes if (name := _golden(node))}
    return found


def claim_files(place: Path) -> dict[int, Path]:
    """Row -> its file in a directory of claims."""
    named = [(re.match(r"(\d\d)_\w+\.py$", path.name), path) for path in sorted(place.glob("*.py"))]
    return {int(match[1]): path for match, path in named if match}


def source_hash(path: Path) -> str:
    """What a claim file says, in 16 letters; layout and comments do not count."""
    return digest(ast.dump(ast.parse(path.read_text())))[:16]


def recorded(row: int, place: Path) -> dict[str, Any] | None:
    """The last record of a claim in a directory of claims; None = never run.

    `stale`: the claim has been changed since.
    """
    path = place / "results" / f"{row:02d}.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    file = claim_files(place).get(row)
    return record | {"stale": file is None or source_hash(file) != record["source"]}


def part_value(part: Mapping[str, Any]) -> Value:
    """The figure of a recorded part."""
    shown = {key: x for key, x in part.items() if key not in ("text", "verdict", "value")}
    return Value(estimate=part["value"], **shown)


def claims_place() -> Path:
    """The directory of claims.

    Raises:
        DataError: this is an installed package without a checkout.
    """
    place = checkout()
    if place is None:
        raise DataError("There are no claims here.", "Run it in a checkout of beholder.")
    return place / "claims"


def _state(
    paper: Paper, known: list[Entry], place: Path | None, tests: Tests | None
) -> dict[str, Any]:
    entries = [entry for entry in known if entry.row == paper.row]
    modules = list(dict.fromkeys((*paper.modules, *(entry.module for entry in entries))))
    why = next(filter(None, map(_import_error, modules)), None)
    state: dict[str, Any] = {
        "row": paper.row,
        "name": paper.name,
        "title": paper.title,
        "role": sorted({entry.role for entry in entries}, key=list(ROLES).index),
        "systems": [entry.name for entry in entries],
        "module": modules,
        "importable": why is None and bool(entries),
        "why": why or (None if entries else "no system is registered"),
        "golden": None,
        "golden_unread": None,
        "tests": None,
        "claim": None,
        "docs": bool(entries) and all(has_example(entry.module) for entry in entries),
        "complete": None,
    }
    if place is None or tests is None:
        return state
    own = [name for name in tests.files if name.startswith(f"{paper.row:02d}_")]
    record = recorded(paper.row, place / "claims")
    state["golden"] = [name for name in own if name in tests.golden]
    state["golden_unread"] = [name for name in own if name not in tests.golden]
    state["tests"] = tests.of(modules)
    state["claim"] = record and {key: record[key] for key in ("verdict", "date", "stale")}
    state["complete"] = (
        state["importable"]
        and bool(state["tests"])
        and not state["golden_unread"]
        and record is not None
        and not record["stale"]
        and state["docs"]
    )
    return state


def has_example(module: str) -> bool:
    """A docstring of the file shows its use in a line that can be run."""
    path = _path(module)
    if path is None:
        return False
    tree = ast.parse(path.read_text())
    defined = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return any(">>> " in (ast.get_docstring(node) or "") for node in (tree, *defined))


@functools.cache
def _import_error(module: str) -> str | None:
    """Why a module cannot be imported; None if it can."""
    if module.startswith("beholder.") and _path(module) is None:
        return f"{module} does not exist"
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"{module}: {type(error).__name__}: {error}"
    return None


def _path(module: str) -> Path | None:
    """The file of a module of ours, without importing it; of another, as imported."""
    if not module.startswith("beholder."):
        return Path(str(importlib.import_module(module).__file__))
    stem = PACKAGE.joinpath(*module.split(".")[1:])
    places = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((place for place in places if place.is_file()), None)


def _module(home: str) -> str:
    """'trust/detectors/clipn.py' as the name of a module; a directory as that of a package."""
    return "beholder." + home.removesuffix(".py").strip("/").replace("/", ".")


def _imported(node: ast.AST) -> list[str]:
    """Modules that an import may mean: `from a import b` is `a` or `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _golden(node: ast.AST) -> str | None:
    """NAME of a call `golden("NAME")`."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "golden":
        match node.args:
            case [ast.Constant(value=str(name))]:
                return name
    return None

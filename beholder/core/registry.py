"""The registry: which systems there are, found by name without importing the others.

A system is a class (or function) under `@system(ROW)`. Its role is that of its folder, or of the
base it inherits. The decorators are read from the sources; only the module that is asked for is
imported. Systems outside the package are named in `$BEHOLDER_SYSTEMS` (files or modules, parted as
in $PATH), or come as entry points of the group `beholder.systems`.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from .errors import ArgumentError, MissingExtraError

T = TypeVar("T", bound=Callable[..., Any])

PACKAGE = Path(__file__).parents[1]
ROLES = {
    "backbone": "models/backbones",
    "head": "models/heads",
    "curator": "data/curate",
    "augmentation": "data/augment",
    "objective": "train/objectives",
    "recipe": "train/recipes",
    "compressor": "optimize/compress",
    "searcher": "optimize/search",
    "explainer": "explain",
    "detector": "trust/detectors",
    "attack": "trust/attacks",
    "defence": "trust/defences",
    "verifier": "trust/verify",
    "retriever": "retrieve",
    "benchmark": "evaluate/benchmarks",
}
"""Role -> folder of its systems."""
OUTSIDE = "BEHOLDER_SYSTEMS"


@dataclass(frozen=True)
class Entry:
    """One system.

    Attributes:
        row: of the survey's table; None for a baseline.
        name: as on the command line, in snake_case.
        home: 'package.module:attribute'.
        extra: pip extra that it needs, or ''.
    """

    row: int | None
    name: str
    role: str
    home: str
    extra: str = ""

    @property
    def module(self) -> str:
        return self.home.partition(":")[0]

    def load(self) -> Any:
        """The class or function itself.

        Raises:
            MissingExtraError: a package of its extra is not installed.
        """
        module, _, attribute = self.home.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not self.extra or missing in ("", "beholder"):
                raise
            raise MissingExtraError(missing, self.extra) from error


def system(
    row: int | None = None, *, name: str | None = None, role: str | None = None, extra: str = ""
) -> Callable[[T], T]:
    """Register a class or function.

    Args:
        row: row of the survey's table; None for a baseline or a tool.
        name: None = that of its file, as a file is named after its system.
        role: None = `role` of the base that a class inherits.
        extra: pip extra that its module imports from.
    """

    def register(target: T) -> T:
        known = role or getattr(target, "role", None)
        if known not in ROLES:
            raise TypeError(f"{target.__name__} inherits no role's base and names no role.")
        called = name or target.__module__.rpartition(".")[2]
        home = f"{target.__module__}:{target.__qualname__}"
        target.entry = Entry(row, called, known, home, extra)  # type: ignore[attr-defined]
        if not target.__module__.startswith("beholder."):
            _outside[known, called] = target.entry  # type: ignore[attr-defined]
        return target

    return register


_outside: dict[tuple[str, str], Entry] = {}


def systems(role: str | None = None) -> list[Entry]:
    """Every system (of a role), by role, row and name; none of ours is imported."""
    _load_outside()
    known = (*_inside(), *_outside.values())
    found = [entry for entry in known if role in (None, entry.role)]
    return sorted(found, key=lambda e: (list(ROLES).index(e.role), e.row or 1000, e.name))


def find(role: str, name: str) -> Entry:
    """The system of that name.

    Raises:
        ArgumentError: there is none; the nearest names are shown.
    """
    wanted = name.replace("-", "_")
    known = {entry.name: entry for entry in systems(role)}
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3) or sorted(known)
        raise ArgumentError(f"There is no {role} {name!r}.", f"There is: {', '.join(near)}.")
    return known[wanted]


def make(role: str, name: str, **options: Any) -> Any:
    """An instance of the system, its options checked against its signature."""
    target = find(role, name).load()
    return target(**checked(target, options, role))


def checked(target: Callable[..., Any], options: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Options as the types that the signature of `target` names; text is converted.

    Raises:
        ArgumentError: an option that it does not have, or a value that it cannot take.
    """
    known = arguments(target)
    hints = _hints(target)
    found = {}
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or sorted(known)
            has = ", ".join(f"--{_dashed(name)}" for name in near)
            raise ArgumentError(
                f"{who} {_called(target)} has no option --{_dashed(key)}.",
                f"It has {has}." if has else "It has none.",
            )
        found[key] = _converted(value, hints.get(key, Any), f"--{_dashed(key)}")
    return found


def _converted(value: Any, hint: Any, flag: str) -> Any:
    """The first reading of a value that its type allows."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        adapter = TypeAdapter(hint)
    reasons = []
    for reading in _readings(value, hint):
        try:
            return adapter.validate_python(reading, strict=True if reading is True else None)
        except ValidationError as error:
            reasons.append(error.errors()[0]["msg"])
    if value is True:
        raise ArgumentError(f"{flag} needs a value.", f"{reasons[0]}.")
    raise ArgumentError(f"{flag} = {value!r}: {reasons[0]}.")


def _readings(value: Any, hint: Any) -> Iterator[Any]:
    """What a value may mean: text as a Python literal, as itself, as a list with commas."""
    if isinstance(value, str) and hint is not str:
        literal = _literal(value)
        yield literal
        if literal is not value:
            yield value
        yield tuple(part.strip() for part in value.split(","))
    else:
        yield value


def arguments(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named arguments of a class or function."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(target).parameters
    return {name: p for name, p in parameters.items() if p.kind in named}


def parse_flags(words: Sequence[str], chosen: Mapping[str, Callable[..., Any]]) -> dict[str, dict]:
    """Left-over words of a command line as options of the chosen systems, per role.

    `--encoding cppn` goes to the one chosen system that has `encoding`; `--objective.jitter 16`
    says to which; a flag without a value is True.

    Args:
        words: such as `["--jitter", "16", "--robust"]`.
        chosen: role -> class or function.

    Raises:
        ArgumentError: a flag that none of them has, or that several have.
    """
    given: dict[str, dict] = {role: {} for role in chosen}
    for flag, value in _pairs(words):
        role, dot, key = flag.rpartition(".")
        key = key.replace("-", "_")
        if dot and role not in chosen:
            raise ArgumentError(f"--{flag}: no {role} is chosen.")
        owners = [role] if dot else [r for r, t in chosen.items() if key in arguments(t)]
        if not owners:
            every = sorted({name for target in chosen.values() for name in arguments(target)})
            near = difflib.get_close_matches(key, every, n=3) or every
            has = ", ".join(f"--{_dashed(name)}" for name in near)
            raise ArgumentError(f"There is no option --{flag}.", f"Near: {has}." if has else "")
        if len(owners) > 1:
            which = " or ".join(f"--{owner}.{flag}" for owner in owners)
            raise ArgumentError(f"--{flag} is an option of several.", f"Write {which}.")
        given[owners[0]][key] = value
    return {role: checked(chosen[role], options, role) for role, options in given.items()}


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str | bool]]:
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise ArgumentError(f"{word!r} is one argument too many.", "Options start with --.")
        flag, equals, value = word[2:].partition("=")
        if equals:
            yield flag, value
        elif waiting and not waiting[0].startswith("--"):
            yield flag, waiting.pop(0)
        else:
            yield flag, True


def _literal(text: str) -> Any:
    """'(512, 512)', '0.5', 'None' as Python means them; other text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    import typing

    function = target.__init__ if inspect.isclass(target) else target
    return typing.get_type_hints(function)


def _called(target: Callable[..., Any]) -> str:
    entry = getattr(target, "entry", None)
    return entry.name if entry else getattr(target, "__name__", str(target))


def _dashed(name: str) -> str:
    return name.replace("_", "-")


@functools.cache
def _inside() -> tuple[Entry, ...]:
    """The systems in the roles' folders, from the decorators in their sources."""
    found: list[Entry] = []
    for role, folder in ROLES.items():
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            source = path.read_text()
            if "@system(" in source:
                module = ".".join(("beholder", *path.relative_to(PACKAGE).with_suffix("").parts))
                found += _decorated(source, module.removesuffix(".__init__"), role)
    return tuple(found)


def _decorated(source: str, module: str, role: str) -> Iterator[Entry]:
    """Entries of one module of that role's folder; a decorator may name another role."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "system":
                words = {str(word.arg): ast.literal_eval(word.value) for word in mark.keywords}
                row = ast.literal_eval(mark.args[0]) if mark.args else words.get("row")
                called = words.get("name") or module.rpartition(".")[2]
                home = f"{module}:{node.name}"
                yield Entry(row, called, words.get("role") or role, home, words.get("extra", ""))


@functools.cache
def _load_outside() -> None:
    """Import what the user's environment names; each registers itself."""
    for point in importlib.metadata.entry_points(group="beholder.systems"):
        point.load()
    for place in filter(None, os.environ.get(OUTSIDE, "").split(os.pathsep)):
        if place.endswith(".py"):
            load_file(Path(place))
        else:
            importlib.import_module(place)


def load_file(path: Path) -> ModuleType:
    """Import a file that holds systems.

    Raises:
        ArgumentError: there is no such file.
    """
    if not path.is_file():
        raise ArgumentError(f"There is no {path}.", f"${OUTSIDE} names files with systems.")
    name = f"beholder_systems.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

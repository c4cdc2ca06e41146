"""A run directory: which options it belongs to, how far it came, one writer at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import filelock

from .errors import ArgumentError
from .files import key_of, storage_errors, write_bytes, write_json
from .options import Options

STATE = "state.json"
FILES = (
    STATE,
    *("run.toml", "results.json", "environment.json", "log.txt", "report.html", "report.md"),
    *("predictions.parquet", "skipped.csv", "label_first.csv", "model.safetensors", "config.json"),
    *("head.safetensors", "head.json"),
)
"""What a run writes, beside `records/`."""
ELSEWHERE = (
    "data",
    "out",
    "against",
    "overwrite",
    "budget",
    "workers",
    "cache",
    "strict",
    "fail_on",
    "device",
)
"""Options that do not decide the figures (`data` does by its fingerprint)."""


def portable(path: str) -> str:
    """A path as it may be written down: relative to the working directory, or its last part."""
    plain = PurePath(path)
    if not plain.is_absolute() and not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser().relative_to(Path.cwd()))
    except ValueError:
        return plain.name


def options_record(options: Options) -> dict[str, Any]:
    """Every option with its value, without absolute paths."""
    record = options.model_dump(mode="json")
    for name in ("data", "model", "out", "unknown", "against", "class_map", "preprocess", "root"):
        if isinstance(record[name], str):
            record[name] = portable(record[name])
    return record


def to_toml(record: dict[str, Any]) -> str:
    """A flat TOML table; None is left out (TOML has none)."""
    lines = (
        f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in record.items()
        if value is not None
    )
    return "\n".join(lines) + "\n"


def deciding(options: Options) -> dict[str, Any]:
    """The options that decide the figures."""
    record = options_record(options)
    return {name: value for name, value in record.items() if name not in ELSEWHERE}


def run_key(options: Options, fingerprint: str) -> str:
    """The key of options and data that a run directory belongs to."""
    return key_of({"options": deciding(options), "data": fingerprint})


class RunDirectory:
    """Opened for one `study`; the same command on the same data goes on in it.

    Raises:
        ArgumentError: the directory holds another run, or something that is no run.
    """

    def __init__(self, path: Path, options: Options, fingerprint: str) -> None:
        self.path, self.options = path, options
        self.key = run_key(options, fingerprint)
        state = self._state()
        if not options.overwrite:
            self._check(state, fingerprint)
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        self.done: list[str] = []
        self.fingerprint = fingerprint
        if options.overwrite and (state or {}).get("key") != self.key:
            self._clear()
        self.mark()
        write_bytes(path / "run.toml", to_toml(options_record(options)).encode())

    def _state(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.path / STATE).read_text())
        except (OSError, ValueError):
            return None

    def _check(self, state: dict[str, Any] | None, fingerprint: str) -> None:
        if state is None:
            if self.path.exists() and any(p.name[0] != "." for p in self.path.iterdir()):
                raise ArgumentError(
                    f"--out {self.path} is not empty and holds no run.",
                    "Name another directory, or add --overwrite.",
                )
            return
        if state.get("key") == self.key:
            return
        before, now = state.get("options", {}), deciding(self.options)
        other = [name for name in now if before.get(name) != now[name]]
        what = (
            f"--{other[0].replace('_', '-')} = {before.get(other[0])!r} there, "
            f"{now[other[0]]!r} here"
            if other
            else "its data had another fingerprint"
        )
        raise ArgumentError(
            f"{self.path} holds another run: {what}.", "Use another --out, or --overwrite."
        )

    def _clear(self) -> None:
        """Take away what another run left here, and nothing else."""
        with storage_errors(self.path):
            shutil.rmtree(self.path / "records", ignore_errors=True)
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)

    def mark(self, stage: str | None = None) -> None:
        """Write down that a stage is done."""
        if stage:
            self.done.append(stage)
        write_json(
            self.path / STATE,
            {
                "key": self.key,
                "options": deciding(self.options),
                "fingerprint": self.fingerprint,
                "done": self.done,
            },
        )

    def link_latest(self) -> None:
        """`latest` beside the run, where links are allowed."""
        link = self.path.parent / "latest"
        temporary = link.with_name(f".latest.{os.getpid()}")
        try:
            if link.is_symlink() or not link.exists():
                temporary.symlink_to(self.path.name)
                temporary.replace(link)
        except OSError:
            temporary.unlink(missing_ok=True)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Holds the run directory against a second process, which waits."""
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path / ".lock"):
        for torn in path.rglob(".*.tmp"):  # left by a killed process
            torn.unlink(missing_ok=True)
        yield

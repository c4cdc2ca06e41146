"""Tables that name image files: CSV, TSV, JSON lines, Parquet, Arrow (forms 3 and 6)."""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from beholder.core.errors import AmbiguousDataError, ArgumentError, DataError
from beholder.core.images import Images, reason_of

from .columns import (
    PATH,
    Roles,
    find_roles,
    read_labels,
    read_splits,
    read_texts,
    read_weights,
)
from .draft import Choices, Draft, Skipped
from .names import SPLIT_WORDS, normal
from .stores import FileStore, read_arrow
from .walk import Listing

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".arrow")
NAMES = {
    f"{name}{suffix}"
    for name in ("labels", "metadata", "index")
    for suffix in (".csv", ".tsv", ".parquet", ".jsonl")
}
"""Tables that speak for the folder they lie in."""

FOLDERS_TRIED = 500


def table_in(listing: Listing) -> Path | None:
    """The one table that speaks for a folder. Raises `AmbiguousDataError` if there are two."""
    found = sorted(name for name in listing.top if name.lower() in NAMES)
    if len(found) > 1:
        raise AmbiguousDataError(
            f"{listing.root.name} holds two tables, {found[0]} and {found[1]}.",
            f"Give the one that counts, {listing.root / found[0]}, or --format folders for none.",
        )
    return listing.root / found[0] if found else None


def refuse_disagreement(images: Images, listing: Listing) -> None:
    """Raises `AmbiguousDataError` if class folders say otherwise than the table, with 3 files."""
    children = listing.children
    classes = len(children) > 1 and not listing.at_root
    if not classes or any(child.casefold() in SPLIT_WORDS for child in children):
        return
    if images.kind in ("multilabel", "unlabelled"):
        reading = "several labels per image" if images.kind == "multilabel" else "no labels"
        differing = [f"{len(children)} folders, but the table gives {reading}"]
    else:
        rows = images.table.select("path", "label").iter_rows()
        differing = [
            f"{path} is {images.classes[label]}"
            for path, label in rows
            if label is not None and normal(path.split("/")[0]) != images.classes[label]
        ]
    if differing:
        raise AmbiguousDataError(
            f"In {listing.root.name} the table and the class folders disagree:"
            f" {'; '.join(differing[:3])}.",
            "--format table believes the table, --format folders the folders.",
        )


def read_table(path: Path, choices: Choices, name: str) -> Images:
    """Open the table at `path`; its images lie relative to it, or below `choices.root`.

    Raises:
        DataError: no table, no path column, a cell that cannot be, or most files missing.
        AmbiguousDataError, ArgumentError: see `find_roles`.
    """
    return from_frame(read_frame(path), path, choices, name)


def from_frame(
    frame: pl.DataFrame,
    path: Path,
    choices: Choices,
    name: str,
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> Images:
    """`read_table` of a frame that was read already. Arguments as of `read_labels`."""
    roles = find_roles(frame.schema, choices)
    if roles.path is None:
        raise DataError(
            f"{path.name} has no column of paths.",
            f"Call it {PATH[0]} (or {', '.join(PATH[1:])}); the columns are"
            f" {', '.join(frame.columns)}.",
        )
    if not len(frame):
        raise DataError(f"{path.name} has no rows.")
    root = choices.root or path.parent
    if not root.is_dir():
        raise DataError(f"--root {root}: there is no such folder.")
    keys, kept, skipped, notes = _resolve(frame, roles, root, path)
    frame, rows = frame[kept], [row + 1 for row in kept]
    draft = described(frame, roles, choices, rows, class_names or {})
    draft.keys, draft.paths = keys, [_relative(key, root) for key in keys]
    if roles.id is None:
        draft.ids = draft.paths
    draft.skipped, draft.notes = skipped, [*notes, *draft.notes]
    return draft.images(name, FileStore(root), "table", choices)


def described(
    frame: pl.DataFrame,
    roles: Roles,
    choices: Choices,
    rows: Sequence[int],
    class_names: Mapping[str, Sequence[str]],
) -> Draft:
    """A draft with all that the columns say but the place of the images."""
    ids = [text or "" for text in read_texts(frame[roles.id])] if roles.id else []
    if "" in ids:
        raise DataError(f"Row {rows[ids.index('')]}: the id is empty.", "Fill or drop the column.")
    return Draft(
        ids=ids,
        keys=[],
        paths=[],
        labels=read_labels(frame, roles, choices, rows, class_names),
        sources=read_texts(frame[roles.source]) if roles.source else None,
        splits=read_splits(frame[roles.split], rows) if roles.split else None,
        weights=read_weights(frame[roles.weight], roles.weight, rows) if roles.weight else None,
        groups={title: read_texts(frame[column]) for title, column in roles.groups.items()},
        notes=list(roles.notes),
    )


def _resolve(
    frame: pl.DataFrame, roles: Roles, root: Path, table: Path
) -> tuple[list[str], list[int], list[Skipped], list[str]]:
    """Keys and numbers of the rows whose file is there once; the others skipped; notes."""
    assert roles.path is not None
    texts = frame[roles.path].cast(pl.String).to_list()
    label = roles.label or roles.labels or roles.probability
    answers = frame[label].to_list() if label else [None] * len(frame)
    first: dict[str, int] = {}
    keys: list[str] = []
    kept: list[int] = []
    skipped: list[Skipped] = []
    lost: list[str] = []
    for row, text in enumerate(texts):
        text = (text or "").strip()
        if "\\" in text and not (root / text).exists():
            text = text.replace("\\", "/")
        key = posixpath.normpath(text)
        reason, detail = _reason(root, key) if text else ("missing_file", "the path is empty")
        if key in first:
            same = answers[first[key]] == answers[row]
            note = "" if same else f", with another label: {answers[first[key]]}, {answers[row]}"
            reason, detail = "duplicate_row", f"row {row + 1} repeats row {first[key] + 1}{note}"
        elif reason:
            lost.append(text)
        if reason:
            skipped.append((_relative(key, root) if text else f"row {row + 1}", reason, detail))
            continue
        first[key] = row
        keys.append(key)
        kept.append(row)
    if len(lost) > 0.5 * len(texts):
        raise DataError(
            f"{len(lost):,} of {len(texts):,} files named in {table.name} are missing, such as"
            f" {', '.join(lost[:3])}.",
            _guess(root, lost[0]),
        )
    outside = sum(os.path.isabs(key) or key.startswith("..") for key in keys)
    notes = [f"{outside:,} paths lead out of {root.name}; they are only read"] if outside else []
    return keys, kept, skipped, notes


def _reason(root: Path, key: str) -> tuple[str, str]:
    """Why the file cannot be used, as far as it is known without opening it."""
    try:
        mode = (root / key).stat().st_mode
    except OSError as error:
        return reason_of(error), error.strerror or ""
    except ValueError:
        return "missing_file", "no possible path"
    return ("", "") if stat.S_ISREG(mode) else ("missing_file", "not a file")


def _relative(key: str, root: Path) -> str:
    """Never absolute, so that a moved folder keeps its ids."""
    inside = os.path.relpath(key, root.absolute()) if os.path.isabs(key) else key
    return inside.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _guess(root: Path, lost: str) -> str:
    """Which folder would make sense of a path, as a hint."""
    lost = lost.lstrip("/\\")
    for folder in _near_folders(root):
        if (folder / lost).is_file():
            place = os.path.relpath(folder, root)
            return f"Did you mean --root {place if place.startswith('..') else f'{place}/'}?"
    return f"Paths are relative to {root}; --root names another folder."


def _near_folders(root: Path) -> list[Path]:
    """Folders two levels down, then the parent and its folders."""
    found: list[Path] = []
    for level in (root, *_folders(root)):
        found += _folders(level)
    above = root.absolute().parent
    return list(dict.fromkeys([*found[:FOLDERS_TRIED], above, *_folders(above)[:FOLDERS_TRIED]]))


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []


def read_frame(path: Path) -> pl.DataFrame:
    """A table file, cells of text files all as text. Raises `DataError` where it is malformed."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ArgumentError(f"{path.name} is not a table.", f"Tables are {', '.join(SUFFIXES)}.")
    try:
        if suffix == ".parquet":
            return pl.read_parquet(path, glob=False)
        if suffix == ".arrow":
            return pl.DataFrame(read_arrow(path))
        if suffix == ".jsonl":
            return pl.read_ndjson(_text(path).encode(), infer_schema_length=None)
        return _delimited(_text(path), suffix)
    except (pl.exceptions.PolarsError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path.name} cannot be read as a table: {reason}.") from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}.") from error


def _delimited(text: str, suffix: str) -> pl.DataFrame:
    if not text.strip():
        return pl.DataFrame()
    separator = "\t" if suffix == ".tsv" else _separator(text)
    return pl.read_csv(io.StringIO(text), separator=separator, infer_schema=False, null_values=[""])


def _separator(text: str) -> str:
    """Comma, semicolon or tab: whichever parts the header into most columns."""
    header = text.lstrip("\r\n").splitlines()[0]
    return max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark))))


def _text(path: Path) -> str:
    """UTF-8 or UTF-16 by its byte order mark, UTF-8 without, else Windows-1252."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")

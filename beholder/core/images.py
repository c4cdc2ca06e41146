"""Images: one table row per image, and a store that gives the bytes of each.

Every source (folder, tar, Parquet, built-in data) ends as the same noun: `Images` = a polars table
plus a `Store`. Bytes are always those of an encoded image file, so hashing, caching and reading are
the same for all of them.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import polars as pl

from .decode import MAX_PIXELS, Unreadable, decode

DataKind = Literal["classes", "multilabel", "one_class", "unlabelled"]

TABLE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,  # unique; the path relative to the root, where there is one
    "key": pl.String,  # what `Store.read` takes
    "path": pl.String,  # shown to people; relative, never absolute
    "label": pl.Int32,  # index into `classes`; null = none, or an exact tie
    "q": pl.List(pl.Float32),  # the label's distribution over classes; null = certain
    "labels": pl.List(pl.Int32),  # several labels per image; null elsewhere
    "source": pl.String,  # what must not straddle a split; null = the image itself
    "split": pl.String,  # given role: train, val, test; null = not given
    "weight": pl.Float32,  # >= 0
}
"""Columns of `Images.table`; `group_NAME` columns (String) may follow, and `mask` (the key of a
picture of the fault) where the layout has such."""

FINGERPRINT_SCHEMA = 1


class Store(Protocol):
    """Where the bytes are."""

    def read(self, key: str) -> bytes:
        """The encoded image. Raises OSError (FileNotFoundError, PermissionError, ...)."""
        ...

    def stat(self, key: str) -> tuple[str, int, int, int] | None:
        """(absolute place, size, mtime_ns, inode) by which a hash may be remembered, or None."""
        ...


@dataclass(frozen=True)
class Images:
    """A dataset: `table` (columns `TABLE_SCHEMA`), `store`, and what was noticed on opening it."""

    name: str
    classes: tuple[str, ...]
    table: pl.DataFrame
    store: Store
    # folders, split_folders, flat, anomaly, table, coco, webdataset, parquet, datasets, builtin
    format: str
    kind: DataKind
    root_label: str = ""  # last part of the path as given: shown, never the whole path
    skipped: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(
            schema={"path": pl.String, "reason": pl.String, "detail": pl.String}
        )
    )
    notes: tuple[str, ...] = ()
    source_given: bool = False
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.table)

    @property
    def groups(self) -> list[str]:
        """Names of the group columns, without their prefix."""
        return [name[6:] for name in self.table.columns if name.startswith("group_")]

    def read(self, row: int) -> np.ndarray:
        """Decoded RGB, uint8 [H, W, 3]. Raises `Unreadable`."""
        return decode(read_bytes(self.store, self.table["key"][row]), self.max_pixels)[0]

    def __getitem__(self, row: int) -> dict:
        """A sample: `image` uint8 [H, W, 3], and the table's columns of that row."""
        return {"image": self.read(row), **self.table.row(row, named=True)}

    def __iter__(self) -> Iterator[dict]:
        return (self[row] for row in range(len(self)))

    def where(self, keep: pl.Series | pl.Expr) -> Images:
        """The same dataset with only the rows where `keep` is true."""
        return replace(self, table=self.table.filter(keep))

    def fingerprint(self, hashes: Mapping[str, str]) -> str:
        """`fingerprint` of this table. `hashes`: id -> BLAKE2b-128 of the file's bytes."""
        return fingerprint(self.table, self.classes, hashes)


def read_bytes(store: Store, key: str) -> bytes:
    """`store.read`, with a lost, forbidden or circular file as `Unreadable`."""
    try:
        return store.read(key)
    except OSError as error:
        raise Unreadable(reason_of(error), error.strerror or str(error)) from error


def reason_of(error: OSError) -> str:
    """The reason code of a file that cannot be opened."""
    if isinstance(error, PermissionError):
        return "permission"
    if error.errno == errno.ELOOP:
        return "cycle"
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return "missing_file" if missing else "decode_error"


def fingerprint(table: pl.DataFrame, classes: Sequence[str], hashes: Mapping[str, str]) -> str:
    """BLAKE2b-128 (32 hexadecimal digits) of a dataset: specs/study.md section 2, 'Fingerprint'.

    One line per image, sorted: id, hash of the file's bytes, label, group, source, split, weight,
    parted by NUL; the schema number first. Changes with any of these, not with the order of the
    rows, the place of the folder or file times. Labels stand by name, so a mere change of their
    order changes nothing.

    Args:
        table: columns `TABLE_SCHEMA` and any `group_NAME`.
        classes: names that `label`, `labels` and `q` index.
        hashes: id -> hash of the file's bytes; must hold every id (KeyError).
    """
    group_columns = sorted(name for name in table.columns if name.startswith("group_"))
    groups = [
        "" if all(value is None for value in values) else _pairs(group_columns, values)
        for values in table.select(group_columns).iter_rows()
    ] or [""] * len(table)
    columns = table.select("id", "label", "q", "labels", "source", "split", "weight").iter_rows()
    lines = [
        "\0".join(
            _field(part)
            for part in (
                *(id, hashes[id], _label_text(classes, label, q, labels), group),
                *(source or "", split or "", "" if weight is None else repr(weight)),
            )
        )
        for (id, label, q, labels, source, split, weight), group in zip(
            columns, groups, strict=True
        )
    ]
    state = hashlib.blake2b(f"{FINGERPRINT_SCHEMA}\n".encode(), digest_size=16)
    for line in sorted(lines):
        state.update(line.encode() + b"\n")
    return state.hexdigest()


def _label_text(
    classes: Sequence[str], label: int | None, q: list[float] | None, labels: list[int] | None
) -> str:
    hard = [] if label is None else [classes[label]]
    several = [] if labels is None else ["", *sorted(classes[index] for index in labels)]
    shares = [] if q is None else _shares(classes, q)
    return "|".join(_field(part) for part in (*hard, *several, *shares))


def _shares(classes: Sequence[str], q: Sequence[float]) -> list[str]:
    return sorted(f"{name}={share!r}" for name, share in zip(classes, q, strict=True))


def _pairs(names: Sequence[str], values: Sequence[str | None]) -> str:
    return "|".join(
        f"{_field(name)}={_field(value or '')}" for name, value in zip(names, values, strict=True)
    )


def _field(text: str) -> str:
    """Text in which NUL, line feed and `|` are escaped, so that no two rows give one line."""
    if not any(mark in text for mark in "\\\0\n|"):
        return text
    text = text.replace("\\", "\\\\").replace("\0", "\\0")
    return text.replace("\n", "\\n").replace("|", "\\p")


def certainty(q: np.ndarray) -> np.ndarray:
    """(C max q - 1) / (C - 1), so |2p - 1| for two classes. `q`: [N, C] -> [N]."""
    classes = q.shape[1]
    return (classes * q.max(1) - 1) / (classes - 1) if classes > 1 else np.ones(len(q))

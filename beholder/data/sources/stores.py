"""Stores: where the bytes of an image are. Each satisfies `beholder.core.images.Store`."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROW_GROUPS_KEPT = 2
"""Row groups of a Parquet file held in memory, so that neighbours cost one read."""


@dataclass(frozen=True)
class FileStore:
    """Files under `root`; a key is a path relative to it, or absolute.

    Args:
        real_names: key -> true name, for names that are not valid UTF-8.
    """

    root: Path
    real_names: Mapping[str, str] = field(default_factory=dict)

    def place(self, key: str) -> Path:
        return self.root / self.real_names.get(key, key)

    def read(self, key: str) -> bytes:
        return self.place(key).read_bytes()

    def stat(self, key: str) -> tuple[str, int, int, int] | None:
        place = self.place(key)
        try:
            facts = place.stat()
        except OSError:
            return None
        return str(place.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ino


@dataclass(frozen=True)
class TarStore:
    """Members of uncompressed tar files, by key -> (tar file, offset, size)."""

    members: Mapping[str, tuple[Path, int, int]]

    def read(self, key: str) -> bytes:
        shard, offset, size = self.members[key]
        with shard.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def stat(self, key: str) -> tuple[str, int, int, int] | None:
        shard, offset, size = self.members[key]
        try:
            facts = shard.stat()
        except OSError:
            return None
        return f"{shard.absolute()}:{offset}", size, facts.st_mtime_ns, facts.st_ino


class BytesStore:
    """A column of images in Parquet or Arrow files; a key is 'FILE:ROW', both counted from 0.

    A cell is the encoded image, or {bytes, path} as the `datasets` library writes it; where its
    bytes are missing, `path` is read beside the file.
    """

    def __init__(self, files: Sequence[Path], column: str) -> None:
        self.files, self.column = tuple(files), column
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._starts: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    def read(self, key: str) -> bytes:
        file, row = map(int, key.split(":"))
        with self._lock:
            cell = self._cell(file, row)
        if isinstance(cell, dict):
            cell = cell["bytes"] or (self.files[file].parent / (cell["path"] or "")).read_bytes()
        if cell is None:
            raise FileNotFoundError(f"row {row + 1} holds no image")
        return cell

    def stat(self, key: str) -> None:
        return None

    def _cell(self, file: int, row: int) -> bytes | dict | None:
        if self.files[file].suffix == ".arrow":
            if (file, 0) not in self._groups:
                self._groups[file, 0] = read_arrow(self.files[file])[self.column]
            return self._groups[file, 0][row].as_py()
        group, first = self._group_of(file, row)
        if (file, group) not in self._groups:
            with pq.ParquetFile(self.files[file]) as parquet:
                table = parquet.read_row_group(group, columns=[self.column])
            self._groups[file, group] = table[self.column]
            while len(self._groups) > ROW_GROUPS_KEPT:
                self._groups.popitem(last=False)
        return self._groups[file, group][row - first].as_py()

    def _group_of(self, file: int, row: int) -> tuple[int, int]:
        """(row group, its first row) that holds `row`."""
        if file not in self._starts:
            facts = pq.read_metadata(self.files[file])
            sizes = [facts.row_group(index).num_rows for index in range(facts.num_row_groups)]
            self._starts[file] = [0, *np.cumsum(sizes).tolist()]
        starts = self._starts[file]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return group, starts[group]


def read_arrow(path: Path) -> pa.Table:
    """An Arrow file in either of its two formats, memory-mapped."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


@dataclass(frozen=True)
class ArrayStore:
    """Pictures held as numbers, uint8 [N, H, W]; a key is the row; read as PNG."""

    pictures: np.ndarray

    def read(self, key: str) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(self.pictures[int(key)]).save(stream, "PNG")
        return stream.getvalue()

    def stat(self, key: str) -> None:
        return None


@dataclass(frozen=True)
class RenderStore:
    """SVG drawings under `root`, drawn on read at `side` pixels as PNG with transparency."""

    root: Path
    side: int = 224

    def read(self, key: str) -> bytes:
        import resvg_py

        try:
            return bytes(
                resvg_py.svg_to_bytes(
                    svg_path=str(self.root / key),
                    width=self.side,
                    height=self.side,
                    skip_system_fonts=True,
                )
            )
        except ValueError as error:
            raise OSError(f"{key} cannot be drawn: {error}") from error

    def stat(self, key: str) -> tuple[str, int, int, int] | None:
        try:
            facts = (self.root / key).stat()
        except OSError:
            return None
        place = f"{self.root / key}@{self.side}"
        return place, facts.st_size, facts.st_mtime_ns, facts.st_ino

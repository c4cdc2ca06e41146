"""The files below a folder: every real directory once, links followed, in natural order."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from beholder.core.images import reason_of

from .draft import Skipped
from .names import natural_key

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".webp", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k"}
    | {".jpf", ".jpx", ".jxl", ".heic", ".heif", ".tga", ".ico", ".icns", ".pcx", ".sgi", ".qoi"}
    | {".dds", ".psd", ".svg"}
)
"""Files that claim to be images; whether they can be read is found out on reading."""

SYSTEM_FILES = {"Thumbs.db", "desktop.ini", "__MACOSX"}


@dataclass
class Listing:
    """What lies below `root`.

    Attributes:
        images: paths relative to `root`, with '/', valid UTF-8.
        others: number of other files by suffix.
        top: names of the other files directly in `root`.
        folders: names of the directories directly in `root`.
        real_names: path -> true name, where that is not valid UTF-8.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    top: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    real_names: dict[str, str] = field(default_factory=dict)

    @cached_property
    def at_root(self) -> list[str]:
        """Images directly in the root."""
        return [path for path in self.images if "/" not in path]

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """Folder directly in the root -> the images below it, in natural order of the folders."""
        found: dict[str, list[str]] = {}
        for path in self.images:
            child, slash, _ = path.partition("/")
            if slash:
                found.setdefault(child, []).append(path)
        return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))

    def ignored(self) -> list[str]:
        """The note on files that are not images, if there are any."""
        count = self.others.total()
        if not count:
            return []
        kinds = ", ".join(f"{number:,} {suffix}" for suffix, number in self.others.most_common(5))
        return [f"{count:,} files are not images ({kinds})"]


def walk(root: Path) -> Listing:
    """List `root`. A directory that cannot be read, or a circle of links, is in `skipped`."""
    listing = Listing(root)
    repeated: list[str] = []
    facts = root.stat()
    _walk(listing, "", (os.path.realpath(root),), {(facts.st_dev, facts.st_ino)}, repeated)
    if repeated:
        listing.notes.append(
            f"{len(repeated):,} links lead to folders that were read already: {repeated[0]}"
        )
    return listing


def _walk(
    listing: Listing,
    below: str,
    ancestors: tuple[str, ...],
    seen: set[tuple[int, int]],
    repeated: list[str],
) -> None:
    directory = listing.root / below
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        listing.skipped.append((_shown(below) or ".", reason_of(error), error.strerror or ""))
        return
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        suffix = PurePosixPath(entry.name).suffix.lower()
        if entry.name.startswith(".") or entry.name in SYSTEM_FILES:
            listing.others["hidden or system"] += entry.is_file(follow_symlinks=False)
            continue
        try:
            facts = entry.stat()
        except OSError as error:
            if suffix in IMAGE_SUFFIXES or error.errno in (errno.ELOOP, errno.EACCES):
                listing.skipped.append((_shown(path), reason_of(error), error.strerror or ""))
            continue
        if entry.is_dir():
            _enter(listing, path, ancestors, (facts.st_dev, facts.st_ino), seen, repeated)
        elif suffix in IMAGE_SUFFIXES and entry.is_file():
            shown = _shown(path)
            if shown != path:
                listing.real_names[shown] = path
            listing.images.append(shown)
        else:
            listing.others[suffix or "without suffix"] += 1
            if not below:
                listing.top.append(_shown(entry.name))


def _enter(
    listing: Listing,
    path: str,
    ancestors: tuple[str, ...],
    identity: tuple[int, int],
    seen: set[tuple[int, int]],
    repeated: list[str],
) -> None:
    real = os.path.realpath(listing.root / path)
    above = real.rstrip(os.sep) + os.sep
    if any((ancestor + os.sep).startswith(above) for ancestor in ancestors):
        listing.skipped.append((_shown(path), "cycle", "links back to a folder above it"))
    elif identity in seen:
        repeated.append(_shown(path))
    else:
        seen.add(identity)
        if "/" not in path:
            listing.folders.append(_shown(path))
        _walk(listing, path, (*ancestors, real), seen, repeated)


def _shown(path: str) -> str:
    """Valid UTF-8: bytes that are not become visible escapes."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")

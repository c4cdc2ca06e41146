"""WebDataset: images and their labels as neighbours in uncompressed tar files (form 5)."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from beholder.core.errors import DataError
from beholder.core.images import Images

from .draft import Choices, Draft, Skipped
from .labels import judged_as_classes, named, unlabelled
from .names import natural_key, normal
from .stores import TarStore
from .walk import IMAGE_SUFFIXES

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
CAPTION_SHARE = 0.2


@dataclass
class Sample:
    """One image and its small neighbours: extension -> bytes."""

    key: str
    name: str = ""
    neighbours: dict[str, bytes] = field(default_factory=dict)


def read_webdataset(place: str, choices: Choices, name: str) -> Images:
    """Open a tar file, a folder of them, or a range `shards-{000..010}.tar`.

    The label of a sample is `cls`, else the field `label` (or `choices.label_column`) of `json`,
    else `txt` where the texts repeat as class names do.

    Raises:
        DataError: a shard is missing or compressed, or there is no image.
    """
    choices.refuse("a webdataset", "source_column", "split_column", "root")
    samples: list[Sample] = []
    members: dict[str, tuple[Path, int, int]] = {}
    skipped: list[Skipped] = []
    for shard in shards(place):
        _read_shard(shard, samples, members, skipped)
    samples = [sample for sample in samples if sample.name]
    if not samples:
        raise DataError(
            f"There are no images in {name}.", "Members must be named KEY.jpg, KEY.cls."
        )
    keys = [sample.key for sample in samples]
    names, notes = _labels(samples, choices.label_column or "label")
    column = choices.label_column or "the label"
    found, more = judged_as_classes(names, column, choices.bins)
    labels = named(found, choices.classes) if any(found) else unlabelled(len(samples))
    draft = Draft(keys, keys, [sample.name for sample in samples], labels, skipped=skipped)
    draft.notes = [*notes, *more]
    return draft.images(name, TarStore(members), "webdataset", choices)


def shards(place: str) -> list[Path]:
    """The tar files that `place` names, in order. Raises `DataError` if one is missing."""
    path = Path(place).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.tar"), key=lambda shard: natural_key(shard.name))
        if not found:
            raise DataError(f"There are no .tar files in {path.name}.")
        return found
    found = [Path(text).expanduser() for text in expand(place)]
    if missing := [shard.name for shard in found if not shard.is_file()]:
        raise DataError(f"{len(missing)} of {len(found)} tar files are missing: {missing[0]}.")
    return found


def expand(text: str) -> list[str]:
    """'a-{08..10}.tar' to 'a-08.tar', 'a-09.tar', 'a-10.tar'; several ranges multiply."""
    match = RANGE.search(text)
    if match is None:
        return [text]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    heads = [f"{text[: match.start()]}{number:0{len(first)}d}" for number in numbers]
    return [head + tail for head in heads for tail in expand(text[match.end() :])]


def _read_shard(
    shard: Path,
    samples: list[Sample],
    members: dict[str, tuple[Path, int, int]],
    skipped: list[Skipped],
) -> None:
    """Add the samples of one tar file. Neighbours share the name up to its first point."""
    by_key: dict[str, Sample] = {}
    for member, content in _members(shard, skipped):
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        extension = extension.lower()
        key = f"{shard.name}/{folder}/{stem}" if folder else f"{shard.name}/{stem}"
        if key not in by_key:
            by_key[key] = Sample(key)
            samples.append(by_key[key])
        sample = by_key[key]
        if content is not None:
            sample.neighbours[extension] = content
        elif f".{extension}" in IMAGE_SUFFIXES and not sample.name:
            sample.name = f"{shard.name}/{member.name}"
            members[key] = (shard, member.offset_data, member.size)


def _members(shard: Path, skipped: list[Skipped]) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Regular members in order, with the content of those that can be labels."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                    continue
                small = member.name.lower().endswith((".cls", ".json", ".txt"))
                stream = archive.extractfile(member) if small else None
                yield member, stream.read() if stream else None
    except tarfile.ReadError as error:
        if "unexpected end" not in str(error):
            raise DataError(
                f"{shard.name} is not an uncompressed tar file ({error}).",
                "Unpack .tar.gz first (gunzip): images are read at any place in the file.",
            ) from error
        skipped.append((shard.name, "truncated", "the tar file ends in the middle of a member"))


def _labels(samples: list[Sample], field_name: str) -> tuple[list[str | None], list[str]]:
    """The labels in the first form that any sample has, and notes."""
    extensions = {extension for sample in samples for extension in sample.neighbours}
    if "cls" in extensions:
        return [_text(sample.neighbours.get("cls")) for sample in samples], []
    if "json" in extensions:
        names = [_json_field(sample, field_name) for sample in samples]
        if any(names):
            return names, []
    names = [_text(sample.neighbours.get("txt")) for sample in samples]
    distinct = len({name for name in names if name})
    if distinct > 50 and distinct > CAPTION_SHARE * len(samples):
        note = f"{distinct:,} different texts are captions, not classes: read without labels"
        return [None] * len(samples), [note]
    return names, []


def _json_field(sample: Sample, field_name: str) -> str | None:
    content = sample.neighbours.get("json")
    if content is None:
        return None
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{sample.key}.json cannot be read: {error}.") from error
    value = value.get(field_name) if isinstance(value, dict) else None
    return None if value is None else normal(str(value)) or None


def _text(content: bytes | None) -> str | None:
    return None if content is None else normal(content.decode(errors="replace")) or None

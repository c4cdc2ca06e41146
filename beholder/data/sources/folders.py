"""Folders of images: split folders, MVTec AD, class folders, flat (forms 7 to 10 of study.md)."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from beholder.core.errors import AmbiguousDataError, DataError
from beholder.core.images import Images

from .draft import Choices, Draft
from .labels import named
from .names import SPLIT_WORDS, class_order, natural_key, normal
from .stores import FileStore
from .walk import Listing

MASKS = "ground_truth"
COLUMN_CHOICES = ("label_column", "source_column", "split_column", "root", "bins")


def layout(listing: Listing) -> str:
    """`anomaly`, `split_folders`, `folders` or `flat`; the first that fits.

    Anomaly is asked before split folders, of which it is a special case.

    Raises:
        DataError: no images.
        AmbiguousDataError: two readings are as good; names both and `--format`.
    """
    children, here = listing.children, listing.root.name
    if not listing.images:
        raise DataError(f"There are no images in {here}.", _what_else(listing))
    if is_anomaly(listing):
        return "anomaly"
    roles = {child: SPLIT_WORDS.get(child.casefold()) for child in children}
    given = {role for role in roles.values() if role}
    if len(given) >= 2 and all(roles.values()):
        return "split_folders"
    if len(children) < 2:
        return "flat"
    if listing.at_root:
        raise AmbiguousDataError(
            f"{here} holds {len(listing.at_root):,} images directly (such as"
            f" {listing.at_root[0]}) and the folders {_some(children)}: either the folders are"
            " classes, or all is one heap without labels.",
            "--format folders leaves the images outside the folders out; --format flat reads all.",
        )
    if given:
        words = [child for child, role in roles.items() if role]
        raise AmbiguousDataError(
            f"{here} holds {_some(children)}: either all of them are classes, or {_some(words)}"
            " are parts of a split.",
            "--format folders takes all as classes; --format split_folders reads only the parts.",
        )
    return "folders"


def is_anomaly(listing: Listing) -> bool:
    """Whether `train` holds only `good`, and `test` holds `good` and others (MVTec AD)."""
    inside = {role: set(_by_class(listing, role)) for role in ("train", "test")}
    return inside["train"] == {"good"} and "good" in inside["test"] and len(inside["test"]) > 1


def read_folders(listing: Listing, form: str, name: str, choices: Choices) -> Images:
    """Open `listing` as `form` (see `layout`). Raises `DataError` if nothing fits it."""
    choices.refuse(f"a folder read as {form}", *COLUMN_CHOICES)
    draft = READERS[form](listing, choices)
    draft.skipped = [*listing.skipped, *draft.skipped]
    draft.notes = [*listing.notes, *listing.ignored(), *draft.notes]
    store = FileStore(listing.root, listing.real_names)
    kind = "one_class" if form == "anomaly" else None
    return draft.images(name, store, form, choices, kind=kind)


def _flat(listing: Listing, choices: Choices) -> Draft:
    draft = _draft(listing.images, [None] * len(listing.images), choices)
    children = listing.children
    if len(children) == 1 and not listing.at_root:
        (child,) = children
        below = class_order({path.split("/")[1] for path in listing.images if path.count("/") > 1})
        if len(below) > 1:
            draft.notes.append(
                f"no labels: all images are in the one folder {child}; it holds {_some(below)},"
                f" so give .../{child} if these are the classes"
            )
    return draft


def _class_folders(listing: Listing, choices: Choices) -> Draft:
    children = listing.children
    if not children:
        raise DataError(
            f"{listing.root.name} holds no folders with images.",
            "--format flat reads it unlabelled.",
        )
    paths = [path for members in children.values() for path in members]
    draft = _draft(paths, [normal(path.split("/")[0]) for path in paths], choices)
    draft.groups = _deeper(draft.paths, _labels_of(draft), 1)
    if outside := listing.at_root:
        draft.notes.append(f"{len(outside):,} images outside the class folders are left out")
    if empty := [folder for folder in listing.folders if folder not in children]:
        draft.notes.append(f"no images in {_some(empty)}: not taken as a class")
    return draft


def _split_folders(listing: Listing, choices: Choices) -> Draft:
    """Parts of a split, each with class folders or flat."""
    parts = {c: SPLIT_WORDS[c.casefold()] for c in listing.children if c.casefold() in SPLIT_WORDS}
    if not parts:
        raise DataError(
            f"{listing.root.name} holds no folder named as a part of a split.",
            f"Known are {', '.join(SPLIT_WORDS)}.",
        )
    paths = [path for part in parts for path in listing.children[part]]
    classes = {part: _by_class(listing, part) for part in parts}
    labelled = {
        part for part, found in classes.items() if len(found) > 1 or _classes_match(found, classes)
    }
    labels = [
        normal(path.split("/")[1])
        if path.split("/")[0] in labelled and path.count("/") > 1
        else None
        for path in paths
    ]
    draft = _draft(paths, labels, choices)
    draft.splits = [parts[path.split("/")[0]] for path in draft.paths]
    draft.groups = _deeper(draft.paths, _labels_of(draft), 2)
    if left_out := len(listing.images) - len(paths):
        draft.notes.append(f"{left_out:,} images outside the parts of the split are left out")
    return draft


def _classes_match(found: Mapping[str, Sequence[str]], parts: Mapping[str, Mapping]) -> bool:
    """Whether a part's only folder is a class that another part has too."""
    return len(found) == 1 and any(
        len(other) > 1 and set(found) <= set(other) for other in parts.values()
    )


def _anomaly(listing: Listing, choices: Choices) -> Draft:
    """MVTec AD: `train/good`, `test/good`, `test/FAULT`, `ground_truth/FAULT/NAME_mask.png`."""
    choices.refuse("an anomaly layout", "classes")
    if not is_anomaly(listing):
        raise DataError(
            f"{listing.root.name} has no anomaly layout.",
            "It needs train/good and nothing else in train, test/good, and a folder per fault.",
        )
    paths = [path for part in ("train", "test") for path in _inside(listing, part)]
    names = [normal(path.split("/")[1]) for path in paths]
    order = ("good", *(name for name in class_order(names) if name != "good"))
    masks = {
        (PurePosixPath(path).parent.name, PurePosixPath(path).stem.removesuffix("_mask")): path
        for path in listing.images
        if path.startswith(f"{MASKS}/")
    }
    draft = Draft(paths, paths, paths, named(names, order))
    draft.splits = [path.split("/")[0] for path in paths]
    draft.masks = [
        masks.get((PurePosixPath(path).parent.name, PurePosixPath(path).stem)) for path in paths
    ]
    if outside := len(listing.images) - len(paths) - len(masks):
        draft.notes.append(f"{outside:,} images outside train, test and {MASKS} are left out")
    return draft


READERS = {
    "flat": _flat,
    "folders": _class_folders,
    "split_folders": _split_folders,
    "anomaly": _anomaly,
}


def _draft(paths: list[str], labels: Sequence[str | None], choices: Choices) -> Draft:
    paired = sorted(zip(paths, labels, strict=True), key=lambda pair: natural_key(pair[0]))
    ids = [path for path, _ in paired]
    found = named([label for _, label in paired], choices.classes)
    if found.kind == "unlabelled":
        choices.refuse("images without labels", "classes")
    return Draft(ids, ids, ids, found)


def _labels_of(draft: Draft) -> list[int]:
    return [-1 if label is None else label for label in draft.labels.label]


def _deeper(paths: Sequence[str], labels: Sequence[int], depth: int) -> dict[str, list[str | None]]:
    """Folders below `depth` levels as the group `folder`, if every class has at least two."""
    folders = [posixpath.dirname("/".join(path.split("/")[depth:])) or None for path in paths]
    kinds: dict[int, set[str | None]] = {}
    for label, folder in zip(labels, folders, strict=True):
        kinds.setdefault(label, set()).add(folder)
    return {"folder": folders} if all(len(found) > 1 for found in kinds.values()) else {}


def _inside(listing: Listing, part: str) -> list[str]:
    """Images in the class folders of `part`."""
    return [path for members in _by_class(listing, part).values() for path in members]


def _by_class(listing: Listing, part: str) -> dict[str, list[str]]:
    """Folder inside `part` -> its images."""
    found: dict[str, list[str]] = {}
    for path in listing.images:
        parts = path.split("/")
        if parts[0] == part and len(parts) > 2:
            found.setdefault(parts[1], []).append(path)
    return found


def _some(names: Sequence[str] | Mapping[str, object]) -> str:
    """At most five names, for a message."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _what_else(listing: Listing) -> str:
    if {"dataset_info.json", "dataset_dict.json"} & set(listing.top):
        return f"It looks like a saved Hugging Face dataset: give hf:{listing.root}."
    if ".parquet" in listing.others:
        return f"It holds Parquet files: give parquet:{listing.root}."
    if listing.others:
        kinds = ", ".join(
            f"{number:,} {suffix}" for suffix, number in listing.others.most_common(3)
        )
        return f"It holds {kinds}."
    return "It is empty."

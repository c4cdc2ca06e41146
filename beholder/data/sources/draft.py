"""What every source hands over: choices of the user in, rows gathered, `Images` out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from beholder.core.decode import MAX_PIXELS
from beholder.core.errors import ArgumentError, DataError
from beholder.core.images import TABLE_SCHEMA, DataKind, Images, Store

from .labels import Labels

Skipped = tuple[str, str, str]
"""path, reason (one of `beholder.core.decode.REASONS`), detail."""


@dataclass(frozen=True)
class Choices:
    """What the user said about reading; see `open_images`."""

    label_column: str | None = None
    source_column: str | None = None
    split_column: str | None = None
    classes: tuple[str, ...] | None = None
    root: Path | None = None
    bins: int | None = None
    max_pixels: int = MAX_PIXELS

    def refuse(self, form: str, *names: str) -> None:
        """Raises `ArgumentError` for a choice that makes no sense for `form`."""
        for name in names:
            if getattr(self, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ArgumentError(f"{option} does not apply to {form}.", "Leave it out.")


@dataclass
class Draft:
    """Rows of a dataset; every list is as long as `ids`, or None where nothing is given."""

    ids: list[str]
    keys: list[str]
    paths: list[str]
    labels: Labels
    sources: list[str | None] | None = None
    splits: list[str | None] | None = None
    weights: list[float | None] | None = None
    masks: list[str | None] | None = None
    groups: Mapping[str, list[str | None]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def images(
        self,
        name: str,
        store: Store,
        format: str,
        choices: Choices,
        kind: DataKind | None = None,
        root_label: str | None = None,
    ) -> Images:
        """The dataset; images without a label among labelled ones are skipped.

        Raises:
            DataError: no image is left, or two have the same id.
        """
        none: list[None] = [None] * len(self.ids)
        columns = {
            "id": self.ids,
            "key": self.keys,
            "path": self.paths,
            "label": self.labels.label,
            "q": self.labels.q,
            "labels": self.labels.sets,
            "source": self.sources or none,
            "split": self.splits or none,
            "weight": self.weights or none,
            **{f"group_{title}": values for title, values in self.groups.items()},
            **({} if self.masks is None else {"mask": self.masks}),
        }
        schema = {title: TABLE_SCHEMA.get(title, pl.String) for title in columns}
        table = pl.DataFrame(columns, schema=schema)
        given = pl.Series(self.labels.given, dtype=pl.Boolean)
        missing = [(path, "label_missing", "") for path in table.filter(~given)["path"]]
        table = table.filter(given)
        if not len(table):
            raise DataError(
                f"No image of {name} can be used: {_reasons([*self.skipped, *missing])}."
            )
        if table["id"].n_unique() < len(table):
            double = table.filter(table["id"].is_duplicated())["id"][0]
            raise DataError(f"Two images have the id {double!r}.", "Ids must be unique.")
        return Images(
            name=name,
            classes=self.labels.classes,
            table=table,
            store=store,
            format=format,
            kind=kind or self.labels.kind,
            root_label=name if root_label is None else root_label,
            skipped=pl.DataFrame(
                [*self.skipped, *missing],
                schema={"path": pl.String, "reason": pl.String, "detail": pl.String},
                orient="row",
            ),
            notes=tuple(dict.fromkeys([*self.notes, *self.labels.notes])),
            source_given=self.sources is not None,
            max_pixels=choices.max_pixels,
        )


def _reasons(skipped: Sequence[Skipped]) -> str:
    counts = Counter(reason for _, reason, _ in skipped)
    return (
        ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "none found"
    )

"""Images that were read once: what is known of every file, and what must not be parted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from beholder.core.errors import DataError
from beholder.core.images import Images
from beholder.core.scan import scan
from beholder.core.split import Split, split, units

from .curate.duplicates import Copies, find_copies


class Scanned:
    """A data set after the scan, in the order of its ids.

    Attributes:
        images: the readable ones. facts: one row each, `core.scan.FACTS_SCHEMA`.
        fingerprint: of the data as it was scanned.
        opened: files that were looked at, readable or not.
        unit: int [N]; images of one unit never lie in two splits (after `find_units`).
        copy_group: int [N]; -1 = no copy of it is there.
        copies: all that the search for them found (after `find_units`).

    Raises:
        DataError: nothing can be read.
    """

    def __init__(
        self,
        images: Images,
        *,
        max_pixels: int,
        workers: int,
        use_cache: bool,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        if not len(images):
            raise DataError(f"{images.name} holds no image that can be read.", _reasons(images))
        self.opened = len(images) + len(images.skipped)
        self.images, self.facts = scan(
            images, max_pixels=max_pixels, workers=workers, use_cache=use_cache, progress=progress
        )
        if not len(self.images):
            raise DataError(f"None of {len(images):,} images can be read.", _reasons(self.images))
        self.notes: list[str] = []
        if several := int((self.facts["frames"] > 1).sum()):
            self.notes.append(f"{several:,} files hold several frames; the first is looked at.")
        hashes = dict(zip(self.facts["id"], self.facts["file_hash"], strict=True))
        self.fingerprint = self.images.fingerprint(hashes)
        self.unit = np.arange(len(self.images))
        self.copy_group = np.full(len(self.images), -1)
        self.copies: Copies | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def hashes(self) -> list[str]:
        """Hash of every file's bytes."""
        return self.facts["file_hash"].to_list()

    def find_units(self, seed: int) -> None:
        """Sources, exact duplicates and copies that were re-encoded or resized become one unit."""
        copies = find_copies(self.facts, self.images.read, seed=seed)
        self.unit = units(self.images.table, self.facts["exact_hash"], copies.group)
        self.copy_group, self.copies = copies.group, copies
        if copies.look_alike and copies.sentence not in self.notes:
            self.notes.append(copies.sentence)

    def splits(self, seeds: range) -> list[Split]:
        """One split per seed; a given one is the only one."""
        table = self.images.table.with_columns(pl.Series("unit", self.unit))
        first = split(table, seeds[0], classes=self.images.classes)
        if first.kind == "given":
            return [first]
        return [first, *(split(table, seed, classes=self.images.classes) for seed in seeds[1:])]

    def keep(self, mask: np.ndarray, seed: int) -> None:
        """Go on with these images only."""
        self.images = self.images.where(pl.Series(mask))
        self.facts = self.facts.filter(pl.Series(mask))
        self.find_units(seed)

    def lose(self, gone: dict[str, str], seed: int) -> None:
        """Go on without images that vanished since the scan. `gone`: id -> what happened."""
        table = self.images.table.filter(pl.col("id").is_in(list(gone)))
        lost = table.select(
            "path",
            pl.lit("missing_file").alias("reason"),
            pl.col("id").replace_strict(gone).alias("detail"),
        )
        skipped = pl.concat([self.images.skipped, lost.cast(self.images.skipped.schema)])
        self.images = replace(self.images, skipped=skipped)
        self.keep(~np.isin(self.images.table["id"].to_numpy(), list(gone)), seed)


def _reasons(images: Images) -> str:
    counts = images.skipped["reason"].value_counts(sort=True)
    return "; ".join(f"{count:,} x {reason}" for reason, count in counts.iter_rows())

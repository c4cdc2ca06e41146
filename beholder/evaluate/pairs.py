"""The images on which two models can be compared: judged by both, learned from by neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from beholder.core.sections import Value

if TYPE_CHECKING:
    from .report.report import Report

Unit = Literal["image", "source", "copy_group"]
ANSWERS: dict[str, pl.DataType | type[pl.DataType]] = {
    "label_name": pl.String,
    "predicted": pl.Int32,
    "probability": pl.List(pl.Float32),
    "refused": pl.Boolean,
}


@dataclass(frozen=True)
class Side:
    """A model's answers to images.

    Attributes:
        name: what it is called in sentences.
        frame: as `predictions.parquet`: id, exact_hash, split, and where there are answers
            label_name, predicted, probability, refused; the first of two sides also has path,
            unit, weight, source, group_*.
        classes: names that `predicted` and `probability` begin with; further ones have none.
        fingerprint: of its data; '' = not known.
        retained: skill under corruptions, where it was measured.
    """

    name: str
    frame: pl.DataFrame
    classes: tuple[str, ...]
    fingerprint: str = ""
    retained: Value | None = None

    @classmethod
    def of(cls, report: Report, name: str) -> Side:
        """What a report on disk holds. Raises `DataError` without `predictions.parquet`."""
        retained = report["corruptions"].values.get("retained") if "corruptions" in report else None
        classes = tuple(item.name for item in report.data.classes)
        return cls(name, report.predictions, classes, report.data.fingerprint, retained)

    def answered(self) -> pl.DataFrame:
        """`frame` with `answer`: by name, '' for a class without one, null where there is none."""
        frame = self.frame.with_columns(
            pl.lit(None, kind).alias(name)
            for name, kind in ANSWERS.items()
            if name not in self.frame.columns
        )
        answer = pl.col("predicted").replace_strict(
            dict(enumerate(self.classes)), default="", return_dtype=pl.String
        )
        there = pl.col("predicted").is_not_null()
        return frame.with_columns(pl.when(there).then(answer).alias("answer"))

    def learned(self) -> set[str]:
        """Pixel hashes of the images that were not held back."""
        return set(self.frame.filter(pl.col("split") != "test")["exact_hash"])


@dataclass(frozen=True)
class Pairs:
    """The images that are compared.

    Attributes:
        frame: rows of the first side with its `answer`; the other's columns end on `_other`.
        learned: images in both data sets that are left out as one model learned from them.
        other_pixels: images of the same name whose pixels differ, left out.
    """

    frame: pl.DataFrame
    learned: int
    other_pixels: int

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def here(self) -> np.ndarray:
        """Where the first is right, [N] bool; `there`: the other."""
        return (self.frame["answer"] == self.frame["label_name"]).to_numpy()

    @property
    def there(self) -> np.ndarray:
        return (self.frame["answer_other"] == self.frame["label_name"]).to_numpy()

    @property
    def units(self) -> np.ndarray:
        return self.frame["unit"].to_numpy()

    @property
    def weights(self) -> np.ndarray | None:
        """None where every image counts the same."""
        weights = self.frame["weight"].to_numpy().astype(float)
        return None if (weights == 1).all() else weights

    @property
    def unit(self) -> Unit:
        """What is redrawn."""
        if "source" in self.frame.columns and self.frame["source"].null_count() < len(self):
            return "source"
        return "copy_group" if self.frame["unit"].n_unique() < len(self) else "image"

    @property
    def relabelled(self) -> int:
        """Images whose label differs there; the label here counts."""
        return int((self.frame["label_name_other"] != self.frame["label_name"]).sum())


def pairs(one: Side, other: Side) -> Pairs:
    """Match by pixels, and among equal ones by id: an equal name alone is no match."""
    a, b = one.answered(), other.answered()
    learned = list(one.learned() | other.learned())
    common = a.filter(pl.col("exact_hash").is_in(b["exact_hash"].to_list()))
    kept = common.filter(
        ~pl.col("exact_hash").is_in(learned),
        pl.col("label_name").is_not_null(),
        pl.col("answer").is_not_null(),
    )
    there = (
        b.filter(pl.col("answer").is_not_null())
        .select("id", "exact_hash", pl.col("answer", *ANSWERS).name.suffix("_other"))
        .sort("id")
    )
    same = kept.join(there, on=["exact_hash", "id"])
    rest = kept.join(same, on="id", how="anti")
    first = there.unique("exact_hash", keep="first", maintain_order=True).drop("id")
    moved = rest.join(first, on="exact_hash").select(same.columns)
    names = a.join(b.select("id", pl.col("exact_hash").alias("hash_other")), on="id")
    return Pairs(
        frame=pl.concat([same, moved]).sort("id"),
        learned=int(common["exact_hash"].is_in(learned).sum()),
        other_pixels=int((names["exact_hash"] != names["hash_other"]).sum()),
    )

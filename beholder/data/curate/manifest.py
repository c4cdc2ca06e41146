"""Manifests: decisions about samples, kept apart from the samples (specs/data.md, 'Shared')."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
from PIL import Image
from torch.utils.data import Sampler

from beholder.core.errors import ArgumentError, DataError
from beholder.core.files import digest, write_atomic
from beholder.core.images import Images
from beholder.core.sections import Section
from beholder.data.scanned import Scanned

SCHEMA_VERSION = 1
FOOTER, PARTS = "beholder", "beholder_parts"
"""Keys of the Parquet footer: `info` as JSON, and the number of files of a directory."""

MANY, PART = 5_000_000, 1_000_000
"""From `MANY` rows on a manifest is a directory of files of `PART` rows."""

REASONS = (
    *("kept", "near_duplicate", "label_error", "relabelled", "outlier", "unsafe", "watermark"),
    *("low_alignment", "redundant", "not_sampled", "unreadable", "reinforced", "quantized", "user"),
)

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,  # of the sample; unique
    "keep": pl.Boolean,
    "weight": pl.Float32,  # >= 0, of sampling and loss; 0 exactly where not kept
    "label": pl.Int32,  # proposed, index into info["classes"]; null = leave as it is
    "labels": pl.List(pl.Int32),  # proposed, ascending
    "soft_classes": pl.List(pl.Int32),  # sparse soft label ...
    "soft_values": pl.List(pl.Float32),  # ... descending, sum <= 1
    "reason": pl.Enum(REASONS),
    "detail": pl.String,  # one sentence for people
    "score": pl.Float32,  # higher = more worth keeping; info["score_name"] says what it is
    "group": pl.Int64,  # bin, cluster, group of duplicates
    "partner": pl.String,  # id of the sample that it duplicates or was mixed with
    "asset": pl.String,  # assets/NAME.parquet#ROW beside the manifest
}
"""Columns of `Manifest.frame`."""

FILLED = ("id", "keep", "weight", "reason")
"""Columns without nulls."""

UIDS = np.dtype("u8,u8")
CLEANLAB = {"label": "label_error", "near_duplicate": "near_duplicate", "outlier": "outlier"}
"""Issue of cleanlab's Datalab -> reason, gravest first."""


@dataclass(frozen=True)
class Manifest:
    """One row per sample of the dataset that it was made from, sorted by id.

    Attributes:
        frame: columns `SCHEMA`.
        info: what made it, from which data (JSON), see `describe`.
        images: the dataset, where it is known; never saved.

    Raises:
        DataError: a row that says nothing sensible, by name.
    """

    frame: pl.DataFrame
    info: dict[str, Any]
    images: Images | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", complete(self.frame))
        refuse_nonsense(self.frame)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def kept(self) -> int:
        """Number of samples that stay."""
        return int(self.frame["keep"].sum())

    @property
    def content_hash(self) -> str:
        """BLAKE2b-128 of decisions and `info`, without the time of making."""
        known = {key: value for key, value in self.info.items() if key != "created"}
        return digest(self.frame.write_ndjson(), json.dumps(known, sort_keys=True))

    # on a dataset ----------------------------------------------------------------------------

    def apply(
        self, dataset: Images, *, force: bool = False, fingerprint: str | None = None
    ) -> Images:
        """A view of `dataset`: without what is dropped, with proposed labels and weights.

        A soft label becomes `q`; weights are multiplied with those of the dataset. No file is
        touched.

        Args:
            force: take another dataset too; samples that the manifest does not name are left out.
            fingerprint: of `dataset`, where it is known; else its files are hashed (remembered).

        Raises:
            DataError: another dataset, or classes that it does not have.
        """
        self._refuse_other(dataset, force, fingerprint)
        own = self._in_classes_of(dataset)
        table = dataset.table.join(
            own, on="id", how="left", suffix="_new", maintain_order="left"
        ).filter(pl.col("keep"))
        relabelled = pl.col("label_new").is_not_null()
        weight = pl.col("weight").fill_null(1) * pl.col("weight_new")
        plain = pl.col("weight").is_null() & (pl.col("weight_new") == 1)
        table = table.with_columns(
            label=pl.coalesce("label_new", "label"),
            labels=pl.coalesce("labels_new", "labels"),
            q=pl.when(pl.col("q_new").is_not_null())
            .then("q_new")
            .when(~relabelled)
            .then("q")
            .otherwise(None),
            weight=pl.when(plain).then(None).otherwise(weight),
        ).select(dataset.table.columns)
        unknown = len(dataset) - int(dataset.table["id"].is_in(self.frame["id"].implode()).sum())
        notes = [f"Manifest of {self.info['curator']}: {len(table):,} of {len(dataset):,} kept."]
        if unknown:
            notes.append(f"{unknown:,} images are not in the manifest and are left out.")
        return replace(dataset, table=table, notes=(*dataset.notes, *notes))

    def sampler(self, images: Images, num_samples: int, seed: int = 0) -> Sampler[int]:
        """Rows of `images` drawn with replacement in proportion to weight; dropped ones never.

        Which samples are drawn depends on seed and ids, not on the order of the rows.
        """
        weight = dict(self.frame.select("id", "weight").iter_rows())
        ids = images.table["id"].to_list()
        order = np.argsort([digest(str(seed), id) for id in ids])
        share = np.array([weight.get(ids[row], 0.0) for row in order], float)
        if not share.sum():
            raise DataError("No image has a weight: there is nothing to draw.")
        rng = np.random.default_rng(seed)
        drawn = rng.choice(order, num_samples, p=share / share.sum())
        return Drawn(drawn.tolist())

    def dense(self) -> np.ndarray:
        """Soft labels [N, C], the remainder spread over the other classes; NaN where none."""
        count = len(self.info["classes"])
        found = np.full((len(self), count), np.nan, np.float32)
        columns = self.frame.select("soft_classes", "soft_values").iter_rows()
        for row, (classes, values) in enumerate(columns):
            if classes is not None:
                found[row] = dense(classes, values, count)
        return found

    def contact_sheet(self, reason: str | None = None, n: int = 24) -> Image.Image:
        """The first `n` samples of a reason (None = all that are dropped), lowest score first.

        Raises:
            ArgumentError: the images are not known (`Manifest.load(url, dataset)`).
        """
        from .sheet import contact_sheet

        if self.images is None:
            raise ArgumentError("The manifest knows no images.", "Manifest.load(url, dataset).")
        shown = self.worst(reason, n)
        row_of = {id: row for row, id in enumerate(self.images.table["id"])}
        rows = [row_of[id] for id in shown["id"]]
        return contact_sheet(self.images, rows, [self.caption(row) for row in shown.to_dicts()])

    def worst(self, reason: str | None = None, n: int = 24) -> pl.DataFrame:
        """Readable rows of a reason (None = all that are dropped), lowest score first."""
        chosen = ~pl.col("keep") if reason is None else pl.col("reason") == reason
        readable = pl.col("reason") != "unreadable"
        return self.frame.filter(chosen & readable).sort("score", "id", nulls_last=True).head(n)

    def caption(self, row: dict[str, Any]) -> str:
        """What is said below a picture: 'cat/7.png: dog? (score 0.02)'."""
        proposed = "" if row["label"] is None else f": {self.info['classes'][row['label']]}?"
        beside = f" = {row['partner']}" if row["partner"] else ""
        score = "" if row["score"] is None else f" (score {row['score']:.3g})"
        return f"{row['id']}{proposed}{beside}{score}"

    def report(self) -> Section:
        """Finding, self-test, worst pictures, and what this search cannot see."""
        from .findings import section

        return section(self)

    # together --------------------------------------------------------------------------------

    def __and__(self, other: Manifest) -> Manifest:
        """Both decisions about one dataset: what both keep, weights multiplied.

        Labels of `other` win where it has any; the reason is that of the first who drops.

        Raises:
            DataError: they are of different datasets.
        """
        if self.info["fingerprint"] != other.info["fingerprint"]:
            raise DataError(
                f"One manifest is of {self.info['dataset']}, the other of "
                f"{other.info['dataset']}, or of another state of it.",
                "Make both from the same data.",
            )
        both = self.frame.join(other.frame, on="id", suffix="_2", maintain_order="left")
        speaks = pl.when("keep", (pl.col("reason") == "kept") | ~pl.col("keep_2"))
        second = {name: speaks.then(f"{name}_2").otherwise(name) for name in SPOKEN}
        proposed = {name: pl.coalesce(f"{name}_2", name) for name in ("label", "labels")}
        has_soft = pl.when(pl.col("soft_classes_2").is_not_null())
        soft = {name: has_soft.then(f"{name}_2").otherwise(name) for name in SOFT}
        combined = both.with_columns(
            **second,
            **proposed,
            **soft,
            keep=pl.col("keep") & pl.col("keep_2"),
            weight=pl.col("weight") * pl.col("weight_2"),
        )
        info = describe(
            f"{self.info['curator']} & {other.info['curator']}",
            dataset=self.info["dataset"],
            fingerprint=self.info["fingerprint"],
            classes=self.info["classes"],
            parents=[self.content_hash, other.content_hash],
        )
        return Manifest(combined, info, self.images or other.images)

    # files -----------------------------------------------------------------------------------

    def save(self, url: str | Path) -> None:
        """Write to `url`: a path or fsspec URL that ends in .parquet is one file, else a directory.

        From five million rows on it is always a directory.

        Raises:
            StorageError: the disk is full or read-only; what was there is then as it was.
        """
        text = str(url)
        single = text.endswith(".parquet") and len(self) < MANY
        count = 1 if single else max(1, -(-len(self) // PART))
        footer = {FOOTER: json.dumps(self.info, sort_keys=True), PARTS: str(count)}
        for number in range(count):
            frame = self.frame if single else self.frame.slice(number * PART, PART)
            place = text if single else f"{text.rstrip('/')}/part-{number:05d}.parquet"
            data = io.BytesIO()
            frame.write_parquet(data, compression="zstd", metadata=footer)
            _write(place, data.getvalue())

    @classmethod
    def load(
        cls, url: str | Path, dataset: Images | None = None, *, force: bool = False
    ) -> Manifest:
        """The manifest at `url`; `dataset` is what it will be used on.

        Raises:
            DataError: nothing there, no manifest, files of it missing, or another dataset.
        """
        frames, infos, expected = [], [], 1
        for data in _read(str(url)):
            try:
                footer = pl.read_parquet_metadata(io.BytesIO(data))
                frames.append(pl.read_parquet(io.BytesIO(data)))
            except pl.exceptions.PolarsError as error:
                raise DataError(f"{url} is no Parquet file: {error}.") from error
            if FOOTER not in footer:
                raise DataError(f"{url} is no manifest.", "Make one: beholder curate DATA.")
            infos.append(footer[FOOTER])
            expected = int(footer.get(PARTS, 1))
        if len(frames) < expected or len(set(infos[:expected])) > 1:
            raise DataError(f"{url} is not whole: a writing of it was stopped.", "Make it again.")
        info = json.loads(infos[0])
        if info.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{url} has schema {info.get('schema_version')!r}, {SCHEMA_VERSION} is known.",
                "Use the version of beholder that wrote it.",
            )
        manifest = cls(pl.concat(frames[:expected]), info, dataset)
        if dataset is not None:
            manifest._refuse_other(replace(dataset), force, None)
        return manifest

    def to_datacomp(self, path: str | Path) -> None:
        """The kept ids as DataComp's sorted .npy of 128-bit uids, dtype 'u8,u8'.

        Raises:
            DataError: an id that is no uid (32 hexadecimal digits).
        """
        kept = self.frame.filter("keep")["id"]
        uids = np.array(sorted(map(_uid, kept)), UIDS)
        write_atomic(Path(path), lambda out: np.save(out, uids))

    @classmethod
    def from_datacomp(cls, path: str | Path, dataset: Images) -> Manifest:
        """Keeps what a DataComp subset file names. Ids of `dataset` must be uids."""
        uids = {(int(a), int(b)) for a, b in np.load(path)}
        keep = [_uid(id) in uids for id in dataset.table["id"]]
        frame = pl.DataFrame({"id": dataset.table["id"], "keep": keep}).with_columns(
            reason=pl.when("keep").then(pl.lit("kept")).otherwise(pl.lit("user"))
        )
        return cls(frame, _imported("datacomp", dataset), dataset)

    @classmethod
    def from_cleanlab(cls, issues: Any, dataset: Images) -> Manifest:
        """Drops what cleanlab's Datalab flags as label, near-duplicate or outlier issue.

        Of near duplicates the first stays.

        Args:
            issues: `Datalab.get_issues()`, rows in the order of `dataset`.
        """
        if len(issues) != len(dataset):
            raise DataError(f"{len(issues):,} issues, but {len(dataset):,} images.")
        count, ids = len(dataset), dataset.table["id"].to_list()
        reason, score = ["kept"] * count, np.full(count, np.nan)
        partner: list[str | None] = [None] * count
        for issue, meaning in CLEANLAB.items():
            if f"is_{issue}_issue" not in issues.columns:
                continue
            flagged = np.asarray(issues[f"is_{issue}_issue"], bool)
            if issue == "near_duplicate":
                first = [
                    min([row, *map(int, near)])
                    for row, near in enumerate(issues["near_duplicate_sets"])
                ]
                flagged = flagged & (np.array(first) < np.arange(count))
                partner = [
                    ids[row] if flag else None for row, flag in zip(first, flagged, strict=True)
                ]
            score = np.fmin(score, np.asarray(issues[f"{issue}_score"], float))
            reason = [
                meaning if flag and known == "kept" else known
                for flag, known in zip(flagged, reason, strict=True)
            ]
        frame = pl.DataFrame({"id": ids, "reason": reason, "partner": partner, "score": score})
        frame = frame.with_columns(
            keep=pl.col("reason") == "kept", score=pl.col("score").fill_nan(None)
        )
        info = _imported("cleanlab", dataset) | {"score_name": "cleanlab's lowest score"}
        return cls(frame, info, dataset)

    def _refuse_other(self, dataset: Images, force: bool, fingerprint: str | None) -> None:
        if force or dataset is self.images:
            return
        found = fingerprint or fingerprint_of(dataset)
        if found != self.info["fingerprint"]:
            raise DataError(
                f"The manifest was made from {self.info['dataset']} with fingerprint "
                f"{self.info['fingerprint'][:8]}, {dataset.name} has {found[:8]}.",
                "A file, a label or the set has changed: curate again, or force it.",
            )

    def _in_classes_of(self, dataset: Images) -> pl.DataFrame:
        """id, keep, weight, label, labels, q, with indices into the classes of `dataset`."""
        own, theirs = self.info["classes"], dataset.classes
        chosen = self.frame.select("id", "keep", "weight", "label", "labels")
        q = self.dense()
        proposals = self.frame.select("label", "labels", "soft_classes").count().row(0)
        if any(proposals) and tuple(own) != theirs:
            absent = sorted(set(own) - set(theirs))
            if absent:
                raise DataError(f"{dataset.name} has no class {absent[0]!r} of the manifest.")
            place = [theirs.index(name) for name in own]
            moved = np.zeros((len(q), len(theirs)), np.float32)
            moved[:, place] = q
            q = moved
            index = dict(enumerate(place))
            chosen = chosen.with_columns(
                pl.col("label").replace_strict(index, return_dtype=pl.Int32),
                pl.col("labels").list.eval(
                    pl.element().replace_strict(index, return_dtype=pl.Int32).sort()
                ),
            )
        soft = self.frame["soft_classes"].is_not_null().to_list()
        rows = [values.tolist() if has else None for values, has in zip(q, soft, strict=True)]
        return chosen.with_columns(q=pl.Series(rows, dtype=pl.List(pl.Float32)))


SOFT = ("soft_classes", "soft_values")
SPOKEN = ("reason", "detail", "score", "group", "partner", "asset")
"""Columns that belong to the reason."""


class Drawn(Sampler[int]):
    """Rows that were drawn."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def describe(
    curator: str,
    *,
    dataset: str,
    fingerprint: str,
    classes: Sequence[str],
    row: int | None = None,
    parameters: dict[str, Any] | None = None,
    seed: int = 0,
    budget: float | None = None,
    model: dict[str, str] | None = None,
    parents: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """`Manifest.info`. `more`: score_name, finding, self_test, cannot_see."""
    return {
        "schema_version": SCHEMA_VERSION,
        "curator": curator,
        "row": row,
        "parameters": parameters or {},
        "seed": seed,
        "budget": budget,
        "dataset": dataset,
        "fingerprint": fingerprint,
        "classes": list(classes),
        "model": model,
        "parents": list(parents),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "beholder": version("beholder"),
        **more,
    }


def complete(frame: pl.DataFrame) -> pl.DataFrame:
    """All columns of `SCHEMA`, missing ones filled, sorted by id.

    Raises:
        DataError: a column of another type, or a reason that is not in `REASONS`.
    """
    default = {"keep": pl.lit(True), "reason": pl.lit("kept")}
    missing = [name for name in SCHEMA if name not in frame.columns]
    frame = frame.with_columns(default.get(name, pl.lit(None)).alias(name) for name in missing)
    if "weight" in missing:
        frame = frame.with_columns(weight=pl.col("keep").cast(pl.Float32))
    try:
        chosen = frame.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"A manifest cannot hold this: {error}.") from error
    return chosen.sort("id")


def refuse_nonsense(frame: pl.DataFrame) -> None:
    """Raises DataError that names the first sample of which something impossible is said."""
    sums = pl.col("soft_values").list.sum()
    ordered = pl.col("labels").list.unique().list.sort()
    wrong = {
        "is named twice": pl.col("id").is_duplicated(),
        "lacks keep, weight or reason": pl.any_horizontal(pl.col(FILLED).is_null()),
        "has a weight below 0": ~(pl.col("weight") >= 0),
        "is kept with weight 0 (or dropped with more)": pl.col("keep") != (pl.col("weight") > 0),
        "has labels out of order": pl.col("labels") != ordered,
        "has soft values that do not fit its soft classes": (
            pl.col("soft_values").list.len().ne_missing(pl.col("soft_classes").list.len())
        ),
        "has soft values outside 0..1, or with a sum above 1": (
            (pl.col("soft_values").list.min() < 0) | (sums > 1 + 1e-4)
        ),
    }
    for what, where in wrong.items():
        found = frame.filter(where)
        if len(found):
            raise DataError(f"Sample {found['id'][0]!r} of the manifest {what}.")


def dense(classes: Sequence[int], values: Sequence[float], count: int) -> np.ndarray:
    """A sparse soft label as [count], what is left of 1 spread evenly over the other classes.

    >>> dense([2, 0], [0.5, 0.3], 4).round(3).tolist()
    [0.3, 0.1, 0.5, 0.1]
    """
    rest = max(0.0, 1 - float(np.sum(values)))
    found = np.full(count, rest / max(1, count - len(classes)))
    found[list(classes)] = values
    return found


def fingerprint_of(dataset: Images) -> str:
    """Fingerprint of the readable images; files seen before are not read again."""
    seen = Scanned(dataset, max_pixels=dataset.max_pixels, workers=2, use_cache=True)
    return seen.fingerprint


def _imported(curator: str, dataset: Images) -> dict[str, Any]:
    fingerprint = fingerprint_of(dataset)
    classes = dataset.classes
    return describe(curator, dataset=dataset.name, fingerprint=fingerprint, classes=classes)


def _uid(id: str) -> tuple[int, int]:
    try:
        if len(id) != 32:
            raise ValueError
        return int(id[:16], 16), int(id[16:], 16)
    except ValueError as error:
        raise DataError(
            f"Id {id!r} is no uid of DataComp.", "Those have 32 hexadecimal digits."
        ) from error


def _write(place: str, data: bytes) -> None:
    if "://" in place:
        with fsspec.open(place, "wb") as out:
            out.write(data)  # type: ignore[union-attr]
    else:
        write_atomic(Path(place), lambda out: out.write(data))


def _read(url: str) -> list[bytes]:
    """The bytes of every file of a manifest."""
    system, place = fsspec.core.url_to_fs(url)
    places = sorted(system.glob(f"{place}/part-*.parquet")) if system.isdir(place) else [place]
    if not places or not system.exists(places[0]):
        raise DataError(f"There is no manifest {url}.", "Make one: beholder curate DATA -o PLACE.")
    return [system.cat_file(name) for name in places]

"""The role of a curator: it looks at a dataset and returns a `Manifest`, never a changed original.

A curator that searches for faults also runs on faults that it plants itself, in memory, in the
user's own images: every manifest says how many of those were found.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch

from beholder.core.errors import ArgumentError, DataError
from beholder.core.features import batches
from beholder.core.images import Images, certainty
from beholder.core.model import VisionModel
from beholder.core.registry import Entry
from beholder.data.scanned import Scanned

from .manifest import SCHEMA, Manifest, complete, describe

__all__ = [
    "Answers",
    "Curator",
    "Decided",
    "Manifest",
    "Pool",
    "Trial",
    "resolve_budget",
    "split_budget",
]

Need = Literal["labels", "embeddings", "probabilities", "model", "budget"]
Answers = Callable[[np.ndarray], np.ndarray]
"""Labels [N] (-1 = none) -> out-of-sample probabilities [N, C] of models that learn from them."""

BATCH, WORKERS = 32, 2


@dataclass(frozen=True)
class Trial:
    """A search on faults that were planted.

    Attributes:
        flagged: of all samples, in the planted run (so found / flagged is a lower bound of the
            precision: what was flagged besides may be wrong too); None where it is not known.
    """

    fault: str
    planted: int
    found: int
    flagged: int | None = None


@dataclass(frozen=True)
class Decided:
    """What a curator decided.

    Attributes:
        frame: one row per image of the pool: `id`, and those columns of `manifest.SCHEMA` of which
            there is something to say.
        finding: one sentence; '' = how many are kept.
        tested: the search on planted faults; () where faults are not searched for.
    """

    frame: pl.DataFrame
    finding: str = ""
    tested: tuple[Trial, ...] = ()


@dataclass
class Pool:
    """What a curator decides on: the readable images, sorted by id. [N] rows everywhere.

    Attributes:
        opened: all images, readable or not.
        embeddings: [N, D].
        probabilities: see `Answers`.
    """

    opened: Images
    data: Scanned
    seed: int = 0
    model: VisionModel | None = None
    embeddings: np.ndarray | None = None
    probabilities: Answers | None = None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def images(self) -> Images:
        return self.data.images

    @property
    def facts(self) -> pl.DataFrame:
        """What the scan found, `core.scan.FACTS_SCHEMA`."""
        return self.data.facts

    @property
    def ids(self) -> list[str]:
        return self.images.table["id"].to_list()

    @cached_property
    def order(self) -> np.ndarray:
        """Rows in the order of blake2b(seed, id): chance, and how ties are broken."""
        return np.argsort([_draw(self.seed, id) for id in self.ids], kind="stable")

    @cached_property
    def labels(self) -> np.ndarray:
        """int [N], -1 = none."""
        return self.images.table["label"].fill_null(-1).to_numpy().astype(int)

    @cached_property
    def soft(self) -> np.ndarray:
        """[N, C]: `q` where given, one-hot elsewhere, zero without a label."""
        found = np.zeros((len(self), max(1, len(self.images.classes))), np.float32)
        has = self.labels >= 0
        found[has, self.labels[has]] = 1
        given = self.images.table["q"]
        for row in np.flatnonzero(given.is_not_null()):
            found[row] = given[int(row)].to_numpy()
        return found

    @cached_property
    def certain(self) -> np.ndarray:
        """bool [N]: there is a label, and nothing says that it may be another."""
        return (self.labels >= 0) & (certainty(self.soft) > 1 - 1e-6)

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images uint8 [H, W, 3], that need not be of the data, as `embeddings` [n, D]."""
        assert self.model is not None
        prepared = np.stack([self.model.prepare(image) for image in images])
        starts = range(0, len(prepared), BATCH)
        return np.concatenate([_features(self.model, prepared[s : s + BATCH]) for s in starts])

    def embed_all(self) -> None:
        """`embeddings` of every image by the model, where they are not there yet."""
        if self.embeddings is not None or self.model is None:
            return
        gone: dict[str, str] = {}
        rows, model = range(len(self)), self.model
        every = batches(self.images, rows, model.prepare, model.input_size, BATCH, WORKERS, gone)
        found = np.concatenate([_features(model, batch) for batch in every])[: len(self)]
        if gone:
            found = found[~np.isin(self.ids, list(gone))]
            self.data.lose(gone, self.seed)
        self.embeddings = found


class Curator(ABC):
    """Base of every curator; its file holds `decide`.

    Attributes:
        needs: of the pool, checked before `decide`.
        score_name: what `score` is.
        cannot_see: sentences on what this search cannot find.
    """

    role: ClassVar[str] = "curator"
    entry: ClassVar[Entry]
    needs: ClassVar[frozenset[Need]] = frozenset()
    score_name: ClassVar[str] = ""
    cannot_see: ClassVar[tuple[str, ...]] = ()

    def curate(
        self,
        dataset: Images,
        model: VisionModel | None = None,
        budget: float | None = None,
        *,
        seed: int = 0,
        embeddings: np.ndarray | None = None,
        probabilities: np.ndarray | Answers | None = None,
    ) -> Manifest:
        """Decide on every image of `dataset`; no file is touched.

        Args:
            model: gives the embeddings, where they are needed and not given.
            budget: float in (0, 1] = share, int >= 1 = count of the readable images to keep; None
                = what the search itself decides.
            embeddings: [len(dataset), D], rows as in `dataset.table`.
            probabilities: out-of-sample, [len(dataset), C], or `Answers` for rows sorted by id.
                `beholder.curate` makes them.

        Raises:
            DataError: nothing can be read, or there are no labels where they are needed.
            ArgumentError: something that is needed was not given.
        """
        data = Scanned(dataset, max_pixels=dataset.max_pixels, workers=WORKERS, use_cache=True)
        place = {id: row for row, id in enumerate(dataset.table["id"])}
        rows = np.array([place[id] for id in data.images.table["id"]])
        if isinstance(probabilities, np.ndarray):
            fixed = probabilities[rows]
            probabilities = lambda labels: fixed  # noqa: E731
        own = None if embeddings is None else np.asarray(embeddings, np.float32)[rows]
        return self.manifest(Pool(dataset, data, seed, model, own, probabilities), budget)

    def manifest(self, pool: Pool, budget: float | None = None) -> Manifest:
        """`curate` of images that were scanned, with what is known of them."""
        self.check(pool.opened, budget)
        if "embeddings" in self.needs:
            pool.embed_all()
        for need in ("embeddings", "probabilities", "model"):
            if need in self.needs and getattr(pool, need) is None:
                raise ArgumentError(
                    f"{self.entry.name} needs {need}.",
                    f"beholder.curate(data, {self.entry.name!r}) makes them.",
                )
        count = None if budget is None else resolve_budget(budget, len(pool))
        decided = self.decide(pool, count)
        frame = decided.frame if count is None else within_budget(decided.frame, pool, count)
        everything = pl.concat([complete(frame), complete(_unreadable(pool))])
        model = pool.model
        info = describe(
            self.entry.name,
            row=self.entry.row,
            parameters={key: _plain(value) for key, value in vars(self).items()},
            seed=pool.seed,
            budget=budget,
            dataset=pool.opened.name,
            fingerprint=pool.data.fingerprint,
            classes=pool.opened.classes,
            model=None if model is None else {"name": model.name, "weights": model.weights_hash},
            score_name=self.score_name,
            finding=decided.finding,
            self_test=[asdict(trial) for trial in decided.tested],
            cannot_see=[*self.cannot_see, *pool.data.notes],
        )
        return Manifest(everything, info, pool.opened)

    @abstractmethod
    def decide(self, pool: Pool, count: int | None) -> Decided:
        """Look at the pool.

        Args:
            count: images to keep; the base sees to it, by `keep` and `score`, where this does not.
        """

    def check(self, images: Images, budget: float | None) -> None:
        """Raises DataError without labels, ArgumentError without a budget, where it needs them."""
        name = self.entry.name
        if "labels" in self.needs and not images.table["label"].count():
            raise DataError(
                f"{name} needs labels, {images.name} has none.",
                "Choose another method, or give a column: --label-column.",
            )
        if "budget" in self.needs and budget is None:
            raise ArgumentError(f"{name} needs a budget.", "For example --budget 0.3, or 500.")


def resolve_budget(budget: float, n: int) -> int:
    """How many of `n` to keep: a float is a share, rounded half up, never 0; an int is a count.

    >>> resolve_budget(0.3, 5), resolve_budget(0.01, 5), resolve_budget(3, 5)
    (2, 1, 3)

    Raises:
        ArgumentError: a share outside (0, 1], a count outside 1..n.
    """
    if isinstance(budget, int):
        if not 1 <= budget <= n:
            raise ArgumentError(f"Budget {budget} is not among 1 .. {n:,} images.")
        return budget
    if not 0 < budget <= 1:
        raise ArgumentError(f"Budget {budget} is no share.", "Give 0.3 for 30 %, or 300 images.")
    return max(1, int(np.floor(budget * n + 0.5)))


def split_budget(labels: np.ndarray, count: int) -> dict[int, int]:
    """A count dealt to the classes in proportion, by largest remainder: the sum is exact.

    >>> split_budget(np.array([0, 0, 0, 0, 1, 1, 2]), 3)
    {0: 2, 1: 1, 2: 0}
    """
    classes, sizes = np.unique(labels, return_counts=True)
    wanted = count * sizes / len(labels)
    share = np.floor(wanted).astype(int)
    rest = np.argsort(-(wanted - share), kind="stable")[: count - share.sum()]
    share[rest] += 1
    return dict(zip(classes.tolist(), share.tolist(), strict=True))


def within_budget(decided: pl.DataFrame, pool: Pool, count: int) -> pl.DataFrame:
    """Exactly `count` kept: first those that are kept anyway, then by score, then by `pool.order`.

    What a search would keep and the budget does not is `not_sampled`; what it would drop and the
    budget has room for stays, with its reason in `detail`.
    """
    place = pl.DataFrame({"id": np.array(pool.ids)[pool.order]}).with_row_index("order")
    missing = [name for name in ("score", "detail") if name not in decided.columns]
    ranked = (
        decided.with_columns(pl.lit(None, SCHEMA[name]).alias(name) for name in missing)
        .join(place, on="id")
        .sort("keep", pl.col("score").cast(pl.Float64), -pl.col("order").cast(pl.Int64))
        .reverse()
        .with_columns(stays=pl.int_range(pl.len()) < count)
    )
    spared, cut = ranked["stays"] & ~ranked["keep"], ~ranked["stays"] & ranked["keep"]
    told = pl.format("kept for the budget, though: {}", "reason")
    reason = pl.col("reason").cast(pl.String)
    return ranked.with_columns(
        detail=pl.when(spared).then(told).otherwise("detail"),
        reason=pl.when(spared)
        .then(pl.lit("kept"))
        .when(cut)
        .then(pl.lit("not_sampled"))
        .otherwise(reason),
        keep=pl.col("stays"),
    ).drop("order", "stays")


def _unreadable(pool: Pool) -> pl.DataFrame:
    """Rows of the images that were opened and are not in the pool."""
    skipped = dict(pool.images.skipped.select("path", "reason").iter_rows())
    lost = pool.opened.table.filter(~pl.col("id").is_in(pool.ids))
    return lost.select(
        "id",
        keep=pl.lit(False),
        reason=pl.lit("unreadable"),
        detail=pl.col("path").replace_strict(skipped, default="", return_dtype=pl.String),
    )


@torch.inference_mode()
def _features(model: VisionModel, prepared: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] -> [B, D], as precise as features are kept."""
    device = next(model.buffers()).device
    images = torch.from_numpy(prepared).permute(0, 3, 1, 2).to(device)
    return model.features(images).half().float().cpu().numpy()


def _draw(seed: int, id: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{id}".encode(), digest_size=16).digest()


def _plain(value: Any) -> Any:
    """A parameter as JSON has it."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)

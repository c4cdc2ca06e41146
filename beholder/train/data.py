"""What a training reads: which images in which order, and each as the objective wants to see it.

Order and views are functions of (seed, epoch, id). A run that goes on at micro-batch k therefore
sees what an uninterrupted one sees from k on, whatever the number of workers and however it
stopped: nothing is skipped by reading, and no worker has a state that would have to be kept.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from beholder.core.decode import Unreadable, decode
from beholder.core.errors import ArgumentError, DataError
from beholder.core.files import digest
from beholder.core.images import Images, read_bytes

from .objectives.base import Combine, Objective

Policy = Literal["alternate", "joint"]
ALONE = ""
"""The name of the task of a run that has one."""
KEPT = 2
"""Epochs whose order is held: the loader is ahead of the loop."""


def seed_of(*parts: object) -> int:
    """63 bits that depend on every part, the same on every machine."""
    return int(digest(*map(str, parts))[:16], 16) >> 1


@contextmanager
def own_chance(seed: int | None = None, cuda: bool = False) -> Iterator[None]:
    """Inside, the global streams of torch, numpy and Python are seeded; after it, as they were.

    Args:
        seed: None = they go on from where they are.
        cuda: those of the CUDA devices too.
    """
    numbers, words = np.random.get_state(), random.getstate()  # noqa: NPY002
    own = torch.default_generator.get_state()
    devices = torch.cuda.get_rng_state_all() if cuda else []
    try:
        if seed is not None:
            reseed(seed, cuda)
        yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(words)
        torch.default_generator.set_state(own)
        if cuda:
            torch.cuda.set_rng_state_all(devices)


def reseed(seed: int, cuda: bool = False) -> None:
    """Seed the global streams; only inside `own_chance`. (`torch.manual_seed` takes 1 ms.)"""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    if cuda:
        torch.cuda.manual_seed(seed)


@dataclass(frozen=True)
class EpochSampler:
    """The batches of an epoch: rows in an order that (seed, epoch) alone decide.

    Args:
        count: rows of the data.
        drop_last: leave out a last batch that is not full.
        world: processes; a batch has `batch` rows in each of them.
    """

    count: int
    seed: int = 0
    drop_last: bool = False
    world: int = 1

    def sizes(self, batch: int) -> list[int]:
        """Rows of every batch of an epoch, over all processes.

        A last batch of under two rows per process (BatchNorm needs two) joins no epoch, unless it
        is the only one.
        """
        whole, rest = divmod(self.count, batch * self.world)
        fewest = self.world if not whole else 2 * self.world
        last = [rest] if rest >= fewest and not (self.drop_last and whole) else []
        return [batch * self.world] * whole + last

    def order(self, epoch: int) -> np.ndarray:
        """Permutation of the rows, [count]."""
        return np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(self.count)


class Phase(NamedTuple):
    """From `epoch` on, images of `size` (H, W) in batches of `batch` (None = as before)."""

    epoch: int
    size: tuple[int, int]
    batch: int | None = None


@dataclass(frozen=True)
class ResolutionSchedule:
    """Progressive resizing: sizes, and batch sizes that fit them, from given epochs on."""

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        starts = [phase.epoch for phase in self.phases]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ArgumentError(
                f"The epochs of a resolution schedule are {starts}.",
                "They start at 0 and rise: ((0, (96, 96)), (8, (128, 128))).",
            )

    def at(self, epoch: int) -> Phase:
        """The phase that holds in an epoch."""
        return [phase for phase in self.phases if phase.epoch <= epoch][-1]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 3, H, W] at `size`, smoothed where it shrinks."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True)
class Micro:
    """One micro-batch: what goes through the model at once.

    Attributes:
        number: in the run; `step`: the optimiser step that it belongs to; both 0-based.
        first, last: in the group of micro-batches that make up the step.
        share: what its mean loss counts in the group. Groups and batches that are not full count
            by their rows, so a step's gradient is that of the mean over all its rows.
        task: whose rows; `pass_`: how often they were gone through; `index`: batch of that pass.
        ends_epoch: the last one of the epoch.
    """

    number: int
    epoch: int
    step: int
    first: bool
    last: bool
    share: float
    task: str
    pass_: int
    index: int
    rows: int
    ends_epoch: bool


@dataclass(frozen=True)
class Plan:
    """Every micro-batch of a run, by number.

    Args:
        samplers: task -> its rows.
        batch: rows of a micro-batch in each process.
        accumulate: micro-batches of a step.
        policy: 'alternate' = each step serves one task, drawn by `odds`; 'joint' = each step has
            one micro-batch of every task, and an epoch lasts until the largest is through.
        odds: task -> how often; None = by the number of batches.
    """

    samplers: Mapping[str, EpochSampler]
    batch: int
    epochs: int
    accumulate: int = 1
    policy: Policy = "alternate"
    odds: Mapping[str, float] | None = None
    resolution: ResolutionSchedule | None = None
    seed: int = 0
    _known: dict[int, list[Micro]] = field(default_factory=dict, repr=False, compare=False)
    _orders: dict[tuple[str, int], np.ndarray] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        short = [task for task, sampler in self.samplers.items() if not sampler.sizes(self.batch)]
        if short:
            sampler = self.samplers[short[0]]
            raise DataError(
                f"{sampler.count} images{f' of {short[0]}' if short[0] else ''} are too few for "
                f"{sampler.world} processes.",
                "Use more images or fewer --devices.",
            )
        several = len(self.samplers) > 1
        if several and self.resolution and any(p.batch for p in self.resolution.phases):
            raise ArgumentError("A batch size per resolution is for runs with one task.")
        if several and self.policy == "joint" and self.accumulate > 1:
            raise ArgumentError(
                f"accumulate = {self.accumulate} does not go with joint tasks.",
                "Their step is one micro-batch of each task already.",
            )

    def batch_at(self, epoch: int) -> int:
        phase = self.resolution.at(epoch) if self.resolution else None
        return (phase and phase.batch) or self.batch

    def size_at(self, epoch: int) -> tuple[int, int] | None:
        """(H, W) that a schedule asks for."""
        return self.resolution.at(epoch).size if self.resolution else None

    @cached_property
    def _lengths(self) -> list[tuple[int, int]]:
        """(micro-batches, steps) of every epoch."""
        counts = {}
        for epoch in range(self.epochs):
            batch = self.batch_at(epoch)
            if batch not in counts:
                counts[batch] = self._length(batch)
        return [counts[self.batch_at(epoch)] for epoch in range(self.epochs)]

    def _length(self, batch: int) -> tuple[int, int]:
        each = [len(sampler.sizes(batch)) for sampler in self.samplers.values()]
        if len(each) > 1 and self.policy == "joint":
            return max(each) * len(each), max(each)
        steps = -(-sum(each) // self.accumulate)
        return (sum(each) if len(each) == 1 else steps * self.accumulate), steps

    @cached_property
    def ends(self) -> list[int]:
        """Number of the micro-batch after each epoch."""
        return list(accumulate(micros for micros, _ in self._lengths))

    def __len__(self) -> int:
        return self.ends[-1] if self.epochs else 0

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return sum(steps for _, steps in self._lengths)

    def __getitem__(self, number: int) -> Micro:
        ends = self.ends
        epoch = bisect_right(ends, number)
        return self._epoch(epoch)[number - (ends[epoch - 1] if epoch else 0)]

    def _epoch(self, epoch: int) -> list[Micro]:
        if epoch not in self._known:
            while len(self._known) >= KEPT:
                del self._known[min(self._known)]
            self._known[epoch] = list(self._micros(epoch))
        return self._known[epoch]

    def _micros(self, epoch: int) -> Iterator[Micro]:
        lengths = self._lengths
        number = sum(micros for micros, _ in lengths[:epoch])
        step = sum(steps for _, steps in lengths[:epoch])
        groups = self._groups(epoch)
        batch = self.batch_at(epoch)
        sizes = {task: sampler.sizes(batch) for task, sampler in self.samplers.items()}
        joint = len(self.samplers) > 1 and self.policy == "joint"
        for place, group in enumerate(groups):
            rows = [sizes[task][index] for task, _, index in group]
            for k, (task, pass_, index) in enumerate(group):
                last = k == len(group) - 1
                yield Micro(
                    *(number, epoch, step, k == 0, last),
                    1.0 if joint else rows[k] / sum(rows),
                    *(task, pass_, index, rows[k]),
                    last and place == len(groups) - 1,
                )
                number += 1
            step += 1

    def _groups(self, epoch: int) -> list[list[tuple[str, int, int]]]:
        """(task, pass, index) of the micro-batches of every step of an epoch."""
        batch = self.batch_at(epoch)
        each = {task: len(sampler.sizes(batch)) for task, sampler in self.samplers.items()}
        names = list(each)
        if len(names) == 1:
            rows = [(names[0], epoch, index) for index in range(each[names[0]])]
            starts = range(0, len(rows), self.accumulate)
            return [rows[start : start + self.accumulate] for start in starts]
        if self.policy == "joint":
            steps = max(each.values())
            passed = range(epoch * steps, (epoch + 1) * steps)
            return [[(task, *divmod(k, each[task])) for task in names] for k in passed]
        served = dict.fromkeys(names, 0)
        for before in range(epoch):
            for choice in self._drawn(before, each):
                served[names[choice]] += self.accumulate
        groups = []
        for choice in self._drawn(epoch, each):
            task = names[choice]
            k = range(served[task], served[task] + self.accumulate)
            served[task] += self.accumulate
            groups.append([(task, *divmod(number, each[task])) for number in k])
        return groups

    def _drawn(self, epoch: int, each: Mapping[str, int]) -> list[int]:
        """The task of every step of an epoch; the same in every process."""
        odds = np.array([(self.odds or each)[task] for task in each], float)
        steps = -(-sum(each.values()) // self.accumulate)
        rng = np.random.default_rng(seed_of(self.seed, "tasks", epoch))
        return rng.choice(len(each), steps, p=odds / odds.sum()).tolist()

    def rows(self, micro: Micro, rank: int = 0) -> np.ndarray:
        """Rows of a micro-batch for one process."""
        sampler = self.samplers[micro.task]
        key = (micro.task, micro.pass_)
        if key not in self._orders:
            before = sorted(known for known in self._orders if known[0] == micro.task)
            for old in before[: len(before) + 1 - KEPT]:
                del self._orders[old]
            self._orders[key] = sampler.order(micro.pass_)
        start = micro.index * self.batch_at(micro.epoch) * sampler.world
        return self._orders[key][start : start + micro.rows][rank :: sampler.world]

    def share(self, micro: Micro, rank: int = 0) -> float:
        """`micro.share` such that the mean over processes of what each counts is the whole."""
        world = self.samplers[micro.task].world
        if micro.rows % world == 0:
            return micro.share
        own = len(range(rank, micro.rows, world))
        return micro.share * own * world / micro.rows


Draw = tuple[str, int, int]
"""Task, row, pass."""


@dataclass(frozen=True)
class Draws:
    """A plan from micro-batch `start` on, as a sampler of batches for a `DataLoader`."""

    plan: Plan
    start: int = 0
    rank: int = 0

    def __len__(self) -> int:
        return len(self.plan) - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        for number in range(self.start, len(self.plan)):
            micro = self.plan[number]
            rows = self.plan.rows(micro, self.rank)
            yield [(micro.task, int(row), micro.pass_) for row in rows]


class Samples(Dataset[dict[str, Any]]):
    """Images of one or several tasks, each as the objective's views of it.

    Args:
        data: task -> images.
        seed: the views of an image are a function of (seed, pass, id).
    """

    def __init__(self, data: Mapping[str, Images], objective: Objective, seed: int = 0) -> None:
        self.objective, self.seed = objective, seed
        # Plain lists: a polars frame must not be touched in a forked worker.
        self.columns = {
            task: {name: images.table[name].to_list() for name in images.table.columns}
            for task, images in data.items()
        }
        self.soft = {task for task, each in self.columns.items() if any(each.get("q", ()))}
        self.stores = {task: images.store for task, images in data.items()}
        self.max_pixels = {task: images.max_pixels for task, images in data.items()}

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        task, row, pass_ = draw
        columns = self.columns[task]
        sample: dict[str, Any] = {name: values[row] for name, values in columns.items()}
        if task in self.soft:
            sample["soft_label"] = sample["q"]
        try:
            encoded = read_bytes(self.stores[task], sample["key"])
            sample["image"] = decode(encoded, self.max_pixels[task])[0]
        except Unreadable as error:
            raise DataError(
                f"{sample['path']} can no longer be read: {error}.",
                "Bring it back; the same command goes on from the last checkpoint.",
            ) from error
        if task != ALONE:
            sample["task"] = task
        seed = seed_of(self.seed, pass_, sample["id"])
        with own_chance(seed):
            views = self.objective.views(sample, torch.Generator().manual_seed(seed))
        return {"id": sample["id"], **views}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples to a batch; ids stay a list of text."""
    ids = [sample["id"] for sample in samples]
    views = [{k: v for k, v in sample.items() if k != "id"} for sample in samples]
    return {**default_collate(views), "id": ids}


def loader(samples: Samples, draws: Draws, workers: int, pin: bool) -> DataLoader:
    """One pass over all epochs; workers read ahead over their borders."""
    return DataLoader(
        samples,
        batch_sampler=draws,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),  # for the workers' base seed, which goes unused
    )


def usable(images: Images, objective: Objective) -> Images:
    """The images that have what the objective needs; of a combination, what one of its parts needs.

    Raises:
        DataError: none has it; the key and the objective are named.
    """
    if isinstance(objective, Combine):
        return images
    keep = pl.lit(True)
    for key in sorted(objective.needs & set(images.table.columns)):
        if images.table[key].null_count() == len(images):
            raise DataError(
                f"{objective.name} needs {key!r}, which no image of {images.name} has.",
                "Give data that have it, or choose another --objective.",
            )
        keep = keep & pl.col(key).is_not_null()
    return images.where(keep)

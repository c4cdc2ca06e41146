"""What is watched while something is trained without labels: collapse, and nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from beholder.core.errors import BeholderError
from beholder.core.features import batches
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.metrics.features import MIN_ROWS, collapse
from beholder.metrics.neighbours import knn_predict

from .objectives.base import Objective, Step

MOST, BATCH, PATIENCE = 1024, 64, 3
"""Images looked at, images at once, checks in a row that must agree on a collapse."""


class CollapseError(BeholderError):
    """The features of an encoder have become the same for all images."""

    exit_code = 3


def features_of(model: VisionModel, objective: Objective, images: Images) -> np.ndarray:
    """What probes read of images as deployed, float32 [N, D]; call it in eval mode."""
    device = model._mean.device
    found = []
    with torch.no_grad():
        for pixels in batches(
            images, range(len(images)), model.prepare, model.input_size, BATCH, 2, {}
        ):
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
            found.append(objective.features(model, inputs).float().cpu())
    return torch.cat(found)[: len(images)].numpy()


def some(images: Images, most: int = MOST) -> Images:
    """At most so many of the images, evenly from all."""
    if len(images) <= most:
        return images
    rows = np.linspace(0, len(images) - 1, most).astype(int)
    return replace(images, table=images.table[rows])


@dataclass
class CollapseMonitor:
    """A probe: `std`, `rank` and `cos` of held-out features; see `metrics.features.collapse`.

    Args:
        images: held out; at least 64 of them.
        stop: end the run with `CollapseError` where three checks in a row are alarming.
        alarms: in a row so far, of a run that goes on.
    """

    images: Images
    stop: bool = False
    alarms: int = 0

    def __call__(self, model: VisionModel, objective: Objective, step: Step) -> Mapping[str, float]:
        found = collapse(features_of(model, objective, some(self.images)))
        self.alarms = self.alarms + 1 if found.alarming else 0
        if self.alarms >= PATIENCE:
            said = (
                f"The features have collapsed: std {found.std:.3f}, rank {found.rank:.1f}, "
                f"cos {found.cos:.3f} after epoch {step.epoch:g}."
            )
            if self.stop:
                raise CollapseError(said, "Try a lower --lr, a larger batch or a longer --warmup.")
            if self.alarms == PATIENCE:
                warnings.warn(said, stacklevel=2)
        return {**found._asdict(), "alarms": float(self.alarms)}

    @staticmethod
    def possible(images: Images) -> bool:
        return len(images) >= MIN_ROWS


@dataclass
class NeighbourProbe:
    """A probe: `knn`, the accuracy of 20 weighted neighbours on frozen features.

    Args:
        bank, queries: labelled images.
    """

    bank: Images
    queries: Images

    def __call__(self, model: VisionModel, objective: Objective, step: Step) -> Mapping[str, float]:
        bank, queries = some(self.bank, 2 * MOST), some(self.queries)
        known = bank.table["label"].to_numpy().astype(int)
        votes = knn_predict(
            features_of(model, objective, queries), features_of(model, objective, bank), known
        )
        hits = votes.argmax(1) == queries.table["label"].to_numpy()
        return {"knn": float(hits.mean())}


def labelled(images: Images) -> Images:
    """Those with a label."""
    return images.where(images.table["label"].is_not_null())


def last_alarms(rows: Sequence[tuple[str, float]]) -> int:
    """`alarms` of the last check among (name, value) of a run's probe rows."""
    return int(next((value for name, value in reversed(rows) if name == "alarms"), 0.0))

"""How good the model is between two epochs, on images that it does not learn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from beholder.core.features import batches
from beholder.core.images import Images
from beholder.core.model import VisionModel

from .data import ALONE, Samples, collate, own_chance
from .objectives.base import Objective, Step

VALIDATION_PASS = -1
"""The pass whose views the validation sees: always the same, and none that is trained on."""


@contextmanager
def judging(*modules: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients, and without moving the streams of chance."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad(), own_chance(cuda=torch.cuda.is_available()):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def is_classifier(objective: Objective, model: VisionModel, images: Images) -> bool:
    """Whether right and wrong can be told of the model's own logits."""
    return "label" in objective.needs and tuple(model.classes) == tuple(images.classes)


def answers(
    model: VisionModel, images: Images, *, batch: int = 64, workers: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, C] of every image as deployed, and which of them could be read, bool [N]."""
    device = model._mean.device
    gone: dict[str, str] = {}
    found: list[Tensor] = []
    rows = range(len(images))
    with judging(model):
        for pixels in batches(images, rows, model.prepare, model.input_size, batch, workers, gone):
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
            found.append(model.logits(inputs).float().cpu())
    logits = torch.cat(found)[: len(images)].numpy()
    return logits, ~np.isin(images.table["id"].to_numpy(), list(gone))


def accuracy_of(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """`accuracy`, and `loss` (cross-entropy), of logits [N, C] and labels [N]."""
    wide = torch.from_numpy(logits).double()
    loss = nn.functional.cross_entropy(wide, torch.from_numpy(label).long())
    return {"accuracy": float((logits.argmax(1) == label).mean()), "loss": float(loss)}


def validate(
    objective: Objective,
    model: VisionModel,
    images: Images | Mapping[str, Images],
    *,
    batch: int,
    step: Step,
    seed: int,
) -> dict[str, float]:
    """Accuracy and cross-entropy of a classifier; of anything else its loss terms.

    Args:
        images: those held out; of several tasks, each one's.
    """
    if isinstance(images, Images):
        if is_classifier(objective, model, images):
            logits, there = answers(model, images, batch=batch)
            return accuracy_of(logits[there], images.table["label"].to_numpy()[there].astype(int))
        return _terms(objective, model, {ALONE: images}, batch, step, seed)
    return _terms(objective, model, images, batch, step, seed)


def _terms(
    objective: Objective,
    model: VisionModel,
    data: Mapping[str, Images],
    batch: int,
    step: Step,
    seed: int,
) -> dict[str, float]:
    samples = Samples(data, objective, seed)
    sums: dict[str, list[tuple[float, int]]] = {}
    noted = dict(objective.noted)
    with judging(model, objective):
        for task, images in data.items():
            for rows in _chunks(len(images), batch, objective.global_batch):
                drawn = collate([samples[task, row, VALIDATION_PASS] for row in rows])
                terms = objective.loss(model, to_device(drawn, model._mean.device))
                total = objective.total(terms, step)
                for name, value in {**terms, "loss": total}.items():
                    sums.setdefault(name, []).append((float(value), len(rows)))
    objective.noted = noted
    return {
        name: sum(v * n for v, n in parts) / sum(n for _, n in parts)
        for name, parts in sums.items()
    }


def _chunks(count: int, batch: int, whole: bool) -> list[Sequence[int]]:
    """Rows in batches. One of a single row joins the batch before it; of a loss of the whole batch,
    one that is not full is left out."""
    starts = list(range(0, count, batch))
    if len(starts) > 1 and (count - starts[-1] == 1 or (whole and count % batch)):
        del starts[-1]
        count = starts[-1] + batch if whole else count
    ends = [*starts[1:], count]
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


def to_device(batch: Mapping[str, object], device: torch.device) -> dict[str, object]:
    """Its tensors, also those in lists, on a device."""
    moved: dict[str, object] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            moved[name] = value.to(device)
        elif isinstance(value, list):
            moved[name] = [part.to(device) if isinstance(part, Tensor) else part for part in value]
        else:
            moved[name] = value
    return moved

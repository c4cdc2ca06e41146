"""Classification: one label per image, hard or soft; the default of `beholder train`.

Cross-entropy over the classes, or one yes-or-no per class (`bce`, as in "ResNet strikes back",
Wightman et al., 2021, NeurIPS workshop). It trains the backbone's own classifier, so the result
loads in plain timm.

Example:
    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    >>> round(classification_loss(logits, torch.tensor([0, 1, -1])).item(), 3)  # -1 = unknown
    0.41
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from beholder.core.errors import ArgumentError, DataError
from beholder.core.model import VisionModel
from beholder.core.registry import system

from .base import DataInfo, Objective
from .views import named, seeded

Kind = Literal["ce", "bce"]
UNKNOWN = -1


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    kind: Kind = "ce",
    smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over the images whose label is known; 0 where none is.

    Args:
        logits: [B, C].
        targets: classes [B] (-1 = unknown), which are smoothed, or shares [B, C] (a row of -1 =
            unknown), which are taken as they are.
        weight: of each image, [B].
    """
    if targets.ndim == 1:
        known = targets >= 0
        shares = shares_of(targets.clamp(min=0), logits.shape[1]).to(logits.dtype)
        shares = shares * (1 - smoothing) + smoothing / logits.shape[1]
    else:
        known = (targets >= 0).all(1)
        shares = targets.to(logits.dtype)
    if kind == "ce":
        each = -(shares * logits.log_softmax(1)).sum(1)
    else:
        each = F.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(1)
    amount = known.to(logits.dtype) if weight is None else known * weight
    return (amount * each).sum() / amount.sum().clamp(min=torch.finfo(logits.dtype).tiny)


def shares_of(targets: Tensor, classes: int) -> Tensor:
    """Classes [B] as shares [B, C]; shares stay."""
    return F.one_hot(targets, classes).float() if targets.ndim == 1 else targets


@system(name="classification")
class Classification(Objective):
    """The loss of the model's logits.

    Args:
        loss: 'ce' = softmax cross-entropy, 'bce' = mean of one binary cross-entropy per class.
        smoothing: share of the target that is spread evenly over the classes; mixed or soft targets
            are not smoothed again.
        view: how training images are seen: a name in `views.VIEWS`.
    """

    needs = frozenset({"image", "label"})
    classifies = True

    def __init__(self, loss: Kind = "ce", smoothing: float = 0.0, view: str = "supervised") -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ArgumentError(f"--smoothing {smoothing} is not in 0 .. 1.", "For example 0.1.")
        self.kind: Kind = loss
        self.smoothing = smoothing
        self.view = view
        named(view)
        self.classes: tuple[str, ...] = ()

    def setup(self, model: VisionModel, data: DataInfo) -> None:
        """Give the model a classifier of the data's classes, unless it has just that."""
        super().setup(model, data)
        if len(data.classes) < 2:
            raise DataError(
                f"Classification needs two classes; the data has {len(data.classes)}.",
                "Without labels: beholder pretrain DATA.",
            )
        self.classes = data.classes
        model.head = None
        outputs = getattr(model.backbone, "num_classes", 0)
        if model.classes != data.classes or outputs != len(data.classes):
            model.backbone.reset_classifier(len(data.classes))
            model.classes = data.classes

    def views(self, sample: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """`image` [3, H, W], `label` (its index, or shares [C] where the data has `soft_label`) and
        `weight`."""
        self.check(sample)
        with seeded(generator):
            image = named(self.view)(sample["image"], self.size)
        weight = sample.get("weight")
        return {
            "image": image,
            "label": self._target(sample),
            "weight": torch.tensor(1.0 if weight is None else float(weight)),
        }

    def _target(self, sample: Mapping[str, Any]) -> Tensor:
        label = UNKNOWN if sample["label"] is None else int(sample["label"])
        if "soft_label" not in sample:
            return torch.tensor(label)
        if sample["soft_label"] is not None:
            return torch.as_tensor(sample["soft_label"], dtype=torch.float32)
        shares = torch.zeros(len(self.classes)) if label >= 0 else -torch.ones(len(self.classes))
        if label >= 0:
            shares[label] = 1
        return shares

    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Term 'ce' or 'bce'.

        A mixed batch has `target` [B, C], with the `plan` and the `mixing` that made it; one that
        `attends` weighs the labels again by what the model looked at.
        """
        logits, targets = self._answers(model, batch)
        largest = targets if targets.ndim == 1 else targets.argmax(1)
        self.metric("accuracy", (logits.argmax(1) == largest).float().mean())
        found = classification_loss(
            logits.float(), targets, self.kind, self.smoothing, batch.get("weight")
        )
        return {self.kind: found}

    def _answers(self, model: VisionModel, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits and targets."""
        images, mixing = batch["image"], batch.get("mixing")
        if mixing is None or not mixing.attends:
            return model(images), batch.get("target", batch["label"])
        from beholder.models.attention import (  # pyright: ignore[reportMissingImports]
            attention,
        )

        with attention(model) as looked:
            logits = model(images)
        own = shares_of(batch["label"], logits.shape[1])
        return logits, mixing.retarget(own, batch["plan"], looked(), logits.detach())

"""A model made for a data set: encoder, one feature pass that fits the time, heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from beholder.core.decode import Unreadable
from beholder.core.engines import Engine, FromBytes, fastest
from beholder.core.errors import BudgetError, DataError, ModelError
from beholder.core.features import View
from beholder.core.images import Images
from beholder.core.model import Crop, VisionModel
from beholder.models.encoder import UNTRAINED, create_encoder, input_side

SMALLEST_SUBSET = 2_000
SIDES = (224, 160)
VIEWS: tuple[View, ...] = ("image", "mirror")


@dataclass(frozen=True)
class Pass:
    """What the feature pass can afford: views, side of the input, number of images."""

    views: tuple[View, ...]
    side: int
    images: int

    def shortened(self, images: int, side: int, views: Sequence[View] = VIEWS) -> list[str]:
        """What was given up of these, in words."""
        words = []
        if len(self.views) < len(views):
            words.append("no mirror images")
        if self.side < side:
            words.append(f"images at {self.side} instead of {side} px")
        if self.images < images:
            words.append(f"{self.images:,} of {images:,} images")
        return words


def plan_pass(
    seconds: float,
    price: float,
    images: int,
    side: int,
    fixed: bool,
    views: Sequence[View] = VIEWS,
) -> Pass:
    """The largest pass that `seconds` allow; gives up mirror, then side, then images.

    Args:
        price: seconds for one image at `side`; grows with the area.
        fixed: the model runs at one side only.

    Raises:
        BudgetError: not even the smallest pass fits.
    """
    smaller = [] if fixed else [s for s in SIDES if s < side]
    views = tuple(views)
    offers = [Pass(views, side, images), Pass(views[:1], side, images)]
    offers += [Pass(views[:1], s, images) for s in smaller]
    for offer in offers:
        if len(offer.views) * images * price * (offer.side / side) ** 2 <= seconds:
            return offer
    last = offers[-1]
    cost = price * (last.side / side) ** 2
    floor = min(images, SMALLEST_SUBSET)
    affordable = int(seconds / cost)
    if affordable < floor:
        raise BudgetError(
            f"The features of {floor:,} images need {floor * cost:,.0f} s, "
            f"{max(seconds, 0):,.0f} s are there.",
            "Run again with a larger --budget, or --budget 0 for no limit.",
        )
    return Pass(last.views, last.side, affordable)


def names_encoder(text: str) -> bool:
    """Whether `--model` names an encoder (a timm name, `untrained:NAME`), not a model to judge."""
    plain = text.removeprefix(UNTRAINED)
    return ":" not in plain and "/" not in plain and not Path(plain).exists()


def make_encoder(
    name: str | None, longest: Sequence[int], crop: Crop, seed: int
) -> tuple[VisionModel, list[str]]:
    """The encoder at the side that fits images with these longest sides; what was assumed."""
    backbone, assumed = create_encoder(name, seed)
    size = input_side(backbone, list(longest))
    shown = name or backbone.pretrained_cfg["architecture"]
    height, width = (-(-side // 32) * 32 for side in size)
    for candidate in (size, (height, width)):
        vision = VisionModel(backbone, shown, input_size=candidate, crop=crop)
        try:
            _ = vision.layout
        except (RuntimeError, AssertionError, ValueError):
            continue
        return vision, assumed
    raise ModelError(f"{shown} cannot run at {size[0]} x {size[1]} pixels.")


def resized(vision: VisionModel, side: int) -> VisionModel:
    """The same encoder at another side, on the same device."""
    smaller = VisionModel(vision.backbone, vision.name, input_size=(side, side), crop=vision.crop)
    return smaller.to(next(vision.buffers()).device)


def choose_engine(
    vision: VisionModel, images: Images, device: str
) -> tuple[Engine, float, list[str]]:
    """The fastest engine that agrees with torch, on images of the data: see `engines.fastest`.

    Raises:
        DataError: none of eight images can be read any more.
    """
    sample = []
    for row in np.linspace(0, len(images) - 1, min(8, len(images))).astype(int):
        with suppress(Unreadable):  # it went since the scan; the feature pass will say so
            sample.append(vision.prepare(images.read(int(row))))
    if not sample:
        raise DataError(f"The images of {images.name} can no longer be read.")
    module = FromBytes(vision, "descriptor").eval()
    return fastest(module, np.stack(sample), vision.describe(), device)


def subset(images: Images, count: int, order: Callable[[str], str]) -> np.ndarray:
    """Mask of `count` images, every class in proportion, chosen by `order(id)`."""
    table = images.table
    ids, labels = table["id"].to_list(), table["label"].fill_null(-1).to_numpy()
    rank = np.argsort(np.argsort([order(id) for id in ids]))
    keep = np.zeros(len(ids), bool)
    position = np.empty(len(ids))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        position[rows[np.argsort(rank[rows])]] = (np.arange(len(rows)) + 0.5) / len(rows)
    keep[np.lexsort((rank, position))[:count]] = True
    return keep


def pick_device(wanted: str) -> str:
    """'auto' = cuda, mps or cpu, whichever is there first.

    Raises:
        ModelError: the device named is not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"--device {wanted} cannot be used: {reason}") from error
    return wanted

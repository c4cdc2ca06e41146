"""Heat maps of a deployed model, their test by blurring, and how they are laid over a picture.

A heat map is [H, W] at the model's size, the larger the more evidence for the class.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import softmax
from torch import Tensor

from beholder.core.errors import ArgumentError
from beholder.core.model import Crop, VisionModel
from beholder.core.predictions import WARM
from beholder.explain.attribution.gradcam import GradCAM
from beholder.explain.base import frozen
from beholder.explain.layers import find_layer
from beholder.metrics.explanation import auc, centred, removal_order, shuffled

from .report.pictures import SIDE

if TYPE_CHECKING:
    from .subject import Deployed

GRID = 14
CELLS = GRID * GRID
BLUR = 1 / 20  # sigma, share of the shorter side
FRAME = 0.1  # of each side
OPAQUE = 0.8
BATCH = 8


class Mapper(abc.ABC):
    """Makes heat maps of a model. `name`, `how`: what it does, for the report."""

    name: str
    how: str

    def __init__(self, model: Deployed) -> None:
        self.model = model

    @abc.abstractmethod
    def __call__(
        self, pixels: Sequence[np.ndarray], rows: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        """What speaks for class `labels` [N] in images at the model's size: [N, H, W]."""

    @abc.abstractmethod
    def price(self, pixels: np.ndarray, row: int, answer: float) -> float:
        """Seconds per map, where an answer takes `answer`."""


class ByGradient(Mapper):
    """Grad-CAM (row 20) on the map that the model's answer is read from."""

    name, how = "gradcam", "Grad-CAM"
    layer: str | None = None

    def __call__(
        self, pixels: Sequence[np.ndarray], rows: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        return self._maps(pixels, rows, labels, lambda vision: vision)

    def forgetful(
        self, pixels: Sequence[np.ndarray], rows: np.ndarray, labels: np.ndarray, seed: int
    ) -> np.ndarray:
        """The maps of the model with the values of its weights in another order: [N, H, W]; flat
        where it has no gradient any more."""
        try:
            return self._maps(
                pixels, rows, labels, lambda vision: cast(VisionModel, shuffled(vision, seed))
            )
        except ArgumentError:
            return np.zeros((len(rows), *self.model.size), np.float32)

    def _maps(
        self,
        pixels: Sequence[np.ndarray],
        rows: np.ndarray,
        labels: np.ndarray,
        changed: Callable[[VisionModel], VisionModel],
    ) -> np.ndarray:
        model = self.model
        found = np.zeros((len(rows), *model.size), np.float32)
        for _, places in model.modules(rows):
            vision = model.vision_of(int(rows[places[0]]))
            self.layer = self.layer or _last_map(vision)
            vision = changed(vision)
            images = torch.from_numpy(np.stack([pixels[i] for i in places])).permute(0, 3, 1, 2)
            targets = [evidence_for(model, int(labels[i])) for i in places]
            maps = GradCAM(self.layer).explain(vision, images, targets, batch_size=BATCH)
            found[places] = maps.heatmap.numpy()
        return found

    def price(self, pixels: np.ndarray, row: int, answer: float) -> float:
        rows = np.array([row, row])
        self([pixels], rows[:1], np.zeros(1, int))  # finds the layer
        start = time.perf_counter()
        self([pixels, pixels], rows, np.zeros(2, int))
        return (time.perf_counter() - start) / 2


def _last_map(vision: VisionModel) -> str:
    """The layer that the features are read from. Not asked of the answer: a kernel head has no
    gradient at the noise that the search for a layer looks at."""
    with frozen(vision):
        return find_layer(vision, lambda images: vision.features(images).sum(1), vision.input_size)


def evidence_for(model: Deployed, label: int) -> Callable[[Tensor], Tensor]:
    """Reads the logit of a class off [C]; of two classes, by how much it is above the other's."""
    own = model.target(label)
    if len(model.classes) != 2:
        return own
    other = model.target(1 - label)
    return lambda logits: own(logits) - other(logits)


class ByOcclusion(Mapper):
    """How far the probability falls while one cell after the other has the image's mean colour."""

    name, how = "occlusion", "occlusion"

    def __call__(
        self, pixels: Sequence[np.ndarray], rows: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        cell, found = cells(self.model.size), []
        for image, row, label in zip(pixels, rows, labels, strict=True):
            mean = image.mean((0, 1)).round().astype(np.uint8)
            covered = (np.where((cell == i)[:, :, None], mean, image) for i in range(CELLS))
            p = probabilities(self.model, [image, *covered], int(row), int(label))
            found.append((p[0] - p[1:])[cell])
        return np.stack(found).astype(np.float32)

    def price(self, pixels: np.ndarray, row: int, answer: float) -> float:
        return (CELLS + 1) * answer


def probabilities(
    model: Deployed, pixels: Sequence[np.ndarray], row: int, label: int
) -> np.ndarray:
    """Of class `label` in versions of the image of row `row`: [len(pixels)]."""
    logits = model.ask(pixels, np.full(len(pixels), row)).logits
    return softmax(logits, axis=1)[:, label]


def cells(size: tuple[int, int]) -> np.ndarray:
    """Number of the cell of the 14 x 14 grid that each pixel of (H, W) lies in: [H, W]."""
    rows, columns = (np.arange(side) * GRID // side for side in size)
    return rows[:, None] * GRID + columns


class Design(NamedTuple):
    """How thoroughly a map is tested: points on a curve, how often it is moved elsewhere, and
    whether a spot in the middle is tried as well."""

    steps: int
    moves: int
    middle: bool

    @property
    def answers(self) -> int:
        """That the test of one image takes."""
        return 2 + 2 * (self.steps - 1) * (1 + self.moves + self.middle)


def moved(heatmap: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The map [h, w] in another place, over the edge and back in, perhaps mirrored.

    Cells thrown about one by one would not be a fair rival: speckles spoil a picture more than a
    patch of the same area, whatever they hide (measured on digits: 17 points of probability).
    """
    height, width = heatmap.shape
    place = 1 + int(rng.integers(height * width - 1))
    heatmap = np.roll(heatmap, (place // width, place % width), (0, 1))
    for axis in (0, 1):
        if rng.integers(2):
            heatmap = np.flip(heatmap, axis)
    return heatmap


def areas(
    model: Deployed,
    image: np.ndarray,
    row: int,
    label: int,
    heatmap: np.ndarray,
    design: Design,
    seed: int,
) -> dict[str, float]:
    """Mean probability of class `label` along each curve, 0..1.

    `deletion` blurs the hottest cells first: lower is better. `insertion` starts from the blurred
    image and shows them first: higher is better. `..._random`: of the map moved elsewhere;
    `..._centre`: of a spot in the middle, where the design has it.

    Args:
        image: uint8 [H, W, 3] at the model's size, of row `row` of the data.
    """
    cell = cells(model.size)
    sigma = BLUR * min(model.size)
    unsharp = gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)).round().astype(np.uint8)
    rng = np.random.default_rng([seed, row])
    coarse = pooled(heatmap)
    rivals = {"": [coarse], "_random": [moved(coarse, rng) for _ in range(design.moves)]}
    if design.middle:
        rivals["_centre"] = [centred(GRID, GRID).numpy()]
    orders = [
        (suffix, order_of(rival, int(rng.integers(2**31))))
        for suffix, maps in rivals.items()
        for rival in maps
    ]
    ends = np.array([[False], [True]]).repeat(CELLS, 1)
    curves = [blurring(order, design.steps) for _, order in orders]
    masks = np.concatenate([ends, *curves, *(~curve for curve in curves)])
    versions = [np.where(mask[cell][:, :, None], unsharp, image) for mask in masks]
    p = probabilities(model, versions, row, label)
    found: dict[str, list[float]] = {}
    inner = p[2:].reshape(2, len(orders), design.steps - 1)
    for kind, own, (start, end) in zip(
        ("deletion", "insertion"), inner, (p[:2], p[1::-1]), strict=True
    ):
        for (suffix, _), curve in zip(orders, own, strict=True):
            area = auc(torch.tensor([start, *curve, end], dtype=torch.float64))
            found.setdefault(kind + suffix, []).append(area)
    return {name: float(np.mean(values)) for name, values in found.items()}


def pooled(heatmap: np.ndarray) -> np.ndarray:
    """Mean heat of each cell: [H, W] -> [14, 14]."""
    height, width = heatmap.shape
    cell = cells((height, width)).ravel()
    size = np.maximum(np.bincount(cell, minlength=CELLS), 1)
    total = np.bincount(cell, heatmap.ravel().astype(float), CELLS)
    return (total / size).reshape(GRID, GRID)


def order_of(coarse: np.ndarray, seed: int) -> np.ndarray:
    """When each cell of [14, 14] is taken, 0 = the hottest, ties by lot: [196]."""
    return removal_order(torch.from_numpy(coarse.copy()), seed).flatten().numpy()


def blurring(order: np.ndarray, steps: int) -> np.ndarray:
    """Which cells are blurred at each point between the ends of a deletion: [steps - 1, 196]."""
    taken = np.round(np.arange(1, steps) * CELLS / steps)
    return order < taken[:, None]


def border_ratio(heatmap: np.ndarray) -> float | None:
    """Share of the positive heat in the outer frame, a tenth of each side wide, over the frame's
    share of the area; 1 = evenly spread. None of a map without positive heat."""
    heat = np.maximum(heatmap, 0)
    outer = [np.abs((np.arange(side) + 0.5) / side - 0.5) > 0.5 - FRAME for side in heatmap.shape]
    frame = outer[0][:, None] | outer[1]
    return float(heat[frame].sum() / heat.sum() / frame.mean()) if heat.any() else None


def laid_over(heatmap: np.ndarray, height: int, width: int, crop: Crop) -> np.ndarray:
    """The positive heat as a picture to be laid over the thumbnail of an image of this size:
    RGBA, uint8 [h, w, 4], the longer side 192. What the model does not see stays clear."""
    scale = SIDE / max(height, width)
    h, w = (max(1, round(side * scale)) for side in (height, width))
    seen_h, seen_w = h, w
    if crop == "center":
        zoom = min(h / heatmap.shape[0], w / heatmap.shape[1])
        seen_h, seen_w = (max(1, round(side * zoom)) for side in heatmap.shape)
    top = np.quantile(np.abs(heatmap), 0.99) or np.inf
    strength = np.clip(heatmap / top, 0, 1).astype(np.float32)
    small = np.asarray(
        Image.fromarray(strength).resize((seen_w, seen_h), Image.Resampling.BILINEAR)
    )
    y, x = (h - seen_h) // 2, (w - seen_w) // 2
    place = np.zeros((h, w))
    place[y : y + seen_h, x : x + seen_w] = small
    places = np.linspace(0, 1, len(WARM))
    channels = [np.interp(place, places, channel) for channel in WARM.T]
    alpha = 255 * OPAQUE * place**0.8
    return np.stack([*channels, alpha], axis=2).round().astype(np.uint8)

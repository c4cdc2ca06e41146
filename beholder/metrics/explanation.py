"""Is a heat map evidence, and does it stand where the object is?

Deletion, insertion: Petsiuk, Das, Saenko, 'RISE', BMVC 2018. Pointing game: Zhang et al., 'Top-down
Neural Attention by Excitation Backprop', ECCV 2016. MaxBoxAcc and its second version: Choe et al.,
'Evaluating Weakly Supervised Object Localization Methods Right', CVPR 2020. Randomised weights:
Adebayo et al., 'Sanity Checks for Saliency Maps', NeurIPS 2018.

Heat maps are [H, W]; the larger, the more evidence. Boxes are x0, y0, x1, y1 in pixels, x1 and y1
excluded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from scipy import ndimage, stats
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

Score = Callable[[Tensor], Tensor]
"""Images [N, 3, H, W] -> the probability that is explained, [N]."""

CHUNK = 64
BLUR_SIDE, BLUR_SIGMA = 11, 5.0
WSL_THRESHOLD = 0.15
V2_IOUS = (0.3, 0.5, 0.7)
THRESHOLDS = tuple(i / 100 for i in range(100))
EIGHT_NEIGHBOURS = np.ones((3, 3), int)


def removal_order(heatmap: Tensor, seed: int = 0) -> Tensor:
    """When each pixel is taken, 0 = first: the hottest first, ties by lot. [H, W] -> int [H, W]."""
    flat = heatmap.detach().flatten().cpu()
    lot = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
    order = lot[flat[lot].argsort(descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank.view_as(heatmap).to(heatmap.device)


def blurred(image: Tensor) -> Tensor:
    """The start of an insertion: Gaussian of 11 x 11 and sigma 5. [..., 3, H, W]."""
    return gaussian_blur(image, [BLUR_SIDE, BLUR_SIDE], [BLUR_SIGMA, BLUR_SIGMA])


@torch.no_grad()
def exchange(
    score: Score, start: Tensor, end: Tensor, heatmap: Tensor, steps: int | None, seed: int
) -> Tensor:
    """Scores while pixels of `start` become those of `end`, the hottest first: [steps + 1].

    Args:
        start, end: [3, H, W].
        heatmap: [H, W].
        steps: of equal numbers of pixels; None = H of them.
    """
    rank = removal_order(heatmap, seed)
    taken = torch.linspace(0, heatmap.numel(), (steps or len(heatmap)) + 1).round()
    scores = [
        score(torch.where(rank < count[:, None, None, None], end, start))
        for count in taken.to(rank.device).split(CHUNK)
    ]
    return torch.cat(scores).cpu()


def deletion(
    score: Score, image: Tensor, heatmap: Tensor, *, steps: int | None = None, seed: int = 0
) -> Tensor:
    """The score while the hottest pixels turn black; `auc` of it: lower is better. [steps + 1]."""
    return exchange(score, image, torch.zeros_like(image), heatmap, steps, seed)


def insertion(
    score: Score, image: Tensor, heatmap: Tensor, *, steps: int | None = None, seed: int = 0
) -> Tensor:
    """The score while the hottest pixels of a blurred image become sharp; `auc` of it: higher is
    better. [steps + 1]."""
    return exchange(score, blurred(image), image, heatmap, steps, seed)


def auc(curve: Tensor) -> float:
    """Area under a curve of equal steps from 0 to 1, by the trapezoid rule."""
    return float((curve.sum() - (curve[0] + curve[-1]) / 2) / (len(curve) - 1))


def permuted(heatmap: Tensor, cells: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A map with the same values in other places: what a heat map has to be better than.

    The cells are permuted, not the pixels: single pixels torn from an image disturb a model more
    than an area does, whatever they show. [H, W] -> [H, W].
    """
    coarse = F.adaptive_avg_pool2d(heatmap[None, None].cpu(), cells)
    lot = torch.randperm(coarse.numel(), generator=generator)
    return resized(coarse.flatten()[lot].view(1, *cells), heatmap.shape)[0].to(heatmap.device)


def centred(height: int, width: int) -> Tensor:
    """A Gaussian in the middle of the image, sigma a quarter of each side: [H, W]."""
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    return torch.exp(-(y[:, None].square() + x.square()) / (2 * 0.25**2))


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [B, h, w] to [B, H, W], bilinear."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def pointing_game(heatmaps: Tensor, boxes: Sequence[Tensor], tolerance: float = 15) -> Tensor:
    """Whether the maximum lies inside a box, or at most `tolerance` pixels beside it.

    Of several equal maxima the share that does: a flat map is right as often as chance.

    Args:
        heatmaps: [B, H, W].
        boxes: per image [N, 4].

    Returns:
        [B], 0..1.
    """
    height, width = heatmaps.shape[1:]
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    hits = []
    for heatmap, own in zip(heatmaps.cpu(), boxes, strict=True):
        x0, y0, x1, y1 = torch.unbind(own.cpu().float().reshape(-1, 4, 1), 1)
        across = (x0 - x).clamp_min(0) + (x - x1).clamp_min(0)  # distance to each box, [N, W]
        down = (y0 - y).clamp_min(0) + (y - y1).clamp_min(0)
        near = torch.hypot(down[:, :, None], across[:, None]) <= tolerance
        hits.append(near.any(0)[heatmap == heatmap.max()].float().mean())
    return torch.stack(hits)


def _boxes(heatmap: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] and areas [N] of the connected parts (8 neighbours) that reach `threshold`."""
    labelled = ndimage.label(heatmap >= threshold, EIGHT_NEIGHBOURS)
    parts, count = cast(tuple[np.ndarray, int], labelled)
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    slices = ndimage.find_objects(parts)
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in slices]
    return np.array(boxes, float).reshape(-1, 4), areas


def largest_box(heatmaps: Tensor, threshold: float = WSL_THRESHOLD) -> Tensor:
    """The box around the largest part that reaches `threshold` of the maximum (row 20's weak
    localisation). [B, H, W] -> [B, 4]; all 0 where a map has nothing positive."""
    found = []
    for heatmap in heatmaps.cpu().numpy():
        peak = heatmap.max()
        boxes, areas = _boxes(heatmap, threshold * peak)
        found.append(boxes[areas.argmax()] if peak > 0 else np.zeros(4))
    return torch.tensor(np.stack(found), dtype=torch.float32)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: [N, 4], [M, 4] -> [N, M]; 0 of empty boxes."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1) - shared
    return shared / union.clamp_min(1e-9)


def wsl_iou(heatmaps: Tensor, boxes: Sequence[Tensor], threshold: float = WSL_THRESHOLD) -> Tensor:
    """Overlap of `largest_box` with the best of the true boxes (per image [N, 4]): [B], 0..1."""
    found = largest_box(heatmaps, threshold)
    return torch.stack([_best(box[None], own) for box, own in zip(found, boxes, strict=True)])


def _best(found: Tensor, own: Tensor) -> Tensor:
    overlaps = iou(found, own.cpu().float().reshape(-1, 4))
    return overlaps.max() if overlaps.numel() else torch.zeros(())


def _unit(heatmaps: Tensor) -> Tensor:
    """Each map scaled to 0..1; a flat one to 0."""
    low = heatmaps.amin((1, 2), keepdim=True)
    return (heatmaps - low) / (heatmaps.amax((1, 2), keepdim=True) - low).clamp_min(1e-12)


def box_overlaps(heatmaps: Tensor, boxes: Sequence[Tensor], *, largest: bool) -> Tensor:
    """Best overlap of a found with a true box at every threshold 0, 0.01 ... 0.99 of the map
    scaled to 0..1: [B, 100]. Found are the `largest` part alone, or all parts."""
    rows = []
    for heatmap, own in zip(_unit(heatmaps.cpu().float()), boxes, strict=True):
        row = []
        for threshold in THRESHOLDS:
            found, areas = _boxes(heatmap.numpy(), threshold)
            found = found[[areas.argmax()]] if largest else found
            row.append(_best(torch.tensor(found, dtype=torch.float32), own))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def max_box_acc(heatmaps: Tensor, boxes: Sequence[Tensor], least: float = 0.5) -> float:
    """MaxBoxAcc: share of images whose `largest` box overlaps a true one by `least`, at the
    threshold that serves the whole set best."""
    return float((box_overlaps(heatmaps, boxes, largest=True) >= least).float().mean(0).max())


def max_box_acc_v2(heatmaps: Tensor, boxes: Sequence[Tensor]) -> float:
    """MaxBoxAccV2: all parts may match, mean over overlaps of 0.3, 0.5, 0.7, each at its best
    threshold."""
    overlaps = box_overlaps(heatmaps, boxes, largest=False)
    return float(np.mean([float((overlaps >= x).float().mean(0).max()) for x in V2_IOUS]))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of two maps of each image: [B, H, W] twice -> [B]; 0 where one is flat."""
    a, b = (maps.detach().cpu().flatten(1) for maps in (a, b))
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    found = [0.0 if not np.ptp(x) or not np.ptp(y) else stats.spearmanr(x, y)[0] for x, y in pairs]
    return torch.tensor(found, dtype=torch.float32)


def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy that has forgotten what it learnt: the values of every weight in another order."""
    copied = copy.deepcopy(model)
    for number, (_, weight) in enumerate(_weights(copied)):
        _shuffle(weight, seed + number)
    return copied


def randomisation(
    maps: Callable[[nn.Module], Tensor], model: nn.Module, seed: int = 0
) -> dict[str, Tensor]:
    """How much of a map survives when the model forgets, layer by layer from the output down.

    Args:
        maps: a model to its heat maps [B, H, W].
        model: stays as it is.

    Returns:
        Name of a weight -> `spearman` [B] of |maps| before, and after this weight and all above it
        were shuffled. A method that explains the model falls to about 0.
    """
    before, forgetting = maps(model).abs(), copy.deepcopy(model)
    survived = {}
    for number, (name, weight) in reversed(list(enumerate(_weights(forgetting)))):
        _shuffle(weight, seed + number)
        survived[name] = spearman(before, maps(forgetting).abs())
    return survived


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What was learnt, without biases and scales."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.ndim > 1]


@torch.no_grad()
def _shuffle(weight: Tensor, seed: int) -> None:
    lot = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))
    weight.copy_(weight.flatten()[lot.to(weight.device)].view_as(weight))

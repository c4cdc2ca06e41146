"""CutMix: a box of one image pasted into another, the label mixed by the area.

Yun, Han, Oh, Chun, Choe, Yoo: "CutMix: Regularization Strategy to Train Strong Classifiers with
Localizable Features", ICCV 2019. Authors' code: clovaai/CutMix-PyTorch.

We differ: the box is timm's by default (the authors' loses a pixel of an odd side; `box="authors"`
is theirs), and the box may be drawn per pair or per sample. Feature CutMix is of the paper only, so
the choice of the stage, uniform per batch, is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from beholder.core.errors import ArgumentError, ModelError
from beholder.core.registry import system

from .base import Mixing, MixPlan, Mode, check_draws, pairing

Convention = Literal["timm", "authors", "torchvision"]


def cutmix_box(
    lam: np.ndarray | float,
    cy: np.ndarray | int,
    cx: np.ndarray | int,
    height: int,
    width: int,
    convention: Convention = "timm",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of area 1 - lam around (cy, cx), clipped: top, bottom, left, right (exclusive).

    The sides are sqrt(1 - lam) of the image's. An odd side reaches one pixel further down and right
    ('timm'), or loses it ('authors'); 'torchvision' rounds half a side instead of the whole.
    """
    edges = []
    for centre, length in ((cy, height), (cx, width)):
        ratio = np.sqrt(1 - np.asarray(lam, np.float64))
        if convention == "torchvision":
            before = after = (0.5 * ratio * length).astype(int)
        else:
            side = (length * ratio).astype(int)
            before, after = side // 2, (side + (convention == "timm")) // 2
        edges += [np.clip(centre - before, 0, length), np.clip(centre + after, 0, length)]
    top, bottom, left, right = edges
    return top, bottom, left, right


def minmax_box(
    low: float, high: float, height: int, width: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`count` boxes wholly inside, each side from `low` to `high` of the image's."""
    edges = []
    for length in (height, width):
        side = rng.integers(int(length * low), int(length * high) + 1, count)
        start = rng.integers(0, length - side + 1)
        edges += [start, start + side]
    top, bottom, left, right = edges
    return top, bottom, left, right


def box_masks(boxes: Sequence[np.ndarray], height: int, width: int) -> Tensor:
    """bool [K, 1, H, W], False inside of each box (four edges [K])."""
    top, bottom, left, right = (torch.from_numpy(edge)[:, None] for edge in boxes)
    rows, columns = torch.arange(height), torch.arange(width)
    down = (rows >= top) & (rows < bottom)
    across = (columns >= left) & (columns < right)
    return ~(down[:, :, None] & across[:, None, :])[:, None]


@system(58)
class CutMix(Mixing):
    """A box of the partner's pixels; its label weighs as much as its area.

    Args:
        beta: lam is drawn from Beta(beta, beta); 1 - lam is the area before clipping.
        prob: of mixing at all: per batch, or per draw of the other modes. CIFAR: 0.5.
        mode: one box for the batch, for a pair, or for each sample.
        minmax: sides from so much to so much of the image's, the box wholly inside; `beta` is then
            not used.
        correct_lam: the label's weight is the area after clipping; False = as drawn.
        box: whose rounding of the box.

    Example:
        >>> mixing = CutMix()
        >>> plan = mixing.plan(4, 32, 32, torch.Generator().manual_seed(0))
        >>> mixed = mixing.apply(torch.rand(4, 3, 32, 32), plan)
        >>> targets = mixing.targets(torch.arange(4), plan, classes=4)
        >>> bool((plan.mask.float().mean((1, 2, 3)) == plan.lam).all())
        True
    """

    def __init__(
        self,
        beta: float = 1.0,
        prob: float = 1.0,
        mode: Mode = "batch",
        minmax: tuple[float, float] | None = None,
        correct_lam: bool = True,
        box: Convention = "timm",
        smoothing: float = 0.0,
        sum_to_one: bool = True,
    ) -> None:
        super().__init__(smoothing=smoothing, sum_to_one=sum_to_one)
        check_draws("beta", beta, prob, mode)
        if minmax is not None and not 0 <= minmax[0] <= minmax[1] <= 1:
            raise ArgumentError(f"minmax = {minmax}: two shares, the smaller first.")
        if box not in get_args(Convention):
            raise ArgumentError(
                f"box = {box!r} is not known.", "Known: timm, authors, torchvision."
            )
        self.beta, self.prob, self.minmax, self.correct_lam = beta, prob, minmax, correct_lam
        self.mode: Mode = mode
        self.box: Convention = box

    def draw(self, batch: int, height: int, width: int, rng: np.random.Generator) -> MixPlan:
        partner, group = pairing(self.mode, batch, rng)
        draws = int(group.max()) + 1
        on = rng.random(draws) < self.prob
        if not on.any():
            return MixPlan.unmixed(batch)
        lam = np.where(on, rng.beta(self.beta, self.beta, draws), 1.0)
        if self.minmax is not None:
            boxes = minmax_box(*self.minmax, height, width, draws, rng)
            boxes = tuple(edge * on for edge in boxes)
        else:
            cy, cx = rng.integers(0, height, draws), rng.integers(0, width, draws)
            boxes = cutmix_box(lam, cy, cx, height, width, self.box)
        top, bottom, left, right = boxes
        if self.correct_lam or self.minmax is not None:
            area = (bottom - top) * (right - left)
            lam = (height * width - area) / (height * width)
        masks = box_masks(boxes, height, width)
        single = self.mode == "batch"
        return MixPlan(
            torch.from_numpy(partner),
            torch.from_numpy(lam[group]).float(),
            masks.expand(batch, -1, -1, -1) if single else masks[torch.from_numpy(group)],
            "cut",
            (int(top[0]), int(bottom[0]), int(left[0]), int(right[0])) if single else None,
        )


class FeatureCutMix(CutMix):
    """CutMix of the maps of one stage of the model, drawn per batch; images stay as they are.

    The box is drawn on the stage's own grid, so the label's weight is an exact share of its cells.
    `inside(model)` must be open while the model is trained.

    Args:
        stages: of the backbone's `feature_info` that may be cut; None = all.

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet10t").eval()
        >>> mixing, images = FeatureCutMix(stages=(2, 3)), torch.rand(5, 3, 64, 64)
        >>> with torch.no_grad(), mixing.inside(model):
        ...     plan = mixing.plan(5, 64, 64, torch.Generator().manual_seed(3))
        ...     same = mixing.apply(images, plan)
        ...     cut, whole = model(same), model(same)
        >>> torch.equal(same, images), torch.equal(cut, whole), torch.equal(whole, model(images))
        (True, False, True)
    """

    def __init__(
        self,
        beta: float = 1.0,
        prob: float = 1.0,
        mode: Mode = "batch",
        stages: tuple[int, ...] | None = None,
        smoothing: float = 0.0,
        sum_to_one: bool = True,
    ) -> None:
        super().__init__(beta, prob, mode, smoothing=smoothing, sum_to_one=sum_to_one)
        self.stages = stages
        self._reductions: dict[int, int] = {}
        self._due: MixPlan | None = None

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's next forward pass after an `apply` is cut by that plan.

        Args:
            model: a timm model, or a `VisionModel` around one.

        Raises:
            ModelError: it has no such stage.
        """
        backbone: Any = getattr(model, "backbone", model)
        known = list(getattr(backbone, "feature_info", []))
        chosen = range(len(known)) if self.stages is None else self.stages
        missing = [number for number in chosen if not 0 <= number < len(known)]
        if missing or not known:
            raise ModelError(
                f"The backbone has {len(known)} stages, so none of number {(missing or [0])[0]}."
            )
        last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        self._reductions = {number: int(known[number]["reduction"]) for number in chosen}
        handles = [
            backbone.get_submodule(known[number]["module"]).register_forward_hook(
                self._cutter(number, last)
            )
            for number in chosen
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._reductions, self._due = {}, None

    def draw(self, batch: int, height: int, width: int, rng: np.random.Generator) -> MixPlan:
        if not self._reductions:
            raise ArgumentError("FeatureCutMix cuts inside of a model.", "Use it in `inside`.")
        stage = int(rng.choice(list(self._reductions)))
        step = self._reductions[stage]
        return replace(super().draw(batch, -(-height // step), -(-width // step), rng), stage=stage)

    def apply(self, images: Tensor, plan: MixPlan, inplace: bool = False) -> Tensor:
        """The images as they are; the model is told."""
        self._due = plan
        return images

    def _cutter(self, stage: int, channels_last: bool) -> Callable[..., Tensor | None]:
        def cut(module: nn.Module, inputs: Any, maps: Tensor) -> Tensor | None:
            plan = self._due
            if plan is None or plan.stage != stage or plan.mask is None:
                return None
            self._due = None
            grid = tuple(plan.mask.shape[2:])
            found = tuple(maps.shape[1:3] if channels_last else maps.shape[2:])
            if maps.ndim != 4 or found != grid:
                raise ModelError(
                    f"Stage {stage} gives {tuple(maps.shape)}, no maps of {grid[0]} x {grid[1]}.",
                    "FeatureCutMix needs a backbone with maps, such as a ResNet.",
                )
            if not channels_last:
                return super(FeatureCutMix, self).apply(maps, plan)
            turned = super(FeatureCutMix, self).apply(maps.permute(0, 3, 1, 2), plan)
            return turned.permute(0, 2, 3, 1)

        return cut

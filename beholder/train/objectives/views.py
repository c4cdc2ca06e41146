"""Views of an image: what of it an objective sees, as settings; torchvision v2 does the work.

All chance of a view comes from a generator that is a function of (seed, epoch, id): neither the
number of workers nor a resumed run changes what is seen.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from beholder.core.errors import ArgumentError
from beholder.core.model import Size, VisionModel

BLUR_SIZE = 224  # px of the images that the papers' blur radii are meant for


@dataclass(frozen=True)
class View:
    """Settings of one view; each probability p is drawn for every image.

    Attributes:
        crop: 'random' = RandomResizedCrop of `scale` and `ratio`, 'squash' = both sides resized.
        scale: share of the image's area.
        flip: p of a mirror image.
        jitter: strengths of (brightness, contrast, saturation, hue), with p `jitter_p`.
        grey: p of no colour.
        blur: p of a Gaussian blur whose radius is uniform in `sigma`, in pixels of a 224 px image.
        solarize: p of inverting what is brighter than one half.
    """

    crop: Literal["random", "squash"] = "random"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __call__(self, image: np.ndarray, size: Size) -> Tensor:
        """RGB uint8 [h, w, 3] of any size to float [0, 1] [3, H, W]; see `seeded`."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return transform(self, size)(pixels)


SIMCLR = View(
    flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grey=0.2, blur=0.5, sigma=(0.1, 2.0)
)
BARLOW_A = replace(SIMCLR, jitter=(0.4, 0.4, 0.2, 0.1), blur=1.0)
BARLOW_B = replace(BARLOW_A, blur=0.1, solarize=0.2)

VIEWS = {
    "simclr": SIMCLR,
    "barlow_a": BARLOW_A,
    "barlow_b": BARLOW_B,
    "supervised": View(scale=(0.35, 1.0), flip=0.5),
    "upright": View(scale=(0.6, 1.0)),
    "raw": View(crop="squash"),
}
"""Name -> settings; 'upright' keeps left and right apart, as digits and text need."""


def named(name: str) -> View:
    """The view of that name.

    Raises:
        ArgumentError: there is none.
    """
    if name not in VIEWS:
        raise ArgumentError(f"There is no view {name!r}.", f"There is: {', '.join(VIEWS)}.")
    return VIEWS[name]


@functools.lru_cache(maxsize=64)
def transform(view: View, size: Size) -> nn.Module:
    """The view at a size (H, W), from uint8 [3, h, w] to float [0, 1] [3, H, W]."""
    bicubic = InterpolationMode.BICUBIC
    steps: list[nn.Module] = []
    if view.crop == "random":
        steps.append(v2.RandomResizedCrop(list(size), view.scale, view.ratio, bicubic))
    else:
        steps.append(v2.Resize(list(size), bicubic))
    if view.flip:
        steps.append(v2.RandomHorizontalFlip(view.flip))
    if view.jitter_p:
        steps.append(v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_p))
    if view.grey:
        steps.append(v2.RandomGrayscale(view.grey))
    if view.blur:
        shrink = min(1.0, min(size) / BLUR_SIZE)
        low, high = (radius * shrink for radius in view.sigma)
        kernel = 2 * math.ceil(3 * high) + 1
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, (low, high))], view.blur))
    if view.solarize:
        steps.append(v2.RandomSolarize(128, view.solarize))
    steps.append(v2.ToDtype(torch.float32, scale=True))
    return v2.Compose(steps)


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Global chance (torch on the CPU, numpy, random) is that of `generator` inside, and as it was
    afterwards."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    here = torch.default_generator
    states = here.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    here.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        here.set_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def pooled(model: VisionModel, images: Tensor) -> Tensor:
    """`model.features`, without the other depths that it computes: [B, D]."""
    final = model.backbone.forward_features(model.normalise(images))
    return model.backbone.forward_head(final, pre_logits=True).flatten(1)


def forward_views(model: VisionModel, views: Sequence[Tensor], joint: bool = True) -> list[Tensor]:
    """Features [B, D] of every view [B, 3, h, w].

    Args:
        joint: one call of the backbone for consecutive views of equal size, so that they share
            BatchNorm statistics (75); False = one call per view (47).
    """
    if not joint:
        return [pooled(model, view) for view in views]
    found: list[Tensor] = []
    for _, group in itertools.groupby(views, key=lambda view: view.shape[-2:]):
        same = list(group)
        found += pooled(model, torch.cat(same)).split([len(view) for view in same])
    return found

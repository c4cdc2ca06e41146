"""One batch of CutMix, [128, 3, 224, 224] float32 on the CPU, against torchvision v2 and timm.

All three draw lam close to 0.5 (Beta(10,000, 10,000)), so that their boxes are alike. torchvision
gives a new batch, as ours does by default; timm writes into the one it is given, as ours does in
place. Ours draws the plan, mixes images and labels; so do they.
"""

from __future__ import annotations

import statistics

import torch
from timm.data.mixup import Mixup
from torchvision.transforms import v2

from beholder.data.augment.cutmix import CutMix

from .base import Measured, at_most, measured, median_ratio, timed

CLASSES = 1000
EVEN = 10_000.0


def measure(quick: bool = False) -> Measured:
    batch, side, rounds = (16, 64, 3) if quick else (128, 224, 25)
    chance = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, side, side, generator=chance)
    y = torch.randint(CLASSES, (batch,), generator=chance)
    ours, each = CutMix(beta=EVEN), CutMix(beta=EVEN, mode="elem")
    torchvision = v2.CutMix(alpha=EVEN, num_classes=CLASSES)
    timm = Mixup(mixup_alpha=0, cutmix_alpha=EVEN, label_smoothing=0, num_classes=CLASSES)

    def in_place() -> None:
        plan = ours.plan(batch, side, side, chance)
        ours.apply(images, plan, inplace=True)
        ours.targets(y, plan, CLASSES)

    work = {
        "beholder": lambda: ours.mix(images, y, chance, CLASSES),
        "torchvision": lambda: torchvision(images, y),
        "beholder_in_place": in_place,
        "timm_in_place": lambda: timm(images, y),
        "beholder_each": lambda: each.mix(images, y, chance, CLASSES),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with torch.random.fork_rng():
        for number in range(rounds + 1):
            for name, call in work.items():
                spent, _ = timed(call)
                if number:  # the first round warms up
                    seconds[name].append(spent)
    figures = {
        "shape": [batch, 3, side, side],
        **{f"{name}_ms": 1000 * statistics.median(times) for name, times in seconds.items()},
    }
    return measured(
        figures,
        at_most(
            "time of torchvision v2 CutMix",
            median_ratio(seconds["beholder"], seconds["torchvision"]),
            1.1,
        ),
        at_most(
            "time of timm Mixup, in place",
            median_ratio(seconds["beholder_in_place"], seconds["timm_in_place"]),
            1.1,
        ),
    )

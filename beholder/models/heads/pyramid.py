"""Feature pyramids on any backbone: a path from coarse maps to fine ones, and coarser levels.

Lin et al.: "Feature Pyramid Networks for Object Detection", CVPR 2017; for a backbone with one
stride only, the simple pyramid of Li et al.: "Exploring Plain Vision Transformer Backbones for
Object Detection", ECCV 2022. Levels are chosen by their stride, never by their place in a list.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from beholder.core.errors import ModelError
from beholder.core.model import VisionModel


class Pyramid(nn.Module):
    """Feature maps by name -> level -> [B, channels, h, w].

    Args:
        model: its `feature_info` gives strides and channels.
        levels: wanted; level l has stride 2 ** l. Levels above the backbone's last are made by
            convolutions of stride 2, those below of a plain transformer by upsampling.
    """

    def __init__(
        self, model: VisionModel, levels: Sequence[int] = (3, 4, 5, 6, 7), channels: int = 64
    ) -> None:
        super().__init__()
        info = list(model.backbone.feature_info)
        strides = {int(stage["reduction"]): number for number, stage in enumerate(info)}
        found = {level: strides[2**level] for level in levels if 2**level in strides}
        if not found:
            raise ModelError(f"{model.name} has no feature map of stride {2 ** levels[0]} or more.")
        self.levels, self.channels = tuple(levels), channels
        self.simple = len(found) == 1
        last = max(found)
        self.sources = [found.get(level, found[last]) for level in levels if level <= last]
        self.within = [level for level in levels if level <= last]
        self.source_level = last
        self.lateral = nn.ModuleList(
            nn.Conv2d(int(info[source]["num_chs"]), channels, 1) for source in self.sources
        )
        self.smooth = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in self.sources
        )
        self.coarser = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            for level in levels
            if level > last
        )

    @property
    def stride(self) -> int:
        """Images are padded to a multiple of it."""
        return max(32, 2**self.source_level)

    def forward(self, maps: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        stages = list(maps.values())
        inner = [
            lateral(stages[source])
            for lateral, source in zip(self.lateral, self.sources, strict=True)
        ]
        if self.simple:
            inner = [
                functional.interpolate(x, scale_factor=2.0 ** (self.source_level - level))
                for x, level in zip(inner, self.within, strict=True)
            ]
        else:
            for fine in reversed(range(len(inner) - 1)):
                inner[fine] = inner[fine] + functional.interpolate(
                    inner[fine + 1], size=inner[fine].shape[-2:]
                )
        outer = [smooth(x) for smooth, x in zip(self.smooth, inner, strict=True)]
        for layer in self.coarser:
            outer.append(layer(functional.relu(outer[-1])))
        return OrderedDict((str(level), x) for level, x in zip(self.levels, outer, strict=True))

"""Levels: what a frozen model says of an image at each depth, in one pass for every detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beholder.core.engines import Eager, FromBytes
from beholder.core.errors import ModelError
from beholder.core.features import extract
from beholder.core.model import VisionModel

from .pictures import DetectorError, Pictures

Levels = dict[str, Tensor]
"""Level -> float32 [N, D]: `stage0` ... (spatial means of the backbone's stages; the last is left
out where it is `pooled`), `pooled` (before its classifier), and `logits` where asked for."""

BATCH = (
    8  # fixed: a short batch is padded, so one image costs as much as eight unless asked otherwise
)


class Encoder(nn.Module):
    """A model as detectors see it: float [0, 1] (or uint8) images to levels.

    The model is put into eval mode and stays there.
    """

    def __init__(self, model: VisionModel, device: str = "cpu", *, logits: bool = False) -> None:
        super().__init__()
        self.model = model.eval().to(device)
        self.device = device
        self.logits = logits
        self._same: str | None = None
        with torch.inference_mode():
            noise = torch.rand(2, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
            found = self.levels(noise.to(device))
        last = [name for name in found if name.startswith("stage")][-1:]
        if last and found[last[0]].shape == found["pooled"].shape:
            self._same = last[0] if found[last[0]].allclose(found["pooled"]) else None
            found = {name: value for name, value in found.items() if name != self._same}
        ends = np.cumsum([value.shape[1] for value in found.values()])
        self.layout = {
            name: slice(int(end - value.shape[1]), int(end))
            for (name, value), end in zip(found.items(), ends, strict=True)
        }

    def levels(self, images: Tensor) -> Levels:
        """[B, D] each; images at the model's size."""
        return self.levels_and_maps(images)[0]

    def levels_and_maps(self, images: Tensor) -> tuple[Levels, dict[str, Tensor]]:
        """And the stages that the levels are means of, each [B, C, h, w]."""
        maps, final = self._run(images)
        maps.pop(self._same or "", None)
        found = {name: stage.flatten(2).mean(2) for name, stage in maps.items()}
        found["pooled"] = self.model.backbone.forward_head(final, pre_logits=True).flatten(1)
        if self.logits:
            found["logits"] = self.model.logits(images)
        return found, maps

    def _run(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        x = self.model.normalise(images)
        backbone = self.model.backbone
        if not hasattr(backbone, "forward_intermediates"):
            return {}, backbone.forward_features(x)
        final, stages = backbone.forward_intermediates(x, output_fmt="NCHW")
        return {f"stage{i}": stage for i, stage in enumerate(stages)}, final

    def forward(self, images: Tensor) -> Tensor:
        """All levels side by side, [B, sum of D]."""
        return torch.cat(list(self.levels(images).values()), 1)

    def prepared(self, image: Tensor) -> Tensor:
        """uint8 or float [3, h, w] of any size to the model's size."""
        if image.shape[1:] == torch.Size(self.model.input_size):
            return image
        if image.dtype == torch.uint8:
            array = self.model.prepare(image.permute(1, 2, 0).contiguous().numpy())
            return torch.from_numpy(array).permute(2, 0, 1)
        size = self.model.input_size
        resized = F.interpolate(
            image[None], size, mode="bicubic", antialias=True, align_corners=False
        )
        return resized[0].clamp(0, 1)

    def batches(self, pictures: Pictures, size: int = BATCH) -> Iterator[Tensor]:
        """[b, 3, H, W] at the model's size; images of one kind (uint8 or float) per batch."""
        batch: list[Tensor] = []
        for row in range(len(pictures)):
            image = self.prepared(pictures[row])
            if batch and (len(batch) == size or batch[0].dtype != image.dtype):
                yield torch.stack(batch)
                batch = []
            batch.append(image)
        yield torch.stack(batch)

    def read(
        self,
        pictures: Pictures,
        batch_size: int = BATCH,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Levels:
        """Levels of every picture; those of a data set are kept in the cache.

        Always by torch, in batches padded to one size: the figures of an image depend neither on
        its neighbours nor on which engine happens to be the fastest. One image alone costs as much
        as a batch; `batch_size=1` spares that, at the price of the last bits.

        Raises:
            DetectorError: an image cannot be read, or gives numbers that are not finite.
        """
        if pictures.images is not None:
            array = torch.from_numpy(self._cached(pictures, batch_size, progress))
        else:
            parts: list[Tensor] = []
            for batch in self.batches(pictures, batch_size):
                padding = batch_size - len(batch)
                padded = torch.cat([batch, batch.new_zeros(padding, *batch.shape[1:])])
                with torch.inference_mode():
                    found = self(_as_read(padded).to(self.device)).float().cpu()
                parts.append(found[: len(batch)])
                progress(len(batch))
            array = torch.cat(parts)
        if not array.isfinite().all():
            row = int((~array.isfinite()).any(1).nonzero()[0])
            raise DetectorError(
                f"The model's numbers for image {pictures.ids[row]} are not finite.",
                "Look at that image and at the model's weights.",
            )
        return {name: array[:, columns] for name, columns in self.layout.items()}

    def _cached(
        self, pictures: Pictures, batch_size: int, progress: Callable[[int], None]
    ) -> np.ndarray:
        """float32 [N, sum of D]."""
        images, model = pictures.images, self.model
        assert images is not None
        describe = {"levels": list(self.layout), "head": model.head_hash, "mirror": model.mirror}
        try:
            features = extract(
                lambda: Eager(FromBytes(self, "forward"), batch_size, self.device),
                images,
                pictures.hashes,
                describe=model.describe() | describe,
                prepare=model.prepare,
                size=model.input_size,
                layout=self.layout,
                views=("image",),
                dtype=np.dtype(np.float32),
                progress=progress,
            )
        except ModelError as error:
            raise DetectorError(error.args[0], error.hint) from error
        if features.gone:
            name, reason = next(iter(features.gone.items()))
            raise DetectorError(
                f"{len(features.gone)} of {len(images)} images cannot be read: {name} ({reason}).",
                "Mend them, or leave them out.",
            )
        return features.take()


def _as_read(images: Tensor) -> Tensor:
    """Float, in the layout in memory that images read from files have: the same bits come out."""
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    return floats.contiguous(memory_format=torch.channels_last)

"""The feature pass against the bare forward of its engine, and against a plain timm loop.

The pass decodes, resizes, runs the engine over both views, and writes shards to a fresh directory.
The bare forward is the same engine on the same batches, already in memory. The plain loop is what
one would write with timm and a `DataLoader`; its outputs must be those of the pass.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from beholder.core.features import Features, extract
from beholder.core.files import digest
from beholder.core.images import Images
from beholder.core.model import Backbone, VisionModel
from beholder.train.made import VIEWS, choose_engine, make_encoder

from .base import (
    ROUNDS,
    Measured,
    at_least,
    at_most,
    fresh_cache,
    measured,
    median_ratio,
    solar,
    timed,
)

PLAIN_BATCH = 32
PLAIN_WORKERS = (0, 2)


class Photographs(Dataset):
    """Files to normalised tensors [3, H, W]."""

    def __init__(self, files: list[Path], vision: VisionModel) -> None:
        self.files = files
        self.transform = v2.Compose(
            [
                v2.Resize(vision.input_size, v2.InterpolationMode(vision.interpolation)),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(vision.mean, vision.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        return self.transform(Image.open(self.files[row]).convert("RGB"))


def plain_loop(
    backbone: Backbone, taps: list[int], photographs: Photographs, workers: int
) -> np.ndarray:
    """Image and mirror through the backbone, three depths pooled: [2, N, D]."""

    def describe(x: Tensor) -> Tensor:
        final, maps = backbone.forward_intermediates(x, indices=taps)
        pooled = []
        for tapped in maps:
            flat = tapped.flatten(2)
            pooled += [flat.mean(2), flat.amax(2), flat.std(2, correction=0)]
        flat = final.flatten(2)
        return torch.cat([*pooled, flat.mean(2), flat.amax(2)], 1)

    batches = DataLoader(photographs, PLAIN_BATCH, num_workers=workers)
    with torch.inference_mode():
        found = [torch.stack([describe(x), describe(x.flip(-1))]) for x in batches]
    return torch.cat(found, 1).numpy()


def of_pass(features: Features) -> np.ndarray:
    """[2, N, D] of both views."""
    return np.stack([features.take(view=view) for view in VIEWS])


def in_memory(vision: VisionModel, images: Images, size: int) -> list[np.ndarray]:
    """uint8 batches [size, H, W, 3] of every image, then of its mirror."""
    prepared = np.stack([vision.prepare(images.read(row)) for row in range(len(images))])
    whole = len(prepared) // size * size
    batches = np.split(prepared[:whole], whole // size)
    return [view for batch in batches for view in (batch, batch[:, :, ::-1].copy())]


def measure(quick: bool = False) -> Measured:
    images = solar(48 if quick else 160)
    places = [images.store.stat(key) for key in images.table["key"]]
    files = [Path(place[0]) for place in places if place]
    hashes = [digest(file.read_bytes()) for file in files]
    with fresh_cache():
        vision, _ = make_encoder(None, [300], "squash", 0)
        engine, _, _ = choose_engine(vision, images, "cpu")
    batches = in_memory(vision, images, engine.batch)
    photographs = Photographs(files, vision)
    taps = list(vision.taps.indices)

    def one_pass() -> np.ndarray:
        with tempfile.TemporaryDirectory() as place:
            return of_pass(
                extract(
                    lambda: engine,
                    images,
                    hashes,
                    describe=vision.describe(),
                    prepare=vision.prepare,
                    size=vision.input_size,
                    layout=vision.layout,
                    views=VIEWS,
                    directory=Path(place),
                )
            )

    passes: list[float] = []
    bare: list[float] = []
    plain: dict[int, list[float]] = {workers: [] for workers in PLAIN_WORKERS}
    ours = theirs = np.empty(0)
    for _ in range(1 if quick else ROUNDS):
        seconds, ours = timed(one_pass)
        passes.append(seconds)
        bare.append(timed(lambda: list(engine.run(batches)))[0])
        for workers in PLAIN_WORKERS:
            seconds, theirs = timed(
                lambda w=workers: plain_loop(vision.backbone, taps, photographs, w)
            )
            plain[workers].append(seconds)
    best = min(PLAIN_WORKERS, key=lambda workers: sum(plain[workers]))
    gap = float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(theirs).max())))
    views = len(images) * len(VIEWS)
    figures = {
        "images": len(images),
        "views": len(VIEWS),
        "encoder": vision.name,
        "side": vision.input_size[0],
        "engine": engine.name,
        "pass_s": passes,
        "bare_forward_s": bare,
        "plain_loop_s": {f"{workers} workers": seconds for workers, seconds in plain.items()},
        "pass_images_per_s": views / sorted(passes)[len(passes) // 2],
        "plain_loop_workers": best,
    }
    return measured(
        figures,
        at_least("throughput of the bare forward kept", median_ratio(bare, passes), 0.85),
        at_least("faster than timm + DataLoader", median_ratio(plain[best], passes), 2),
        at_most("difference from its outputs, of the largest", gap, 1e-3, ""),
    )

"""Images to vectors: encoders, patches of an image, and whitening."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from beholder.core.errors import DataError, ModelError
from beholder.core.files import key_of
from beholder.core.model import VisionModel

SMALLEST_PATCH = 32
LARGEST_DIM = 500
TINY = 1e-8


class Encoder(Protocol):
    """What turns images, and maybe texts, into vectors of one space.

    Attributes:
        fingerprint: of weights and preprocessing; an index keeps it and refuses another's vectors.
    """

    name: str
    dim: int
    modalities: frozenset[str]
    fingerprint: str

    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """RGB uint8 [H, W, 3] of any size -> float32 [B, D] of length 1."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """-> float32 [B, D] of length 1. Raises ModelError without a text tower."""
        ...


class VisionEncoder:
    """The pooled features of a VisionModel, brought to length 1."""

    modalities = frozenset({"image"})

    def __init__(self, model: VisionModel) -> None:
        self.model = model.eval()
        self.name = model.name
        self.fingerprint = key_of({**model.describe(), "output": "features"})
        part = model.layout["pooled"]
        self.dim = part.stop - part.start

    @torch.inference_mode()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """RGB uint8 [H, W, 3] of any size -> float32 [B, D] of length 1."""
        prepared = np.stack([self.model.prepare(image) for image in images])
        batch = torch.from_numpy(prepared).permute(0, 3, 1, 2).to(self.model._mean.device)
        return F.normalize(self.model.features(batch).float(), dim=1).cpu()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Raises ModelError: a backbone knows no words."""
        raise ModelError(
            f"{self.name} has no text tower, so it cannot look for {texts[0]!r}.",
            "Ask with an image, or index with a model that was trained on captions.",
        )


def patches(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """The h x h overlapping patches of every level h = 1..levels; level 1 is the image (row 24).

    Patches of a level have one size, 2 / (h + 1) of each side, their centres lie on a regular
    grid, and together they cover the image.

    Args:
        image: [H, W, ...].

    Raises:
        DataError: patches of the last level are under 32 px.
    """
    height, width = image.shape[:2]
    smallest = 2 * min(height, width) / (levels + 1)
    if levels > 1 and smallest < SMALLEST_PATCH:
        raise DataError(
            f"An image of {width} x {height} px has patches of {smallest:.0f} px at level "
            f"{levels}; {SMALLEST_PATCH} are needed.",
            "Use fewer levels, or larger images.",
        )
    found = []
    for level in range(1, levels + 1):
        tall, wide = (-(-2 * side // (level + 1)) for side in (height, width))
        tops, lefts = (
            np.linspace(0, side - size, level).round().astype(int)
            for side, size in ((height, tall), (width, wide))
        )
        found += [image[y : y + tall, x : x + wide] for y in tops for x in lefts]
    return found


class PcaWhitening:
    """Length 1, principal components, unit variance in each, length 1 again (row 24).

    Args:
        dim: components kept; never more than one less than the vectors it is fitted on.
        power: p of sign(v)|v|^p at the end, before the last length 1; 1 = none.
    """

    def __init__(self, dim: int = LARGEST_DIM, power: float = 1.0) -> None:
        self.dim, self.power = dim, power

    def fit(self, vectors: np.ndarray) -> PcaWhitening:
        """On reference vectors [N, D], N >= 2."""
        if len(vectors) < 2:
            raise DataError(f"{len(vectors)} vectors have no directions to whiten.")
        keep = min(self.dim, len(vectors) - 1, vectors.shape[1])
        self.pca = PCA(keep, svd_solver="full").fit(_unit(vectors))
        return self

    def whiten(self, vectors: np.ndarray) -> np.ndarray:
        """[N, D] -> [N, d] of unit variance on the reference vectors, not yet of length 1."""
        return self.pca.transform(_unit(vectors)) / np.sqrt(self.pca.explained_variance_ + TINY)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """[N, D] -> [N, d] of length 1."""
        white = self.whiten(vectors)
        return _unit(np.sign(white) * np.abs(white) ** self.power)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)

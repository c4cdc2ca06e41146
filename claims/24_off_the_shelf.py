"""Row 24: do frozen features and a linear SVM beat hand-made features, and does jitter help?"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from skimage.feature import hog
from sklearn.metrics import balanced_accuracy_score

from beholder.core.images import Images
from beholder.core.pixels import luma
from beholder.data.sources import open_images
from beholder.models.classifier_heads import powered_unit
from beholder.models.open import open_vision
from beholder.train.objectives.off_the_shelf import (
    OffTheShelf,
    Shelf,
    answers,
    decisions,
    fit_linear,
    flat,
    search,
)
from claims.verdict import Part, difference, reported

ROW = 24
CLAIM = (
    "A linear SVM on frozen features of a network that was trained for something else beats "
    "features made by hand for images, and jittered versions of the images help further."
)
SETTING = (
    "textile (3 kinds, 150 images each) and openmoji (9 groups, 60 drawings each, one per base "
    "drawing), half of each to learn from; EfficientNet-Lite0 (ImageNet) at 128 px; balanced "
    "accuracy; against HOG (128 px) and raw pixels (32 px), each with the same SVM and search of C."
)
SEEDS = (0, 1, 2)

SIDE = 128
DATA = {"textile": 150, "openmoji": 60}
"""Name -> images per class."""


def chosen(name: str) -> Images:
    """So many of each class, of each source one, the same for all seeds."""
    images = open_images(name)
    table = images.table.with_row_index("row")
    if table["source"].null_count() < len(table):
        table = table.unique("source", keep="first", maintain_order=True)
    table = table.sample(fraction=1, shuffle=True, seed=0)
    rows = table.group_by("label", maintain_order=True).head(DATA[name])["row"].to_numpy()
    return images.where(pl.Series(np.isin(np.arange(len(images)), rows)))


def by_hand(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """HOG and raw pixels of one image, uint8 [H, W, 3]."""
    grey = Image.fromarray(luma(pixels))
    large = np.asarray(grey.resize((SIDE, SIDE)))
    small = np.asarray(Image.fromarray(pixels).resize((32, 32)))
    found = hog(large, orientations=9, pixels_per_cell=(16, 16), cells_per_block=(2, 2))
    return {"hog": found, "pixels": small.reshape(-1) / 255}


@functools.cache
def shelves(name: str) -> dict[str, Shelf]:
    """Arm -> features of all images, once for all seeds."""
    images = chosen(name)
    encoder = open_vision(None, input_size=(SIDE, SIDE))
    with torch.random.fork_rng(devices=[]):
        network = OffTheShelf(jitter=16, power=1).shelf(encoder, images)
    found = [by_hand(images.read(row)) for row in range(len(images))]
    powered = powered_unit(torch.from_numpy(network.features), 0.5).numpy()
    return {
        "cnn": replace(network, features=network.features[:, :1]),
        "jittered": replace(network, features=powered),
        **{
            kind: replace(network, features=np.stack([one[kind] for one in found])[:, None])
            for kind in ("hog", "pixels")
        },
    }


def accuracy(shelf: Shelf, train: np.ndarray, test: np.ndarray) -> float:
    """Balanced accuracy of an SVM whose C was searched on the training rows."""
    part = Shelf(shelf.features[train], shelf.labels[train], shelf.groups[train], shelf.classes)
    classifier = fit_linear("svm", search("svm", part).strength, *flat(part))
    found = answers(decisions(classifier, shelf.features[test]))
    return float(balanced_accuracy_score(shelf.labels[test], found))


def run(seed: int) -> dict[str, Any]:
    measures = {}
    for name in DATA:
        arms = shelves(name)
        labels = arms["cnn"].labels
        rng = np.random.default_rng(seed)
        train = np.concatenate(
            [
                rng.permutation(rows)[: len(rows) // 2]
                for rows in (np.flatnonzero(labels == k) for k in np.unique(labels))
            ]
        )
        test = np.setdiff1d(np.arange(len(labels)), train)
        measures |= {f"{arm}_{name}": accuracy(x, train, test) for arm, x in arms.items()}
    return measures


def parts(results: Sequence[dict[str, Any]]) -> list[Part]:
    compared = [
        difference(f"{name}: frozen features above {kind}", results, f"cnn_{name}", f"{arm}_{name}")
        for name in DATA
        for arm, kind in (("hog", "HOG"), ("pixels", "raw pixels"))
    ]
    jitter = [
        difference(
            f"{name}: jittered not below the image alone (by half a point at most)",
            results,
            f"jittered_{name}",
            f"cnn_{name}",
            at_least=-0.005,
        )
        for name in DATA
    ]
    shown = [
        reported(f"balanced accuracy of {arm} on {name}", results, f"{arm}_{name}")
        for name in DATA
        for arm in ("cnn", "jittered", "hog", "pixels")
    ]
    return [*compared, *jitter, *shown]

"""What the verb `explain` returns: maps of several methods on the same images, and their worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from beholder.core.files import write_atomic, write_bytes, write_json
from beholder.core.model import VisionModel
from beholder.core.predictions import Explanation
from beholder.core.sections import Section, Severity, Table, Value
from beholder.metrics.bootstrap import bootstrap, mean_of
from beholder.metrics.explanation import auc, deletion, insertion, permuted

GAINS = ("deletion_gain", "insertion_gain")
LONGEST_NAME = 60  # characters: at most 240 bytes
MEASURES = ("deletion", "insertion", "deletion_moved", "insertion_moved")


@dataclass(frozen=True)
class Explained:
    """Explanations by method.

    Attributes:
        model: its name.
        images: uint8 [B, 3, H, W], as the model saw them.
        names: of the images.
        explanations: method -> maps.
        table: one row per method and image: image, label (if it has one), method, predicted,
            target, probability (of the target), score, empty; `deletion`, `insertion`: areas under
            the curves of the map; `..._moved`: of the same map with its cells in other places;
            `survives`: rank correlation with the map of the model with shuffled weights. Null
            where not measured.
        notes: what else has to be said.
    """

    model: str
    images: Tensor
    names: tuple[str, ...]
    explanations: Mapping[str, Explanation]
    table: pl.DataFrame
    notes: tuple[str, ...] = ()

    def __getitem__(self, method: str) -> Explanation:
        return self.explanations[method]

    def overlays(self, method: str) -> np.ndarray:
        """uint8 [B, H, W, 3]."""
        return self.explanations[method].overlay(self.images)

    def section(self) -> Section:
        """How far the maps can be trusted, method by method."""
        values = {
            f"{method}_{gain}": _gain(self.table.filter(method=method), gain)
            for method in self.explanations
            for gain in GAINS
        }
        severity, finding = verdict(list(self.explanations), values, len(self.images))
        per_method = self.table.group_by("method", maintain_order=True).agg(
            pl.col(*MEASURES, "survives").mean(), pl.col("empty").sum()
        )
        return Section(
            id="explanations",
            title="Explanations",
            finding=finding,
            severity=severity,
            n=len(self.images),
            values=values,
            tables={"methods": Table(frame=per_method), "images": Table(frame=self.table)},
            assumptions=[*self.notes, *self._said()],
        )

    def _said(self) -> list[str]:
        """Where the maps come from, and what the methods have to say of themselves."""
        said = []
        for method, explanation in self.explanations.items():
            height, width = explanation.meta["cells"]
            if "layer" in explanation.meta:
                layer = explanation.meta["layer"]
                said.append(f"{method}: layer {layer} of the backbone, {height} x {width} cells")
            said += [f"{method}: {note}" for note in explanation.meta["notes"]]
        return said

    def save(self, out: Path) -> Path:
        """`METHOD/IMAGE.png`, `explanations.parquet`, `explanations.json`, and the page
        `explanations.html`, whose path is returned.

        Raises:
            StorageError: disk full or read-only.
        """
        from .pages import page, png

        for method in self.explanations:
            for name, picture in zip(_files(self.names), self.overlays(method), strict=True):
                write_bytes(out / method / name, png(picture))
        write_atomic(out / "explanations.parquet", self.table.write_parquet)
        write_json(out / "explanations.json", self.section().to_dict())
        write_bytes(out / "explanations.html", page(self).encode())
        return out / "explanations.html"


def _files(names: Sequence[str]) -> list[str]:
    """One PNG name for each image; folders become part of it."""
    bare = [Path(name).with_suffix("").as_posix().strip("/") for name in names]
    flat = [name.replace("/", "_")[-LONGEST_NAME:] for name in bare]
    return [
        f"{name}.png" if flat.count(name) == 1 else f"{name}_{row}.png"
        for row, name in enumerate(flat)
    ]


def _gain(rows: pl.DataFrame, gain: str) -> Value:
    """How much better the maps are than the same maps moved, mean over images."""
    own, moved = gain.removesuffix("_gain"), gain.replace("_gain", "_moved")
    better = (rows[own] - rows[moved]) * (-1 if own == "deletion" else 1)
    if better.null_count():
        return Value.undefined("not measured", unit="points")
    return bootstrap(mean_of(better.to_numpy()), np.arange(len(better)), unit="points")


def verdict(
    methods: Sequence[str], values: Mapping[str, Value], images: int
) -> tuple[Severity, str]:
    """One sentence on which methods find what the model uses.

    A method does where its maps are better than moved ones in deletion and in insertion, with both
    intervals above 0. On too few images for intervals the means are told, and nothing is decided.
    """
    pictures = f"{images:,} image" + ("" if images == 1 else "s")
    if any(values[f"{method}_{gain}"].estimate is None for method in methods for gain in GAINS):
        return "none", f"{pictures} explained by {_listed(methods)}; how well was not measured."
    proven = [
        method
        for method in methods
        if all(_lowest(values[f"{method}_{gain}"]) > 0 for gain in GAINS)
    ]
    rest = [method for method in methods if method not in proven]
    if values[f"{methods[0]}_deletion_gain"].low is None:
        ahead = f"{_listed(proven)} came out ahead of" if proven else "no method came out ahead of"
        return "none", (
            f"On {pictures}, too few to judge by, {ahead} the same maps moved elsewhere"
            f"{f'; {_listed(rest)} did not' if proven and rest else ''}."
        )
    if not proven:
        return "look", (
            f"On {pictures} the maps of {_listed(methods)} are no evidence: moved to other places "
            "they tell as much of the answer."
        )
    return "good", (
        f"On {pictures} {_listed(proven)} found what the model uses: taking it away costs the "
        "answer more than taking as much elsewhere, and showing it brings the answer back sooner"
        f"{f'; {_listed(rest)} did not' if rest else ''}."
    )


def _lowest(value: Value) -> float:
    lowest = value.estimate if value.low is None else value.low
    return -1.0 if lowest is None else lowest


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def faithfulness(
    model: VisionModel, images: Tensor, explanation: Explanation, steps: int, seed: int
) -> dict[str, list[float]]:
    """`MEASURES` of every map: areas under the curves of the target's probability.

    Args:
        images: float [B, 3, H, W] on the model's device.
    """
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    generator = torch.Generator().manual_seed(seed)
    rows = zip(images, explanation.heatmap, explanation.target.tolist(), strict=True)
    for image, heatmap, target in rows:

        def score(batch: Tensor, target: int = target) -> Tensor:
            return model.logits(batch).softmax(1)[:, target]

        moved = permuted(heatmap, explanation.meta["cells"], generator)
        for suffix, ranked in (("", heatmap), ("_moved", moved)):
            for name, curve in (("deletion", deletion), ("insertion", insertion)):
                area = auc(curve(score, image, ranked.to(image.device), steps=steps, seed=seed))
                found[name + suffix].append(area)
    return found

"""What an augmentation does to a classifier beyond its accuracy: one table for several trainings.

Yun, Han, Oh, Chun, Choe, Yoo: "CutMix: Regularization Strategy to Train Strong Classifiers with
Localizable Features", ICCV 2019, sections 4.2 to 4.5. Authors' code (of the training alone):
clovaai/CutMix-PyTorch.

We differ: the map of a class is Grad-CAM's (which is CAM's for a network with one linear layer
behind the pooling), its box is also taken at the threshold that serves the whole set best
(MaxBoxAcc, Choe et al., 2020), and every figure has an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.registry import system
from beholder.core.sections import Figure, Section, Table, Unit, Value, share_text
from beholder.data.augment.cutmix import cutmix_box
from beholder.explain.attribution.gradcam import GradCAM
from beholder.metrics.bootstrap import Statistic, bootstrap
from beholder.metrics.detection import fpr95, value
from beholder.metrics.explanation import THRESHOLDS, V2_IOUS, box_overlaps, wsl_iou
from beholder.metrics.intervals import share
from beholder.train.recipes.adversarial import pgd
from beholder.train.validation import judging

from .benchmark import Benchmark

Samples = Images | Sequence[Mapping[str, Any]]

BATCH = 100
LEAST = 0.5
"""Intersection over union from which a box counts as found."""


@system(58, name="augmentation_effect")
class AugmentationEffect(Benchmark):
    """Accuracy, weak localisation, unknown images, FGSM, occlusion and in-between images.

    `model` is a VisionModel or name -> VisionModel; `data` labelled images, or 'test' -> those, and
    any other name -> images of no class. Images with `boxes` (as `Scenes` gives) are localised.

    Args:
        eps: of FGSM, in pixel values.
        occluded: sides of the black square in the middle, and of the one outside of which all is
            black, as shares of the image's.
        between: shares of the first of two images that are blended, or cut and pasted; right is
            either label.

    Example:
        >>> from beholder.data.synthesize.scenes import Scenes
        >>> from beholder.models.open import open_vision
        >>> model, scenes = open_vision("untrained:test_resnet"), Scenes(4, 64, 3, sprites=(1, 1))
        >>> AugmentationEffect().run(model, scenes).status  # it does not know these classes
        'not_applicable'
    """

    title = "What the augmentation did"

    def __init__(
        self,
        eps: float = 4 / 255,
        occluded: tuple[float, ...] = (0.25, 0.5, 0.75),
        between: tuple[float, ...] = (0.25, 0.5, 0.75),
    ) -> None:
        self.eps, self.occluded, self.between = eps, occluded, between

    def can_run(self, model: Any, data: Any) -> str | None:
        sets = _sets(data)
        if "test" not in sets:
            return f"There are images called {', '.join(sets)}, but none called test."
        if getattr(sets["test"], "kind", "classes") != "classes":
            return "The test images have no single label each."
        classes = tuple(getattr(sets["test"], "classes", ()))
        for name, one in _models(model).items():
            if not isinstance(one, VisionModel):
                return f"{name} is no image classifier."
            if classes and tuple(one.classes) != classes:
                return f"{name} was not trained on the classes of the test images."
        return None

    def records(self, model: Any, data: Any, *, seed: int, limit: int | None) -> pl.DataFrame:
        """One row per model and image; lists hold what was measured at several settings."""
        frames = []
        for called, samples in _sets(data).items():
            rows = _chosen(len(samples), seed, limit)
            for name, one in _models(model).items():
                measure = self._known if called == "test" else _unknown
                parts = [measure(one, batch) for batch in _batches(one, samples, rows)]
                frame = pl.concat(parts, how="vertical")
                marks = pl.lit(name).alias("model"), pl.lit(called).alias("set")
                frames.append(frame.with_columns(*marks))
        return pl.concat(frames, how="diagonal")

    def _known(self, model: VisionModel, batch: Mapping[str, Any]) -> pl.DataFrame:
        images, label = batch["image"], batch["label"]
        frame = _unknown(model, batch)
        attacked = pgd(model, images, label, self.eps, 1, self.eps)
        right = frame["predicted"].to_numpy() == label.numpy()
        columns: dict[str, Any] = {
            "label": label.tolist(),
            "score": right.astype(float),
            "fgsm": hits(model, attacked, label),
            "centre": _lists(hits(model, occlude(images, side), label) for side in self.occluded),
            "edge": _lists(
                hits(model, occlude(images, side, outside=True), label) for side in self.occluded
            ),
        }
        partner = other_class(label)
        for how, mix in (("blend", blended), ("cut", pasted)):
            columns[how] = _lists(
                hits(model, mix(images, images[partner], own), label, label[partner])
                for own in self.between
            )
        if batch["boxes"] is not None:
            maps = GradCAM().explain(model, images, targets=label).heatmap
            columns |= localised(maps, batch["boxes"])
        return frame.with_columns(**{key: pl.Series(value) for key, value in columns.items()})

    def summarise(self, records: pl.DataFrame) -> Section:
        names = records["model"].unique(maintain_order=True).to_list()
        values: dict[str, Value] = {}
        models: list[dict[str, Any]] = []
        unknown: list[dict[str, Any]] = []
        curves: list[dict[str, Any]] = []
        for name in names:
            own = records.filter(pl.col("model") == name)
            known = own.filter(pl.col("set") == "test")
            measures = _measures(known)
            values |= {f"{name}.{key}": found for key, found in measures.items()}
            models.append({"model": name} | _columns(measures))
            for called in own["set"].unique(maintain_order=True):
                if called != "test":
                    odd = own.filter(pl.col("set") == called)
                    trusted, bad = (-x["confidence"].to_numpy() for x in (known, odd))
                    found = value("auroc", trusted, bad)
                    values[f"{name}.auroc_{called}"] = found
                    row = {"model": name, "set": called} | _columns({"auroc": found})
                    unknown.append(row | rates(trusted, bad))
            curves += [{"model": name} | row for row in self._curves(known)]
        wide = pl.DataFrame(models, infer_schema_length=None)
        tables = {"models": Table(frame=wide, units=dict.fromkeys(wide.columns[1:], "share"))}
        if unknown:
            units: dict[str, Unit] = {"tnr95": "share", "accuracy": "share"}
            tables["unknown"] = Table(frame=pl.DataFrame(unknown), units=units)
        frame = pl.DataFrame(curves)
        tables["curves"] = Table(frame=frame)
        figures = {
            how: _figure(frame.filter(pl.col("how") == how), title, x)
            for how, title, x in (
                ("centre", "Accuracy with a black square in the middle", "its side"),
                ("edge", "Accuracy with all but a square black", "its side"),
                ("blend", "Either label right, two images blended", "share of the first"),
                ("cut", "Either label right, one image pasted into another", "share of the first"),
            )
        }
        count = len(records.filter(pl.col("set") == "test")) // max(len(names), 1)
        return self.section(
            _finding(values, names), values=values, tables=tables, figures=figures, n=count
        )

    def _curves(self, known: pl.DataFrame) -> Iterator[dict[str, Any]]:
        settings = {
            "centre": self.occluded,
            "edge": self.occluded,
            "blend": self.between,
            "cut": self.between,
        }
        for how, at in settings.items():
            found = np.array(known[how].to_list(), float)
            for column, where in enumerate(at):
                yield {"how": how, "at": where, "accuracy": float(found[:, column].mean())}


def _models(model: Any) -> Mapping[str, Any]:
    return model if isinstance(model, Mapping) else {"model": model}


def _sets(data: Any) -> Mapping[str, Samples]:
    return data if isinstance(data, Mapping) else {"test": data}


def _chosen(count: int, seed: int, limit: int | None) -> np.ndarray:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _batches(model: VisionModel, samples: Samples, rows: np.ndarray) -> Iterator[Mapping[str, Any]]:
    """Images float [B, 3, H, W] as the model takes them, label [B], boxes in their pixels, ids."""
    for start in range(0, len(rows), BATCH):
        found = [samples[int(row)] for row in rows[start : start + BATCH]]
        pixels = np.stack([model.prepare(sample["image"]) for sample in found])
        boxed = model.crop == "squash" and all(len(s.get("boxes", ())) for s in found)
        yield {
            "image": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255,
            "label": torch.tensor([-1 if s["label"] is None else int(s["label"]) for s in found]),
            "boxes": [_scaled(s, model.input_size) for s in found] if boxed else None,
            "id": [str(sample["id"]) for sample in found],
        }


def _scaled(sample: Mapping[str, Any], size: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] in the pixels of the image at `size`."""
    height, width = sample["image"].shape[:2]
    by = torch.tensor([size[1] / width, size[0] / height]).repeat(2)
    return torch.as_tensor(sample["boxes"], dtype=torch.float32) * by


def _unknown(model: VisionModel, batch: Mapping[str, Any]) -> pl.DataFrame:
    with judging(model):
        shares = model.logits(batch["image"]).softmax(1)
    confidence, predicted = shares.max(1)
    return pl.DataFrame(
        {"id": batch["id"], "predicted": predicted.numpy(), "confidence": confidence.numpy()}
    )


def _lists(columns: Iterator[list[bool]]) -> list[list[bool]]:
    """One list per setting to one list per image."""
    return [list(row) for row in zip(*columns, strict=True)]


def hits(model: VisionModel, images: Tensor, *labels: Tensor) -> list[bool]:
    """Whether the answer is one of the labels (each [B]), per image."""
    with judging(model):
        predicted = model.logits(images).argmax(1)
    return torch.stack([predicted == label for label in labels]).any(0).tolist()


def occlude(images: Tensor, side: float, outside: bool = False) -> Tensor:
    """A centred square (share of each side) turned black, or all but it."""
    height, width = images.shape[2:]
    mask = torch.zeros(height, width, dtype=torch.bool)
    top, left = (round(length * (1 - side) / 2) for length in (height, width))
    mask[top : height - top, left : width - left] = side > 0
    return images * (mask if outside else ~mask)


def other_class(label: Tensor) -> Tensor:
    """The next sample of another label (itself where there is none), [B]."""
    count = len(label)
    order = (torch.arange(count)[:, None] + torch.arange(count)) % count
    differs = label[order] != label[:, None]
    return order.gather(1, differs.int().argmax(1, keepdim=True))[:, 0]


def blended(images: Tensor, other: Tensor, own: float) -> Tensor:
    """`own` of the images, the rest of the other ones."""
    return own * images + (1 - own) * other


def pasted(images: Tensor, other: Tensor, own: float) -> Tensor:
    """A centred box of the other images, 1 - `own` of the area."""
    height, width = images.shape[2:]
    box = cutmix_box(own, height // 2, width // 2, height, width)
    top, bottom, left, right = (int(edge) for edge in box)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed


def localised(maps: Tensor, boxes: Sequence[Tensor]) -> dict[str, Any]:
    """Overlaps of found with true boxes per image: `box` at 0.15 of the maximum, `largest` and
    `parts` at 100 thresholds each; all 0 where a map [H, W] is flat, so that nothing is found."""
    shown = [row for row, one in enumerate(maps) if one.max() > one.min()]
    found = {"box": wsl_iou(maps, boxes)}
    for name in ("largest", "parts"):
        found[name] = torch.zeros(len(maps), len(THRESHOLDS))
        if shown:
            own = [boxes[row] for row in shown]
            found[name][shown] = box_overlaps(maps[shown], own, largest=name == "largest")
    return {name: overlaps.tolist() for name, overlaps in found.items()}


def best_threshold(overlaps: np.ndarray, least: Sequence[float]) -> Statistic:
    """Statistic: mean over `least` of the share found at the threshold that is best for all.

    Args:
        overlaps: [N, thresholds].
    """
    found = [(overlaps >= bar).astype(float) for bar in least]

    def statistic(counts: np.ndarray) -> np.ndarray:
        each = [(counts @ hit).max(1) for hit in found]
        return np.mean(each, 0) / counts.sum(1)

    return statistic


def rates(trusted: np.ndarray, bad: np.ndarray) -> dict[str, float]:
    """`tnr95` (unknown images refused where 95 % of the known pass) and `accuracy` (the best mean
    of both kinds' shares over all thresholds); scores are higher where unknown."""
    at = np.unique(np.concatenate([trusted, bad]))
    passed = np.searchsorted(np.sort(trusted), at, side="right") / len(trusted)
    refused = 1 - np.searchsorted(np.sort(bad), at, side="right") / len(bad)
    best = float(max(0.5, ((passed + refused) / 2).max()))
    return {"tnr95": 1 - fpr95(trusted, bad), "accuracy": best}


def _measures(known: pl.DataFrame) -> dict[str, Value]:
    """Figures of one model on the test images."""
    right = known["score"].to_numpy() > 0
    found = {"accuracy": share(right), "fgsm": share(known["fgsm"].to_numpy())}
    if "box" not in known.columns or known["box"].null_count():
        return found
    box = known["box"].to_numpy() >= LEAST
    units = np.arange(len(known))
    for name, column, least in (
        ("max_box_acc", "largest", (LEAST,)),
        ("max_box_acc_v2", "parts", V2_IOUS),
    ):
        overlaps = np.array(known[column].to_list())
        found[name] = bootstrap(best_threshold(overlaps, least), units)
    return found | {"gt_known_loc": share(box), "top1_loc": share(box & right)}


def _columns(measures: Mapping[str, Value]) -> dict[str, float | None]:
    """Each figure with the ends of its interval."""
    return {
        name + end: getattr(found, at)
        for name, found in measures.items()
        for end, at in (("", "estimate"), ("_low", "low"), ("_high", "high"))
    }


def _figure(frame: pl.DataFrame, title: str, x: str) -> Figure:
    lines = frame.select(x=pl.col("at"), y=pl.col("accuracy"), series=pl.col("model"))
    return Figure(kind="lines", data=lines, title=title, x=x, y="share of images")


def _finding(values: Mapping[str, Value], names: Sequence[str]) -> str:
    """Who leads in what; of one model, how it does."""
    wording: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("accuracy", "is most accurate", "is right on the image", share_text),
        ("max_box_acc", "finds the object best", "finds the object", share_text),
        ("auroc", "tells unknown images best", "tells unknown images", "AUROC {:.2f}".format),
    ]
    said = []
    for measure, leads, does, text in wording:
        scores = {name: _mean(values, name, measure) for name in names}
        there = {name: score for name, score in scores.items() if score is not None}
        if there:
            best = max(there, key=lambda name: there[name])
            said.append(f"{best} {leads if len(names) > 1 else does} ({text(there[best])})")
    return "; ".join(said) + "."


def _mean(values: Mapping[str, Value], name: str, measure: str) -> float | None:
    """Mean of a model's figures of that name (one per set of unknown images)."""
    found = [
        one.estimate
        for key, one in values.items()
        if key.startswith(f"{name}.{measure}") and one.estimate is not None
        if measure == "auroc" or key == f"{name}.{measure}"
    ]
    return float(np.mean(found)) if found else None

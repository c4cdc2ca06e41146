"""Asks the model about defects, given and planted ones, and where in the image they lie (5)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from beholder.core.decode import Unreadable, decode, resize
from beholder.core.images import read_bytes
from beholder.core.sections import Spent
from beholder.data.synthesize.defects import DEFECTS, plant
from beholder.evaluate.subject import Subject, sampled
from beholder.metrics.detection import aupro, references_needed
from beholder.trust.detectors.base import resized
from beholder.trust.detectors.gaussian_ad import GaussianAD
from beholder.trust.detectors.levels import Encoder

from .base import Records
from .trusted import (
    BLOCK,
    CrossFitted,
    Trusted,
    asked_levels,
    data_levels,
    enough,
    feature_detectors,
    guarded,
    trusted,
)

STRICT = 0.01  # a second false-refusal rate
WANTED, FLOOR = 100, 20
"""Planted defects of each kind."""

SHOWN = 8
"""Pictures of missed defects, of false alarms and of found defects, each."""

USUAL = 32
"""Good images whose heat is taken as usual."""

FAINT, FULL = 2.0, 6.0
MAPS = 0.4  # of what is left of the time
MOST_MAPS = 200
DETECTOR = "gaussian_ad"
"""The one that the finding is about."""

SCORES = {
    "id": pl.String,
    "type": pl.String,
    "bad": pl.Boolean,
    "unit": pl.Int32,
    "detector": pl.String,
    "score": pl.Float64,
    "refused": pl.Boolean,
    "refused_strict": pl.Boolean,
}
"""One row per judged image and detector; `refused_strict` null where there are too few images."""

PLANTED = {
    "kind": pl.String,
    "detector": pl.String,
    "score": pl.Float64,
    "refused": pl.Boolean,
}


def measure(subject: Subject) -> Records:
    """Detectors of what is not like the good images, on given defects and on planted ones."""
    model, fpr = subject.model, subject.options.fpr
    assert model is not None
    trust = trusted(subject)
    how = {"how": trust.how, "learned": len(trust.learned), "features": bool(model.layout)}
    empty = {"scores": pl.DataFrame(schema=SCORES), "how": pl.DataFrame([how])}
    if subject.features is None or not enough(trust, fpr):
        return Records(empty)
    levels = data_levels(subject, trust.learned)
    fold = trust.fold[trust.learned]
    fits = {
        name: CrossFitted.fit(make, levels, fold)
        for name, make in feature_detectors(subject).items()
    }
    scores = _given(subject, trust, fits)
    price = subject.price() * len(DEFECTS)
    most = subject.allowance.count(price, WANTED, FLOOR)
    if math.isfinite(left := max(subject.allowance.left, 0)):
        most = max(min(most, int((1 - MAPS) * left / price)), FLOOR)
    count = min(most, len(trust.judged))
    subject.expect(len(DEFECTS) * count)
    planted = _planted(subject, trust, fits, count)
    records = Records(
        {"scores": scores, "planted": planted, "how": pl.DataFrame([how])},
        Spent(
            wanted=min(WANTED, len(trust.judged)), used=count, what="planted defects of each kind"
        ),
    )
    _located(subject, trust, fits[DETECTOR], scores, records)
    return records


def _given(subject: Subject, trust: Trusted, fits: dict[str, CrossFitted]) -> pl.DataFrame:
    """Rows of `SCORES`: the judged good images, and every other one."""
    frame, fpr = subject.evidence.frame, subject.options.fpr
    label = frame["label"].fill_null(0).to_numpy()
    bad = np.flatnonzero(label != 0)
    frames = []
    for rows in (trust.judged, bad):
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            levels, fold = data_levels(subject, part), trust.fold[part]
            for name, fit in fits.items():
                score = fit.score(levels, fold)
                strict = _strict(fit, score, fold)
                columns = {
                    "id": frame["id"].gather(part),
                    "type": [subject.images.classes[k] for k in label[part]],
                    "bad": label[part] != 0,
                    "unit": frame["unit"].gather(part),
                    "detector": [name] * len(part),
                    "score": score,
                    "refused": fit.refused(score, fpr, fold),
                    "refused_strict": strict,
                }
                frames.append(pl.DataFrame(columns, SCORES))
    return pl.concat(frames)


def _strict(fit: CrossFitted, score: np.ndarray, fold: np.ndarray) -> list[bool | None]:
    parts = [(fit.fold != k).sum() for k in np.unique(fit.fold)]
    if min(parts) < references_needed(STRICT):
        return [None] * len(score)
    return fit.refused(score, STRICT, fold).tolist()


def _planted(
    subject: Subject, trust: Trusted, fits: dict[str, CrossFitted], count: int
) -> pl.DataFrame:
    """Rows of `PLANTED`: defects made in good images that the detector did not learn from."""
    model, images = subject.model, subject.images
    assert model is not None
    source = sampled(trust.judged, np.zeros(len(trust.judged), int), count, subject.seed)
    made: dict[str, list[np.ndarray]] = {kind: [] for kind in DEFECTS}
    rows = []
    last: np.ndarray | None = None
    for row in [*source[-1:], *source]:  # the last one first: a piece of it goes into the next
        try:
            image = images.read(int(row))
        except Unreadable:
            continue
        if last is not None:
            rows.append(int(row))
            for number, kind in enumerate(DEFECTS):
                rng = np.random.default_rng([subject.seed, number, int(row)])
                made[kind].append(model.prepare(plant(kind, image, rng, last).image))
        last = image
    frames = []
    fold = trust.fold[rows]
    for kind, pixels in made.items():
        answer = model.ask(pixels, np.array(rows, int), subject.progress)
        levels = asked_levels(model, answer.features, answer.logits)
        for name, fit in fits.items():
            score = fit.score(levels, fold)
            refused = score > fit.threshold(subject.options.fpr)
            columns = {"kind": [kind] * len(score), "detector": [name] * len(score)}
            frames.append(pl.DataFrame(columns | {"score": score, "refused": refused}, PLANTED))
    return pl.concat(frames)


# where ------------------------------------------------------------------------------------------


def _located(
    subject: Subject, trust: Trusted, fit: CrossFitted, scores: pl.DataFrame, records: Records
) -> None:
    """Adds heat maps of what is shown, and AUPRO where there are masks, as time allows."""
    model = subject.model
    assert model is not None
    shown = chosen(scores)
    records.frames["shown"] = shown.with_columns(pl.lit(False).alias("mapped"))
    vision = guarded(model)
    detector = fit.whole
    assert isinstance(detector, GaussianAD)
    if vision is None or not any(name.startswith("stage") for name in detector.gaussians):
        return
    encoder = Encoder(vision, subject.device)
    row_of = {id: row for row, id in enumerate(subject.images.table["id"])}
    rows = [row_of[id] for id in shown["id"]]
    good = sampled(trust.judged, np.zeros(len(trust.judged), int), USUAL, subject.seed)
    start = time.perf_counter()
    maps = [heat for _, _, heat in _maps(subject, encoder, detector, good)]
    price = (time.perf_counter() - start) / max(len(maps), 1)
    if len(maps) < 2 or price * len(rows) > subject.allowance.left:
        return
    usual = Usual.of(np.stack(maps))
    for row, pixels, heat in _maps(subject, encoder, detector, rows):
        name = subject.images.table["id"][row]
        records.pictures[f"inspection/{name}"] = overlaid(pixels, usual.standardised(heat))
    mapped = [f"inspection/{id}" in records.pictures for id in shown["id"]]
    records.frames["shown"] = shown.with_columns(pl.Series("mapped", mapped, pl.Boolean))
    if found := _aupro(subject, trust, encoder, detector, usual, price):
        records.frames["pixels"] = pl.DataFrame(found, orient="row")


def _maps(
    subject: Subject, encoder: Encoder, detector: GaussianAD, rows: Sequence[int] | np.ndarray
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Row, pixels uint8 [H, W, 3] at the model's size, score of every place float32 [H, W]."""
    found = []
    for start in range(0, len(rows), 8):
        pixels, there = subject.prepared(rows[start : start + 8])
        if not len(there):
            continue
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(subject.device)
        with torch.inference_mode():
            _, maps = encoder.levels_and_maps(images.float() / 255)
            places = detector.locate({name: x.float().cpu() for name, x in maps.items()})
        heat = resized(places, images.shape[2:]).numpy()
        found += list(zip(map(int, there), pixels, heat, strict=True))
    return found


@dataclass(frozen=True)
class Usual:
    """Heat of good images at each place: mean and standard deviation, [H, W]. Networks pad images,
    so borders are far from the mean image in good images, too."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, maps: np.ndarray) -> Usual:
        """`maps`: [N, H, W]."""
        deviation = maps.std(0)
        return cls(maps.mean(0), np.maximum(deviation, np.median(deviation) / 2) + 1e-12)

    def standardised(self, heat: np.ndarray) -> np.ndarray:
        """Standard deviations above what is usual at the place, [H, W]."""
        return (heat - self.mean) / self.deviation


def overlaid(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the image in grey; the redder, the higher `heat` [H, W] is between `FAINT`
    and `FULL` standard deviations above the usual."""
    share = ((heat - FAINT) / (FULL - FAINT)).clip(0, 1)[..., None] * 0.7
    grey = pixels.mean(2, keepdims=True)
    return np.rint(grey * (1 - share) + np.array([220, 30, 20]) * share).astype(np.uint8)


def chosen(scores: pl.DataFrame) -> pl.DataFrame:
    """Images to be shown (id, why, type): defects that were missed, the least striking first, of
    every type in turn; good images that were refused; found defects."""
    mine = scores.filter(pl.col("detector") == DETECTOR)
    turn = pl.int_range(pl.len()).over("type")

    def some(rows: pl.DataFrame, why: str, descending: bool) -> pl.DataFrame:
        ranked = rows.sort("score", "id", descending=[descending, False])
        ranked = ranked.with_columns(turn.alias("turn")).sort("turn", "type", maintain_order=True)
        return ranked.head(SHOWN).select("id", pl.lit(why).alias("why"), "type", "score")

    bad, refused = pl.col("bad"), pl.col("refused")
    return pl.concat(
        [
            some(mine.filter(bad & ~refused), "missed", False),
            some(mine.filter(~bad & refused), "false alarm", True),
            some(mine.filter(bad & refused), "found", True),
        ]
    )


def _aupro(
    subject: Subject,
    trust: Trusted,
    encoder: Encoder,
    detector: GaussianAD,
    usual: Usual,
    price: float,
) -> list[dict[str, object]]:
    """AUPRO of all types, and of each, on as many images with a mask (and as many good ones) as
    there is time for."""
    table = subject.images.table
    if "mask" not in table.columns:
        return []
    masked = np.flatnonzero(table["mask"].is_not_null().to_numpy())
    count = int(min(len(masked), MOST_MAPS, subject.allowance.left / max(price, 1e-6) / 2))
    label = table["label"].fill_null(0).to_numpy()
    if count < FLOOR and count < len(masked):
        return []
    rows = sampled(masked, label[masked], count, subject.seed)
    good = sampled(trust.judged, np.zeros(len(trust.judged), int), count, subject.seed)
    clear = [usual.standardised(heat) for _, _, heat in _maps(subject, encoder, detector, good)]
    blank = [np.zeros(heat.shape, bool) for heat in clear]
    found = []
    for row, _, heat in _maps(subject, encoder, detector, rows):
        mask = _mask(subject, row)
        if mask is not None and mask.any():
            kind = subject.images.classes[label[row]]
            found.append((kind, usual.standardised(heat), mask))
    lines: list[dict[str, object]] = []
    for name in ["all", *dict.fromkeys(name for name, _, _ in found)]:
        own = [(heat, mask) for kind, heat, mask in found if name in ("all", kind)]
        if own:
            heats, masks = ([*(pair[i] for pair in own)] for i in (0, 1))
            area = aupro([*heats, *clear], [*masks, *blank])
            lines.append({"type": name, "n": len(own), "aupro": area})
    return lines


def _mask(subject: Subject, row: int) -> np.ndarray | None:
    """bool at the model's size; None where the file cannot be read."""
    images, model = subject.images, subject.model
    assert model is not None
    assert model.vision is not None
    try:
        pixels, _ = decode(read_bytes(images.store, images.table["mask"][row]), images.max_pixels)
    except Unreadable:
        return None
    return resize(pixels, model.size, model.vision.crop, "nearest").max(2) > 0

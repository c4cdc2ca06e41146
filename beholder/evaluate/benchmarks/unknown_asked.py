"""Asks the model about foreign and broken images, and what detectors make of the answers (4.11)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from beholder.core.decode import Unreadable
from beholder.core.errors import DataError
from beholder.core.sections import Spent
from beholder.data.sources import open_images
from beholder.data.synthesize.foreign import BENIGN, BROKEN, GREY, FileForm, foreign, some
from beholder.evaluate.subject import Subject, sampled
from beholder.trust.detectors.answers import Energy, MaxSoftmax
from beholder.trust.detectors.base import Levels, Scores

from .base import Records
from .held_out import held_out
from .trusted import (
    BLOCK,
    CrossFitted,
    Make,
    Trusted,
    as_logits,
    asked_levels,
    data_levels,
    data_logits,
    enough,
    feature_detectors,
    guarded,
    halves,
    has_energy,
    missing_rows,
    trusted,
)

GUARD = "guard"
WANTED, FLOOR = 200, 50
SETS = ("own", "far", "broken")
"""Kinds of set that must be refused; `own` = given by the user, which then decides alone."""

ROWS = {
    "set": pl.String,
    "kind": pl.String,
    "half": pl.Int8,
    "unit": pl.Int32,
    "detector": pl.String,
    "score": pl.Float64,
    "refused": pl.Boolean,
    "grey": pl.Boolean,
}
"""One row per judged image and detector. `half` 0 decides which detector is recommended, 1 gives
the figures; `kind`: trusted, own, far, broken, benign, missing (a class that the model lacks)."""

DETECTORS = {
    "detector": pl.String,
    "threshold": pl.Float64,
    "references": pl.Int64,
    "recommended": pl.Boolean,
}


@dataclass(frozen=True)
class Made:
    """A set of pictures at the size of the model.

    Attributes:
        rows: which images of the data they were made of, -1 = none.
        ids: what their half follows from.
    """

    name: str
    kind: str
    pixels: list[np.ndarray]
    rows: np.ndarray
    ids: list[str]
    grey: np.ndarray


def recommended(scores: pl.DataFrame) -> str:
    """The detector whose least refused set is refused most, then the mean; the user's set alone
    where there is one.

    Args:
        scores: columns `ROWS`, the deciding half.
    """
    bad = scores.filter(pl.col("kind").is_in(SETS))
    if "own" in bad["kind"]:
        bad = bad.filter(pl.col("kind") == "own")
    shares = bad.group_by("detector", "set", maintain_order=True).agg(pl.col("refused").mean())
    of = shares.group_by("detector", maintain_order=True).agg(
        pl.col("refused").min().alias("least"), pl.col("refused").mean().alias("mean")
    )
    rows = list(of.iter_rows())
    return max(rows, key=lambda row: (row[1], row[2]))[0]


def measure(subject: Subject) -> Records:
    """Fits detectors on what is trusted, asks the model about foreign and broken images."""
    model, fpr = subject.model, subject.options.fpr
    assert model is not None
    trust = trusted(subject)
    if not enough(trust, fpr):
        return Records({"scores": pl.DataFrame(schema=ROWS), "how": _how(trust, None, "")})
    logits = data_logits(subject)
    fits = _fitted(subject, trust, logits)
    count, sets = _planned(subject)
    subject.expect(sets * count)
    source = sampled(trust.judged, _labels(subject)[trust.judged], count, subject.seed)
    form = FileForm.of(subject.images, subject.data.facts)
    frames = _of_data(subject, trust, fits, logits)
    for made in _sets(subject, form, source, count):
        answer = model.ask(made.pixels, made.rows, subject.progress)
        levels = asked_levels(model, answer.features, answer.logits)
        frames.append(
            _rows(made, fits, levels, np.where(made.rows < 0, -1, trust.fold[made.rows]), fpr)
        )
    near = list(held_out(subject, trust, count))
    scores = pl.concat(frames)
    best = recommended(scores.filter(pl.col("half") == 0))
    chosen = fits[best]
    saved = _save(subject, best, chosen)
    everything = _everything(subject, trust, chosen, logits)
    detectors = pl.DataFrame(
        [
            (name, fit.threshold(fpr), len(fit.calibration), name == best)
            for name, fit in fits.items()
        ],
        DETECTORS,
        orient="row",
    )
    frames_out = {
        "scores": scores,
        "detectors": detectors,
        "images": everything,
        "how": _how(trust, form, saved),
    }
    if near:
        frames_out["near"] = pl.concat(near)
    return Records(frames_out, Spent(wanted=WANTED, used=count, what="images per set"))


def _labels(subject: Subject) -> np.ndarray:
    return subject.evidence.frame["label"].fill_null(-1).to_numpy()


def _planned(subject: Subject) -> tuple[int, int]:
    """Images per set, and sets that the model is asked about."""
    sets = len(BROKEN) + len(BENIGN) + (1 if subject.options.unknown else 4)
    return subject.allowance.count(subject.price() * sets, WANTED, FLOOR), sets


def _fitted(subject: Subject, trust: Trusted, logits: np.ndarray | None) -> dict[str, CrossFitted]:
    """Detectors by name, first the one that is taken where several are as good."""
    model = subject.model
    assert model is not None
    makes: dict[str, Make] = feature_detectors(subject)
    levels = data_levels(subject, trust.learned)
    rows = np.arange(len(trust.learned))
    if logits is not None:
        rows = np.flatnonzero(np.isfinite(logits[trust.learned].max(1)))
        makes["max_softmax"] = MaxSoftmax
        if has_energy(model, logits[trust.learned[rows]]):
            makes["energy"] = Energy
        levels["logits"] = as_logits(logits[trust.learned])
    fold = trust.fold[trust.learned]
    found = {}
    for name, make in makes.items():
        own = rows if name in ("max_softmax", "energy") else np.arange(len(trust.learned))
        found[name] = CrossFitted.fit(make, {n: x[own] for n, x in levels.items()}, fold[own])
    return found


def _of_data(
    subject: Subject, trust: Trusted, fits: dict[str, CrossFitted], logits: np.ndarray | None
) -> list[pl.DataFrame]:
    """Rows of the trusted images that are judged, and of classes that the model lacks."""
    frames = []
    lacking = missing_rows(subject)
    names = subject.evidence.frame["label_name"].gather(lacking).unique().sort().to_list()
    for name, kind, rows in (
        ("own images", "trusted", trust.judged),
        (", ".join(names), "missing", lacking),
    ):
        if not len(rows):
            continue
        levels = data_levels(subject, rows)
        if logits is not None:
            levels["logits"] = as_logits(logits[rows])
        frame = subject.evidence.frame
        grey = (subject.data.facts["colourfulness"] < GREY).to_numpy()[rows]
        made = Made(name, kind, [], rows, frame["id"].gather(rows).to_list(), grey)
        unit = frame["unit"].to_numpy()[rows]
        fold = trust.fold[rows]
        frames.append(_rows(made, fits, levels, fold, subject.options.fpr, unit))
    return frames


def _rows(
    made: Made,
    fits: dict[str, CrossFitted],
    levels: Levels,
    fold: np.ndarray,
    fpr: float,
    unit: np.ndarray | None = None,
) -> pl.DataFrame:
    """Rows of `ROWS` of one set."""
    half = halves(made.ids)
    frames = []
    for name, fit in fits.items():
        score = fit.score(levels, fold)
        columns = {
            "set": [made.name] * len(score),
            "kind": [made.kind] * len(score),
            "half": half,
            "unit": np.arange(len(score)) if unit is None else unit,
            "detector": [name] * len(score),
            "score": score,
            "refused": fit.refused(score, fpr, fold),
            "grey": made.grey,
        }
        frames.append(pl.DataFrame(columns, schema_overrides=ROWS))
    return pl.concat(frames)


def _sets(subject: Subject, form: FileForm, source: np.ndarray, count: int) -> Iterator[Made]:
    """The user's set or foreign ones; broken own images; own ones that are hardly changed."""
    model, images, seed = subject.model, subject.images, subject.seed
    assert model is not None
    if subject.options.unknown:
        given = open_images(subject.options.unknown, max_pixels=subject.options.max_pixels)
        outside = [(given.name, "own", some(given, count, seed))]
    else:
        sets = foreign(images.name, subject.data.hashes, count, seed)
        outside = (
            (f"foreign: {name}", "far", [(id, form.written(form.sized(p))) for id, p in found])
            for name, found in sets
        )
    for name, kind, found in outside:
        if not found:
            raise DataError(f"No image of {subject.options.unknown} can be read.", "See --unknown.")
        ids = [id for id, _ in found]
        yield _made(name, kind, [model.prepare(p) for _, p in found], np.full(len(ids), -1), ids)
    changed: dict[str, list[np.ndarray]] = {name: [] for name in (*BROKEN, *BENIGN)}
    rows = []
    for row in source:
        try:
            own = images.read(int(row))
        except Unreadable:
            continue
        rows.append(int(row))
        for number, (name, broken) in enumerate(BROKEN.items()):
            rng = np.random.default_rng([seed, number, int(row)])
            changed[name].append(model.prepare(form.written(broken(own, rng))))
        for name, change in BENIGN.items():
            changed[name].append(model.prepare(change(own)))
    ids = images.table["id"].gather(rows).to_list()
    for name, pixels in changed.items():
        yield _made(name, "broken" if name in BROKEN else "benign", pixels, np.array(rows), ids)


def _made(name: str, kind: str, pixels: list[np.ndarray], rows: np.ndarray, ids: list[str]) -> Made:
    grey = np.array([np.ptp(image, axis=2).mean() < 1 for image in pixels], bool)
    return Made(name, kind, pixels, rows, ids, grey)


def _everything(
    subject: Subject, trust: Trusted, fit: CrossFitted, logits: np.ndarray | None
) -> pl.DataFrame:
    """id, p_unknown, refused of every image of the data that has an answer."""
    ids = subject.images.table["id"]
    rows = np.arange(len(ids))
    if fit.whole.needs_logits and logits is not None:
        rows = np.flatnonzero(np.isfinite(logits.max(1)))
    p = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        levels = data_levels(subject, part)
        if logits is not None:
            levels["logits"] = as_logits(logits[part])
        score = fit.score(levels, trust.fold[part])
        p[start : start + BLOCK] = fit.p_values(score, trust.fold[part] >= 0)
    return pl.DataFrame(
        {
            "id": ids.gather(rows),
            "p_unknown": pl.Series(p, dtype=pl.Float32),
            "refused": p <= subject.options.fpr + 1e-12,
        }
    )


def _save(subject: Subject, name: str, fit: CrossFitted) -> str:
    """Writes `guard/`; a sentence where that cannot be."""
    model, detector = subject.model, fit.whole
    assert model is not None
    vision = model.vision if detector.needs_logits else guarded(model)
    matched = detector.needs_logits and getattr(model, "match", None) is not None
    if vision is None or matched:
        return f"No guard was saved: {name} reads a model whose inside beholder cannot save."
    detector.use(vision, vision, subject.device)
    detector.calibrate_scores(Scores(torch.from_numpy(fit.calibration)))
    detector.seed = subject.seed
    detector.references = {
        "count": len(fit.calibration),
        "aside": 0,
        "fingerprint": subject.data.fingerprint,
        "name": subject.images.name,
        "fpr": subject.options.fpr,
    }
    detector.save(subject.run / GUARD)
    return ""


def _how(trust: Trusted, form: FileForm | None, unsaved: str) -> pl.DataFrame:
    """One row of facts for the method."""
    written = None
    if form is not None:
        colour = "grey" if form.grey else "colour"
        written = f"{form.format}, {form.size[1]} x {form.size[0]} pixels, {colour}"
    row = {"how": trust.how, "learned": len(trust.learned), "form": written, "unsaved": unsaved}
    return pl.DataFrame([row], schema_overrides={"form": pl.String})

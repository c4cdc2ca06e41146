"""`beholder.guard`: fit a detector on trusted images, score others, compare detectors.

Example:
    >>> import torch
    >>> trusted = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 4 + 0.3
    >>> detector = fit(trusted, "knn", calibration=0.5)
    >>> section = score(detector, torch.cat([trusted[:2], torch.zeros(2, 3, 32, 32)]))
    >>> section.frame("scores")["refused"].to_list()
    [False, False, True, True]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from beholder.core.errors import ArgumentError
from beholder.core.images import Images
from beholder.core.registry import make
from beholder.core.scan import scan
from beholder.core.sections import Section, Table, Value
from beholder.data.sources import open_images
from beholder.metrics.detection import RESAMPLES, error_at, value
from beholder.metrics.intervals import share
from beholder.models.open import Spec
from beholder.train.made import pick_device

from .detectors.base import (
    Detector,
    Given,
    Pictures,
    Progress,
    Scores,
    apart,
    fit_all,
    score_all,
)

__all__ = ["compare", "fit", "score", "trusted_images"]

DEFAULT = "gaussian_ad"
FPR = 0.05
JUDGED, ASIDE = 0.3, 0.3  # of the references of `compare`: judged; of the rest, for thresholds


def quiet(done: int) -> None:
    """No progress."""


def fit(
    references: Given | str,
    detector: str | Detector = DEFAULT,
    *,
    classes: Sequence[str] = (),
    against: Given | str | None = None,
    model: Spec = None,
    fpr: float = FPR,
    calibration: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    out: Path | str | None = None,
    progress: Progress = quiet,
) -> Detector:
    """A detector that knows what to trust, with a threshold for the false-refusal rate `fpr`.

    Args:
        references: trusted images, or DATA; unreadable ones are left out.
        detector: a name, or one that is made already.
        classes: of DATA, those that are trusted; () = see `trusted_images`.
        against: untrustworthy images, for detectors that learn from both.
        out: directory to save it in.

    Raises:
        CalibrationError: too few images for that rate.
    """
    made = make("detector", detector) if isinstance(detector, str) else detector
    made.fit(
        trusted_images(references, classes),
        against=None if against is None else opened(against),
        model=model,
        calibration=calibration,
        seed=seed,
        device=pick_device(device),
        progress=progress,
    )
    made.threshold(fpr)
    assert made.references is not None
    made.references["fpr"] = fpr
    if out is not None:
        made.save(out)
    return made


def score(
    guard: Detector | Path | str,
    images: Given | str,
    *,
    fpr: float | None = None,
    device: str = "auto",
    progress: Progress = quiet,
) -> Section:
    """Which images would be refused.

    Args:
        guard: a detector, or the directory of one.
        fpr: None = the rate that it was fitted for.

    Returns:
        `frame("scores")`: id, score, p_value, refused, one row per readable image;
        `values["refused"]`: their share.
    """
    detector = (
        guard if isinstance(guard, Detector) else Detector.load(guard, device=pick_device(device))
    )
    known = opened(images)
    rate = fpr if fpr is not None else (detector.references or {}).get("fpr", FPR)
    pictures = Pictures.of(known)
    decision = detector.decide(known, rate, progress=progress)
    refused = decision.refused.numpy()
    frame = pl.DataFrame(
        {
            "id": pictures.ids,
            "score": decision.scores.image.numpy(),
            "p_value": decision.p_value.numpy(),
            "refused": refused,
        }
    )
    found = share(refused, higher_is_better=None)
    return Section(
        id="guard",
        title="Which images are refused",
        finding=(
            f"{refused.sum():,} of {len(refused):,} images refused by {detector.called}, which "
            f"refuses at most {100 * rate:g} % of images like its references."
        ),
        n=len(refused),
        values={"refused": found},
        tables={"scores": Table(frame=frame)},
        assumptions=_skipped(known),
    )


def compare(
    references: Given | str,
    bad: Given | str,
    detectors: Sequence[str | Detector] = (DEFAULT, "knn"),
    *,
    classes: Sequence[str] = (),
    bad_classes: Sequence[str] = (),
    against: Given | str | None = None,
    model: Spec = None,
    fpr: float = FPR,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = quiet,
) -> Section:
    """How well detectors part `bad` from the references; the judged images were never fitted.

    Args:
        references: trusted images, or DATA: 49 % are fitted, 21 % give thresholds, 30 % are judged.
        bad: images to be refused, or DATA.
        classes, bad_classes: of DATA, those that are meant.
        against: for detectors that learn from untrustworthy images too.

    Returns:
        `frame("detectors")`: a row per detector, AUROC, FPR95, share of bad and of trusted images
        refused at the threshold for `fpr`, each with its interval; `frame("parts")`: AUROC of each
        level of those that tell.
    """
    made = [make("detector", d) if isinstance(d, str) else d for d in detectors]
    if not made:
        raise ArgumentError("There is no detector to compare.", "For example gaussian_ad,knn.")
    trusted, foreign = trusted_images(references, classes), opened(bad, bad_classes)
    pictures = Pictures.of(trusted)
    fitted, judged = (pictures.take(rows) for rows in apart(pictures, JUDGED, seed))
    others = None if against is None else opened(against)
    for pairs in (False, True):
        chosen = [d for d in made if (d.supervision == "pairs") == pairs]
        if chosen:
            fit_all(
                chosen,
                fitted,
                against=others if pairs else None,
                model=model,
                calibration=ASIDE,
                seed=seed,
                device=pick_device(device),
                progress=progress,
            )
    thresholds = [detector.threshold(fpr) for detector in made]
    good, odd = (score_all(made, images, progress=progress) for images in (judged, foreign))
    names = _names(made)
    values: dict[str, dict[str, Value]] = {}
    for called, threshold, inside, outside in zip(names, thresholds, good, odd, strict=True):
        a, b = inside.image.numpy(), outside.image.numpy()
        rates = {name: value(name, a, b, seed=seed) for name in ("auroc", "fpr95")}
        values[called] = rates | error_at(a, b, threshold)
    best = max(values, key=lambda name: values[name]["auroc"].estimate or 0)
    return Section(
        id="detectors",
        title="How well detectors part bad images from trusted ones",
        finding=(
            f"{best} refuses {values[best]['refused'].text()} of the bad images and "
            f"{values[best]['false_refusals'].text()} of the trusted ones, where at most "
            f"{100 * fpr:g} % were promised."
        ),
        n=len(judged) + len(odd[0].image),
        values={f"{name}.{key}": x for name, row in values.items() for key, x in row.items()},
        tables={"detectors": _table(values), "parts": _parts(names, good, odd)},
        method=[
            f"{len(judged):,} trusted and {len(odd[0].image):,} bad images judged; "
            f"{len(fitted):,} trusted ones fitted, {100 * ASIDE:.0f} % of them for the thresholds; "
            f"intervals: bootstrap, {RESAMPLES:,} resamples, and Wilson."
        ],
        assumptions=[*_skipped(trusted), *_skipped(foreign)],
    )


def trusted_images(given: Given | str, classes: Sequence[str] = ()) -> Given:
    """What is trusted of DATA: the classes that are named; else, of data for anomaly detection,
    its training part; else everything."""
    images = opened(given, classes)
    if not isinstance(images, Images) or classes or images.kind != "one_class":
        return images
    train = images.table["split"] == "train"
    return images.where(train) if train.any() else images


def opened(given: Given | str, classes: Sequence[str] = ()) -> Given:
    """DATA as the images of it that can be read; anything else as it is.

    Raises:
        ArgumentError: it has no such class, or no classes at all.
    """
    images = open_images(given) if isinstance(given, str) else given
    if not isinstance(images, Images):
        if classes:
            raise ArgumentError("Classes are chosen of a data set; this is none.")
        return images
    for name in classes:
        if name not in images.classes:
            known = ", ".join(images.classes[:20]) or "none"
            raise ArgumentError(f"{images.name} has no class {name!r}.", f"It has {known}.")
    if classes:
        wanted = [images.classes.index(name) for name in classes]
        images = images.where(pl.col("label").is_in(wanted))
    return scan(images, max_pixels=images.max_pixels)[0]


def _skipped(images: Given) -> list[str]:
    """A note on images that could not be read."""
    count = len(images.skipped) if isinstance(images, Images) else 0
    return [f"{count:,} images could not be read and are left out."] if count else []


def _table(values: dict[str, dict[str, Value]]) -> Table:
    rows = [
        {"detector": name}
        | {
            f"{key}{end}": getattr(x, field)
            for key, x in row.items()
            for end, field in (("", "estimate"), ("_low", "low"), ("_high", "high"))
        }
        for name, row in values.items()
    ]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return Table(frame=frame, units=dict.fromkeys(frame.columns[1:], "share"))


def _names(detectors: Sequence[Detector]) -> list[str]:
    """Their names; the second of one name is NAME-2."""
    names = [detector.called for detector in detectors]
    counts = [names[: row + 1].count(name) for row, name in enumerate(names)]
    return [name if n == 1 else f"{name}-{n}" for name, n in zip(names, counts, strict=True)]


def _parts(names: Sequence[str], good: list[Scores], odd: list[Scores]) -> Table:
    rows = []
    for called, inside, outside in zip(names, good, odd, strict=True):
        for name in inside.extra:
            found = value("auroc", inside.extra[name].numpy(), outside.extra[name].numpy())
            rows.append((called, name, found.estimate, found.low, found.high))
    columns = {"detector": pl.String, "part": pl.String}
    columns |= dict.fromkeys(("auroc", "auroc_low", "auroc_high"), pl.Float64)
    return Table(frame=pl.DataFrame(rows, schema=columns, orient="row"))

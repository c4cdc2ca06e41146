"""From a data set, its scan and a model's answers to the `Evidence` that sections read."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl

from beholder.core.images import Images, certainty
from beholder.core.model import VisionModel
from beholder.core.sections import Section, Value
from beholder.models.given_model import GivenModel

from .benchmarks.base import Evidence, Records
from .given import Answered

LATER: dict[str, type[pl.DataType]] = {
    "oddity": pl.Boolean,
    "refused": pl.Boolean,
    "p_unknown": pl.Float32,
    "label_quality": pl.Float32,
    "label_issue": pl.Boolean,
    "suggested": pl.Int32,
}
"""Columns of `predictions.parquet` that other sections fill."""


def assemble(
    images: Images,
    facts: pl.DataFrame,
    unit: np.ndarray,
    copy_group: np.ndarray,
    answered: Answered | None,
) -> Evidence:
    """One row per image, sorted by id; see `Evidence.frame`."""
    classes = answered.classes if answered else images.classes
    frame = images.table.drop("key", "mask", strict=False).join(
        facts.drop("grey32", "grey96"), on="id", how="left", maintain_order="left"
    )
    known = len(images.classes)
    q = soft_labels(images)
    frame = frame.with_columns(
        pl.Series("certainty", certainty(q).astype(np.float32)),
        pl.col("label")
        .replace_strict(dict(enumerate(images.classes)), default=None, return_dtype=pl.String)
        .alias("label_name"),
        pl.Series("unit", unit.astype(np.int32)),
        pl.Series("copy_group", [int(g) if g >= 0 else None for g in copy_group], pl.Int32),
        *(pl.lit(None, kind).alias(name) for name, kind in LATER.items()),
    )
    if len(classes) > known:
        wide = np.pad(q, ((0, 0), (0, len(classes) - known)))
        frame = frame.with_columns(
            pl.when(pl.col("q").is_not_null())
            .then(pl.Series("q", wide.tolist(), pl.List(pl.Float32)))
            .alias("q")
        )
    if answered:
        frame = _with_answers(frame, answered)
    else:
        frame = frame.with_columns(
            pl.lit("train").alias("split"),
            pl.lit(None, pl.Int8).alias("fold"),
            pl.lit(None, pl.Boolean).alias("correct"),
        )
    weights = frame["weight"].fill_null(1.0)
    return Evidence(
        name=images.name,
        kind=images.kind,
        classes=classes,
        frame=frame.with_columns(weights.alias("weight")),
        skipped=images.skipped,
        embeddings=answered.embeddings if answered else None,
        repeats=answered.repeats if answered else None,
        baselines=answered.baselines if answered else None,
        learning=answered.learning if answered else None,
        source_given=images.source_given,
        weighted=bool((weights != 1.0).any()),
    )


def add(evidence: Evidence, id: str, records: Records) -> None:
    """Put what section `id` measured into the evidence; its `images` join the frame."""
    evidence.records[id], evidence.spent[id] = records.frames, records.spent
    own = records.frames.get("images")
    if own is not None:
        new = [name for name in own.columns if name != "id"]
        evidence.frame = evidence.frame.drop(new, strict=False).join(
            own, on="id", how="left", maintain_order="left"
        )


def _with_answers(frame: pl.DataFrame, answered: Answered) -> pl.DataFrame:
    there = np.isfinite(answered.probability.sum(axis=1))
    probability = np.where(there[:, None], answered.probability, 0)
    predicted = probability.argmax(1)

    def listed(values: np.ndarray) -> list[list[float] | None]:
        return [list(row) if here else None for row, here in zip(values, there, strict=True)]

    return (
        frame.with_columns(
            pl.Series("split", answered.roles.tolist(), pl.String),
            pl.Series("fold", [int(k) if k >= 0 else None for k in answered.fold], pl.Int8),
            pl.Series("logits", listed(answered.logits), pl.List(pl.Float32)),
            pl.Series("probability", listed(answered.probability), pl.List(pl.Float32)),
            pl.Series("predicted", predicted.astype(np.int32)),
            pl.Series("confidence", probability.max(1).astype(np.float32)),
            pl.Series("_there", there),
        )
        .with_columns(
            pl.when("_there").then("predicted").alias("predicted"),
            pl.when("_there").then("confidence").alias("confidence"),
            pl.when("_there").then(pl.col("predicted") == pl.col("label")).alias("correct"),
        )
        .drop("_there")
    )


def soft_labels(images: Images) -> np.ndarray:
    """[N, C] label distributions: `q` where given, one-hot elsewhere, zero without a label."""
    count = len(images.classes)
    soft = np.zeros((len(images), max(count, 1)), np.float32)
    for row, (label, q) in enumerate(images.table.select("label", "q").iter_rows()):
        if q is not None:
            soft[row] = q
        elif label is not None:
            soft[row, label] = 1
    return soft


def data_facts(images: Images, evidence: Evidence, fingerprint: str, opened: int) -> dict[str, Any]:
    """`results.json: data`."""
    frame = evidence.frame
    labelled = frame.filter(pl.col("label").is_not_null())
    counts = {
        row[0]: row[1:]
        for row in labelled.group_by("label_name")
        .agg(pl.len(), (pl.col("certainty") > 0.999).sum().alias("certain"))
        .iter_rows()
    }
    uncertain = bool(len(labelled) and (labelled["certainty"] < 0.999).any())
    ceiling = None
    if uncertain:
        share = float(soft_labels(images).max(1)[frame["label"].is_not_null().to_numpy()].mean())
        ceiling = Value(estimate=share, n=len(labelled), method="exact")
    skipped = evidence.skipped["reason"].value_counts() if len(evidence.skipped) else None
    return {
        "name": images.name,
        "root_label": images.root_label,
        "format": images.format,
        "fingerprint": fingerprint,
        "images": opened,
        "read": len(frame),
        "skipped": dict(skipped.iter_rows()) if skipped is not None else {},
        "classes": [
            {
                "name": name,
                "images": counts.get(name, (0, 0))[0],
                "certain": counts.get(name, (0, 0))[1],
            }
            for name in images.classes
        ],
        "groups": {
            group: [
                {"name": str(name), "images": count}
                for name, count in frame[f"group_{group}"]
                .value_counts()
                .sort(by=f"group_{group}")
                .iter_rows()
            ]
            for group in images.groups
        },
        "uncertain": uncertain,
        "ceiling": ceiling,
        "kind": images.kind,
    }


def split_facts(evidence: Evidence, answered: Answered | None, seed: int) -> dict[str, Any]:
    """`results.json: split`."""
    roles = evidence.frame["split"].to_list()
    return {
        "kind": answered.kind if answered else "given",
        "seed": seed,
        "seeds": answered.seeds if answered else [],
        **{role: roles.count(role) for role in ("train", "val", "test")},
        "units": evidence.frame["unit"].n_unique(),
        "folds": int(answered.fold.max()) + 1 if answered and answered.fold.max() >= 0 else None,
    }


def model_facts(
    model: VisionModel | GivenModel, origin: Literal["made", "given"], class_match: str
) -> dict[str, Any]:
    """`results.json: model`, as far as the model itself tells."""
    return {
        "name": model.name,
        "origin": origin,
        "weights_hash": model.weights_hash or "",
        "input": model.input_size,
        "preprocessing": {
            "mean": list(model.mean),
            "std": list(model.std),
            "crop": model.crop,
            "interpolation": model.interpolation,
        },
        "classes": list(model.classes or ()),
        "class_match": class_match,
        "parameters": model.parameters_count or 0,
    }


def predictions(frame: pl.DataFrame, sections: dict[str, Section]) -> pl.DataFrame:
    """`predictions.parquet`: the evidence, and what sections decided per image."""
    calibration, mistakes = sections.get("calibration"), sections.get("mistakes")
    threshold = calibration.values.get("threshold") if calibration else None
    if "confidence" in frame.columns:
        accepted = pl.lit(None, pl.Boolean)
        if threshold is not None and threshold.estimate is not None:
            accepted = pl.col("confidence") >= threshold.estimate
        frame = frame.with_columns(accepted.alias("accepted"))
    if mistakes and "mistakes" in mistakes.tables:
        buckets = mistakes.frame("mistakes").select("id", "bucket")
        frame = frame.join(buckets, on="id", how="left")
    return frame.sort("id")

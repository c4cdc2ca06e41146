"""Copies as pairs of pictures, as a histogram, and the recall of the search for them (4.13)."""

from __future__ import annotations

import numpy as np
import polars as pl

from beholder.core.sections import Figure, Picture
from beholder.data.curate.copies import PLANTED
from beholder.metrics.intervals import wilson

PICTURES, BINS = 24, 25
CONFLICT, LEAK = "same picture, other label", "in training and test"
KINDS = {"exact": "exact duplicates", "copy": "changed copies"}


def histogram(best: pl.Series, planted: pl.Series, threshold: float) -> Figure:
    """How alike each image is to its most alike other, and planted copies to their original."""
    series = {"most alike other image": best.filter(best >= 0), "planted copy": planted}
    known = [np.asarray(values, float) for values in series.values()]
    lowest = min((x.min() for x in known if len(x)), default=threshold)
    low = np.floor(20 * max(0.0, min(lowest, threshold - 0.05))) / 20
    edges = np.linspace(low, 1, BINS + 1)
    frames = [
        pl.DataFrame(
            {
                "left": edges[:-1],
                "right": edges[1:],
                "count": np.histogram(np.clip(values.to_numpy(), low, 1), edges)[0] / len(values),
                "series": [name] * BINS,
                "mark": [threshold] * BINS,
            }
        )
        for name, values in series.items()
        if len(values)
    ]
    return Figure(
        kind="histogram",
        data=pl.concat(frames) if frames else pl.DataFrame(),
        title="Most alike pairs, and from where on two images count as copies",
        x="correlation of fine structure",
        y="share",
        note="Dashed: the threshold.",
    )


def pictures(
    pairs: pl.DataFrame, frame: pl.DataFrame, bad: set[int], out: set[str]
) -> list[Picture]:
    """Pairs side by side: conflicts, then leaks, then the others, most alike first."""
    known = {row["id"]: row for row in frame.iter_rows(named=True)}
    shown = []
    for a, b, ncc, kind in pairs.iter_rows():
        one, other = known[a], known[b]
        bucket = KINDS[kind]
        if one["copy_group"] in bad and one["label"] != other["label"]:
            bucket = CONFLICT
        elif out & {a, b} and one["given"] != other["given"]:
            bucket = LEAK
        shown.append(([CONFLICT, LEAK, *KINDS.values()].index(bucket), -ncc, bucket, one, other))
    shown.sort(key=lambda entry: (entry[0], entry[1], entry[3]["id"], entry[4]["id"]))
    return [
        _card(one, bucket, f"{-ncc:.3f}", [_card(other, bucket)])
        for _, ncc, bucket, one, other in shown[:PICTURES]
    ]


def _card(row: dict, bucket: str, ncc: str = "", beside: list[Picture] | None = None) -> Picture:
    said = [str(x) for x in (row["label_name"], row["given"]) if x is not None]
    return Picture(
        id=row["id"],
        caption=", ".join(said) or row["path"],
        alt=f"{bucket}, file {row['path']}",
        bucket=bucket,
        facts={"correlation": ncc} if ncc else {},
        large=True,
        beside=beside or [],
    )


def recalls(planted: pl.DataFrame) -> pl.DataFrame:
    """kind, planted, found, recall with Wilson's interval: a row per kind of copy."""
    rows = []
    for edit, words in PLANTED.items():
        found = planted.filter(pl.col("edit") == edit)["found"]
        if len(found):
            hit = int(found.sum())
            rows.append((words, len(found), hit, hit / len(found), *wilson(hit, len(found))))
    schema = {"kind": pl.String, "planted": pl.Int64, "found": pl.Int64}
    schema |= dict.fromkeys(("recall", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema, orient="row")

"""Copies of the same picture in a data set: exact, re-encoded, resized, mirrored or turned.

The search of specs/study.md, 4.13: candidates by perceptual hash, decided by the correlation of
what is left of 96 x 96 thumbnails when their blur, and what the whole set shares, are taken away.
Where a copy begins is measured in the images themselves, on copies made of 64 of them. Crops, and
rotations other than quarter turns, are not searched.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from beholder.core.decode import Unreadable
from beholder.core.pixels import hash_bits, low_frequencies, phash, thumbnail
from beholder.core.scan import thumbnails

from .hamming import neighbours

DISTANCE = 10
"""Bits of 63 by which the hashes of candidates may differ."""

SAME_HASH = 2
"""Bits up to which hashes count as one where the images look alike."""

LOWEST, HIGHEST = 0.90, 0.995
"""Bounds of the threshold t."""

SELF_MADE = 64  # images of which copies are made
NEAREST, MOST_NEAREST = 256, 2_048
"""Candidates kept per image, those of nearest hash: 2 % of the images within these bounds."""

SHARED_FROM = 50  # images of one size, from which their mean says what all of them show
BLUR = 3.0  # standard deviation in pixels of 96
FINE = 64  # steps per grey level in which high-passed thumbnails (-255..255) are held as int16

LOOK_ALIKE = (
    "Your images look so alike that copies cannot be told from neighbours: give a source column"
)

Edit = Literal["jpeg_75", "half_size", "jpeg_50", "brightness_10", "jpeg_30"]
EDITS: tuple[Edit, ...] = ("jpeg_75", "half_size", "jpeg_50", "brightness_10", "jpeg_30")
DECIDING: tuple[Edit, ...] = ("jpeg_75", "half_size")
"""The edits whose self-made copies set q_self."""


@dataclass(frozen=True)
class Copies:
    """What `find_copies` found among N images.

    Attributes:
        threshold: t: from this correlation on, two images are copies.
        q_self: 5 % quantile of the correlation of an image with a JPEG 75 or half-size copy of
            itself, None where none could be made (no image is anything but blank).
        q_other: 99.5 % quantile over images of the best correlation with another candidate; None
            where there are no candidates at all.
        best: [N] the best correlation with another candidate, -1 without one.
        pairs: i < j (rows), ncc (-1..1), kind ("exact" | "copy"), sorted by rows. Of k equal
            images there are k - 1 exact pairs, each with the first.
        group: [N] 0.. or -1 = has no copy: equal images, and copies by complete linkage at t
            (where the images look alike: what may still be joined, see `find_copies`).
        look_alike: copies cannot be told from neighbours.
        recall: edit -> (found, planted): how many self-made copies the search would find.
        planted: each of them: row (of the original), edit, ncc and hash_distance to it.
        sentence: for people.
    """

    threshold: float
    q_self: float | None
    q_other: float | None
    best: np.ndarray
    pairs: pl.DataFrame
    group: np.ndarray
    look_alike: bool
    recall: dict[str, tuple[int, int]]
    planted: pl.DataFrame
    sentence: str


def edited(image: np.ndarray, edit: Edit) -> np.ndarray:
    """A changed copy of `image` uint8 [H, W, 3]; `half_size` is [H // 2, W // 2, 3], at least 1."""
    if edit == "half_size":
        size = max(1, image.shape[1] // 2), max(1, image.shape[0] // 2)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    if edit == "brightness_10":
        return np.minimum(image.astype(np.uint16) * 11 // 10, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=int(edit.removeprefix("jpeg_")))
    return np.asarray(Image.open(stream).convert("RGB"))


def high_pass(grey: np.ndarray) -> np.ndarray:
    """Thumbnails [..., 96, 96] minus their Gaussian blur (sd 3 px) -> float32 of that shape."""
    grey = grey.astype(np.float32)
    return grey - gaussian_filter(grey, (*[0] * (grey.ndim - 2), BLUR, BLUR))


TURNS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: x,
    lambda x: x[..., ::-1],
    lambda x: x.swapaxes(-1, -2)[..., ::-1, :],
    lambda x: x[..., ::-1, ::-1],
    lambda x: x.swapaxes(-1, -2)[..., ::-1],
)
"""Image, mirror, turned by 90, 180, 270 degrees counter-clockwise: views of [..., side, side]."""

BACK = (0, 1, 4, 3, 2)
"""Index of the turn that undoes each turn."""


class Correlation:
    """Normalised cross-correlation of high-passed thumbnails, less what the set shares.

    With h the high-passed thumbnail, T a turn and m the set's mean of h:
    ncc(i, T j) = <h_i - m, T h_j - m> / (|h_i - m| |T h_j - m|).

    Args:
        grey: uint8 [N, 96, 96].
        shared: m, float32 [96, 96]; zeros if the images have nothing in common.
        rows: those of `grey` that will be asked for.
    """

    def __init__(self, grey: np.ndarray, shared: np.ndarray, rows: np.ndarray) -> None:
        self.shared = shared
        self.place = np.full(len(grey), -1)
        self.place[rows] = np.arange(len(rows))
        self.high = np.empty((len(rows), *shared.shape), np.int16)
        self.norm = np.empty((len(rows), len(TURNS)), np.float64)
        self.with_shared = np.empty((len(rows), len(TURNS)), np.float64)
        self.energy = float(np.square(shared, dtype=np.float64).sum())
        turned = np.stack([TURNS[BACK[k]](shared).ravel() for k in range(len(TURNS))])
        for start in range(0, len(rows), 256):
            part = slice(start, start + 256)
            self.high[part] = np.rint(high_pass(grey[rows[part]]) * FINE)
            flat = self.high[part].reshape(-1, shared.size).astype(np.float32) / FINE
            own = np.einsum("np,np->n", flat, flat, dtype=np.float64)
            self.with_shared[part] = flat @ turned.T
            rest = own[:, None] - 2 * self.with_shared[part] + self.energy
            self.norm[part] = np.sqrt(np.maximum(rest, 0))

    def pairs(self, i: np.ndarray, j: np.ndarray, turn: int) -> np.ndarray:
        """ncc(i, T j) of pairs sorted by i [M] -> float64 [M]; 0 where either has nothing left."""
        a, b = self.place[i], self.place[j]
        inner = np.empty(len(a))
        borders = np.flatnonzero(np.diff(a, prepend=-1, append=-2))
        for start, stop in pairwise(borders):
            # <h_i, T h_j> = <T back h_i, h_j>
            high = TURNS[BACK[turn]](self.high[a[start]]).astype(np.float32).ravel()
            others = self.high[b[start:stop]].reshape(stop - start, -1).astype(np.float32)
            inner[start:stop] = others @ high
        inner /= FINE * FINE
        inner += self.energy - self.with_shared[a, 0] - self.with_shared[b, turn]
        return _ratio(inner, self.norm[a, 0] * self.norm[b, turn])

    def own(self, row: int, copy: np.ndarray) -> float:
        """ncc of image `row` with a thumbnail uint8 [96, 96]."""
        a = self.high[self.place[row]].astype(np.float32) / FINE - self.shared
        b = high_pass(copy) - self.shared
        norms = np.linalg.norm([a.ravel(), b.ravel()], axis=1)
        return float(_ratio((a * b).sum(), norms.prod()))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 1e-6, numerator / np.maximum(denominator, 1e-6), 0.0)


def complete_linkage(n: int, i: np.ndarray, j: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Groups of rows in which every pair is one of the given -> int [n], -1 = in no group.

    Agglomerative complete linkage: from the best pair down, two groups join at the moment when
    their last cross pair has been met, which is when their worst pair is the best left.
    """
    group = np.arange(n)
    members = {row: [row] for row in {*i.tolist(), *j.tolist()}}
    met: dict[int, Counter[int]] = {row: Counter() for row in members}
    for index in np.lexsort((j, i, -score)):
        a, b = int(group[i[index]]), int(group[j[index]])
        met[a][b] += 1
        met[b][a] += 1
        if met[a][b] < len(members[a]) * len(members[b]):
            continue
        group[members[b]] = a
        members[a] += members.pop(b)
        del met[a][b]
        for other, count in met.pop(b).items():
            if other != a:
                met[a][other] += count
                met[other][a] += met[other].pop(b)
    return _numbered(group)


def _numbered(group: np.ndarray) -> np.ndarray:
    """Group numbers 0.. in order of the first row; -1 for rows alone."""
    _, first, inverse, count = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    shared = count > 1
    number = np.full(len(count), -1)
    order = np.argsort(first)
    number[order[shared[order]]] = np.arange(shared.sum())
    return number[inverse]


def find_copies(frame: pl.DataFrame, read: Callable[[int], np.ndarray], seed: int = 0) -> Copies:
    """Search all images for copies of one another.

    Args:
        frame: facts of a scan, [N] rows.
        read: row -> uint8 [H, W, 3]; asked for at most 64 rows, from which copies are made to
            measure the threshold and the search itself. A row that can no longer be read is left
            out.
        seed: of the choice of these rows.

    The threshold is t = clip(min(q_self, q_other), .90, .995). Images as near to another one as
    nearly all self-made copies are (q_self) do not count for q_other: they have a copy, and would
    lift what is meant to say how near different pictures come. The set's mean is taken off only
    where all images have one size and there are at least `SHARED_FROM`.

    The images look alike when (a) more than 1 % of them reach t, self-made copies do not stand out
    from the second best other image (AUROC < .95; the best would be spoilt by real copies), and
    either half as many again lie within .05 below t or q_self is below .90; or (b) a group has more
    than max(20, 2 %) images; or (c) so many have nearly one hash while q_self is below .90. Then
    only images whose hashes differ by at most 2 bits are grouped besides equal ones, and if that
    still joins too many, equal ones only.
    """
    n = len(frame)
    limit = max(20, n // 50)
    exact = _first_of(frame["exact_hash"])
    hashes = frame["phash"].to_numpy()
    searched = np.flatnonzero((exact == np.arange(n)) & (hashes != 0))
    same_size = frame.select("width", "height").n_unique() == 1
    grey = thumbnails(frame, 96)
    shared = np.zeros((96, 96), np.float32)
    if same_size and n >= SHARED_FROM:
        shared = high_pass(grey.mean(0))

    nearest = int(np.clip(limit, NEAREST, MOST_NEAREST))
    candidates = _candidates(thumbnails(frame, 32)[searched], searched, nearest)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(searched, min(SELF_MADE, len(searched)), replace=False))
    rows = np.unique(np.concatenate([candidates["i"], candidates["j"], chosen]).astype(int))
    correlation = Correlation(grey, shared, rows)
    near = _scored(candidates, correlation)
    best, second = _two_best(near, n)
    planted = _plant(chosen, read, correlation, hashes)

    deciding = planted.filter(pl.col("edit").is_in(DECIDING))["ncc"].to_numpy()
    q_self = float(np.quantile(deciding, 0.05)) if len(deciding) else None
    q_other = _q_other(best[searched], q_self) if len(near) else LOWEST
    bounds = [q for q in (q_self, q_other) if q is not None]
    threshold = float(np.clip(min(bounds, default=HIGHEST), LOWEST, HIGHEST))

    copies = near.filter(pl.col("ncc") >= threshold)
    group = _linked(copies, n, "ncc")
    equal_hash = near.filter(pl.col("hash_distance") <= SAME_HASH)
    hash_group = _linked(
        equal_hash.with_columns(-pl.col("hash_distance").cast(pl.Int8)), n, "hash_distance"
    )
    look_alike = (
        _crowded(best[searched], second[searched], deciding, threshold)
        or _largest(group) > limit
        or (q_self is not None and q_self < LOWEST and _largest(hash_group) > limit)
    )
    if look_alike:
        group = hash_group if _largest(hash_group) <= limit else np.full(n, -1)
        together = group[copies["i"]] == group[copies["j"]]
        copies = copies.filter(pl.Series(together & (group[copies["i"]] >= 0)))
    group = _with_exact(group, exact)
    return Copies(
        threshold=threshold,
        q_self=q_self,
        q_other=q_other if len(near) else None,
        best=best,
        pairs=_all_kinds(exact, copies),
        group=group,
        look_alike=look_alike,
        recall=_recall(planted, threshold),
        planted=planted,
        sentence=LOOK_ALIKE if look_alike else _sentence(group, exact),
    )


def _first_of(exact_hash: pl.Series) -> np.ndarray:
    """For each row the first row with the same pixels -> int [N]."""
    _, first, inverse = np.unique(exact_hash.to_numpy(), return_index=True, return_inverse=True)
    return first[inverse]


def _candidates(grey32: np.ndarray, rows: np.ndarray, nearest: int) -> pl.DataFrame:
    """Pairs near by hash: i < j (of `rows`), turn, hash_distance; sorted by turn, i, j."""
    hashes = [hash_bits(low_frequencies(turn(grey32))) for turn in TURNS]
    frames = []
    for turn, turned in enumerate(hashes):
        i, j, distance = neighbours(hashes[0], turned, DISTANCE, nearest)
        columns = {"i": rows[i], "j": rows[j], "turn": np.full(len(i), turn), "distance": distance}
        frames.append(pl.DataFrame(columns).rename({"distance": "hash_distance"}))
    return pl.concat(frames)


def _scored(candidates: pl.DataFrame, correlation: Correlation) -> pl.DataFrame:
    """i < j, hash_distance and ncc, of the turn that fits best; sorted by i, j."""
    ncc = [
        correlation.pairs(part["i"].to_numpy(), part["j"].to_numpy(), turn)
        for turn in range(len(TURNS))
        for part in [candidates.filter(pl.col("turn") == turn)]
    ]
    scored = candidates.with_columns(ncc=pl.Series(np.concatenate(ncc)))
    best = scored.group_by("i", "j").agg(pl.col("hash_distance").min(), pl.col("ncc").max())
    return best.sort("i", "j")


def _two_best(near: pl.DataFrame, n: int) -> tuple[np.ndarray, np.ndarray]:
    """[n] the best and the second best correlation of each row with another, -1 without one."""
    row = np.concatenate([near["i"], near["j"]]).astype(int)
    ncc = np.concatenate([near["ncc"], near["ncc"]])
    order = np.lexsort((-ncc, row))
    row, ncc = row[order], ncc[order]
    _, first = np.unique(row, return_index=True)
    best, second = np.full(n, -1.0), np.full(n, -1.0)
    best[row[first]] = ncc[first]
    later = np.delete(np.arange(len(row)), first)
    _, first = np.unique(row[later], return_index=True)
    second[row[later[first]]] = ncc[later[first]]
    return best, second


def _plant(
    rows: np.ndarray,
    read: Callable[[int], np.ndarray],
    correlation: Correlation,
    hashes: np.ndarray,
) -> pl.DataFrame:
    """Copies made of `rows`: row, edit, ncc with the original, hash_distance to it."""
    records = []
    for row in rows.tolist():
        try:
            image = read(row)
        except (Unreadable, OSError):
            continue
        for edit in EDITS:
            copy = edited(image, edit)
            distance = (phash(thumbnail(copy, 32)) ^ int(hashes[row])).bit_count()
            records.append((row, edit, correlation.own(row, thumbnail(copy, 96)), distance))
    schema = {"row": pl.Int64, "edit": pl.String, "ncc": pl.Float64, "hash_distance": pl.Int64}
    return pl.DataFrame(records, schema=schema, orient="row")


def _recall(planted: pl.DataFrame, threshold: float) -> dict[str, tuple[int, int]]:
    found = (pl.col("ncc") >= threshold) & (pl.col("hash_distance") <= DISTANCE)
    counts = planted.group_by("edit").agg(found.sum().alias("found"), pl.len())
    recall = {edit: (hit, of) for edit, hit, of in counts.iter_rows()}
    return {edit: recall[edit] for edit in EDITS if edit in recall}


def _q_other(best: np.ndarray, q_self: float | None) -> float | None:
    """99.5 % quantile of `best` [M] among those below q_self; None where there are none."""
    alone = best if q_self is None else best[best < q_self]
    return float(np.quantile(alone, 0.995)) if len(alone) else None


def _crowded(best: np.ndarray, second: np.ndarray, planted: np.ndarray, threshold: float) -> bool:
    """Rule (a) of `find_copies`. `best`, `second`: [M] of the images; `planted`: [P]."""
    if not len(best) or not len(planted):
        return False
    reach = float(np.mean(best >= threshold))
    below = float(np.mean((best >= threshold - 0.05) & (best < threshold)))
    no_gap = below > reach / 2 or np.quantile(planted, 0.05) < LOWEST
    return bool(reach > 0.01 and no_gap and _auroc(planted, second) < 0.95)


def _auroc(high: np.ndarray, low: np.ndarray) -> float:
    """Probability that one of `high` is above one of `low`, ties counting half."""
    ranks = rankdata(np.concatenate([high, low]))[: len(high)]
    return float((ranks.mean() - (len(high) + 1) / 2) / len(low))


def _linked(pairs: pl.DataFrame, n: int, score: str) -> np.ndarray:
    i, j = pairs["i"].to_numpy(), pairs["j"].to_numpy()
    return complete_linkage(n, i, j, pairs[score].to_numpy().astype(float))


def _largest(group: np.ndarray) -> int:
    """Size of the largest group of `group` [N]; 0 without groups."""
    return int(np.bincount(group[group >= 0]).max(initial=0))


def _with_exact(group: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Groups of first images extended to all that equal them, and groups of equal images."""
    extended = group[exact]
    return _numbered(np.where(extended >= 0, extended, len(group) + exact))


def _all_kinds(exact: np.ndarray, copies: pl.DataFrame) -> pl.DataFrame:
    """Columns i, j, ncc, kind; sorted by i, j."""
    repeated = np.flatnonzero(exact != np.arange(len(exact)))
    equal = pl.DataFrame({"i": exact[repeated], "j": repeated}).with_columns(
        ncc=pl.lit(1.0), kind=pl.lit("exact")
    )
    near = copies.select("i", "j", "ncc", kind=pl.lit("copy"))
    return pl.concat([equal, near]).sort("i", "j")


def _sentence(group: np.ndarray, exact: np.ndarray) -> str:
    equal = np.bincount(exact, minlength=len(exact))[exact] > 1
    changed = int(((group >= 0) & ~equal).sum())
    if not equal.any() and not changed:
        return "No two images are the same picture."
    return (
        f"{int((group >= 0).sum()):,} of {len(group):,} images show a picture that is there more "
        f"than once: {int(equal.sum()):,} are exact duplicates, {changed:,} are changed copies."
    )

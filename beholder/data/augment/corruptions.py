"""The fifteen corruptions of ImageNet-C at five severities, on images of any size.

Hendrycks, Dietterich: "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. Authors' repository: hendrycks/robustness. Forms and strengths:
specs/study.md, 4.9.

Ours differ: nothing but numpy, scipy, torch and Pillow is needed; severity changes how strong a
draw is and not the draw; lengths are those of an image of 224 pixels, so they grow with the image
(`reference=True`: they do not); frost is drawn (the authors' photographs are not given away); glass
swaps pixels block by block; results are rounded, not cut off.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from scipy import fft, ndimage, special
from torch.nn import functional as F

from beholder.core.errors import ArgumentError

SIDE = 224
SEVERITIES = (1, 2, 3, 4, 5)
GREY = np.array([0.299, 0.587, 0.114], np.float32)
TEXTURES = 6

Family = Literal["noise", "blur", "weather", "digital"]
Floats = np.ndarray
"""float32 [H, W, 3] in [0, 1]; results may lie beyond."""


def gaussian_noise(x: Floats, rng: np.random.Generator, scale: float, sd: float) -> Floats:
    return x + np.float32(sd) * rng.standard_normal(x.shape, np.float32)


def shot_noise(x: Floats, rng: np.random.Generator, scale: float, photons: float) -> Floats:
    """Poisson(x photons) / photons, by inversion: the same uniform numbers at every severity."""
    level = np.rint(255 * x).astype(np.intp).ravel()
    chance = rng.random(level.size, np.float32)
    cumulative, first = _poisson(photons)
    bins = first.shape[1]
    count = first.ravel()[level * bins + (chance * bins).astype(np.intp)].astype(np.intp)
    start = level * cumulative.shape[1]
    open_ = np.flatnonzero(chance > cumulative.ravel()[start + count])
    while len(open_):
        count[open_] += 1
        open_ = open_[chance[open_] > cumulative.ravel()[start[open_] + count[open_]]]
    return (count.reshape(x.shape) / photons).astype(np.float32)


@cache
def _poisson(photons: float, bins: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative shares [256, K] per grey level, and the smallest count of each bin of chance."""
    mean = np.arange(256) / 255 * photons
    counts = np.arange(int(photons + 9 * math.sqrt(photons) + 12))
    cumulative = special.pdtr(counts, mean[:, None]).astype(np.float32)
    cumulative[:, -1] = np.inf
    edges = np.arange(bins, dtype=np.float32) / bins
    return cumulative, np.stack([np.searchsorted(row, edges) for row in cumulative])


def impulse_noise(x: Floats, rng: np.random.Generator, scale: float, share: float) -> Floats:
    chance = rng.random(x.shape, np.float32)
    return np.where(chance < share / 2, 0, np.where(chance > 1 - share / 2, 1, x))


def defocus_blur(
    x: Floats, rng: np.random.Generator, scale: float, radius: float, alias: float
) -> Floats:
    return _filtered(x, _disk(radius * scale, alias * scale, 1 if radius <= 8 else 2))


@lru_cache(64)
def _disk(radius: float, alias: float, reach: int) -> np.ndarray:
    """A disk smoothed by a Gaussian of 2 reach + 1 pixels; sums to 1."""
    half = max(8, int(radius))
    y, x = np.ogrid[-half : half + 1, -half : half + 1]
    disk = (x * x + y * y <= radius * radius).astype(float)
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * alias**2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, taps, axis, mode="mirror")
    return disk / disk.sum()


def _filtered(x: Floats, kernel: np.ndarray) -> Floats:
    """Correlated with a symmetric kernel; the border is mirrored."""
    half = len(kernel) // 2
    padded = np.pad(x, ((half, half), (half, half), (0, 0)), "reflect")
    size = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    spectrum = np.asarray(fft.rfft2(padded, size, axes=(0, 1)))
    spectrum *= np.asarray(fft.rfft2(kernel.astype(np.float32), size))[:, :, None]
    found = np.asarray(fft.irfft2(spectrum, size, axes=(0, 1)))
    return found[2 * half : 2 * half + x.shape[0], 2 * half : 2 * half + x.shape[1]]


def glass_blur(
    x: Floats, rng: np.random.Generator, scale: float, sd: float, reach: int, rounds: int
) -> Floats:
    """Swaps of near pixels, many at once: those whose neighbourhoods do not meet."""
    height, width = x.shape[:2]
    reach = max(1, round(reach * scale))
    step = 2 * reach
    offsets = (rng.random((3, 2, height, width), np.float32) * step).astype(np.intp) - reach
    order = np.arange(height * width)
    for down, right in offsets[:rounds]:
        for top in range(3 * reach - 1, reach - 1, -1):
            for left in range(3 * reach - 1, reach - 1, -1):
                rows = np.arange(top, height - reach + 1, step)[:, None]
                columns = np.arange(left, width - reach + 1, step)
                here = (rows * width + columns).ravel()
                there = here + (down.ravel() * width + right.ravel())[here]
                order[here], order[there] = order[there], order[here]
    smooth = _smoothed(x, sd * scale).reshape(-1, 3)[order].reshape(x.shape)
    return _smoothed(smooth, sd * scale)


def _smoothed(x: np.ndarray, sd: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """Gaussian blur of [H, W, C]."""
    for _ in range(2):  # along an axis, which then becomes the other one
        size = x.shape[0]
        along = _gaussian(size, sd, mode, truncate) @ x.reshape(size, -1)
        x = along.reshape(x.shape).swapaxes(0, 1)
    return np.ascontiguousarray(x)


@lru_cache(64)
def _gaussian(size: int, sd: float, mode: str, truncate: float) -> np.ndarray:
    """The blur along an axis as a matrix [size, size]."""
    eye = np.eye(size)
    found = ndimage.gaussian_filter1d(eye, sd, axis=0, mode=mode, truncate=truncate)
    return found.astype(np.float32)


def motion_blur(
    x: Floats, rng: np.random.Generator, scale: float, radius: float, sd: float
) -> Floats:
    return _dragged(x, rng.uniform(-45, 45), radius * scale, sd * scale)


def _dragged(x: np.ndarray, degrees: float, radius: float, sd: float) -> np.ndarray:
    """Weighted sum of [H, W, ...] moved ever further at an angle; the border is repeated."""
    steps = np.arange(2 * round(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sd**2))
    angle = math.radians(degrees)
    moves: dict[tuple[int, int], float] = {}
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        move = (round(step * math.sin(angle)), round(step * math.cos(angle)))
        moves[move] = moves.get(move, 0.0) + float(weight)
    height, width = x.shape[:2]
    far = len(steps)
    padded = np.pad(x, ((far, far), (far, far)) + ((0, 0),) * (x.ndim - 2), "edge")
    found = np.zeros_like(x)
    for (down, right), weight in moves.items():
        top, left = far + down, far + right
        found += np.float32(weight) * padded[top : top + height, left : left + width]
    return found


def zoom_blur(
    x: Floats, rng: np.random.Generator, scale: float, last: float, step: float
) -> Floats:
    factors = 1 + step * np.arange(round((last - 1) / step) + 1)
    shown = torch.from_numpy(x).permute(2, 0, 1)[None].contiguous()
    found = shown.clone()
    for factor in factors:
        found += _zoomed(shown, float(factor))
    return (found[0] / (1 + len(factors))).permute(1, 2, 0).numpy()


def _zoomed(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The middle of [1, C, H, W], enlarged to the same size (bilinear, corners on corners)."""
    height, width = x.shape[2:]
    rows, columns = (math.ceil(side / factor) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    size = [max(round(rows * factor), height), max(round(columns * factor), width)]
    part = x[:, :, top : top + rows, left : left + columns]
    found = F.interpolate(part, size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return found[:, :, top : top + height, left : left + width]


def snow(
    x: Floats,
    rng: np.random.Generator,
    scale: float,
    mean: float,
    sd: float,
    zoom: float,
    cut: float,
    radius: float,
    drag: float,
    mix: float,
) -> Floats:
    noise = np.float32(mean) + np.float32(sd) * rng.standard_normal(x.shape[:2], np.float32)
    angle = rng.uniform(-135, -45)
    flakes = _zoomed(torch.from_numpy(noise)[None, None], max(zoom * scale, 1.0))[0, 0].numpy()
    layer = np.where(flakes < cut, 0, flakes).clip(0, 1)
    layer = _dragged(layer, angle, radius * scale, drag * scale)
    dull = np.maximum(x, 1.5 * (x @ GREY)[:, :, None] + 0.5)
    return mix * x + (1 - mix) * dull + (layer + layer[::-1, ::-1])[:, :, None]


def frost(x: Floats, rng: np.random.Generator, scale: float, own: float, ice: float) -> Floats:
    height, width = x.shape[:2]
    texture = _ice(_power_of_two(max(height, width)), int(rng.integers(TEXTURES)))
    down, right = rng.integers(len(texture), size=2)
    rows, columns = np.arange(down, down + height), np.arange(right, right + width)
    part = texture.take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")
    return np.float32(own) * x + np.float32(ice) * part[:, :, None]


@lru_cache(2 * TEXTURES)
def _ice(size: int, number: int) -> np.ndarray:
    """Ridges [size, size]: (1 - |p|)^3 of plasma spread evenly over [-1, 1]; its borders meet."""
    plasma = _plasma(size, 1.3, np.random.default_rng(number))
    rank = np.empty(plasma.size, np.float32)
    rank[plasma.ravel().argsort(kind="stable")] = np.linspace(-1, 1, plasma.size)
    return (1 - np.abs(rank.reshape(plasma.shape))) ** 3


def fog(x: Floats, rng: np.random.Generator, scale: float, amount: float, decay: float) -> Floats:
    """Black stays black: fog is as bright as the brightest pixel allows."""
    height, width = x.shape[:2]
    haze = _plasma(_power_of_two(max(height, width)), decay, rng)[:height, :width, None]
    brightest = x.max()
    return (x + np.float32(amount) * haze) * (brightest / (brightest + amount))


def _power_of_two(side: int) -> int:
    return 1 << max(side - 1, 1).bit_length()


def _plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Diamond-square noise in [0, 1], [size, size], size a power of two; its borders meet.

    Each corner's mean gets a uniform number whose size falls by decay^2 from step to step.
    """
    found = np.zeros((size, size), np.float32)
    step, strength = size, 1.0

    def around(mean: np.ndarray) -> np.ndarray:
        return mean + np.float32(strength) * (2 * rng.random(mean.shape, np.float32) - 1)

    while step >= 2:
        half = step // 2
        corners = found[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        found[half::step, half::step] = around((pairs + np.roll(pairs, -1, 1)) / 4)
        middles = found[half::step, half::step]
        above = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        beside = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        found[::step, half::step] = around(above / 4)
        found[half::step, ::step] = around(beside / 4)
        step, strength = half, strength / decay**2
    found -= found.min()
    return found / found.max()


def brightness(x: Floats, rng: np.random.Generator, scale: float, more: float) -> Floats:
    """`more` is added to V of HSV; hue and saturation stay."""
    value = x.max(2, keepdims=True)
    brighter = (value + np.float32(more)).clip(0, 1)
    return np.where(value > 0, x * (brighter / np.maximum(value, 1e-9)), brighter)


def contrast(x: Floats, rng: np.random.Generator, scale: float, factor: float) -> Floats:
    mean = x.mean((0, 1))
    return (x - mean) * np.float32(factor) + mean


def elastic(
    x: Floats, rng: np.random.Generator, scale: float, amplitude: float, sd: float, jitter: float
) -> Floats:
    """An affine map of three points, then a smooth displacement.

    The displacement is smoothed noise, whose mean falls with the number of pixels: so its amplitude
    grows with the area for the same picture.
    """
    height, width = x.shape[:2]
    middle = np.array([height, width]) // 2
    arm = min(height, width) // 3
    points = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-1, 1, (3, 2)) * jitter * scale
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # where it comes from
    y, z = np.mgrid[:height, :width].astype(np.float32)
    place = np.stack([y, z, np.ones_like(y)], 2) @ affine.astype(np.float32)
    bent = _sampled(x, place)
    noise = 2 * rng.random((height, width, 2), np.float32) - 1
    shift = _smoothed(noise, sd * scale, "reflect", 3.0) * np.float32(amplitude * scale**2)
    return _sampled(bent, np.stack([y, z], 2) + shift)


def _sampled(x: Floats, place: np.ndarray) -> Floats:
    """Bilinear values at (row, column) [H, W, 2]; the image is mirrored beyond its border."""
    side = np.array(x.shape[:2], np.float32)
    grid = torch.from_numpy(((2 * place + 1) / side - 1)[None, :, :, ::-1].copy())
    shown = torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None]
    found = F.grid_sample(shown, grid, "bilinear", "reflection", align_corners=False)
    return found[0].permute(1, 2, 0).numpy()


def pixelate(x: Floats, rng: np.random.Generator, scale: float, share: float) -> Floats:
    height, width = x.shape[:2]
    box = Image.Resampling.BOX
    small = _image(x).resize((max(int(width * share), 1), max(int(height * share), 1)), box)
    return _floats(small.resize((width, height), box))


def jpeg(x: Floats, rng: np.random.Generator, scale: float, quality: int) -> Floats:
    stream = io.BytesIO()
    _image(x).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return _floats(Image.open(stream))


def _image(x: Floats) -> Image.Image:
    return Image.fromarray(np.rint(255 * x).astype(np.uint8))


def _floats(image: Image.Image) -> Floats:
    return np.asarray(image, np.float32) / 255


@dataclass(frozen=True)
class Corruption:
    """One of the fifteen.

    Attributes:
        form: (image, generator, side / 224, strength ...) -> image, all `Floats`.
        strengths: what `form` takes at severity 1 to 5.
        camera: cameras and what follows them do this.
    """

    form: Callable[..., Floats]
    family: Family
    strengths: tuple[tuple[float, ...], ...]
    camera: bool = False
    shown: str = ""


def _each(*strengths: float) -> tuple[tuple[float], ...]:
    return tuple((strength,) for strength in strengths)


# fmt: off
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, "noise", _each(.08, .12, .18, .26, .38), True),
    "shot_noise": Corruption(shot_noise, "noise", _each(60, 25, 12, 5, 3), True),
    "impulse_noise": Corruption(impulse_noise, "noise", _each(.03, .06, .09, .17, .27), True),
    "defocus_blur": Corruption(
        defocus_blur, "blur", ((3, .1), (4, .5), (6, .5), (8, .5), (10, .5)), True),
    "glass_blur": Corruption(
        glass_blur, "blur", ((.7, 1, 2), (.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), True),
    "motion_blur": Corruption(
        motion_blur, "blur", ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), True),
    "zoom_blur": Corruption(
        zoom_blur, "blur", ((1.11, .01), (1.15, .01), (1.2, .02), (1.24, .02), (1.3, .03)), True),
    "snow": Corruption(snow, "weather", (
        (.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7), (.55, .3, 4, .9, 12, 8, .7),
        (.55, .3, 4.5, .85, 12, 8, .65), (.55, .3, 2.5, .85, 12, 12, .55))),
    "frost": Corruption(
        frost, "weather", ((1, .4), (.8, .6), (.7, .7), (.65, .7), (.6, .75)),
        shown="frost (drawn)"),
    "fog": Corruption(
        fog, "weather", ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": Corruption(brightness, "weather", _each(.1, .2, .3, .4, .5), True),
    "contrast": Corruption(contrast, "digital", _each(.4, .3, .2, .1, .05), True),
    "elastic": Corruption(elastic, "digital", (
        (488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88))),
    "pixelate": Corruption(pixelate, "digital", _each(.6, .5, .4, .3, .25)),
    "jpeg": Corruption(jpeg, "digital", _each(25, 18, 15, 10, 7), True),
}
# fmt: on


def draw_of(seed: int, id: str, name: str) -> int:
    """What decides the draw of one corruption of one image: blake2b(seed, id, name)."""
    found = hashlib.blake2b(f"{seed}\0{id}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(found, "little")


def shown_as(name: str) -> str:
    """The name for people: 'gaussian noise'."""
    return CORRUPTIONS[name].shown or name.replace("_", " ")


def corrupt(
    image: np.ndarray, name: str, severity: int, draw: int, reference: bool = False
) -> np.ndarray:
    """A corrupted copy, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, 3].
        name: of `CORRUPTIONS`.
        severity: 1 to 5; it does not change what is drawn.
        draw: seed of the generator, see `draw_of`.
        reference: lengths are those of the authors in pixels, whatever the size of the image.

    Raises:
        ArgumentError: a name, severity or image that is none of these.
    """
    if name not in CORRUPTIONS:
        raise ArgumentError(
            f"Corruption {name!r} is not known.", f"Known: {', '.join(CORRUPTIONS)}."
        )
    if severity not in SEVERITIES:
        raise ArgumentError(f"Severity {severity} is none of 1 to 5.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ArgumentError(f"{image.dtype} {image.shape} is not uint8 [H, W, 3].")
    corruption = CORRUPTIONS[name]
    scale = 1.0 if reference else min(image.shape[:2]) / SIDE
    x = image.astype(np.float32) / 255
    strength = corruption.strengths[severity - 1]
    found = corruption.form(x, np.random.default_rng(draw), scale, *strength)
    return np.rint(255 * found.clip(0, 1)).astype(np.uint8)

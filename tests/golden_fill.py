"""Weights and inputs that anyone can rebuild from names and shapes alone.

A golden file holds what the authors' own implementation answered for these weights and
inputs, so a new implementation is checked for the same arithmetic, and its converter of the
authors' checkpoints is checked too, without any published weights. See README.md here.
"""

import math
import zlib

import numpy as np


def tensor(key: str, shape) -> np.ndarray:
    """The float32 value of the authors' state_dict entry `key`."""
    shape = tuple(shape)
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    noise = (
        np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    )
    if last == "running_var":
        return 1 + 0.1 * np.abs(noise)
    if len(shape) >= 2:
        return noise / np.float32(math.sqrt(np.prod(shape[1:])))
    return 0.1 * noise + np.float32(
        1 if last in ("weight", "gamma", "scale") and len(shape) == 1 else 0
    )


def image(batch: int, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth, non-repeating float32 input in about [-2, 2], [B, C, H, W]."""
    b, c, y, x = np.meshgrid(
        *(np.arange(n, dtype=np.float64) for n in (batch, channels, height, width)), indexing="ij"
    )
    value = np.sin(0.11 * (x + 1) * (c + 1) + seed) + np.cos(0.07 * (y + 1) * (b + 1) + 0.5 * c)
    return value.astype(np.float32)


def digest(value) -> dict:
    """What a golden file keeps of an output: enough to compare, small enough to commit."""
    value = np.asarray(value, np.float64)
    flat = value.ravel()
    step = max(1, flat.size // 64)
    return {
        "shape": list(value.shape),
        "mean": float(flat.mean()),
        "std": float(flat.std()),
        "abs_max": float(np.abs(flat).max()),
        "every": step,
        "values": [float(v) for v in flat[::step][:64]],
    }

"""Golden files: what the authors' own implementations answered (see tests/golden_fill.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_fill as fill
import numpy as np
import torch

PLACE = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """The content of `tests/golden/NAME.json`. `beholder systems` finds tests by calls of this."""
    return json.loads((PLACE / f"{name}.json").read_text())


def weights(record: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The authors' state dict, rebuilt from names and shapes."""
    return {key: torch.from_numpy(fill.tensor(key, shape)) for key, shape in record["state"]}


def assert_same(found: Any, digest: dict[str, Any], absolute: float, relative: float = 0) -> None:
    """An output equals its recorded digest."""
    array = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    own = fill.digest(array)
    assert own["shape"] == digest["shape"]
    for key in ("mean", "std", "abs_max", "values"):
        np.testing.assert_allclose(own[key], digest[key], atol=absolute, rtol=relative, err_msg=key)

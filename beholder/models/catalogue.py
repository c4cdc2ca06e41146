"""The backbones that there are, timm's and ours, with what each costs.

Parameters and multiply-accumulates are counted on a construction without memory (torch's meta
device). That takes half a second per network, so those of timm are in a table beside this file
(`python -m beholder.models.catalogue` writes it anew); what it lacks is counted when it is asked
for, and kept in the cache.
"""

from __future__ import annotations

import csv
import fnmatch
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from beholder.core.errors import ArgumentError
from beholder.core.files import cache_dir, key_of, write_bytes, write_json
from beholder.core.registry import systems
from beholder.metrics.cost import macs

TABLE = Path(__file__).parent / "backbones.csv"
COLUMNS: tuple[str, ...] = ("name", "parameters", "macs", "height", "width", "features")
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
COMPARED: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass(frozen=True)
class Backbone:
    """What one backbone costs, for one image and without its classifier's own cost left out.

    Attributes:
        source: 'timm' or 'beholder'.
        parameters, macs: with the classifier it comes with; None where it cannot be built.
        input_size: (H, W) that they are counted at.
        features: width of the pooled descriptor.
        pretrained: weights are to be had from a hub.
    """

    name: str
    source: str
    parameters: int | None
    macs: int | None
    input_size: tuple[int, int] | None
    features: int | None
    pretrained: bool


def backbones(search: str = "*", params: str = "") -> list[Backbone]:
    """Those whose name matches, ours first.

    Args:
        search: a pattern with * and ?, or a part of the name.
        params: such as '<30M', or '>5M,<30M'; '' = any.

    Raises:
        ArgumentError: `params` is no such comparison.
    """
    fits = parameter_filter(params)
    ours = [entry for entry in systems("backbone") if matches(entry.name, search)]
    for entry in ours:
        entry.load()
    own = {entry.name for entry in ours}
    names = [name for name in timm.list_models() if matches(name, search) and name not in own]
    found = [*_listed(sorted(own), "beholder"), *_listed(names, "timm")]
    return [one for one in found if fits(one.parameters)]


def matches(name: str, search: str) -> bool:
    pattern = search if set(search) & set("*?[") else f"*{search}*"
    return fnmatch.fnmatchcase(name, pattern)


def parameter_filter(text: str) -> Callable[[int | None], bool]:
    """'<30M' as a test of a number of parameters; an unknown number passes only ''.

    Raises:
        ArgumentError: it is no such comparison.
    """
    tests = []
    for part in filter(None, text.replace(" ", "").split(",")):
        match = re.fullmatch(r"(<=|>=|<|>)(\d+\.?\d*)([kMG]?)", part)
        if not match:
            raise ArgumentError(f"--params = {part!r} is no comparison.", "For example '<30M'.")
        tests.append((COMPARED[match[1]], float(match[2]) * UNITS[match[3]]))

    def fits(count: int | None) -> bool:
        if count is None:
            return not tests
        return all(compare(count, bound) for compare, bound in tests)

    return fits


def count(name: str) -> dict[str, Any]:
    """Cost of a registered timm network without allocating it.

    Those that cannot run on the meta device have None for `macs`.
    """
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    channels, height, width = model.pretrained_cfg["input_size"]
    try:
        operations = macs(model, torch.empty(1, channels, height, width, device="meta"))
    except (RuntimeError, NotImplementedError):
        operations = None
    return {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": operations,
        "height": height,
        "width": width,
        "features": model.num_features,
    }


def _listed(names: Iterable[str], source: str) -> list[Backbone]:
    names = list(names)
    table = _table() if source == "timm" else {}
    missing = [name for name in names if name not in table]
    counted = {name: _counted(name) for name in _shown(missing)}
    return [_backbone((table | counted)[name], source) for name in names]


def _backbone(row: dict[str, Any], source: str) -> Backbone:
    size = (row["height"], row["width"]) if row["height"] else None
    pretrained = source == "timm" and timm.is_model_pretrained(row["name"])
    return Backbone(
        row["name"], source, row["parameters"], row["macs"], size, row["features"], pretrained
    )


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    with TABLE.open() as stream:
        rows = list(csv.DictReader(stream))
    return {
        row["name"]: {key: x if key == "name" else int(x) if x else None for key, x in row.items()}
        for row in rows
    }


def _counted(name: str) -> dict[str, Any]:
    """`count`, kept in the cache; without figures where the network cannot be built."""
    key = key_of({"backbone": name, "timm": timm.__version__})
    kept = cache_dir() / "backbones" / f"{key}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    try:
        row = count(name)
    except Exception:
        return dict.fromkeys(COLUMNS) | {"name": name}
    write_json(kept, row)
    return row


def _shown(names: list[str]) -> Iterable[str]:
    """With a bar on stderr where it takes a while."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(names, "counting", console=console, disable=len(names) < 5)


def write_table(path: Path = TABLE) -> None:
    """Count every network of timm: some ten minutes."""
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_counted(name) for name in _shown(timm.list_models()))
    write_bytes(path, out.getvalue().encode())


if __name__ == "__main__":
    write_table()
    sys.stdout.write(f"{TABLE}\n")

"""Does a paper's claim hold here? Measured over seeds, judged from an interval, never by eye.

A claim is a file `claims/NN_name.py` of these names:

    ROW = 47
    CLAIM = "What the paper says, in our words."
    SETTING = "Data, models and budget in one or two sentences."
    SEEDS = (0, 1, 2)

    def run(seed: int) -> dict[str, float]: ...          # what was measured with that seed
    def parts(results: list[dict]) -> list[Part]: ...    # one result per seed, in order

`run` may also give a list of floats under a name, one per image; `per_image` judges those.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from beholder.core.environment import PACKAGES, cpu_name, git_revision, version
from beholder.core.errors import ArgumentError
from beholder.core.files import write_json
from beholder.core.sections import Unit, Value
from beholder.metrics.bootstrap import bootstrap, mean_of
from beholder.survey import claim_files, source_hash

Verdict = Literal["holds", "does not hold", "not decided"]
Measures = Mapping[str, Any]
"""Name -> float, or one float per image."""

PLACE = Path(__file__).parent
NAMES = ("ROW", "CLAIM", "SETTING", "SEEDS", "run", "parts")
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Part:
    """One sentence of a claim, the figure that decides it, and the decision.

    `reported` figures belong to the picture but decide nothing.
    """

    text: str
    verdict: Verdict | Literal["reported"]
    value: Value


def difference(
    text: str,
    results: Sequence[Measures],
    better: str,
    worse: str,
    at_least: float = 0.0,
    unit: Unit = "points",
) -> Part:
    """`better` exceeds `worse` by more than `at_least`: paired over seeds, t interval."""
    gaps = [result[better] - result[worse] for result in results]
    return judged(text, student(gaps, unit), above=at_least)


def above(
    text: str, results: Sequence[Measures], name: str, bar: float, unit: Unit = "share"
) -> Part:
    """A measure lies above a fixed bar: t interval over seeds."""
    return judged(text, student([result[name] for result in results], unit), above=bar)


def below(
    text: str, results: Sequence[Measures], name: str, bar: float, unit: Unit = "share"
) -> Part:
    """A measure lies below a fixed bar: t interval over seeds."""
    return judged(text, student([result[name] for result in results], unit), below=bar)


def per_image(
    text: str,
    results: Sequence[Measures],
    better: str,
    worse: str | None = None,
    at_least: float = 0.0,
    ids: str | None = None,
    unit: Unit = "points",
) -> Part:
    """As `difference` (without `worse`: `above`), with the interval over images.

    The images of all seeds are put together; those of one id are drawn together.

    Args:
        better: name of a list with one float per image; `worse` likewise, paired.
        ids: name of a list that names the images; None = the same images in every seed.
    """
    scores, units = [], []
    for result in results:
        score = np.asarray(result[better], dtype=float)
        scores.append(score - np.asarray(result[worse], dtype=float) if worse else score)
        units.append(np.asarray(result[ids]) if ids else np.arange(len(score)))
    labels = np.concatenate(units)
    value = bootstrap(mean_of(np.concatenate(scores)), labels, unit=unit)
    value.n = len(np.unique(labels))
    return judged(text, value, above=at_least)


def reported(text: str, results: Sequence[Measures], name: str, unit: Unit = "share") -> Part:
    """A measure that is shown and decides nothing: t interval over seeds."""
    return Part(text, "reported", student([result[name] for result in results], unit))


def judged(
    text: str, value: Value, *, above: float | None = None, below: float | None = None
) -> Part:
    """The whole interval beyond the bar: holds; none of it: does not hold; else not decided."""
    if (above is None) == (below is None):
        raise TypeError("give either above or below")
    if value.low is None or value.high is None:
        return Part(text, "not decided", value)
    if above is not None:
        yes, no = value.low > above, value.high <= above
    else:
        assert below is not None
        yes, no = value.high < below, value.low >= below
    return Part(text, "holds" if yes else "does not hold" if no else "not decided", value)


def student(figures: Sequence[float], unit: Unit = "share", level: float = 0.95) -> Value:
    """Mean of one figure per seed with Student's interval."""
    from scipy.stats import t

    x = np.asarray(figures, dtype=float)
    if len(x) < 2:
        return Value(estimate=float(x.mean()), n=len(x), unit=unit, why="one seed has no spread")
    half = float(t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    mean = float(x.mean())
    return Value(
        estimate=mean,
        low=mean - half,
        high=mean + half,
        level=level,
        n=len(x),
        unit=unit,
        method="t",
    )


def overall(parts: Iterable[Part]) -> Verdict:
    """Holds if all parts do; does not hold if any does not; else not decided."""
    verdicts = {part.verdict for part in parts} - {"reported"}
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts == {"holds"} else "not decided"


def load_claim(row: int, place: Path = PLACE) -> ModuleType:
    """The claim file of that row as a module.

    Raises:
        ArgumentError: there is none, or it lacks a name.
    """
    files = claim_files(place)
    if row not in files:
        there = ", ".join(f"{known:02d}" for known in files) or "none"
        raise ArgumentError(f"There is no claim of row {row}.", f"There is: {there}.")
    path = files[row]
    if str(place.parent) not in sys.path:
        sys.path.insert(0, str(place.parent))
    name = f"claim_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    missing = [name for name in NAMES if not hasattr(module, name)]
    if missing:
        raise ArgumentError(f"{path.name} lacks {', '.join(missing)}.", "See claims/verdict.py.")
    if row != module.ROW:
        raise ArgumentError(f"{path.name} says ROW = {module.ROW}.", f"Its file says {row}.")
    if len(set(module.SEEDS)) < FEWEST_SEEDS:
        raise ArgumentError(f"{path.name} has {len(module.SEEDS)} seeds.", "It needs three.")
    return module


def run_claim(row: int, seeds: Sequence[int] | None = None, place: Path = PLACE) -> dict[str, Any]:
    """Measure a claim and record it in `results/NN.json`.

    Finished seeds are kept until the end: an interrupted run goes on where it was.

    Args:
        seeds: None = those of the claim; others are a trial, which is not recorded.

    Returns:
        the record: row, claim, setting, verdict, parts, figures per seed, versions, machine,
        seconds, date, source (hash of the claim file).
    """
    claim = load_claim(row, place)
    chosen = tuple(claim.SEEDS if seeds is None else seeds)
    source = source_hash(claim_files(place)[row])
    kept = place / "results" / ".partial" / f"{row:02d}-{source}"
    results, seconds = [], 0.0
    for seed in _shown(chosen, row):
        done = _measured(claim, seed, kept / f"{seed}.json")
        results.append(done["measures"])
        seconds += done["seconds"]
    parts = claim.parts(results)
    record = {
        "row": row,
        "claim": claim.CLAIM,
        "setting": claim.SETTING,
        "verdict": overall(parts),
        "parts": [
            {"text": part.text, "verdict": part.verdict, **_shown_value(part.value)}
            for part in parts
        ],
        "seeds": list(chosen),
        "figures": [{name: _figure(x) for name, x in result.items()} for result in results],
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
        "machine": _machine(),
        "git": git_revision(),
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "source": source,
    }
    if seeds is None:
        write_json(place / "results" / f"{row:02d}.json", record)
    shutil.rmtree(kept, ignore_errors=True)
    if not any(kept.parent.iterdir()):
        kept.parent.rmdir()
    return record


def _measured(claim: ModuleType, seed: int, kept: Path) -> dict[str, Any]:
    if kept.is_file():
        return json.loads(kept.read_text())
    started = time.perf_counter()
    measures = {name: _plain(x) for name, x in claim.run(seed).items()}
    seconds = time.perf_counter() - started
    for name, x in measures.items():
        if isinstance(x, float) and not math.isfinite(x):
            raise ArithmeticError(f"claim {claim.ROW}, seed {seed}: {name} is {x}")
    done = {"measures": measures, "seconds": seconds}
    write_json(kept, done)
    return done


def _plain(x: Any) -> Any:
    """A float, or a list of floats or names."""
    if np.ndim(x) == 0:
        return float(x)
    return np.asarray(x).tolist()


def _figure(x: Any) -> float | None:
    """What the record keeps of a measure: of one per image, the mean."""
    if not isinstance(x, list):
        return x
    return float(np.mean(x)) if x and not isinstance(x[0], str) else None


def _shown_value(value: Value) -> dict[str, Any]:
    kept = ("estimate", "low", "high", "level", "n", "unit", "method", "why")
    return {"value": value.estimate} | value.model_dump(mode="json", include=set(kept[1:]))


def _machine() -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _shown(seeds: Sequence[int], row: int) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    return track(seeds, description=f"claim {row:02d}, seed", console=Console(stderr=True))

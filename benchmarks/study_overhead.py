"""`study` against the sum of its forwards: what everything but the network costs.

The forwards are images x views x the seconds per image of the bare engine, measured before and
after the study in the same process. The study has an empty cache, the sections that need nothing
but its answers, and no limit of time. Imports are not counted: see `startup`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from beholder.core.engines import Engine
from beholder.study import study
from beholder.train.made import VIEWS, choose_engine, make_encoder

from .base import CORE, Measured, at_most, class_folders, fresh_cache, measured, solar, timed
from .feature_pass import in_memory


def seconds_per_pass(engine: Engine, batches: list) -> float:
    """Of one image in one view."""
    list(engine.run(batches[:2]))
    return timed(lambda: list(engine.run(batches)))[0] / (len(batches) * engine.batch)


def measure(quick: bool = False) -> Measured:
    with fresh_cache():
        vision, _ = make_encoder(None, [300], "squash", 0)
        engine, _, _ = choose_engine(vision, solar(8), "cpu")
    batches = in_memory(vision, solar(48 if quick else 128), engine.batch)
    with fresh_cache(), tempfile.TemporaryDirectory() as place:
        images = 480 if quick else 2624
        data = class_folders(solar(images), Path(place) / "solar") if quick else "solar"
        before = seconds_per_pass(engine, batches)
        total, report = timed(
            lambda: study(data, out=Path(place) / "run", sections=CORE, budget=0, quiet=True)
        )
        after = seconds_per_pass(engine, batches)
    forwards = images * len(VIEWS) * (before + after) / 2
    figures = {
        "images": images,
        "views": len(VIEWS),
        "engine": engine.name,
        "seconds_per_pass_before": before,
        "seconds_per_pass_after": after,
        "forwards_s": forwards,
        "study_s": total,
        "stages_s": report.timing,
    }
    overhead = 100 * (total / forwards - 1)
    return measured(figures, at_most("time beyond the forwards", overhead, 25, "%"))

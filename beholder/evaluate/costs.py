"""Measures what a model costs as deployed, by engine: the rows of `Evidence.cost`."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

from beholder.core.engines import Eager, Engine, FromBytes, OpenVino
from beholder.core.files import key_of
from beholder.core.model import VisionModel
from beholder.metrics.cost import latency, peak_memory, throughput

SCHEMA: dict[str, type[pl.DataType]] = {
    "engine": pl.String,
    "batch": pl.Int32,
    "latency_p50_ms": pl.Float64,
    "latency_p90_ms": pl.Float64,
    "images_per_s": pl.Float64,
    "memory_mb": pl.Float64,
    "max_difference": pl.Float64,
    "equal_answers": pl.Float64,
    "note": pl.String,
}
BATCHES = (1, 8, 32)
COMPILE_SECONDS = 60.0
EXPORT_SECONDS = 30.0


def only_forward(engine: Engine, batch: np.ndarray) -> Callable[[], np.ndarray]:
    """One call of the engine on a batch of its own size."""
    return lambda: next(engine.run([batch]))


class OnnxRuntime:
    """ONNX Runtime on the CPU, through a file in `directory`."""

    name = "onnxruntime"

    def __init__(self, module: nn.Module, size: tuple[int, int], batch: int, file: Path) -> None:
        import onnxruntime

        self.batch = batch
        if not file.exists():
            example = torch.zeros(2, *size, 3, dtype=torch.uint8)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    module,
                    (example,),
                    str(file),
                    dynamo=True,
                    verbose=False,
                    dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}},
                )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(file), settings, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def run(self, batches):
        for batch in batches:
            yield self.session.run(None, {self.input: batch})[0]


class Compiled(Eager):
    """torch.compile; needs a C++ compiler on a CPU."""

    def __init__(self, module: nn.Module, batch: int) -> None:
        super().__init__(torch.compile(module), batch)
        self.name = "compiled"


def measure(
    model: VisionModel,
    images: list[np.ndarray],
    read_and_prepare: Callable[[], np.ndarray],
    *,
    seconds: float,
    work: Path,
    run: Path | None,
    single_pass: str,
    progress: Callable[[int], None] = lambda count: None,
) -> pl.DataFrame:
    """Latency at batch 1, throughput at 1, 8 and 32 for every engine that is installed.

    Args:
        images: prepared uint8 [H, W, 3], at least 8.
        read_and_prepare: reads one image from disk and prepares it, for the row 'end to end'.
        seconds: what may be spent; export and compilation are left out where it is too short.
        work: directory for exported files.
        run: run directory that a fresh process loads to measure its memory.
        single_pass: note of the row without the mirror.
        progress: told 1 after each engine.
    """
    start = time.monotonic()
    rows: list[dict[str, object]] = []
    sample = np.stack([images[i % len(images)] for i in range(max(BATCHES))])
    deployed = FromBytes(model, "logits").eval()
    key = key_of({"logits": model.describe(), "head": model.head_hash, "mirror": model.mirror})

    def left() -> float:
        return seconds - (time.monotonic() - start)

    makers: list[tuple[str, str, str, float, Callable[[int], Engine]]] = [
        ("eager", "torch", "", 0, lambda batch: Eager(deployed, batch)),
        (
            "openvino",
            "openvino",
            "fast",
            0,
            lambda batch: OpenVino(deployed, model.input_size, key, batch),
        ),
        (
            "onnxruntime",
            "onnxruntime",
            "export",
            EXPORT_SECONDS,
            lambda batch: OnnxRuntime(deployed, model.input_size, batch, work / f"{key}.onnx"),
        ),
        ("compiled", "torch", "", COMPILE_SECONDS, lambda batch: Compiled(deployed, batch)),
    ]
    reference: np.ndarray | None = None
    best: tuple[float, Engine] | None = None
    for name, package, extra, needed, make in makers:
        progress(1)
        if importlib.util.find_spec(package) is None:
            rows.append({"engine": name, "note": f"not installed: pip install beholder[{extra}]"})
            continue
        if needed > left():
            rows.append({"engine": name, "note": f"left out: it needs about {needed:.0f} s"})
            continue
        try:
            engine = make(1)
            answers = np.concatenate([next(engine.run([sample[i : i + 1]])) for i in range(8)])
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            rows.append({"engine": name, "note": f"cannot run it: {reason[:120]}"})
            continue
        reference = answers if reference is None else reference
        each = min(1.5, seconds / 12)
        p50, p90 = latency(only_forward(engine, sample[:1]), 2 * each)
        if best is None or p50 < best[0]:
            best = (p50, engine)
        agreement = {
            "max_difference": float(np.abs(answers - reference).max()),
            "equal_answers": float((answers.argmax(1) == reference.argmax(1)).mean()),
        }
        rows.append(
            {
                "engine": name,
                "batch": 1,
                "latency_p50_ms": p50,
                "latency_p90_ms": p90,
                "images_per_s": 1000 / p50,
                **agreement,
            }
        )
        if name == "compiled":
            continue
        for batch in BATCHES[1:]:
            engine = make(batch)
            rate = throughput(only_forward(engine, sample[:batch]), batch, each)
            rows.append({"engine": name, "batch": batch, "images_per_s": rate})
    assert best is not None
    rows += _whole(model, best[1], sample, read_and_prepare, single_pass)
    if run is not None:
        rows[0]["memory_mb"] = _memory(run)
    return pl.DataFrame(rows, schema=SCHEMA)


def _whole(
    model: VisionModel,
    engine: Engine,
    sample: np.ndarray,
    read_and_prepare: Callable[[], np.ndarray],
    single_pass: str,
) -> list[dict[str, object]]:
    p50, p90 = latency(lambda: next(engine.run([read_and_prepare()[None]])), 1.5)
    rows: list[dict[str, object]] = [
        {
            "engine": "end to end",
            "batch": 1,
            "latency_p50_ms": p50,
            "latency_p90_ms": p90,
            "images_per_s": 1000 / p50,
            "note": f"reading and preparing included, {engine.name}",
        }
    ]
    if model.mirror:
        model.mirror = False
        try:
            single = Eager(FromBytes(model, "logits").eval(), 1)
            p50, p90 = latency(only_forward(single, sample[:1]), 1.5)
        finally:
            model.mirror = True
        rows.append(
            {
                "engine": "single pass",
                "batch": 1,
                "latency_p50_ms": p50,
                "latency_p90_ms": p90,
                "images_per_s": 1000 / p50,
                "note": f"eager, {single_pass}",
            }
        )
    return rows


def _memory(run: Path) -> float | None:
    setup = "import sys, numpy, timm, torch\nfrom beholder.models.run import load"
    work = (
        f"model = load({str(run)!r})\n"
        "with torch.inference_mode():\n"
        "    model.logits(torch.zeros(1, 3, *model.input_size))"
    )
    return peak_memory(setup, work)

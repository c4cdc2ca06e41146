"""Measures what a model costs as deployed, by engine: the rows of `Evidence.cost`."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from beholder.core.engines import (
    CONVERSION_ERRORS,
    Eager,
    Engine,
    FromBytes,
    OpenVino,
    first_line,
    in_flight,
)
from beholder.core.errors import ModelError
from beholder.core.files import key_of
from beholder.core.model import DecisionHead, VisionModel
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
EACH = 1.5
"""Seconds for one measurement, or a sixteenth of what there is."""
COMPILE_SECONDS = 60.0
EXPORT_SECONDS = 30.0

Row = dict[str, object]


def only_forward(engine: Engine, batch: np.ndarray) -> Callable[[], np.ndarray]:
    """One call of the engine on a batch of its own size."""
    return lambda: next(engine.run([batch]))


def kept_busy(engine: Engine, batch: np.ndarray) -> Callable[[], list[np.ndarray]]:
    """As many batches at once as the engine works on."""
    return lambda: list(engine.run([batch] * in_flight(engine)))


class OnnxRuntime:
    """ONNX Runtime on the CPU, through a file in a directory that is there.

    Raises:
        ModelError: the module cannot be exported.
    """

    name = "onnxruntime"

    def __init__(self, module: nn.Module, size: tuple[int, int], batch: int, file: Path) -> None:
        import onnxruntime

        self.batch = batch
        if not file.exists():
            self._export(module, size, file)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(file), settings, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    @staticmethod
    def _export(module: nn.Module, size: tuple[int, int], file: Path) -> None:
        example = torch.zeros(2, *size, 3, dtype=torch.uint8)
        try:
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
        except CONVERSION_ERRORS as error:
            raise ModelError(f"cannot export it: {first_line(error)}") from error

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            yield cast(np.ndarray, self.session.run(None, {self.input: batch})[0])


class Deployed(OpenVino):
    """The descriptor in OpenVINO, image and mirror in one batch, and the head in torch.

    The network is that of the feature pass, so that it is not converted a second time.

    Raises:
        ModelError: the encoder cannot be converted.
    """

    def __init__(self, model: VisionModel, batch: int) -> None:
        module = FromBytes(model, "descriptor").eval()
        self.views = 2 if model.mirror else 1
        super().__init__(module, model.input_size, key_of(model.describe()), batch * self.views)
        self.model, self.batch = model, batch

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for found in super().run(self._both(batch) for batch in batches):
            yield self._logits(torch.from_numpy(found))

    def _both(self, batch: np.ndarray) -> np.ndarray:
        return np.concatenate([batch, batch[:, :, ::-1]]) if self.views == 2 else batch

    @torch.inference_mode()
    def _logits(self, found: Tensor) -> np.ndarray:
        head = cast(DecisionHead, self.model.head)
        decisions = torch.stack([head(part) for part in found.chunk(self.views)]).mean(0)
        return head.logits(decisions).numpy()


class Compiled(Eager):
    """torch.compile; needs a C++ compiler on a CPU.

    Raises:
        ModelError: it cannot be compiled.
    """

    def __init__(self, module: nn.Module, size: tuple[int, int], batch: int) -> None:
        super().__init__(cast(nn.Module, torch.compile(module)), batch)
        self.name = "compiled"
        try:
            next(self.run([np.zeros((batch, *size, 3), np.uint8)]))
        except CONVERSION_ERRORS as error:
            raise ModelError(f"cannot compile it: {first_line(error)}") from error


@dataclass(frozen=True)
class Way:
    """One way to run the model: the package it needs, the extra that installs it, and about how
    many seconds it takes to prepare."""

    name: str
    package: str
    extra: str
    needs: float
    make: Callable[[int], Engine]


def ways(model: VisionModel, deployed: nn.Module, work: Path) -> list[Way]:
    """All ways; eager torch, which the others are compared with, first."""
    key = key_of({"logits": model.describe(), "head": model.head_hash, "mirror": model.mirror})
    size = model.input_size
    return [
        Way("eager", "torch", "", 0, lambda batch: Eager(deployed, batch)),
        Way("openvino", "openvino", "fast", 0, lambda batch: Deployed(model, batch)),
        Way(
            *("onnxruntime", "onnxruntime", "export", EXPORT_SECONDS),
            lambda batch: OnnxRuntime(deployed, size, batch, work / f"{key}.onnx"),
        ),
        Way(
            "compiled", "torch", "", COMPILE_SECONDS, lambda batch: Compiled(deployed, size, batch)
        ),
    ]


class Clock:
    """What is left of the time that may be spent."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.each = min(EACH, seconds / 16)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def lengthen(self, seconds: float) -> None:
        """For what must be done once only, and is found in the cache the next time."""
        self.end += seconds


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

    Memory is measured by a process of its own while the engines are made ready, so that it disturbs
    no timing. Latencies come first; then throughput, small batches and fast engines first, while
    there is time.

    Args:
        images: prepared uint8 [H, W, 3], at least 1.
        read_and_prepare: reads one image from disk and prepares it, for the row 'end to end'.
        seconds: what may be spent, beside a conversion that the cache does not hold yet. What does
            not fit is left out, and its row says so.
        work: directory for exported files.
        run: run directory that a fresh process loads to measure its memory.
        single_pass: note of the row without the mirror.
        progress: told 1 after each engine.
    """
    clock = Clock(seconds)
    sample = np.stack([images[i % len(images)] for i in range(max(BATCHES))])
    deployed = FromBytes(model, "logits").eval()
    known = ways(model, deployed, work)
    rows: list[Row] = []
    ready: list[tuple[Way, Engine]] = []
    with ThreadPoolExecutor(1) as pool:
        memory = pool.submit(_memory, run) if run else None
        for way in known:
            engine = _engine(way, clock, rows)
            if engine is not None:
                ready.append((way, engine))
        peak = memory.result() if memory else None
    timed: list[Row] = []
    reference: np.ndarray | None = None
    for way, engine in ready:
        answers = np.concatenate([next(engine.run([sample[i : i + 1]])) for i in range(8)])
        reference = answers if reference is None else reference
        p50, p90 = latency(only_forward(engine, sample[:1]), clock.each)
        timed.append(
            {
                "engine": way.name,
                "batch": 1,
                "latency_p50_ms": p50,
                "latency_p90_ms": p90,
                "images_per_s": 1000 / p50,
                "max_difference": float(np.abs(answers - reference).max()),
                "equal_answers": float((answers.argmax(1) == reference.argmax(1)).mean()),
            }
        )
        progress(1)
    progress(len(known) - len(ready))
    timed[0]["memory_mb"] = peak
    price = {str(row["engine"]): cast(float, row["latency_p50_ms"]) / 1000 for row in timed}
    best = min(ready, key=lambda pair: price[pair[0].name])[1]
    whole = _whole(model, best, sample, read_and_prepare, single_pass, clock)
    for batch in BATCHES[1:]:
        for way, _ in sorted(ready, key=lambda pair: price[pair[0].name]):
            if way.name != "compiled":
                timed.append(_throughput(way, sample[:batch], price[way.name], clock))
    order = [way.name for way in known]
    engines = sorted(timed + rows, key=lambda row: order.index(str(row["engine"])))
    return pl.DataFrame(engines + whole, schema=SCHEMA)


def _engine(way: Way, clock: Clock, rows: list[Row]) -> Engine | None:
    """The engine for single images; None, and a row that says why, where there is none."""
    note = ""
    if importlib.util.find_spec(way.package) is None:
        note = f"not installed: pip install beholder[{way.extra}]"
    elif way.needs > clock.left:
        note = f"left out: it needs about {way.needs:.0f} s"
    else:
        try:
            engine = way.make(1)
        except ModelError as error:
            note = str(error)
        else:
            if isinstance(engine, OpenVino):
                clock.lengthen(engine.converting)
            return engine
    rows.append({"engine": way.name, "note": note})
    return None


def _throughput(way: Way, batch: np.ndarray, price: float, clock: Clock) -> Row:
    """The row of one batch size, or why it is not measured. `price`: seconds for one image."""
    row: Row = {"engine": way.name, "batch": len(batch)}
    needs = max(clock.each, len(batch) * price)
    if needs > clock.left:
        return row | {"note": f"left out: it needs about {needs:.0f} s"}
    engine = way.make(len(batch))
    run = kept_busy(engine, batch)
    rate = throughput(run, len(batch) * in_flight(engine), clock.each)
    return row | {"images_per_s": rate}


def _whole(
    model: VisionModel,
    engine: Engine,
    sample: np.ndarray,
    read_and_prepare: Callable[[], np.ndarray],
    single_pass: str,
    clock: Clock,
) -> list[Row]:
    """The rows 'end to end' and, where the mirror is used, 'single pass'."""

    def row(name: str, run: Callable[[], object], note: str) -> Row:
        p50, p90 = latency(run, clock.each)
        return {
            "engine": name,
            "batch": 1,
            "latency_p50_ms": p50,
            "latency_p90_ms": p90,
            "images_per_s": 1000 / p50,
            "note": note,
        }

    note = f"reading and preparing included, {engine.name}"
    rows = [row("end to end", lambda: next(engine.run([read_and_prepare()[None]])), note)]
    if model.mirror:
        model.mirror = False
        try:
            single = Eager(FromBytes(model, "logits").eval(), 1)
            rows.append(
                row("single pass", only_forward(single, sample[:1]), f"eager, {single_pass}")
            )
        finally:
            model.mirror = True
    return rows


def _memory(run: Path) -> float | None:
    setup = "import numpy, timm, torch\nfrom beholder.models.run import load"
    work = (
        f"model = load({str(run)!r})\n"
        "with torch.inference_mode():\n"
        "    model.logits(torch.zeros(1, 3, *model.input_size))"
    )
    return peak_memory(setup, work)

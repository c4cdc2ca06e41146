"""Ways to run one module on a CPU or GPU, and the choice between them by measurement.

Every engine maps uint8 batches [B, H, W, 3] to float32 [B, D] in order. The batch size is fixed, so
that the figures of an image never depend on its neighbours; the last batch is padded.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from .errors import ModelError
from .files import cache_dir, key_of

if TYPE_CHECKING:
    import openvino

TOLERANCE = 1e-3
BATCH = 8

CONVERSION_ERRORS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(ArithmeticError, ImportError, OSError),
)
"""What exporters let through on a model that they cannot take."""


class Engine(Protocol):
    """Runs a module over batches of exactly `batch` images."""

    name: str
    batch: int

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """uint8 [batch, H, W, 3] in, float32 [batch, D] out, in order."""
        ...


class FromBytes(nn.Module):
    """uint8 [B, H, W, 3] -> `module` of float [0, 1] [B, 3, H, W] (channels_last in memory)."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        return getattr(self.module, self.method)(images.permute(0, 3, 1, 2).float() / 255)


class Eager:
    """Plain torch, channels_last, inference mode."""

    def __init__(self, module: nn.Module, batch: int = BATCH, device: str = "cpu") -> None:
        self.name = "eager" if device == "cpu" else f"eager {device}"
        self.batch = batch
        self.device = device
        self.module = module.to(device)

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            with torch.inference_mode():
                yield self.module(torch.from_numpy(batch).to(self.device)).float().cpu().numpy()


class OpenVino:
    """OpenVINO in float32, as many requests in flight as the machine has streams for.

    The converted network is kept in the cache under `key`.

    Attributes:
        converting: seconds that the conversion took; 0 where it came from the cache.

    Raises:
        ModelError: the module cannot be converted.
    """

    name = "openvino"

    def __init__(
        self,
        module: nn.Module,
        size: tuple[int, int],
        key: str | None = None,
        batch: int = BATCH,
    ) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # sends nothing
        import openvino

        self.batch = batch
        self.converting = 0.0
        core = openvino.Core()
        path = None
        network = None
        if key:
            name = key_of({"network": key, "openvino": openvino.__version__})
            path = cache_dir() / "engines" / f"{name}.xml"
            network = self._kept(core, path)
        if network is None:
            start = time.perf_counter()
            network = self._converted(module, size)
            self.converting = time.perf_counter() - start
            if path:
                self._keep(network, path)
        network.reshape([batch, *size, 3])
        settings = {
            "PERFORMANCE_HINT": "LATENCY" if batch < BATCH else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = core.compile_model(network, "CPU", settings)
        count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self.requests = [compiled.create_infer_request() for _ in range(count)]

    @staticmethod
    def _kept(core: openvino.Core, path: Path) -> openvino.Model | None:
        """The network in the cache; None where there is none, or a damaged one."""
        files = path, path.with_suffix(".bin")
        if not all(file.exists() for file in files):
            return None
        try:
            network = core.read_model(path)
            for file in files:
                os.utime(file)
        except (OSError, RuntimeError):
            return None
        return network

    @staticmethod
    def _converted(module: nn.Module, size: tuple[int, int]) -> openvino.Model:
        """By tracing, which is three times as quick; by `torch.export` where that may be wrong."""
        import openvino
        from openvino import frontend

        example = torch.zeros(2, *size, 3, dtype=torch.uint8)
        refused = frontend.OpConversionFailure, frontend.GeneralFailure  # type: ignore[attr-defined]
        failures = (*CONVERSION_ERRORS, *refused)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(*failures, TracerWarning):
                warnings.simplefilter("error", TracerWarning)
                return openvino.convert_model(module, example_input=(example,))
            try:
                warnings.simplefilter("ignore")
                free = {"images": {0: torch.export.Dim.DYNAMIC}}
                program = torch.export.export(module, (example,), dynamic_shapes=free)
                return openvino.convert_model(program)
            except failures as error:
                reason = first_line(error)
                raise ModelError(f"OpenVINO cannot convert this model: {reason}") from error

    @staticmethod
    def _keep(network: openvino.Model, path: Path) -> None:
        import openvino

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.stem}.{os.getpid()}.xml")
            openvino.save_model(network, temporary, compress_to_fp16=False)
            temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
            temporary.replace(path)
        except (OSError, RuntimeError):
            logging.getLogger("beholder").info("The converted network could not be kept.")

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        idle, busy = deque(self.requests), deque()
        try:
            for batch in batches:
                if not idle:
                    yield self._finish(busy, idle)
                request = idle.popleft()
                request.start_async({0: batch})
                busy.append(request)
            while busy:
                yield self._finish(busy, idle)
        finally:
            for request in busy:
                request.wait()

    @staticmethod
    def _finish(busy: deque, idle: deque) -> np.ndarray:
        request = busy.popleft()
        request.wait()
        result = request.get_output_tensor(0).data.copy()
        idle.append(request)
        return result


def first_line(error: BaseException) -> str:
    """What an error says, in at most 120 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def in_flight(engine: Engine) -> int:
    """Batches that the engine works on at once."""
    return len(engine.requests) if isinstance(engine, OpenVino) else 1


def seconds_per_image(engine: Engine, batches: list[np.ndarray]) -> float:
    """The median batch's time per image with the engine busy, after one warm-up."""
    list(engine.run(batches[:1]))
    count = max(2, in_flight(engine))
    times = []
    for batch in batches:
        start = time.perf_counter()
        list(engine.run([batch] * count))
        times.append((time.perf_counter() - start) / (count * engine.batch))
    return float(np.median(times))


def fastest(
    module: nn.Module, sample: np.ndarray, describe: object, device: str = "cpu"
) -> tuple[Engine, float, list[str]]:
    """The fastest engine that is installed and equal to eager torch within 1e-3.

    Args:
        module: uint8 [B, H, W, 3] -> [B, D].
        sample: uint8 [n, H, W, 3], real images; `n` >= 1.
        describe: what decides the module's outputs (the cache key of converted networks).

    Returns:
        The engine, its seconds per image, and one note per engine that was passed over.
    """
    count = BATCH if device == "cpu" else 64
    batch = np.resize(sample, (count, *sample.shape[1:]))
    eager = Eager(module, count, device)
    if device != "cpu":
        return eager, seconds_per_image(eager, [batch]), []
    if importlib.util.find_spec("openvino") is None:
        note = "OpenVINO is not installed (pip install 'beholder[fast]')"
        return eager, seconds_per_image(eager, [batch]), [note]
    try:
        other = OpenVino(module, sample.shape[1:3], key_of(describe))
    except ModelError as error:
        return eager, seconds_per_image(eager, [batch]), [str(error)]
    reference, found = next(eager.run([batch])), next(other.run([batch]))
    gap = float(np.abs(reference - found).max() / max(1.0, float(np.abs(reference).max())))
    if not gap <= TOLERANCE:
        note = f"OpenVINO differs from torch by {gap:.1e} and was not used"
        return eager, seconds_per_image(eager, [batch]), [note]
    start = time.perf_counter()
    next(eager.run([batch]))
    slow = (time.perf_counter() - start) / count
    fast = seconds_per_image(other, [batch, batch])
    return (other, fast, []) if fast < slow else (eager, slow, ["torch was faster than OpenVINO"])

"""The one training loop: any objective, on any backbone, that can be killed and goes on.

The objective says what is minimised; this file knows none by name. See `module.py` for a step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import polars
import torch
from lightning.pytorch.strategies import DDPStrategy

from beholder.core.errors import ArgumentError, DataError
from beholder.core.files import write_bytes
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.run import only_writer, to_toml
from beholder.models.run import load, save_model

from .config import TrainConfig
from .data import ALONE, own_chance, seed_of, usable
from .ema import WeightAverage
from .made import pick_device
from .module import NotFiniteError, OnProgress, Probe, TrainModule
from .objectives.base import DataInfo, Objective
from .quiet import quiet
from .run import Directory, Log
from .validation import judging

__all__ = ["NotFiniteError", "OnProgress", "Probe", "TrainConfig", "TrainModule", "TrainRun", "fit"]


@dataclass
class TrainRun:
    """What `fit` leaves.

    Attributes:
        directory: of the run; None where nothing was to be written.
        model: trained, on the CPU, in eval mode; the average of its weights where that is on.
        metrics: columns `run.METRICS`.
        resumed_from: step that this call began at; 0 = afresh.
        steps: optimiser steps done; fewer than planned where the run ended early.
        finished: False where the time limit ended this call, so that the same call goes on.
        seconds: of this call.
        already: it was finished before, so nothing was done.
    """

    directory: Path | None
    model: VisionModel
    objective: Objective
    metrics: polars.DataFrame
    resumed_from: int
    steps: int
    finished: bool
    seconds: float
    already: bool = False

    def last(self, part: str) -> dict[str, float]:
        """The latest figures of a part of the metrics, by name."""
        rows = self.metrics.filter(polars.col("part") == part)
        return dict(rows.select("name", "value").iter_rows())


def fit(
    objective: Objective,
    model: VisionModel,
    data: Images | Mapping[str, Images],
    config: TrainConfig | None = None,
    *,
    out: Path | None = None,
    validation: Images | Mapping[str, Images] | None = None,
    probes: Sequence[Probe] = (),
    facts: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> TrainRun:
    """Train a model. The same call on the same `out` goes on where the last one stopped.

    Args:
        objective: what is minimised; it builds its heads on `model`, which is changed in place.
        data: what is learned from; of several tasks, by name.
        out: run directory; None = nothing is written, so nothing can go on.
        validation: images that are judged after every epoch, and never learned from.
        facts: what else decides the run, such as the words of a command; written to `run.toml`.

    Raises:
        ArgumentError: settings that do not go together, or `out` holds another run.
        DataError: the data lack what the objective needs.
        NotFiniteError: a loss is NaN or infinite; it is named.
        KeyboardInterrupt: after a checkpoint was written.
    """
    config = config or TrainConfig()
    begun = time.monotonic()
    tasks = {ALONE: usable(data, objective)} if isinstance(data, Images) else dict(data)
    judged = (
        {ALONE: usable(validation, objective)}
        if isinstance(validation, Images)
        else {**(validation or {})}
    )
    device = pick_device(config.device)
    identity = {
        "facts": dict(facts or {}),
        "settings": config.deciding(),
        "objective": _described(objective),
        "model": model.describe(),
        "data": {task: images.fingerprint(_ids(images)) for task, images in tasks.items()},
    }
    record = to_toml(_flat({**(facts or {}), **config.record()})).encode()
    if not objective.trains:
        return _fitted(objective, model.to(device), tasks, out, identity, record)
    _refuse(objective, model, config, tasks)
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(only_writer(out))
        place = out
        if place is None and config.devices > 1:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        directory = Directory(place, identity)
        stack.enter_context(
            own_chance(seed_of(config.seed, "setup"), cuda=device.startswith("cuda"))
        )
        first = next(iter(tasks.values()))
        count = sum(map(len, tasks.values()))
        objective.setup(model, DataInfo(first.classes, count, model.input_size))
        module = TrainModule(
            *(model, objective, tasks, judged, config, directory), probes, on_progress
        )
        if place is not None and not directory.finished:
            write_bytes(place / "run.toml", record)
        resumed = _resumed(module, directory)
        if not directory.finished and not module.end:
            _train(module, config, device)
            if module.end.endswith("signal"):
                raise KeyboardInterrupt
        run = _left(module, out, resumed, time.monotonic() - begun)
        run.already = directory.finished
        if run.finished and not directory.finished:
            directory.save_metrics(module.log_book)
            if out is not None:
                save_model(run.model, {}, out)
            directory.mark(finished=True)
    return run


def _fitted(
    objective: Objective,
    model: VisionModel,
    tasks: Mapping[str, Images],
    out: Path | None,
    identity: Mapping[str, Any],
    record: bytes,
) -> TrainRun:
    """Of an objective that takes no steps: its `fit`, once."""
    begun = time.monotonic()
    if set(tasks) != {ALONE}:
        raise ArgumentError(f"{objective.name} takes one data set, not {len(tasks)}.")
    with only_writer(out) if out is not None else nullcontext():
        directory = Directory(out, identity)
        already = directory.finished
        if already and out is not None:
            model = load(out)
        else:
            model = objective.fit(model, tasks[ALONE]).to("cpu")
            if out is not None:
                write_bytes(out / "run.toml", record)
                save_model(model, {}, out)
                directory.save_metrics(Log())
            directory.mark(finished=True)
    seconds = time.monotonic() - begun
    return TrainRun(out, model, objective, Log().frame(), 0, 0, True, seconds, already)


def _refuse(
    objective: Objective, model: VisionModel, config: TrainConfig, tasks: Mapping[str, Images]
) -> None:
    name = objective.name
    if objective.global_batch and config.accumulate > 1:
        raise ArgumentError(
            f"accumulate = {config.accumulate}: the loss of {name} is one of the whole batch, so "
            "parts of it would be another loss.",
            "Use a larger --batch-size or more --devices.",
        )
    for task, images in tasks.items():
        if len(images) < 2:
            of = f" of {task}" if task else ""
            raise DataError(f"{len(images)} images{of} are too few to learn from.")
    for phase in config.resolution.phases if config.resolution else ():
        blank = torch.zeros(1, 3, *phase.size)
        try:
            with judging(model):
                model.backbone.forward_features(model.normalise(blank.to(model._mean.device)))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ArgumentError(
                f"{model.name} does not take images of {phase.size[0]} x {phase.size[1]}.",
                "Give sizes that it takes; a ViT needs dynamic_img_size=True.",
            ) from error


def _described(objective: Objective) -> dict[str, Any]:
    """Its class and settings, as far as they are plain values."""
    plain = (bool, int, float, str, tuple)
    told = {k: v for k, v in vars(objective).items() if k[0] != "_" and isinstance(v, plain)}
    weights = {k: v for k, v in objective.weights.items() if isinstance(v, int | float)}
    return {"kind": objective.name, "weights": weights, **told}


def _ids(images: Images) -> dict[str, str]:
    """In place of the hashes of the files, which only a scan knows."""
    return {id: id for id in images.table["id"]}


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _resumed(module: TrainModule, directory: Directory) -> int:
    """Load the last checkpoint; the step that it was written after."""
    found = directory.load()
    if found is None:
        return 0
    state, log = found
    devices = module.config.devices
    if state["world"] != devices and not directory.finished:
        raise ArgumentError(
            f"{directory.path} was begun by {state['world']} processes, --devices is {devices}: "
            "its batches would be others.",
            f"Use --devices {state['world']}, or another --out.",
        )
    module.load_state_dict(state["state"])
    module.resume, module.log_book = state, log
    module.next_micro, module.steps_done = state["micro"], state["step"]
    module.best = tuple(state["best"]) if state["best"] else None
    module.stale = state["stale"]
    module.end = state["end"] if state["end"].startswith("no better") else ""
    return state["step"]


def _train(module: TrainModule, config: TrainConfig, device: str) -> None:
    """Run `lightning`, quietly, with what it changes globally put back."""
    kind, _, index = device.partition(":")
    several = config.devices > 1
    strategy: Any = "auto"
    if several:
        backend = "gloo" if kind == "cpu" else None
        strategy = DDPStrategy(
            start_method="spawn", find_unused_parameters=True, process_group_backend=backend
        )
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(
            accelerator={"cuda": "gpu"}.get(kind, kind),
            devices=[int(index)] if index and not several else config.devices,
            strategy=strategy,
            precision=config.precision_on(device),  # type: ignore[arg-type]
            max_epochs=1,  # of `Draws`, which hold every epoch that is left
            deterministic="warn" if kind == "cuda" else None,
            sync_batchnorm=config.sync_batchnorm,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=scratch,
        )
        try:
            trainer.fit(module)
        except SystemExit as stopped:  # how lightning ends on a second Ctrl-C
            raise KeyboardInterrupt from stopped
        finally:
            module.close()
    if several:
        module.to("cpu")
        _resumed(module, module.directory)
        assert module.resume is not None
        module.end = module.resume["end"]


def _left(module: TrainModule, out: Path | None, resumed: int, seconds: float) -> TrainRun:
    """The model as it is to be used: the average of its weights, or those of the best epoch."""
    directory, end = module.directory, module.end
    module.to("cpu")
    best = directory.load_best() if end.startswith("no better") else None
    average = getattr(module, "average", None)
    if average is None and module.resume is not None and "average" in module.resume:
        average = WeightAverage({"model": module.model, "objective": module.objective}, 0.0)
        average.load_state_dict(module.resume["average"])
    if best is not None:
        module.load_state_dict(best["state"])
    elif average is not None:
        average.to_modules()
    module.eval()
    return TrainRun(
        out,
        module.objective.export(module.model).eval(),
        module.objective,
        module.log_book.frame(),
        resumed,
        module.steps_done,
        not end.startswith("stopped"),
        seconds,
    )

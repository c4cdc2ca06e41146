"""One step of a training: what is done with model and objective, and when the run ends.

A step is a function of the checkpoint alone: what is read, augmented, mixed and dropped in
micro-batch k is drawn from (seed, k), so nothing but tensors and one number has to be kept.
`lightning` owns devices, processes and precision. The optimisation is 'manual', because a step's
last, shorter group and a batch that is not full must count by their rows, which its automatic one
cannot do.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from beholder.core.errors import ArgumentError, BeholderError
from beholder.core.files import write_json
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.data.augment.base import Mixing
from beholder.data.augment.cutmix import FeatureCutMix

from .config import TrainConfig
from .data import ALONE, Draws, EpochSampler, Plan, Samples, loader, reseed, resized, seed_of
from .ema import WeightAverage
from .objectives.base import Objective, Step
from .optim import layered, make_optimiser, rate, set_rates
from .quiet import hush
from .run import Directory, Log
from .validation import judging, validate

MOST_SKIPPED = 10
"""Steps in a row that may be left out for want of a finite loss."""

OnProgress = Callable[[int, int, Mapping[str, float]], None]
"""(steps done, steps in all, figures of the last step)."""
Probe = Callable[[VisionModel, Objective, Step], Mapping[str, float]]
"""Called after every epoch, in eval mode, on the weights that would be saved; returns figures. An
error that it raises ends the run."""


class NotFiniteError(BeholderError):
    """A loss that is NaN or infinite."""


class TrainModule(pl.LightningModule):
    """Model and objective, and what is done with them in a step."""

    def __init__(
        self,
        model: VisionModel,
        objective: Objective,
        data: Mapping[str, Images],
        validation: Mapping[str, Images],
        config: TrainConfig,
        directory: Directory,
        probes: Sequence[Probe] = (),
        on_progress: OnProgress | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.objective = model, objective
        self.data, self.validation = data, validation
        self.config, self.directory = config, directory
        self.probes, self.on_progress = probes, on_progress
        self.log_book, self.open = Log(), ExitStack()
        self.resume: dict[str, Any] | None = None
        self.next_micro = self.steps_done = 0
        self.best: tuple[float, int] | None = None
        self.stale = self.skipped = 0
        self.bad = False
        self.end = ""  # why the run ends before its last step

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process that was spawned."""
        super().__setstate__(state)
        hush()

    # set-up ----------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The plan of this process."""
        config, world = self.config, self.trainer.world_size
        samplers = {
            task: EpochSampler(
                len(images), seed_of(config.seed, task), self.objective.global_batch, world
            )
            for task, images in self.data.items()
        }
        return Plan(
            samplers,
            *(config.batch_size, config.epochs, config.accumulate, config.policy),
            *(config.odds, config.resolution, config.seed),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        config = self.config
        groups = self.objective.param_groups(self.model, config.peak, config.weight_decay)
        if config.layer_decay is not None:
            groups = layered(groups, self.model, config.layer_decay)
        return make_optimiser(config.optimiser, groups, config.momentum)

    def train_dataloader(self) -> DataLoader:
        self.steps_plan = self.plan()
        draws = Draws(self.steps_plan, self.next_micro, self.trainer.global_rank)
        workers = self.config.workers_on(self.device.type)
        samples = Samples(self.data, self.objective, self.config.seed)
        return loader(samples, draws, workers, pin=self.device.type == "cuda")

    def on_train_start(self) -> None:
        self.optimiser = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
        self.train()
        averaged = {"model": self.model, "objective": self.objective}
        decay = self.config.ema
        self.average = WeightAverage(averaged, decay) if decay is not None else None
        self.scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if self.resume is not None:
            self._restore(self.resume)
        self.began = self.epoch_began = time.monotonic()
        self.epoch_images = 0
        self.signals = _Signals()
        self.open = ExitStack()
        self.open.callback(self.signals.restore)
        if self.config.compile:
            _compile(self.model)
            self.open.callback(_uncompile, self.model)
        if isinstance(self.config.mixing, FeatureCutMix):
            self.open.enter_context(self.config.mixing.inside(self.model))

    def close(self) -> None:
        """Put back what was changed for the time of the training."""
        self.open.close()

    def _restore(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)  # processes that were spawned share the memory of its tensors
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

    # a step ----------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Rates, schedules and chance of this micro-batch."""
        self.micro = micro = self.steps_plan[self.next_micro]
        config, plan = self.config, self.steps_plan
        self.at = Step(micro.step, plan.steps, self._epochs_done(), self.trainer.world_size)
        if micro.first:
            per_epoch = plan.steps / plan.epochs
            share = rate(
                *(micro.step, plan.steps, config.curve),
                warmup=round(config.warmup * per_epoch),
                floor=config.floor,
                per_epoch=per_epoch,
            )
            set_rates(self.optimiser, share)
            for name, schedule in (config.schedules or {}).items():
                for part in self.modules():
                    if hasattr(part, name):
                        setattr(part, name, schedule(self.at))
        reseed(self._chance("step"), cuda=self.device.type == "cuda")
        if micro.first:
            self.bad = False
            self.objective.before_step(self.model, self.at)

    def _chance(self, what: str) -> int:
        return seed_of(self.config.seed, what, self.micro.number, self.trainer.global_rank)

    def _epochs_done(self) -> float:
        """Passes done when this micro-batch begins."""
        ends, epoch = self.steps_plan.ends, self.micro.epoch
        start = ends[epoch - 1] if epoch else 0
        return epoch + (self.micro.number - start) / (ends[epoch] - start)

    def _adapted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch at the scheduled size, and mixed."""
        config, epoch = self.config, self.micro.epoch
        size = self.steps_plan.size_at(epoch)
        if size is not None:
            for name, value in batch.items():
                if _is_images(value):
                    batch[name] = resized(value, size)
                elif isinstance(value, list) and value and _is_images(value[0]):
                    batch[name] = [resized(part, size) for part in value]
        if config.mixing is None or epoch >= config.epochs - config.no_mixing:
            return batch
        generator = torch.Generator().manual_seed(self._chance("mixing"))
        return mixed(config.mixing, batch, len(self.model.classes), generator)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        micro, rank = self.micro, self.trainer.global_rank
        terms = self.objective.loss(self.model, self._adapted(batch))
        total = self.objective.total(terms, self.at)
        figures = self._figures(terms, total, batch)
        if not self.bad:
            self.log_book.add(figures)
            with self._no_sync(), torch.autocast(self.device.type, enabled=False):
                share = self.steps_plan.share(micro, rank)
                self.manual_backward(total if share == 1 else total * share)
        if micro.last:
            with torch.autocast(self.device.type, enabled=False):
                self._step()
        self.epoch_images += micro.rows
        self.next_micro += 1

    def _no_sync(self) -> Any:
        """Between processes gradients are exchanged once per step."""
        strategy = self.trainer.strategy
        if self.micro.last or not isinstance(strategy, DDPStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _figures(
        self, terms: Mapping[str, Tensor], total: Tensor, batch: Mapping[str, Any]
    ) -> dict[str, float]:
        """Terms, loss, and what the objective noted, as numbers; one wait for the device.

        Raises:
            NotFiniteError: one is not finite.
        """
        named = dict(terms) if len(terms) == 1 and "loss" in terms else {**terms, "loss": total}
        values = torch.stack([value.detach().float() for value in named.values()]).tolist()
        figures = dict(zip(named, values, strict=True))
        wrong = [name for name, value in figures.items() if not abs(value) < float("inf")]
        if wrong:
            self._not_finite(wrong[0], figures[wrong[0]], batch["id"])
        figures |= self.objective.noted
        self.objective.noted = {}
        return figures

    def _not_finite(self, name: str, value: float, ids: Sequence[str]) -> None:
        self.bad = True
        self.skipped += 1
        wanted = self.config.on_nonfinite == "skip" or self.scaler is not None
        if wanted and self.trainer.world_size == 1 and self.skipped <= MOST_SKIPPED:
            return
        step = self.micro.step
        where = ""
        if self.directory.path is not None:
            write_json(
                self.directory.path / "nonfinite.json",
                {"loss": name, "value": str(value), "step": step, "ids": list(ids)},
            )
            where = " Its images are in nonfinite.json."
        raise NotFiniteError(
            f"The loss {name!r} is {value} in step {step}.{where}",
            f"A lower --lr (now {self.config.peak:g}), --clip 1, or --precision 32-true helps.",
        )

    def _step(self) -> None:
        """The optimiser's, after the last micro-batch of a group."""
        optimiser, scaler = self.optimiser, self.scaler
        done = not self.bad
        if done:
            if scaler is not None:
                scaler.unscale_(optimiser)
            self.objective.after_backward(self.model, self.at)
            if self.config.clip is not None:
                parameters = [p for group in optimiser.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self.config.clip)
            if scaler is None:
                optimiser.step()
            else:
                before = scaler.get_scale()
                scaler.step(optimiser)
                scaler.update()
                done = scaler.get_scale() >= before
                self.skipped = 0 if done else self.skipped
        optimiser.zero_grad()
        if done:
            self.skipped = 0
            self.objective.after_step(self.model, self.at)
            if self.average is not None:
                self.average.update()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Rows of the metrics, the end of an epoch, checkpoints, and reasons to stop."""
        micro, config = self.micro, self.config
        if not micro.last:
            return
        self.steps_done = step = micro.step + 1
        passed = micro.epoch + 1.0 if micro.ends_epoch else self._epochs_done()
        if step % config.log_every == 0 or micro.ends_epoch:
            self.log_book.sums.setdefault("lr", (self._rate(), 1))
            self.log_book.close_row(step, passed)
        if micro.ends_epoch:
            self._end_epoch(Step(step, self.steps_plan.steps, passed, self.trainer.world_size))
        if self.on_progress is not None and self.trainer.is_global_zero:
            sums = self.log_book.sums or {}
            figures = {name: total / count for name, (total, count) in sums.items()}
            self.on_progress(step, self.steps_plan.steps, figures)
        self._maybe_stop()
        last = step == self.steps_plan.steps or bool(self.end)
        if last or time.monotonic() - self.directory.written >= config.checkpoint_every:
            self._checkpoint()

    def _rate(self) -> float:
        return max(group["lr"] for group in self.optimiser.param_groups)

    def _maybe_stop(self) -> None:
        limit = self.config.max_time
        wanted = self.signals.received, limit is not None and self._seconds() >= limit
        if self.trainer.world_size > 1:
            agree = self.trainer.strategy.reduce_boolean_decision
            wanted = tuple(agree(want, all=False) for want in wanted)
        if wanted[0]:
            self.end = "stopped by a signal"
        elif wanted[1] and self.steps_done < self.steps_plan.steps:
            self.end = "stopped by the time limit"
        self.trainer.should_stop = bool(self.end)

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _end_epoch(self, step: Step) -> None:
        """Validation and probes, on the average where it is on."""
        spent = max(time.monotonic() - self.epoch_began, 1e-9)
        machine = {"images_per_second": self.epoch_images / spent, "seconds": spent}
        if self.device.type == "cuda":
            machine["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        log, passed = self.log_book, step.epoch
        log.write(step.number, passed, "machine", machine)
        figures: dict[str, float] = {}
        with self.average.swapped() if self.average is not None else nullcontext():
            if self.validation:
                held_out = self.validation
                alone = held_out[ALONE] if list(held_out) == [ALONE] else held_out
                figures = validate(
                    *(self.objective, self.model, alone),
                    batch=self.config.batch_size,
                    step=step,
                    seed=self.config.seed,
                )
            log.write(step.number, passed, "validation", figures)
            for probe in self.probes:
                found = dict(self._probed(probe, step))
                log.write(step.number, passed, "probe", found)
                figures |= found
            self._keep_best(figures, step)
        self.end = self.trainer.strategy.broadcast(self.end)
        self.epoch_began, self.epoch_images = time.monotonic(), 0

    def _probed(self, probe: Probe, step: Step) -> Mapping[str, float]:
        with judging(self.model, self.objective):
            return probe(self.model, self.objective, step)

    def _keep_best(self, figures: Mapping[str, float], step: Step) -> None:
        config = self.config
        name = config.monitor or next((n for n in ("accuracy", "loss") if n in figures), None)
        if name is None:
            return
        if name not in figures:
            known = ", ".join(sorted(figures)) or "nothing"
            raise ArgumentError(f"monitor = {name!r} is not measured.", f"There is: {known}.")
        value = -figures[name] if name.endswith("loss") else figures[name]
        if self.best is None or value > self.best[0]:
            self.best, self.stale = (value, step.number), 0
            if self.trainer.is_global_zero:
                self.directory.save_best({"step": step.number, "state": self.state_dict()})
        else:
            self.stale += 1
            if config.patience is not None and self.stale >= config.patience:
                self.end = f"no better {name} in {self.stale} epochs"

    def _checkpoint(self) -> None:
        if not self.trainer.is_global_zero:
            return
        state: dict[str, Any] = {
            "step": self.steps_done,
            "micro": self.next_micro,
            "world": self.trainer.world_size,
            "state": self.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "sums": {name: list(pair) for name, pair in self.log_book.sums.items()},
            "best": self.best,
            "stale": self.stale,
            "end": self.end,
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        self.directory.save(state, self.log_book)


class _Signals:
    """Ctrl-C and SIGTERM end the run after the step under way, with a checkpoint; a second one ends
    it at once."""

    def __init__(self) -> None:
        self.received = False
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


def _is_images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def mixed(
    mixing: Mixing, batch: Mapping[str, Any], classes: int, generator: torch.Generator
) -> dict[str, Any]:
    """A batch whose labelled images are mixed: `image` is another one, and beside its `label` stand
    `target` [B, C], the `plan`, and the `mixing`, which may weigh the labels again.

    Raises:
        ArgumentError: it holds no `image` with a `label`.
    """
    prefixes = [name.removesuffix("image") for name in batch if name.split("/")[-1] == "image"]
    labelled = [prefix for prefix in prefixes if f"{prefix}label" in batch]
    if not labelled:
        raise ArgumentError(
            f"{type(mixing).__name__} mixes labelled images, which this objective does not give.",
            "Leave out --augment, or use --objective classification.",
        )
    found = dict(batch)
    for prefix in labelled:
        images, label = batch[f"{prefix}image"], batch[f"{prefix}label"]
        plan = mixing.plan(len(images), images.shape[2], images.shape[3], generator)
        found[f"{prefix}image"] = mixing.apply(images, plan)
        found[f"{prefix}target"] = mixing.targets(label, plan, classes)
        found |= {f"{prefix}plan": plan, f"{prefix}mixing": mixing}
    return found


def _compile(model: VisionModel) -> None:
    """The backbone's passes, in place, so that no name in a state dict changes."""
    for name in ("forward_features", "forward_head"):
        setattr(model.backbone, name, torch.compile(getattr(model.backbone, name)))


def _uncompile(model: VisionModel) -> None:
    for name in ("forward_features", "forward_head"):
        model.backbone.__dict__.pop(name, None)

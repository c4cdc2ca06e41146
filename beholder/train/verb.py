"""`train` and `pretrain`: from a data set to a run that the other verbs take as MODEL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import timm
import torch

from beholder.core.environment import environment
from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.core.files import key_of, write_atomic, write_json
from beholder.core.images import Images
from beholder.core.model import Backbone, Size, VisionModel
from beholder.core.registry import checked, find, systems
from beholder.core.run import portable
from beholder.core.sections import Section, Table, Value
from beholder.core.split import folds
from beholder.data.augment.base import Mixing, open_mixing
from beholder.data.curate.manifest import Manifest
from beholder.data.scanned import Scanned
from beholder.data.sources import open_images
from beholder.metrics.calibration import softmax
from beholder.metrics.intervals import share
from beholder.models.encoder import (
    DEFAULT_ENCODER,
    LITE_FILES,
    UNTRAINED,
    architecture_of,
    create_encoder,
    create_pretrained,
    input_side,
)
from beholder.models.run import is_run, load

from .config import TrainConfig
from .loop import Probe, TrainRun, fit
from .made import pick_device
from .module import OnProgress
from .monitors import CollapseMonitor, NeighbourProbe, labelled, last_alarms
from .objectives.base import Combine, Objective, Schedule
from .progress import Bar
from .run import METRICS
from .validation import answers, is_classifier

Data = str | Path | Images
Start = Literal["auto", "random", "pretrained"]

VALIDATION_SHARE = 5  # one in so many of the images that are not held back
STEP = 32  # px, of the sides that are chosen
LARGEST = 224  # px, where nobody says how large


@dataclass
class Trained:
    """A finished (or interrupted by its time limit) training.

    Attributes:
        model: for every other verb; also on disk at `directory`.
        metrics: columns `run.METRICS`.
        accuracy: on the validation part; None where nothing can be right or wrong.
        sentence: what came out, for people.
        notes: what was assumed or left out.
    """

    directory: Path
    model: VisionModel
    metrics: pl.DataFrame
    accuracy: Value | None
    sentence: str
    run: TrainRun
    notes: list[str] = field(default_factory=list)

    @property
    def table(self) -> pl.DataFrame:
        """Every figure at its first and its last row, and its best."""
        rows = self.metrics.filter(pl.col("part") != "machine")
        return rows.group_by("part", "name", maintain_order=True).agg(
            pl.col("value").first().alias("first"),
            pl.col("value").last().alias("last"),
            pl.col("value").min().alias("lowest"),
            pl.col("value").max().alias("highest"),
        )

    def section(self) -> Section:
        """For the terminal and `results.json`."""
        values = {} if self.accuracy is None else {"accuracy": self.accuracy}
        for name, value in self.run.last("probe").items():
            values[name] = Value(estimate=value, unit="share" if name == "knn" else "")
        return Section(
            id="train",
            title="Training",
            finding=self.sentence,
            values=values,
            tables={"figures": Table(frame=self.table)},
            assumptions=self.notes,
            files=["model.safetensors", "config.json", "metrics.parquet"],
        )


@dataclass
class Parts:
    """A data set, and which of its images are for what."""

    data: Scanned
    roles: np.ndarray
    kind: str
    notes: list[str]

    def images(self, role: str) -> Images:
        return self.data.images.where(pl.Series(self.roles == role))


def train(
    data: Data,
    backbone: str | VisionModel | None = None,
    objective: str | Objective = "classification",
    augment: str | Mixing | None = None,
    weights: Start = "auto",
    *,
    start: str | Path | None = None,
    manifest: str | Path | Manifest | None = None,
    image_size: int | Size | None = None,
    shares: Mapping[str, float | Schedule] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    probes: Sequence[Probe] = (),
    out: str | Path | None = None,
    quiet: bool = False,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Trained:
    """Train a model on images. The same call goes on where an interrupted one stopped.

    The part that `study` with the same seed would judge is held back, and never seen.

    Args:
        data: a path, `scheme:PLACE`, the name of built-in data, or opened `Images`.
        backbone: a timm name or one of beholder's, or a model; None = the embedded encoder.
        objective: a name, several joined by `+`, or an `Objective`.
        augment: a mixing's name, several joined by `+`, or a `Mixing`.
        weights: 'random', 'pretrained', or 'auto': pretrained for the embedded encoder, random for
            a backbone that is named.
        start: a run whose weights are the first; in place of `backbone`.
        manifest: of `beholder.curate`: what to leave out, and new labels and weights.
        image_size: side or (H, W) in px; None = as large as most of the images are.
        shares: objective or loss term -> its weight.
        options: role or name of a system -> arguments of it.
        probes: called after every epoch, see `loop.Probe`.
        out: run directory; None = one under `runs/` named after what is done.
        settings: see `TrainConfig`.
    """
    config = TrainConfig(**settings)
    job = _Job("train", config, quiet, on_progress, options or {}, weights)
    parts = job.parts(data, manifest)
    chosen = job.objective(objective, shares or {})
    model, notes = job.model(backbone, start, image_size, parts.data)
    mixing = job.mixing(augment)
    return job.run(parts, chosen, model, mixing, list(probes), out, notes)


def pretrain(
    data: Data,
    backbone: str | VisionModel | None = None,
    objective: str | Objective = "barlow_twins",
    weights: Start = "random",
    *,
    start: str | Path | None = None,
    manifest: str | Path | Manifest | None = None,
    image_size: int | Size | None = None,
    shares: Mapping[str, float | Schedule] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    probe: Probe | Sequence[Probe] | None = None,
    stop_on_collapse: bool = False,
    out: str | Path | None = None,
    quiet: bool = False,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Trained:
    """Train an encoder on images without their labels; watched for collapse, see `train`.

    Args:
        weights: as of `train`, but random unless said otherwise.
        probe: called after every epoch; None = nearest neighbours, where there are labels.
        stop_on_collapse: end with `CollapseError` instead of a warning.
    """
    config = TrainConfig(**settings)
    job = _Job("pretrain", config, quiet, on_progress, options or {}, weights)
    parts = job.parts(data, manifest)
    chosen = job.objective(objective, shares or {})
    model, notes = job.model(backbone, start, image_size, parts.data)
    held_out = parts.images("val")
    watchers: list[Probe] = []
    if CollapseMonitor.possible(held_out):
        watchers.append(CollapseMonitor(held_out, stop_on_collapse))
    else:
        notes.append(f"{len(held_out)} held-out images are too few to watch for collapse.")
    if probe is None:
        bank, queries = labelled(parts.images("train")), labelled(held_out)
        if len(bank) and len(queries) and len(parts.data.images.classes) > 1:
            watchers.append(NeighbourProbe(bank, queries))
    else:
        watchers += [probe] if callable(probe) else list(probe)
    return job.run(parts, chosen, model, None, watchers, out, notes)


class _Job:
    """What `train` and `pretrain` share; every method is a stage."""

    def __init__(
        self,
        verb: str,
        config: TrainConfig,
        quiet: bool,
        on_progress: OnProgress | None,
        options: Mapping[str, Mapping[str, Any]],
        weights: Start,
    ) -> None:
        self.verb, self.config, self.options, self.weights = verb, config, options, weights
        self.bar = Bar(quiet)
        self.on_progress = on_progress
        self.device = pick_device(config.device)
        self.facts: dict[str, Any] = {"verb": verb}

    # data ------------------------------------------------------------------------------------

    def parts(self, data: Data, manifest: str | Path | Manifest | None) -> Parts:
        """The data, read once, and what each image is for."""
        images = data if isinstance(data, Images) else open_images(data)
        self.facts["data"] = images.name if isinstance(data, Images) else portable(str(data))
        scanned = Scanned(images, max_pixels=images.max_pixels, workers=2, use_cache=True)
        self.facts["fingerprint"] = scanned.fingerprint
        seed = self.config.seed
        scanned.find_units(seed)
        found = scanned.splits(range(seed, seed + 1))[0]
        roles = found.roles.astype("<U5").copy()
        if found.kind == "cross_fit":
            roles = np.where(found.folds == 0, "test", "train")
        if not (roles == "val").any():
            self._carve(roles, scanned)
        notes = [*scanned.images.notes, *scanned.notes]
        if manifest is not None:
            kept = self._curated(scanned, manifest)
            roles[(roles == "train") & ~kept] = "out"
        self.facts["split"] = found.kind
        return Parts(scanned, roles, found.kind, notes)

    def _carve(self, roles: np.ndarray, data: Scanned) -> None:
        """One in five units that are for training judge the epochs instead."""
        rows = np.flatnonzero(roles == "train")
        label = data.images.table["label"].fill_null(-1).to_numpy()[rows]
        if len(np.unique(data.unit[rows])) >= VALIDATION_SHARE:
            dealt = folds(data.unit[rows], label, VALIDATION_SHARE, self.config.seed)
            roles[rows[dealt == 0]] = "val"

    def _curated(self, data: Scanned, manifest: str | Path | Manifest) -> np.ndarray:
        """Apply a manifest to the images; which of them it keeps, bool [N]."""
        if not isinstance(manifest, Manifest):
            manifest = Manifest.load(manifest)
        self.facts["manifest"] = manifest.content_hash
        applied = manifest.apply(data.images, fingerprint=data.fingerprint)
        ids = data.images.table["id"]
        kept = ids.is_in(applied.table["id"].implode()).to_numpy()
        changed = applied.table.select("id", "label", "labels", "q", "weight")
        plain = data.images.table.drop("label", "labels", "q", "weight")
        untouched = data.images.table.filter(~pl.Series(kept))
        table = pl.concat(
            [
                plain.join(changed, on="id", how="inner").select(data.images.table.columns),
                untouched,
            ]
        ).sort("id")
        data.images = replace(data.images, table=table, notes=applied.notes)
        return kept

    # model -----------------------------------------------------------------------------------

    def objective(self, objective: str | Objective, shares: Mapping[str, Any]) -> Objective:
        """By name, with its options and the weights of its terms."""
        if isinstance(objective, Objective):
            made, names = objective, [objective.name]
        else:
            names = [name.strip().replace("-", "_") for name in objective.split("+")]
            parts = {name: self._made(name, len(names) == 1) for name in names}
            alone = next(iter(parts.values()))
            made = alone if len(parts) == 1 else Combine(dict.fromkeys(parts, 1.0), parts)
        self.facts["objective"] = "+".join(names)
        known = made.objectives if isinstance(made, Combine) else {}
        for name, weight in shares.items():
            child, _, term = name.rpartition("/")
            target = known.get(child, made)
            if not child and known and term not in known:
                raise ArgumentError(f"--weight {name}: {made.name} has no such part.")
            target.weights = {**target.weights, term: weight}
        return made

    def _made(self, name: str, alone: bool) -> Objective:
        target = find("objective", name).load()
        given = {
            **self.options.get(name, {}),
            **(self.options.get("objective", {}) if alone else {}),
        }
        given = checked(target, given, "objective")
        self.facts |= {f"{name}.{key}": value for key, value in given.items()}
        return target(**given)

    def mixing(self, augment: str | Mixing | None) -> Mixing | None:
        """By name, with its options."""
        if augment is None or isinstance(augment, Mixing):
            return augment
        names = augment.replace("-", "_")
        options = dict(self.options)
        if "+" not in names and "augmentation" in options:
            options[names] = {**options.get(names, {}), **options["augmentation"]}
        self.facts["augment"] = names
        return open_mixing(names, options)

    def model(
        self,
        backbone: str | VisionModel | None,
        start: str | Path | None,
        image_size: int | Size | None,
        data: Scanned,
    ) -> tuple[VisionModel, list[str]]:
        """The model to be trained, and what is said of its weights."""
        if isinstance(backbone, VisionModel):
            self.facts["backbone"] = backbone.name
            return backbone, [f"{backbone.name} as it was given."]
        if start is not None:
            if backbone is not None:
                raise ArgumentError("--backbone and --from exclude each other.")
            if not is_run(Path(start)):
                raise ModelError(f"--from {start} is no run.", "Name a run directory.")
            model = load(start)
            self.facts |= {"backbone": model.name, "from": portable(str(start))}
            size = _sides(image_size) or model.input_size
            return _at(model, size), [f"{model.name} begins with the weights of {start}."]
        name = backbone or DEFAULT_ENCODER
        random = self.weights == "random" or (
            self.weights == "auto" and (backbone is not None or self.verb == "pretrain")
        )
        random = random or name.startswith(UNTRAINED)
        name = name.removeprefix(UNTRAINED)
        longest = data.facts.select(pl.max_horizontal("width", "height")).to_series().to_list()
        net, size = _backbone(name, random, _sides(image_size), longest, self.config.seed)
        self.facts |= {"backbone": name, "random": random}
        said = "random weights" if random else "pretrained weights"
        return VisionModel(net, name, input_size=size), [f"{name} begins with {said}."]

    # run -------------------------------------------------------------------------------------

    def run(
        self,
        parts: Parts,
        objective: Objective,
        model: VisionModel,
        mixing: Mixing | None,
        probes: list[Probe],
        out: str | Path | None,
        notes: list[str],
    ) -> Trained:
        config = self.config
        if mixing is not None:
            config = replace(config, mixing=mixing)
        self.facts["image_size"] = list(model.input_size)
        directory = Path(out) if out is not None else self._place(config)
        learn, judge = parts.images("train"), parts.images("val")
        supervised = "label" in objective.needs
        if supervised:
            learn, judge = labelled(learn), labelled(judge)
        if len(learn) < 2:
            raise DataError(f"{len(learn)} images{' with a label' * supervised} are left to train.")
        notes = [*notes, *parts.notes, *learn.notes[len(parts.data.images.notes) :]]
        self.bar.say(
            f"{parts.data.images.name}: {len(learn):,} images to learn from, {len(judge):,} to "
            f"judge the epochs, {int((parts.roles == 'test').sum()):,} held back. {notes[0]}"
        )
        _remember_alarms(probes, directory)
        with self.bar as bar:
            run = fit(
                *(objective, model, learn, config),
                out=directory,
                validation=judge if len(judge) else None,
                probes=probes,
                facts=self.facts,
                on_progress=(self.on_progress or bar) if config.devices == 1 else None,
            )
        return self._finished(run, parts, objective, judge, directory, notes)

    def _place(self, config: TrainConfig) -> Path:
        key = key_of({"facts": self.facts, "settings": config.deciding()})[:6]
        words = [self.facts["data"], self.facts["backbone"], self.facts["objective"], key]
        return Path("runs") / "-".join(_slug(str(word)) for word in words)

    def _finished(
        self,
        run: TrainRun,
        parts: Parts,
        objective: Objective,
        judge: Images,
        directory: Path,
        notes: list[str],
    ) -> Trained:
        """Answers to the validation part, and everything that is written once."""
        model, accuracy = run.model, None
        frame = _roles(parts)
        if len(judge) and is_classifier(objective, model, judge):
            logits, there = answers(model, judge)
            judged = judge.table.select("id", "label")[np.flatnonzero(there)].with_columns(
                pl.Series("predicted", logits[there].argmax(1), pl.Int32),
                pl.Series("probability", softmax(logits[there]).tolist(), pl.List(pl.Float32)),
            )
            hits = (judged["predicted"] == judged["label"]).to_numpy()
            units = frame.join(judged, on="id", maintain_order="right")["unit"].to_numpy()
            accuracy = share(hits, units, seed=self.config.seed)
            frame = frame.join(judged.drop("label"), on="id", how="left")
        trained = Trained(
            directory,
            model,
            run.metrics,
            accuracy,
            self._sentence(run, accuracy, directory),
            run,
            notes,
        )
        if not run.already:
            write_atomic(directory / "predictions.parquet", lambda o: frame.write_parquet(o))
            write_json(directory / "results.json", trained.section().to_dict())
            write_json(
                directory / "environment.json",
                environment(
                    self.device,
                    torch.get_num_threads(),
                    self.config.seed,
                    parts.data.fingerprint,
                ),
            )
        return trained

    def _sentence(self, run: TrainRun, accuracy: Value | None, directory: Path) -> str:
        if run.already:
            begin = f"Nothing to do: {directory} is finished."
        elif not run.finished:
            begin = f"Stopped by the time limit after {run.steps:,} steps; the same goes on."
        elif not run.objective.trains:
            begin = f"Fitted in {run.seconds:,.0f} s."
        else:
            begin = f"Trained {run.steps:,} steps in {run.seconds:,.0f} s."
        what = "the average of the weights" if self.config.ema is not None else "the last weights"
        what = what if run.objective.trains else "it"
        if accuracy is not None:
            return f"{begin} Accuracy of {what} on the validation part: {accuracy.text()}."
        figures = {**run.last("validation"), **run.last("probe")}
        shown = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        return f"{begin} {what.capitalize()} on the validation part: {shown}." if shown else begin


def _roles(parts: Parts) -> pl.DataFrame:
    """What every image was for: the part of `predictions.parquet` by which `study` knows them."""
    images, facts = parts.data.images, parts.data.facts
    frame = images.table.select("id", "path", "label").with_columns(
        pl.Series("split", parts.roles.tolist(), pl.String),
        pl.lit(None, pl.Int8).alias("fold"),
        pl.Series("unit", parts.data.unit.astype(np.int32)),
        facts["exact_hash"],
    )
    return frame.filter(pl.col("split") != "out")


def _remember_alarms(probes: Sequence[Probe], directory: Path) -> None:
    """A run that goes on counts the alarms that it had."""
    with suppress(OSError, pl.exceptions.PolarsError):
        frame = pl.read_parquet(directory / "metrics.parquet").select(list(METRICS))
        rows = frame.filter(pl.col("part") == "probe").select("name", "value").rows()
        for probe in probes:
            if isinstance(probe, CollapseMonitor):
                probe.alarms = last_alarms(rows)


def _sides(image_size: int | Size | None) -> Size | None:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def _backbone(
    name: str, random: bool, size: Size | None, longest: Sequence[int], seed: int
) -> tuple[Backbone, Size]:
    """A network at a size that it takes."""
    for entry in systems("backbone"):
        if entry.name == name.replace("-", "_"):
            entry.load()
            name = entry.name
    architecture = architecture_of(name)
    config = timm.get_pretrained_cfg(architecture)
    fixed = bool(config and config.fixed_input_size)
    options: dict[str, Any] = {"img_size": size} if fixed and size else {}
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cast(Backbone, timm.create_model(architecture, pretrained=False, **options))
        return net, size or (net.pretrained_cfg["input_size"][1:] if fixed else _side(longest))
    net = (
        create_encoder(name)[0]
        if name in LITE_FILES
        else create_pretrained(architecture, **options)
    )
    return net, size or input_side(net, longest)


def _side(longest: Sequence[int]) -> Size:
    """The median of the longest sides, up to a multiple of 32 and at most 224."""
    median = sorted(longest)[len(longest) // 2]
    side = min(-(-median // STEP) * STEP, LARGEST)
    return side, side


def _at(model: VisionModel, size: Size) -> VisionModel:
    """The same network at a size; its head of a study is left behind."""
    return VisionModel(
        model.backbone, model.name, classes=model.classes, input_size=size, crop=model.crop
    )


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._" else "-" for c in text)[:40].strip("-.")
    return kept or "data"

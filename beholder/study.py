"""The main job: from a folder of images to a report that one can hand to a customer.

The one place where data, model, heads, sections and report meet (specs/study.md).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from beholder.core.engines import Engine
from beholder.core.environment import environment
from beholder.core.errors import ArgumentError, DataError, SectionFailedError
from beholder.core.features import Features, View, extract
from beholder.core.files import (
    cache_dir,
    digest,
    is_writable,
    write_atomic,
    write_bytes,
    write_json,
)
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.options import Options
from beholder.core.run import RunDirectory, only_writer, portable, run_key
from beholder.core.scan import scan, thumbnails
from beholder.core.sections import Section, Value
from beholder.core.split import Split, split, units
from beholder.core.verbs import callable_as
from beholder.data.curate.duplicates import find_copies
from beholder.data.sources import open_images
from beholder.evaluate.benchmarks import SECTIONS
from beholder.evaluate.benchmarks.base import Evidence
from beholder.evaluate.benchmarks.verdict import headline, verdict
from beholder.evaluate.costs import measure
from beholder.evaluate.evidence import (
    Answered,
    assemble,
    data_facts,
    model_facts,
    predictions,
    soft_labels,
    split_facts,
)
from beholder.evaluate.given import (
    Judged,
    judge_given,
    judge_run,
    readable,
    training_hashes,
)
from beholder.evaluate.report import Report
from beholder.evaluate.report.pictures import render_pictures, wanted_pictures
from beholder.evaluate.report.results import (
    BudgetFacts,
    DataFacts,
    Headline,
    ModelFacts,
    SplitFacts,
    Verdict,
)
from beholder.evaluate.report.terminal import Progress, heading
from beholder.evaluate.report.text import csv_text
from beholder.metrics.cost import macs
from beholder.metrics.intervals import share
from beholder.models.classifier_heads import LinearHead
from beholder.models.encoder import architecture_of
from beholder.models.given import open_model
from beholder.models.given_model import GivenModel
from beholder.models.run import attach_portable, is_run, load, save_model
from beholder.train.answers import Answers, Labelled, answer
from beholder.train.heads import decide, probability
from beholder.train.made import (
    VIEWS,
    choose_engine,
    make_encoder,
    names_encoder,
    pick_device,
    plan_pass,
    resized,
    subset,
)

callable_as(__name__, "beholder.study:study")

ANSWERED = ("accuracy", "groups", "confusion", "mistakes", "calibration", "cost")
"""Sections that need a model's answers."""
FEATURE_SHARE = 0.76
"""Of the budget: 45 %, and the shares of the sections that are not there yet."""
COST_SHARE = 0.04
COST_SECONDS = 12.0
BLAS_THREADS = max(1, (os.cpu_count() or 1) // 2)
"""For the heads: many small products, on which a thread per core is slower (measured: 44 s against
23 s with one of two)."""

ModelSpec = str | Path | nn.Module | Callable[[Tensor], object]
OnProgress = Callable[[str, int, int, float | None], None]


def study(
    data: str | Path | Images,
    model: ModelSpec | None = None,
    *,
    quiet: bool = False,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Report:
    """How good is a model on these images, and where and why does it fail.

    Args:
        data: a path, `scheme:PLACE`, the name of built-in data, or opened `Images`.
        model: None = a head is trained on the embedded encoder; a timm name = on that encoder;
            anything else is judged as it is (see `beholder.models.given.open_model`).
        quiet: no progress on stderr.
        on_progress: called with stage, done, total, seconds left.
        options: see `beholder.core.options.Options`.

    Returns:
        The report; it lies on disk at `report.directory`.

    Raises:
        DataError, ModelError, ArgumentError, BudgetError, StorageError: with a hint what to do.
        SectionFailedError: under `strict`, after everything was written.
        KeyboardInterrupt: after a report of what there is was written.
    """
    resolved = Options.parse(
        data=data.name if isinstance(data, Images) else str(data),
        model=str(model) if isinstance(model, str | Path) else None,
        **options,
    )
    progress = Progress(quiet=quiet, on_progress=on_progress)
    with ExitStack() as cleanup:
        return _Study(resolved, data, model, progress, cleanup).run()


class _Study:
    """One study; every method is a stage."""

    def __init__(
        self,
        options: Options,
        data: str | Path | Images,
        model: ModelSpec | None,
        progress: Progress,
        cleanup: ExitStack,
    ) -> None:
        unknown = {*(options.sections or ()), *options.without} - set(SECTIONS)
        if unknown:
            known = ", ".join(SECTIONS)
            raise ArgumentError(f"There is no section {sorted(unknown)[0]!r}.", f"Known: {known}.")
        wanted = options.sections or tuple(SECTIONS)
        self.wanted = [id for id in SECTIONS if id in wanted and id not in options.without]
        self.options, self.data, self.model, self.progress = options, data, model, progress
        self.cleanup = cleanup
        self.begun = time.monotonic()
        self.device = pick_device(options.device)
        self.workers = options.workers or 2
        self.timing: dict[str, float] = {}
        self.shortened: list[str] = []
        self.notes: list[str] = []
        self.tracebacks: list[str] = []
        self.sections: dict[str, Section] = {}
        self.given = self._given()
        self.vision: VisionModel | None = None
        self.facts_of_model: dict[str, Any] = {}
        self.answered: Answered | None = None
        self.cost: pl.DataFrame | None = None

    def run(self) -> Report:
        images = self.data if isinstance(self.data, Images) else self._open()
        self.opened = len(images) + len(images.skipped)
        self._scan(images)
        with only_writer(self._place()):
            self.directory = RunDirectory(self._place(), self.options, self.fingerprint)
            opened = data_facts(self.images, self._evidence(), self.fingerprint, self.opened)
            self.progress.say(heading(DataFacts.model_validate(opened), version("beholder")))
            stopped = False
            try:
                self._answer()
                self._measure_cost()
                self._summarise()
            except KeyboardInterrupt:
                stopped = True
            report = self._report(stopped)
            with self._stage("report", 1) as stage:
                self._write(report)
                stage.advance()
        if stopped:
            raise KeyboardInterrupt
        failed = [part for part in report.sections if part.status == "failed"]
        if failed and self.options.strict:
            raise SectionFailedError(f"{failed[0].title}: {failed[0].finding}")
        return report

    @contextmanager
    def _stage(self, name: str, total: int, note: str = "") -> Iterator[Any]:
        start = time.monotonic()
        with self.progress.stage(name, total, note) as stage:
            yield stage
        self.timing[name] = round(self.timing.get(name, 0) + time.monotonic() - start, 3)

    def _left(self) -> float:
        """Seconds of the budget that are left."""
        limit = self.options.budget * 60
        return limit - (time.monotonic() - self.begun) if limit else float("inf")

    # data ------------------------------------------------------------------------------------

    def _open(self) -> Images:
        """The data; with a given model --classes names its outputs, else those of the data."""
        options = self.options
        return open_images(
            options.data,
            format=options.format,
            label_column=options.label_column,
            source_column=options.source_column,
            split_column=options.split_column,
            classes=options.classes if self.given is None else None,
            root=options.root,
            bins=options.bins,
            max_pixels=options.max_pixels,
        )

    def _scan(self, images: Images) -> None:
        if not len(images):
            raise DataError(f"{images.name} holds no image that can be read.", _reasons(images))
        with self._stage("read", len(images)) as stage:
            seen, facts = scan(
                images,
                max_pixels=self.options.max_pixels,
                workers=self.workers,
                use_cache=self.options.cache,
                progress=lambda done: stage.advance(),
            )
        if not len(seen):
            raise DataError(f"None of {len(images):,} images can be read.", _reasons(seen))
        self.images, self.facts = seen, facts
        if several := int((facts["frames"] > 1).sum()):
            self.notes.append(f"{several:,} files hold several frames; the first is looked at.")
        hashes = dict(zip(facts["id"], facts["file_hash"], strict=True))
        self.fingerprint = seen.fingerprint(hashes)

    def _keep(self, keep: np.ndarray) -> None:
        """Go on with these images only."""
        self.images = self.images.where(pl.Series(keep))
        self.facts = self.facts.filter(pl.Series(keep))

    def _lose(self, gone: dict[str, str]) -> None:
        """Images that vanished between the scan and the feature pass."""
        table = self.images.table.filter(pl.col("id").is_in(list(gone)))
        lost = table.select(
            "path",
            pl.lit("missing_file").alias("reason"),
            pl.col("id").replace_strict(gone).alias("detail"),
        )
        skipped = pl.concat([self.images.skipped, lost.cast(self.images.skipped.schema)])
        self.images = replace(self.images, skipped=skipped)
        self._keep(~np.isin(self.images.table["id"].to_numpy(), list(gone)))

    def _place(self) -> Path:
        """The run directory: --out, or a name made of data, model and options."""
        if self.options.out:
            return self.options.out
        given = self.options.model or ("lite0" if self.model is None else type(self.model).__name__)
        parts = [
            self.images.name,
            portable(given).split(":")[-1],
            run_key(self.options, self.fingerprint)[:6],
        ]
        return Path("runs") / "-".join(_slug(part) for part in parts)

    def _units(self) -> None:
        """What must not straddle a split: sources, exact duplicates, copies."""
        with self._stage("copies", 1) as stage:
            copies = find_copies(self.facts, self.images.read, seed=self.options.seed)
            self.unit = units(self.images.table, self.facts["exact_hash"], copies.group)
            self.copy_group = copies.group
            if copies.look_alike:
                self.notes.append(copies.sentence)
            stage.advance(1)

    def _splits(self) -> list[Split]:
        """One split per seed; a given one is the only one."""
        table = self.images.table.with_columns(pl.Series("unit", self.unit))
        classes, options = self.images.classes, self.options
        seeds = range(options.seed, options.seed + options.splits)
        first = split(table, seeds[0], classes=classes)
        if first.kind == "given":
            return [first]
        return [first, *(split(table, seed, classes=classes) for seed in seeds[1:])]

    # answers ---------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Out-of-sample answers for every image, by a model made here or given."""
        self._units()
        given = self.given
        labelled = self.images.kind == "classes" and len(self.images.classes) > 1
        if given is not None:
            self._judge(given)
        elif labelled and set(self.wanted) & set(ANSWERED):
            self._make()
        self.directory.mark("answers")

    def _given(self) -> VisionModel | GivenModel | None:
        model, options = self.model, self.options
        if model is None or isinstance(model, VisionModel | GivenModel):
            return model
        text = options.model or ""
        if text and (Path(text) / "head.json").is_file():
            return load(text)
        if text and is_run(Path(text)):
            model = f"local-dir:{text}"  # trained whole: its own classifier answers
        elif text and not options.judge and names_encoder(text):
            architecture_of(text)
            return None
        return open_model(
            model, classes=options.classes, preprocess=options.preprocess, crop=options.crop
        )

    def _cache_place(self) -> Path | None:
        """None = the shared cache; a place that goes when the study ends where it is not used."""
        if self.options.cache:
            if is_writable(cache_dir() / "features"):
                return None
            self.notes.append(
                "The cache cannot be written: nothing is kept, the next run is slower."
            )
        return Path(self.cleanup.enter_context(tempfile.TemporaryDirectory(prefix="beholder-")))

    def _make(self) -> None:
        longest = self.facts.select(pl.max_horizontal("width", "height")).to_series().to_list()
        options = self.options
        vision, assumed = make_encoder(options.model, longest, options.crop, options.seed)
        self.notes += assumed
        vision, features = self._features(vision.to(self.device))
        splits = self._splits()
        self.directory.mark("features")
        data = Labelled(
            self.images.table["id"].to_numpy(),
            self.images.table["label"].fill_null(-1).to_numpy(),
            soft_labels(self.images),
            self.unit,
        )
        small = thumbnails(self.facts, 16).reshape(len(self.facts), -1).astype(np.float32) / 255
        few = threadpool_limits(BLAS_THREADS, user_api="blas")
        with few, self._stage("heads", len(splits)) as stage:
            answers = answer(features, data, splits, small, options.seed, stage.advance)
            stage.note(f"{answers.shipped.candidate} chosen")
        self.features, self.data_labelled = features, data
        self._adopt(vision, answers, splits)

    def _features(self, vision: VisionModel) -> tuple[VisionModel, Features]:
        """From the cache, or by a pass that fits the budget."""
        place = self._cache_place()
        try:
            cached = self._extract(vision, VIEWS, place, _no_engine, lambda count: None)
            if not cached.gone:
                rows = len(self.images) * len(VIEWS)
                with self._stage("features", rows, f"{vision.name}, cached") as stage:
                    stage.advance(rows)
                return vision, cached
        except NotCachedError:
            pass
        with self._stage("engines", 1) as stage:
            engine, price, passed_over = choose_engine(vision, self.images, self.device)
            stage.advance()
            stage.note("; ".join(passed_over))
        vision, engine, views = self._fit_budget(vision, engine, price)
        return vision, self._pass(vision, views, place, lambda: engine, engine.name)

    def _pass(
        self,
        vision: VisionModel,
        views: Sequence[View],
        place: Path | None,
        make_engine: Callable[[], Engine],
        how: str,
    ) -> Features:
        """Features of every image that is still there."""
        note = f"{vision.name} @{vision.input_size[0]}, {how}"
        while True:
            with self._stage("features", len(self.images) * len(views), note) as stage:
                features = self._extract(vision, views, place, make_engine, stage.advance)
            if not features.gone:
                return features
            self._lose(features.gone)
            self._units()

    def _extract(
        self,
        vision: VisionModel,
        views: Sequence[View],
        place: Path | None,
        make_engine: Callable[[], Engine],
        progress: Callable[[int], None],
    ) -> Features:
        return extract(
            make_engine,
            self.images,
            self.facts["file_hash"].to_list(),
            describe=vision.describe(),
            prepare=vision.prepare,
            size=vision.input_size,
            layout=vision.layout,
            views=views,
            workers=self.workers,
            directory=place,
            progress=progress,
        )

    def _fit_budget(
        self, vision: VisionModel, engine: Engine, price: float
    ) -> tuple[VisionModel, Engine, Sequence[View]]:
        """Gives up mirror images, then size, then images, until the pass fits its share."""
        limit = self.options.budget * 60
        side, rows = vision.input_size[0], len(self.images)
        seconds = min(FEATURE_SHARE * limit, self._left()) if limit else float("inf")
        fixed = bool(vision.backbone.pretrained_cfg.get("fixed_input_size"))
        plan = plan_pass(seconds, price, rows, side, fixed)
        given_up = plan.shortened(rows, side)
        if given_up:
            self.shortened = [id for id in self.wanted if id in ANSWERED]
            self.notes.append(f"Shortened by the budget: {', '.join(given_up)}.")
        if plan.images < rows:
            seed = str(self.options.seed)
            self._keep(subset(self.images, plan.images, lambda id: digest(seed, id)))
            self._units()
        if plan.side < side:
            vision = resized(vision, plan.side)
            engine, _, _ = choose_engine(vision, self.images, self.device)
        return vision, engine, plan.views

    def _adopt(self, vision: VisionModel, answers: Answers, splits: list[Split]) -> None:
        """The trained head becomes the model's; the portable one the backbone's classifier."""
        classes = self.images.classes
        first, chosen = splits[0], answers.shipped
        vision.head, vision.mirror, vision.classes = chosen.head.eval(), chosen.mirror, classes
        self.vision, self.answers = vision, answers
        assert isinstance(answers.portable, LinearHead)
        portable = attach_portable(vision.backbone, answers.portable, len(classes))
        self.answered = Answered(
            classes=classes,
            logits=answers.logits,
            probability=answers.probability,
            roles=first.roles,
            fold=first.folds,
            kind=first.kind,
            seeds=[self.options.seed + number for number in range(len(splits))],
            embeddings=self.features.take(columns=self.features.layout["pooled"]),
            repeats=answers.repeats,
            baselines=answers.baselines,
            learning=answers.learning,
        )
        self.notes += first.notes
        head = {"name": chosen.candidate.kind, "options": {"candidate": str(chosen.candidate)}}
        head["options"] |= {f"{chosen.metric}, {name}": s for name, s in chosen.scores.items()}
        if chosen.without_mirror is not None:
            head["options"][f"{chosen.metric}, without mirror"] = chosen.without_mirror
        self.facts_of_model = model_facts(vision, "made", "exact") | {
            "head": head,
            "macs": macs(vision.to("cpu"), torch.zeros(1, 3, *vision.input_size)),
            "portable_accuracy": self._portable_accuracy(answers) if portable else None,
        }

    def _portable_accuracy(self, answers: Answers) -> Value:
        portable_rows = answers.baselines.filter(pl.col("name") == "portable")
        position = {id: row for row, id in enumerate(self.data_labelled.ids)}
        rows = np.array([position[id] for id in portable_rows["id"]], int)
        hits = portable_rows["predicted"].to_numpy() == self.data_labelled.label[rows]
        return share(hits, self.unit[rows])

    def _judge(self, model: VisionModel | GivenModel) -> None:
        options, hashes = self.options, self.facts["file_hash"].to_list()
        place = self._cache_place()
        if model.weights_hash is None:  # what cannot be named cannot be cached
            place = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        run = isinstance(model, VisionModel)
        views = 2 if run and model.mirror else 1
        with self._stage("answers", len(self.images) * views, model.name) as stage:
            judged: Judged
            if isinstance(model, VisionModel):
                model.to(self.device)
                judged = judge_run(
                    model,
                    lambda: choose_engine(model, self.images, self.device)[0],
                    self.images,
                    hashes,
                    trained_on=training_hashes(Path(options.model)) if options.model else set(),
                    exact=self.facts["exact_hash"].to_list(),
                    workers=self.workers,
                    directory=place,
                    progress=stage.advance,
                )
                self.vision = model
            else:
                judged = judge_given(
                    model,
                    self.images,
                    hashes,
                    class_map=options.class_map,
                    by_position=options.by_position,
                    workers=self.workers,
                    directory=place,
                    seed=options.seed,
                    progress=stage.advance,
                )
        if judged.gone:
            self._lose(judged.gone)
            self._units()
            self._judge(model)
            return
        self.answered = judged.answered
        self.notes += judged.notes
        self.facts_of_model = model_facts(model, "given", judged.class_match)

    # cost, sections, report ------------------------------------------------------------------

    def _measure_cost(self) -> None:
        """Needs the saved model: a fresh process loads it to measure its memory."""
        vision = self.vision
        if vision is None:
            return
        path = self.directory.path
        made = self.facts_of_model["origin"] == "made"
        if made:
            save_model(vision, {"candidate": str(self.answers.shipped.candidate)}, path)
            self.directory.mark("model")
        if "cost" not in self.wanted:
            return
        rows = list(range(0, len(self.images), max(1, len(self.images) // 32)))[:32]
        prepared = [vision.prepare(image) for image in readable(self.images, rows)]
        seconds = COST_SECONDS
        if self.options.budget == 0:
            seconds = float("inf")
        elif self.options.budget * 60 * COST_SHARE > seconds:
            seconds = self.options.budget * 60 * COST_SHARE
        work = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        with self._stage("cost", 4) as stage:
            self.cost = measure(
                vision.to("cpu"),
                prepared,
                lambda: vision.prepare(next(readable(self.images, rows))),
                seconds=seconds,
                work=work,
                run=path if made else None,
                single_pass=self._single_pass() if made else "",
                progress=stage.advance,
            )

    def _single_pass(self) -> str:
        """Accuracy of the same head on the image alone."""
        data, head, answered = self.data_labelled, self.answers.shipped.head, self.answered
        assert answered is not None
        rows = np.flatnonzero((answered.roles == "test") & (data.label >= 0))
        if answered.kind == "cross_fit" or not len(rows):
            return "accuracy not measured"
        predicted = probability(head, decide(head, self.features, rows)).argmax(1)
        hits = predicted == data.label[rows]
        return f"accuracy {100 * hits.mean():.1f} %"

    def _evidence(self) -> Evidence:
        unit = getattr(self, "unit", np.arange(len(self.images)))
        group = getattr(self, "copy_group", np.full(len(self.images), -1))
        evidence = assemble(self.images, self.facts, unit, group, self.answered)
        evidence.cost = self.cost
        evidence.data = data_facts(self.images, evidence, self.fingerprint, self.opened)
        evidence.split = split_facts(evidence, self.answered, self.options.seed)
        evidence.model = self.facts_of_model
        evidence.environment = environment(
            self.device, torch.get_num_threads(), self.options.seed, self.fingerprint
        )
        evidence.notes = [*self.images.notes, *self.notes]
        return evidence

    def _summarise(self) -> None:
        evidence = self._evidence()
        with self._stage("sections", len(self.wanted)) as stage:
            for id in self.wanted:
                section, trace = SECTIONS[id].run(evidence, self.options)
                if trace:
                    self.tracebacks.append(trace)
                if id in self.shortened and section.status == "measured":
                    section.status = "reduced"
                self.sections[id] = section
                self.directory.mark(id)
                stage.advance(1)

    def _report(self, stopped: bool) -> Report:
        evidence = self._evidence()
        decided = verdict(self.sections, evidence, self.options)
        if stopped:
            done = self.directory.done[-1] if self.directory.done else "read"
            decided = {
                "severity": "none",
                "sentence": f"Stopped after {done}; {len(self.sections)} of {len(self.wanted)} "
                "sections are done. The same command goes on from here.",
                "next": [],
            }
        ids = wanted_pictures(list(self.sections.values()))
        row_of = {id: row for row, id in enumerate(self.images.table["id"])}
        used = time.monotonic() - self.begun
        self.evidence = evidence
        return Report(
            verdict=Verdict.model_validate(decided),
            headline=Headline.model_validate(headline(self.sections)),
            data=DataFacts.model_validate(evidence.data),
            split=SplitFacts.model_validate(evidence.split),
            model_facts=ModelFacts.model_validate(evidence.model),
            sections=list(self.sections.values()),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=_command(),
            budget=BudgetFacts(
                limit_s=self.options.budget * 60,
                used_s=round(used, 3),
                shortened=self.shortened,
            ),
            timing=dict(self.timing),
            directory=self.directory.path,
            pictures=render_pictures(lambda id: self.images.read(row_of[id]), ids),
            open_model=partial(load, self.directory.path),
            anonymous=self.options.anonymous,
        )

    def _write(self, report: Report) -> None:
        path = self.directory.path
        frame = predictions(self.evidence.frame, self.sections)
        write_atomic(path / "predictions.parquet", lambda out: frame.write_parquet(out))
        skipped = self.images.skipped
        write_bytes(path / "skipped.csv", csv_text(skipped.columns, skipped.iter_rows()).encode())
        write_json(path / "environment.json", self.evidence.environment)
        if self.answered is not None and self.answered.repeats is not None:
            repeats = self.answered.repeats
            write_atomic(
                path / "records" / "splits.parquet", lambda out: repeats.write_parquet(out)
            )
        if self.tracebacks:
            write_bytes(path / "log.txt", "\n".join(self.tracebacks).encode())
        report.save(path)
        self.directory.mark("report")
        self.directory.link_latest()


class NotCachedError(Exception):
    """Some features have to be computed."""


def _no_engine() -> Engine:
    raise NotCachedError


def _reasons(images: Images) -> str:
    counts = images.skipped["reason"].value_counts(sort=True)
    return "; ".join(f"{count:,} x {reason}" for reason, count in counts.iter_rows())


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._" else "-" for c in text)[:40].strip("-.")
    return kept or "data"


def _command() -> list[str]:
    """The words of the command line, without absolute paths; 'python' where there is none."""
    if Path(sys.argv[0]).name != "beholder":
        return ["python"]
    return ["beholder", *(portable(word) for word in sys.argv[1:])]

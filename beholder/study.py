"""The main job: from a folder of images to a report that one can hand to a customer.

The one place where data, model, heads, sections and report meet (specs/study.md).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from beholder.core.errors import ArgumentError, SectionFailedError
from beholder.core.features import Features, View
from beholder.core.files import (
    cache_dir,
    digest,
    is_writable,
    key_of,
    write_atomic,
    write_bytes,
    write_json,
)
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.options import Options
from beholder.core.run import RunDirectory, only_writer, portable, run_key
from beholder.core.scan import thumbnails
from beholder.core.sections import Section, Status, Value
from beholder.core.split import Split
from beholder.core.verbs import callable_as
from beholder.data.curate.manifest import Manifest
from beholder.data.scanned import Scanned
from beholder.data.sources import open_images
from beholder.evaluate.against import TITLE, compare
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
from beholder.evaluate.measuring import Measuring, Plan
from beholder.evaluate.pairs import Side
from beholder.evaluate.report import Report
from beholder.evaluate.report.pictures import render_pictures, wanted_pictures
from beholder.evaluate.report.results import (
    Against,
    BudgetFacts,
    DataFacts,
    Headline,
    ModelFacts,
    SplitFacts,
    Verdict,
)
from beholder.evaluate.report.terminal import Progress, heading
from beholder.evaluate.report.text import csv_text
from beholder.evaluate.rival import Rival, same_encoder
from beholder.evaluate.subject import (
    Allowance,
    Deployed,
    DeployedGiven,
    DeployedRun,
    Subject,
)
from beholder.metrics.cost import macs
from beholder.metrics.intervals import share
from beholder.models.classifier_heads import LinearHead
from beholder.models.encoder import architecture_of
from beholder.models.given import open_model
from beholder.models.given_model import GivenModel
from beholder.models.run import attach_portable, is_run, load, save_model
from beholder.train.answers import Answers, Labelled, answer
from beholder.train.harden import add_copies
from beholder.train.heads import decide, probability
from beholder.train.made import (
    VIEWS,
    choose_engine,
    make_encoder,
    names_encoder,
    pick_device,
)
from beholder.train.passes import FeaturePass

callable_as(__name__, "beholder.study:study")

FEATURE_SHARE = 0.45
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


@dataclass(frozen=True)
class Made:
    """What a head was trained on, and the answers of those that were."""

    data: Labelled
    features: Features
    answers: Answers


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
        self.options, self.source, self.model, self.progress = options, data, model, progress
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
        self.rival = Rival.open(options.against) if options.against else None
        self.against: Against | None = None
        self.vision: VisionModel | None = None
        self.deployed: Deployed | None = None
        self.features: Features | None = None
        self.made: Made | None = None
        self.passed: FeaturePass | None = None
        self.finetuned = False
        self.facts_of_model: dict[str, Any] = {}
        self.answered: Answered | None = None
        self.cost: pl.DataFrame | None = None
        self.place: Path | None = None
        self.evidence: Evidence | None = None
        self.measuring: Measuring | None = None

    def run(self) -> Report:
        self.data = self._read()
        kinds, asked = (None, self.data.images.kind), self.options.sections or ()
        self.wanted = [id for id in self.wanted if SECTIONS[id].only in kinds or id in asked]
        with only_writer(self._place()):
            self.directory = RunDirectory(self._place(), self.options, self.data.fingerprint)
            opened = data_facts(
                self.data.images, self._evidence(), self.data.fingerprint, self.data.opened
            )
            self.progress.say(heading(DataFacts.model_validate(opened), version("beholder")))
            stopped = False
            try:
                self._answer()
                self._measure()
                self._measure_cost()
                self._summarise()
                self._compare()
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

    def _read(self) -> Scanned:
        """The data, opened and read once; what a manifest keeps of it."""
        images = self.source if isinstance(self.source, Images) else self._open()
        data = self._scan(images)
        if self.options.manifest is None:
            return data
        manifest = Manifest.load(self.options.manifest)
        return self._scan(manifest.apply(data.images, fingerprint=data.fingerprint))

    def _scan(self, images: Images) -> Scanned:
        with self._stage("read", len(images)) as stage:
            return Scanned(
                images,
                max_pixels=self.options.max_pixels,
                workers=self.workers,
                use_cache=self.options.cache,
                progress=lambda done: stage.advance(),
            )

    def _place(self) -> Path:
        """The run directory: --out, or a name made of data, model and options."""
        if self.options.out:
            return self.options.out
        given = self.options.model or ("lite0" if self.model is None else type(self.model).__name__)
        parts = [
            self.data.images.name,
            portable(given).split(":")[-1],
            run_key(self.options, self.data.fingerprint)[:6],
        ]
        return Path("runs") / "-".join(_slug(part) for part in parts)

    # answers ---------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Out-of-sample answers for every image, by a model made here or given."""
        with self._stage("copies", 1) as stage:
            self.data.find_units(self.options.seed)
            stage.advance(1)
        given = self.given
        labelled = self.data.images.kind == "classes" and len(self.data.images.classes) > 1
        if given is not None:
            self._judge(given)
        elif labelled and self._uses("answers"):
            self._make()
        elif self._uses("features"):
            self._look()
        self.directory.mark("answers")

    def _uses(self, *what: str) -> list[str]:
        """The wanted sections that use this."""
        return [id for id in self.wanted if SECTIONS[id].uses in what]

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

    def _describe(self, views: Sequence[View]) -> tuple[VisionModel, Features]:
        """The encoder that fits the images, and their features."""
        longest = self.data.facts.select(pl.max_horizontal("width", "height")).to_series().to_list()
        options = self.options
        vision, assumed = make_encoder(options.model, longest, options.crop, options.seed)
        self.notes += assumed
        self.place = self._cache_place()
        found = FeaturePass(
            self.data,
            device=self.device,
            workers=self.workers,
            seed=options.seed,
            place=self.place,
            stage=self._stage,
            views=views,
        )
        limit = options.budget * 60
        share_of = FEATURE_SHARE * limit if limit else float("inf")
        self.passed = found
        vision, features = found.run(vision.to(self.device), lambda: min(share_of, self._left()))
        if options.harden and "mirror" in views:
            add_copies(found, vision, features, lambda: min(share_of / 2, self._left()))
        if found.given_up:
            self.shortened = self._uses("features", "answers")
            self.notes.append(f"Shortened by the budget: {', '.join(found.given_up)}.")
        self.directory.mark("features")
        return vision, features

    def _engine(self, vision: VisionModel) -> Callable[[], Engine]:
        return lambda: choose_engine(vision, self.data.images, self.device)[0]

    def _look(self) -> None:
        """Features alone, of data on which nothing can be right or wrong."""
        vision, self.features = self._describe(("image",))
        self.vision = vision
        self.deployed = DeployedRun(vision, self._engine(vision))
        self.facts_of_model = model_facts(vision, "made", "exact")

    def _make(self) -> None:
        vision, features = self._describe(VIEWS)
        options = self.options
        splits = self.data.splits(range(options.seed, options.seed + options.splits))
        data = Labelled(
            self.data.images.table["id"].to_numpy(),
            self.data.images.table["label"].fill_null(-1).to_numpy(),
            soft_labels(self.data.images),
            self.data.unit,
        )
        small = (
            thumbnails(self.data.facts, 16).reshape(len(self.data.facts), -1).astype(np.float32)
            / 255
        )
        few = threadpool_limits(BLAS_THREADS, user_api="blas")
        with few, self._stage("heads", len(splits)) as stage:
            answers = answer(features, data, splits, small, options.seed, stage.advance)
            stage.note(f"{answers.shipped.candidate} chosen")
        made = Made(data, features, answers)
        if options.finetune:
            vision, made, splits = self._finetuned(vision, made, splits)
        self.features, self.made = made.features, made
        self._adopt(vision, made, splits)

    def _finetuned(
        self, vision: VisionModel, made: Made, splits: list[Split]
    ) -> tuple[VisionModel, Made, list[Split]]:
        """The encoder trained too, if that makes it better; its time is not the study's budget."""
        # Here, because what trains takes seconds to import.
        from beholder.train.finetune import finetune

        assert self.passed is not None
        minutes = self.options.finetune_budget or 2 * self.options.budget
        begun = time.monotonic()
        tuned = finetune(
            *(vision, made.features, made.data, made.answers, splits[0], self.passed),
            seconds=60 * minutes or float("inf"),
        )
        self.begun += time.monotonic() - begun
        self.notes.append(tuned.note)
        if tuned.found is None:
            return vision, made, splits
        self.finetuned = True
        vision, features, answers = tuned.found
        return vision, Made(made.data, features, answers), splits[:1]

    def _adopt(self, vision: VisionModel, made: Made, splits: list[Split]) -> None:
        """The trained head becomes the model's; the portable one the backbone's classifier."""
        classes = self.data.images.classes
        data, features, answers = made.data, made.features, made.answers
        first, chosen = splits[0], answers.shipped
        vision.head, vision.mirror, vision.classes = chosen.head.eval(), chosen.mirror, classes
        self.vision = vision
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
            embeddings=features.take(columns=features.layout["pooled"]),
            repeats=answers.repeats,
            baselines=answers.baselines,
            learning=answers.learning,
        )
        self.notes += first.notes
        head = {"name": chosen.candidate.kind, "options": {"candidate": str(chosen.candidate)}}
        head["options"] |= {f"{chosen.metric}, {name}": s for name, s in chosen.scores.items()}
        if chosen.without_mirror is not None:
            head["options"][f"{chosen.metric}, without mirror"] = chosen.without_mirror
        if chosen.with_copies is not None:
            head["options"][f"{chosen.metric}, with changed copies"] = chosen.with_copies
            head["options"]["hardened"] = chosen.hardened
            if not chosen.hardened:
                self.notes.append("Not hardened: to learn from changed copies would cost a point.")
        if self.finetuned:
            head = {"name": "linear", "options": dict(chosen.scores)}
        self.facts_of_model = model_facts(vision, "made", "exact") | {
            "head": head,
            "finetuned": self.finetuned,
            "macs": macs(vision.to("cpu"), torch.zeros(1, 3, *vision.input_size)),
            "portable_accuracy": self._portable_accuracy(answers, data) if portable else None,
        }
        self.deployed = DeployedRun(vision, self._engine(vision), answers.heads, answers.head_of)

    def _portable_accuracy(self, answers: Answers, data: Labelled) -> Value:
        portable_rows = answers.baselines.filter(pl.col("name") == "portable")
        position = {id: row for row, id in enumerate(data.ids)}
        rows = np.array([position[id] for id in portable_rows["id"]], int)
        hits = portable_rows["predicted"].to_numpy() == data.label[rows]
        return share(hits, self.data.unit[rows])

    def _judge(self, model: VisionModel | GivenModel) -> None:
        self.place = self._cache_place()
        run = Path(self.options.model) if self.options.model else None
        judged = self._answers_of(model, run, self.data.images, self.data.facts, "answers")
        if isinstance(model, VisionModel):
            self.vision = model
        if judged.gone:
            self.data.lose(judged.gone, self.options.seed)
            self._judge(model)
            return
        self.answered = answered = judged.answered
        if answered.embeddings is not None:
            width = answered.embeddings.shape[1]
            self.features = Features.of(answered.embeddings)
            self.features.layout = {"pooled": slice(0, width)}
        if isinstance(model, VisionModel):
            self.deployed = DeployedRun(model, self._engine(model), match=judged.match)
        else:
            width = 0 if answered.embeddings is None else answered.embeddings.shape[1]
            self.deployed = DeployedGiven(model, judged.match, judged.kept, width)
        self.notes += judged.notes
        self.facts_of_model = model_facts(model, "given", judged.class_match)

    def _answers_of(
        self,
        model: VisionModel | GivenModel,
        run: Path | None,
        images: Images,
        facts: pl.DataFrame,
        stage: str,
    ) -> Judged:
        """A given model's answers to images. `run`: where it comes from, to know what it learned
        from."""
        options, hashes = self.options, facts["file_hash"].to_list()
        if model.weights_hash is None:  # what cannot be named cannot be cached
            self.place = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        views = 2 if isinstance(model, VisionModel) and model.mirror else 1
        with self._stage(stage, len(images) * views, model.name) as progress:
            if isinstance(model, VisionModel):
                model.to(self.device)
                return judge_run(
                    model,
                    self._engine(model),
                    images,
                    hashes,
                    trained_on=training_hashes(run) if run else set(),
                    exact=facts["exact_hash"].to_list(),
                    workers=self.workers,
                    directory=self.place,
                    progress=progress.advance,
                )
            return judge_given(
                model,
                images,
                hashes,
                class_map=options.class_map,
                by_position=options.by_position,
                workers=self.workers,
                directory=self.place,
                seed=options.seed,
                progress=progress.advance,
                trained_on=training_hashes(run) if run else None,
                exact=facts["exact_hash"].to_list(),
            )

    # sections, cost, report ------------------------------------------------------------------

    def _measure(self) -> None:
        """What sections ask anew; the model is saved before, as some of them name it."""
        if self.made and self.vision:
            candidate = str(self.made.answers.shipped.candidate)
            save_model(self.vision, {"candidate": candidate}, self.directory.path)
            self.directory.mark("model")
        of = {
            "run": self.directory.key,
            "budget": self.options.budget,
            "device": self.device,
            "answers": self.answered and _digest(self.answered.logits),
        }
        plan = Plan(self.options.budget * 60, self._left)
        measuring = Measuring(self.directory.path, key_of(of), plan, self._stage)
        self.measuring = measuring
        evidence = self._evidence()
        measuring.run(self.wanted, evidence, partial(self._subject, evidence))
        self.evidence = evidence
        self.tracebacks += measuring.tracebacks
        self.directory.mark("measured")

    def _subject(self, evidence: Evidence, allowance: Allowance) -> Subject:
        return Subject(
            data=self.data,
            evidence=evidence,
            options=self.options,
            model=self.deployed,
            features=self.features,
            labelled=self.made.data if self.made else None,
            fitted=self.made.answers.shipped if self.made else None,
            device=self.device,
            workers=self.workers,
            place=self.place,
            run=self.directory.path,
            allowance=allowance,
        )

    def _measure_cost(self) -> None:
        """Needs the saved model: a fresh process loads it to measure its memory."""
        vision = self.vision
        if vision is None or vision.head is None or "cost" not in self.wanted:
            return
        path = self.directory.path
        made = self.facts_of_model["origin"] == "made"
        rows = list(range(0, len(self.data.images), max(1, len(self.data.images) // 32)))[:32]
        prepared = [vision.prepare(image) for image in readable(self.data.images, rows)]
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
                lambda: vision.prepare(next(readable(self.data.images, rows))),
                seconds=seconds,
                work=work,
                run=path if made else None,
                single_pass=self._single_pass() if made else "",
                progress=stage.advance,
            )

    def _single_pass(self) -> str:
        """Accuracy of the same head on the image alone."""
        made, answered = self.made, self.answered
        if made is None or answered is None:
            return ""
        rows = np.flatnonzero((answered.roles == "test") & (made.data.label >= 0))
        if answered.kind == "cross_fit" or not len(rows):
            return "accuracy not measured"
        head = made.answers.shipped.head
        predicted = probability(head, decide(head, made.features, rows)).argmax(1)
        hits = predicted == made.data.label[rows]
        return f"accuracy {100 * hits.mean():.1f} %"

    def _evidence(self) -> Evidence:
        data = self.data
        evidence = assemble(data.images, data.facts, data.unit, data.copy_group, self.answered)
        if evidence.embeddings is None and self.features is not None:
            evidence.embeddings = self.features.take(columns=self.features.layout["pooled"])
        evidence.cost = self.cost
        evidence.data = data_facts(
            self.data.images, evidence, self.data.fingerprint, self.data.opened
        )
        evidence.split = split_facts(evidence, self.answered, self.options.seed)
        evidence.model = self.facts_of_model
        evidence.environment = environment(
            self.device, torch.get_num_threads(), self.options.seed, self.data.fingerprint
        )
        evidence.notes = [*data.images.notes, *data.notes, *self.notes]
        return evidence

    def _summarise(self) -> None:
        evidence = self.evidence = self.evidence or self._evidence()
        evidence.cost = self.cost
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

    def _compare(self) -> None:
        """The other run on the same images, shown after the accuracy."""
        if self.rival is None:
            return
        evidence = self.evidence or self._evidence()
        corruptions = self.sections.get("corruptions")
        own = Side(
            "this model",
            evidence.frame,
            self.data.images.classes,
            self.data.fingerprint,
            corruptions.values.get("retained") if corruptions else None,
        )
        try:
            self.against, section = compare(own, self._other_side(evidence), self.options.seed)
        except Exception as error:  # a failing section must not end the study
            finding = f"This section failed: {type(error).__name__}: {error}"
            section = Section(id="against", title=TITLE, finding=finding, status="failed")
            self.tracebacks.append(traceback.format_exc())
        first = {id: part for id, part in self.sections.items() if id in ("data", "accuracy")}
        self.sections = first | {"against": section} | self.sections

    def _other_side(self, evidence: Evidence) -> Side:
        """What it answered; on other data its model, if it is there, answers to these images."""
        rival = self.rival
        assert rival is not None
        same_data = rival.report and rival.report.data.fingerprint == self.data.fingerprint
        if same_data or not rival.has_model or not len(evidence.judged):
            return rival.side()
        model = rival.model()
        images, facts = self.data.images, self.data.facts
        if not (isinstance(model, VisionModel) and same_encoder(model, self.vision)):
            mask = images.table["id"].is_in(evidence.judged["id"].to_list())
            images, facts = images.where(mask), facts.filter(mask)
        judged = self._answers_of(model, rival.path, images, facts, "against")
        return rival.answering(judged, images, facts)

    def _report(self, stopped: bool) -> Report:
        evidence = self.evidence or self._evidence()
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
        row_of = {id: row for row, id in enumerate(self.data.images.table["id"])}
        made = self.measuring.pictures if self.measuring else {}
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
                shortened=self._with_status("reduced"),
                skipped=self._with_status("skipped_budget"),
            ),
            timing=dict(self.timing),
            against=self.against,
            directory=self.directory.path,
            pictures=render_pictures(
                lambda id: made[id] if id in made else self.data.images.read(row_of[id]), ids
            ),
            open_model=partial(load, self.directory.path),
            anonymous=self.options.anonymous,
        )

    def _with_status(self, status: Status) -> list[str]:
        return [id for id, section in self.sections.items() if section.status == status]

    def _write(self, report: Report) -> None:
        path = self.directory.path
        assert self.evidence is not None
        frame = predictions(self.evidence.frame, self.sections)
        write_atomic(path / "predictions.parquet", lambda out: frame.write_parquet(out))
        skipped = self.data.images.skipped
        write_bytes(path / "skipped.csv", csv_text(skipped.columns, skipped.iter_rows()).encode())
        write_json(path / "environment.json", self.evidence.environment)
        if self.answered is not None and self.answered.repeats is not None:
            repeats = self.answered.repeats
            write_atomic(
                path / "records" / "splits.parquet", lambda out: repeats.write_parquet(out)
            )
        (path / "log.txt").unlink(missing_ok=True)  # of an earlier try
        if self.tracebacks:
            write_bytes(path / "log.txt", "\n".join(self.tracebacks).encode())
        report.save(path)
        self.directory.mark("report")
        self.directory.link_latest()


def _digest(array: np.ndarray) -> str:
    return digest(np.ascontiguousarray(array).tobytes())


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._" else "-" for c in text)[:40].strip("-.")
    return kept or "data"


def _command() -> list[str]:
    """The words of the command line, without absolute paths; 'python' where there is none."""
    if Path(sys.argv[0]).name != "beholder":
        return ["python"]
    return ["beholder", *(portable(word) for word in sys.argv[1:])]

"""`beholder.evaluate`: the figures of one model on one set of images, without a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import polars as pl
from torch import nn

from beholder.core.errors import ArgumentError
from beholder.core.files import digest, write_atomic, write_json
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.options import Options
from beholder.core.registry import find, make
from beholder.core.sections import Section, Table, Unit
from beholder.data.scanned import Scanned
from beholder.data.sources import open_images
from beholder.metrics.bootstrap import paired
from beholder.models.given import open_model
from beholder.models.given_model import GivenModel
from beholder.models.open import open_vision
from beholder.models.run import is_run, load
from beholder.train.made import choose_engine, pick_device, subset

from .benchmarks import SECTIONS
from .benchmarks.base import Evidence
from .benchmarks.benchmark import Benchmark
from .benchmarks.probes import Kind
from .evidence import assemble, data_facts, model_facts, split_facts
from .given import Judged, judge_given, judge_run, training_hashes

Model = str | Path | nn.Module

FIGURES = ("accuracy", "groups", "confusion", "calibration")
"""Sections of a study that need nothing but answers."""
WORKERS = 2


@dataclass(frozen=True)
class Matching:
    """How outputs of a given model become classes of the data."""

    classes: tuple[str, ...] | None
    class_map: Path | None
    by_position: bool


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        sections: in the order that was asked for.
        records: name of a section -> one row per scored unit, from which its figures come.
    """

    sections: list[Section]
    records: dict[str, pl.DataFrame] = field(default_factory=dict)

    def __getitem__(self, id: str) -> Section:
        return next(section for section in self.sections if section.id == id)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"sections": [section.to_dict() for section in self.sections]}

    def save(self, directory: Path) -> None:
        """`results.json`, and `records/NAME.parquet`."""
        write_json(directory / "results.json", self.to_dict())
        for name, frame in self.records.items():
            write_atomic(directory / "records" / f"{name}.parquet", frame.write_parquet)


def evaluate(
    model: Model,
    data: str | Path | Images,
    *,
    benchmark: str | Benchmark | Sequence[str | Benchmark] = (),
    probe: str | Sequence[str] = (),
    compare: Model | Sequence[Model] = (),
    classes: Sequence[str] | None = None,
    class_map: Path | None = None,
    by_position: bool = False,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Evaluation:
    """How good is a model on these images, in figures.

    Args:
        model: a run, a timm name, a model file or module, as for `study`. A timm name is judged by
            its own classifier; for benchmarks and probes it is a backbone.
        data: a path, `scheme:PLACE`, the name of built-in data, or opened `Images`.
        benchmark: names, or benchmarks; none and no probe = accuracy, groups, confusion,
            calibration as `study` has them.
        probe: 'linear', 'linear_sgd', 'knn', 'layers', 'svm'.
        compare: other models: the same figures of each, and paired differences.
        classes: names of the model's outputs, where it has none or others.
        class_map: CSV with the columns data_class, model_class.
        by_position: output i is class i.
        limit: at most so many images, classes in proportion.
        out: directory for `results.json` and the records.
        options: benchmark -> its arguments; `probes` -> those of the probes.

    Raises:
        DataError, ModelError, ArgumentError: with a hint what to do.
    """
    images = data if isinstance(data, Images) else open_images(data)
    others = _listed(compare)
    asked = _benchmarks(benchmark, probe, options or {})
    if asked:
        found = _benchmarked(model, others, images, asked, seed, limit, device)
    else:
        matching = Matching(tuple(classes) if classes else None, class_map, by_position)
        found = _judged(model, others, images, matching, seed, limit, device)
    if out is not None:
        found.save(Path(out))
    return found


def _listed(given: Any) -> list[Any]:
    """One, several or none as a list."""
    return list(given) if isinstance(given, list | tuple) else [given]


def _benchmarks(
    benchmark: Any, probe: Any, options: Mapping[str, Mapping[str, Any]]
) -> list[Benchmark]:
    found = []
    for one in _listed(benchmark):
        if isinstance(one, Benchmark):
            found.append(one)
        else:
            name = find("benchmark", one).name
            found.append(make("benchmark", name, **options.get(name, {})))
    kinds = _listed(probe)
    for kind in (kind for kind in kinds if kind not in get_args(Kind)):
        raise ArgumentError(
            f"There is no probe {kind!r}.", f"There is: {', '.join(get_args(Kind))}."
        )
    if kinds:
        found.append(make("benchmark", "probes", kinds=kinds, **options.get("probes", {})))
    return found


# benchmarks --------------------------------------------------------------------------------------


def _benchmarked(
    model: Model,
    others: list[Model],
    images: Images,
    asked: list[Benchmark],
    seed: int,
    limit: int | None,
    device: str,
) -> Evaluation:
    place = pick_device(device)
    models = [open_vision(one, seed=seed).to(place) for one in (model, *others)]
    names = _names(models)
    found = Evaluation([])
    for one in asked:
        kept: list[tuple[str, pl.DataFrame]] = []
        for name, vision in zip(names, models, strict=True):
            section, records = one.measure(vision, images, seed=seed, limit=limit)
            id = section.id
            if len(models) > 1:
                section = section.model_copy(update={"title": f"{section.title}: {name}"})
            found.sections.append(section)
            if len(records):
                kept.append((name, records))
                found.records[id if len(kept) == 1 else f"{id}.{len(kept)}"] = records
        if len(kept) > 1:
            found.sections.append(_benchmark_differences(one, kept))
    return found


def _benchmark_differences(one: Benchmark, kept: list[tuple[str, pl.DataFrame]]) -> Section:
    (ours, records), *others = kept
    rows, values = [], {}
    for name, theirs in others:
        for measure, value in one.differences(records, theirs).items():
            values[f"{measure}, {name}"] = value
            row = {"model": name, "measure": measure, "difference": value.estimate}
            rows.append(row | {"difference_low": value.low, "difference_high": value.high})
    first = next(iter(values))
    section = one.section(f"{ours} minus the others: {first} {values[first].text()}.")
    section.id, section.title = f"{section.id}_compared", f"{section.title}: differences"
    section.values, section.n = values, values[first].n
    section.tables["differences"] = Table(frame=pl.DataFrame(rows), units={"difference": "share"})
    return section


# the figures of a study --------------------------------------------------------------------------


def _judged(
    model: Model,
    others: list[Model],
    images: Images,
    matching: Matching,
    seed: int,
    limit: int | None,
    device: str,
) -> Evaluation:
    if images.kind != "classes":
        raise ArgumentError(
            f"{images.name} has no single label per image, so no answer can be held against it.",
            "Give images of classes, or name a --benchmark.",
        )
    if limit is not None and limit < len(images):
        chosen = subset(images, limit, lambda id: digest(str(seed), id))
        images = images.where(pl.Series(chosen))
    data = Scanned(images, max_pixels=images.max_pixels, workers=WORKERS, use_cache=True)
    data.find_units(seed)
    options = Options.parse(data=images.name, seed=seed)
    opened = [_opened(one, matching.classes) for one in (model, *others)]
    names = _names(opened)
    answers = [
        _evidence(one, spec, data, matching, seed, device)
        for one, spec in zip(opened, (model, *others), strict=True)
    ]
    sections = [SECTIONS[id].run(answers[0], options)[0] for id in FIGURES]
    for section in sections:
        section.assumptions += answers[0].notes if section.id == "accuracy" else []
    found = Evaluation([s for s in sections if s.status != "not_applicable"] or sections[:1])
    found.records["answers"] = answers[0].frame
    if others:
        found.sections.append(_comparison(names, answers))
        for number, evidence in enumerate(answers[1:], 2):
            found.records[f"answers.{number}"] = evidence.frame
    return found


def _opened(spec: Model, classes: Sequence[str] | None) -> VisionModel | GivenModel:
    """A model that gives answers, as `study` would open it."""
    if isinstance(spec, str | Path) and is_run(Path(spec)):
        if (Path(spec) / "head.json").is_file():
            return load(spec)
        return open_model(f"local-dir:{spec}", classes=classes)
    if not isinstance(spec, VisionModel):
        return open_model(spec, classes=classes)
    if spec.head is not None:
        return spec
    names = classes or spec.classes
    given = open_model(spec.backbone, classes=names, input_size=spec.input_size, crop=spec.crop)
    given.name = spec.name
    return given


def _names(models: Sequence[VisionModel | GivenModel]) -> list[str]:
    """Theirs, numbered where two have the same."""
    names = [model.name for model in models]
    return [
        name if names.count(name) == 1 else f"{name} ({names[:number].count(name) + 1})"
        for number, name in enumerate(names)
    ]


def _evidence(
    model: VisionModel | GivenModel,
    spec: Model,
    data: Scanned,
    matching: Matching,
    seed: int,
    device: str,
) -> Evidence:
    """Answers to every image; images that vanish meanwhile are left out."""
    judged = _ask(model, spec, data, matching, seed, device)
    if judged.gone:
        data.lose(judged.gone, seed)
        return _evidence(model, spec, data, matching, seed, device)
    answered = judged.answered
    found = assemble(data.images, data.facts, data.unit, data.copy_group, answered)
    found.data = data_facts(data.images, found, data.fingerprint, data.opened)
    found.split = split_facts(found, answered, seed)
    found.model = model_facts(model, "given", judged.class_match)
    found.notes = [*data.images.notes, *data.notes, *judged.notes]
    return found


def _ask(
    model: VisionModel | GivenModel,
    spec: Model,
    data: Scanned,
    matching: Matching,
    seed: int,
    device: str,
) -> Judged:
    images, place = data.images, pick_device(device)
    model.to(place)
    if isinstance(model, VisionModel):
        run = Path(spec) if isinstance(spec, str | Path) else None
        return judge_run(
            model,
            lambda: choose_engine(model, images, place)[0],
            images,
            data.hashes,
            trained_on=training_hashes(run) if run else set(),
            exact=data.facts["exact_hash"].to_list(),
            workers=WORKERS,
            directory=None,
            progress=lambda count: None,
        )
    with TemporaryDirectory(prefix="beholder-") as own:
        return judge_given(
            model,
            images,
            data.hashes,
            class_map=matching.class_map,
            by_position=matching.by_position,
            workers=WORKERS,
            # what cannot be named cannot be cached
            directory=Path(own) if model.weights_hash is None else None,
            seed=seed,
            progress=lambda count: None,
        )


def _comparison(names: list[str], answers: list[Evidence]) -> Section:
    """Accuracy of each model on the images that it and the first were judged on, paired."""
    ours = answers[0].judged.select("id", "unit", "correct")
    rows, values = [], {}
    for name, evidence in zip(names[1:], answers[1:], strict=True):
        theirs = evidence.judged.select("id", pl.col("correct").alias("theirs"))
        both = ours.join(theirs, on="id")
        if not len(both):
            raise ArgumentError(f"{names[0]} and {name} were not judged on any common image.")
        a, b = (both[column].to_numpy().astype(float) for column in ("correct", "theirs"))
        value = paired(a, b, both["unit"].to_numpy(), unit="points")
        values[name] = value
        rows.append(
            {
                "model": name,
                "images": len(both),
                "accuracy": float(b.mean()),
                f"accuracy_of_{names[0]}": float(a.mean()),
                "difference": value.estimate,
                "difference_low": value.low,
                "difference_high": value.high,
                "only_first_right": int(((a == 1) & (b == 0)).sum()),
                "only_other_right": int(((a == 0) & (b == 1)).sum()),
            }
        )
    first = names[1]
    shares = ("accuracy", f"accuracy_of_{names[0]}", "difference")
    units: dict[str, Unit] = dict.fromkeys(shares, "share")
    return Section(
        id="comparison",
        title="Comparison",
        finding=f"{names[0]} minus {first}: {values[first].text()} of accuracy.",
        n=values[first].n,
        values=values,
        tables={"models": Table(frame=pl.DataFrame(rows), units=units)},
    )

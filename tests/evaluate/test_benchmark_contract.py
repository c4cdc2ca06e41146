"""What every benchmark does: it says why it cannot run, and its figures follow from its records."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from beholder.core.errors import ArgumentError
from beholder.core.registry import systems
from beholder.core.sections import Section
from beholder.data.sources import open_images
from beholder.evaluate.benchmarks.benchmark import Benchmark, compare
from beholder.metrics.intervals import share
from beholder.models.open import open_vision

ENTRIES = systems("benchmark")


class Share(Benchmark):
    """The share of images whose number is below a bar."""

    title = "A share"

    def __init__(self, bar: int = 5) -> None:
        self.bar = bar

    def can_run(self, model, data) -> str | None:
        return None if len(data) else "There are no images."

    def records(self, model, data, *, seed, limit) -> pl.DataFrame:
        numbers = np.arange(len(data))[:limit]
        score = (np.asarray(data)[numbers] < self.bar).astype(float)
        return pl.DataFrame({"id": numbers.astype(str), "score": score})

    def summarise(self, records) -> Section:
        value = share(records["score"].to_numpy())
        return self.section(value.text(), values={"share": value}, n=value.n)


def test_run_is_the_summary_of_the_records():
    benchmark, data = Share(), list(range(40))
    section, records = benchmark.measure(None, data)
    assert section == benchmark.summarise(records) == benchmark.run(None, data)
    assert section.values["share"].estimate == 5 / 40
    assert (section.id, section.title) == ("share", "A share")


def test_what_cannot_run_says_why_and_has_no_records():
    section, records = Share().measure(None, [])
    assert section.status == "not_applicable"
    assert section.finding == "There are no images."
    assert not len(records)


def test_two_models_are_compared_image_by_image_whatever_the_order():
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(60)]
    ours = pl.DataFrame({"id": ids, "score": rng.integers(0, 2, 60).astype(float)})
    theirs = ours.with_columns((1 - pl.col("score")).alias("score"))[rng.permutation(60)]
    value = compare(ours, theirs)
    assert value.estimate == pytest.approx(2 * ours["score"].mean() - 1)
    assert compare(ours, ours[::-1]).estimate == 0.0
    assert Share().differences(ours, theirs)["score"] == value


def test_rows_of_one_unit_are_drawn_together():
    rng = np.random.default_rng(1)
    score = rng.integers(0, 2, 50).astype(float)
    once = pl.DataFrame({"id": [f"{i}" for i in range(50)], "score": score})
    ids = [f"{i}.{copy}" for copy in range(4) for i in range(50)]
    unit = np.tile(np.arange(50), 4)
    often = pl.DataFrame({"id": ids, "unit": unit, "score": np.tile(score, 4)})
    narrow = often.drop("unit")
    nothing = [frame.with_columns(pl.lit(0.0).alias("score")) for frame in (once, often, narrow)]
    one, four, alone = (
        compare(a, b).width for a, b in zip((once, often, narrow), nothing, strict=True)
    )
    assert four == pytest.approx(one, rel=0.05)
    assert alone < 0.6 * one


def test_models_without_a_common_image_are_refused():
    frame = pl.DataFrame({"id": ["a"], "score": [1.0]})
    with pytest.raises(ArgumentError, match="any common image"):
        compare(frame, frame.with_columns(pl.lit("b").alias("id")))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_every_benchmark_is_made_without_arguments_and_refuses_in_a_sentence(entry):
    made = entry.load()()
    assert isinstance(made, Benchmark)
    unlabelled = open_images("digits")
    unlabelled = type(unlabelled)(**{**vars(unlabelled), "kind": "unlabelled", "classes": ()})
    section = made.run(open_vision("untrained:test_resnet", input_size=(32, 32)), unlabelled)
    assert section.status == "not_applicable"
    assert section.id == entry.name
    assert section.finding.endswith(".")
    assert Section.model_validate(section.to_dict()).finding == section.finding

"""What sections measure anew: shares of the budget, what is kept, what a failure does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

import beholder.evaluate.measuring as measuring
from beholder.core.options import Options
from beholder.core.sections import Section, Spent
from beholder.evaluate.benchmarks.base import Evidence, Records, SectionSpec
from beholder.evaluate.measuring import MOST, RESERVE, Measuring, Plan
from beholder.evaluate.subject import Allowance, Subject, TooLittleTimeError, sampled
from tests import planted


def spec(id: str, measure: Any = None, share: float = 0.1) -> SectionSpec:
    def summarise(evidence: Evidence, options: Options) -> Section:
        rows = evidence.records[id]["rows"]
        return Section(id=id, title=id, finding=f"{len(rows)} rows.", n=len(rows))

    return SectionSpec(id, id, lambda evidence: None, summarise, measure, "answers", share)


def three(subject: Subject) -> Records:
    rows = pl.DataFrame({"x": [1, 2, 3]})
    ids = subject.evidence.frame["id"][:2]
    images = pl.DataFrame({"id": ids, "label_issue": [True, False]})
    spent = Spent(wanted=4, used=3)
    return Records({"rows": rows, "images": images}, spent, {"a/1": np.full((2, 3, 4), 7, "u1")})


class Stage:
    total = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *what: object) -> None:
        pass

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@pytest.fixture
def world(monkeypatch, tmp_path):
    """(run, evidence): `run(specs)` measures them all and gives their sections."""
    evidence = planted.evidence(np.arange(40) % 2, np.full((40, 2), 0.5))

    def run(specs: list[SectionSpec], limit: float = 0.0, left: float = 60.0, key: str = "k"):
        known = {one.id: one for one in specs}
        monkeypatch.setattr(measuring, "SECTIONS", known)
        monkeypatch.setattr(measuring, "MEASURED", tuple(known))
        own = replace(evidence, records={}, unmeasured={}, spent={})
        runner = Measuring(tmp_path, key, Plan(limit, lambda: left), lambda *what: Stage())
        subject = lambda allowance: _subject(own, allowance)  # noqa: E731
        runner.run(list(known), own, subject)
        options = Options.parse(data="x")
        return own, runner, {id: one.run(own, options)[0] for id, one in known.items()}

    return run


def _subject(evidence: Evidence, allowance: Allowance) -> Subject:
    nothing: Any = None
    return Subject(
        *(nothing, evidence, nothing, None, None, None, None),
        *("cpu", 1, None, nothing, allowance),
    )


def test_records_join_the_evidence_and_a_shortened_section_says_so(world):
    evidence, runner, sections = world([spec("a", three)])
    assert sections["a"].finding == "3 rows."
    assert sections["a"].status == "reduced"
    assert (sections["a"].budget.wanted, sections["a"].budget.used) == (4, 3)
    assert evidence.frame["label_issue"].to_list()[:3] == [True, False, None]
    assert runner.pictures["a/1"].shape == (2, 3, 4)


def test_the_same_command_goes_on_and_another_measures_again(world):
    calls = []

    def counted(subject: Subject) -> Records:
        calls.append(1)
        return three(subject)

    _, _, first = world([spec("a", counted)])
    evidence, runner, again = world([spec("a", counted)])
    assert len(calls) == 1
    assert again["a"].finding == first["a"].finding
    assert again["a"].status == "reduced"
    assert (runner.pictures["a/1"] == 7).all()
    assert evidence.frame["label_issue"].sum() == 1
    world([spec("a", counted)], key="another")
    assert len(calls) == 2


def test_torn_records_are_measured_again(world, tmp_path):
    world([spec("a", three)])
    (tmp_path / "records" / "measured" / "a" / "rows.parquet").write_bytes(b"PAR1")
    _, _, sections = world([spec("a", three)])
    assert sections["a"].finding == "3 rows."


def test_a_failure_ends_the_section_and_not_the_study(world):
    def breaks(subject: Subject) -> Records:
        raise ValueError("no such thing")

    _, runner, sections = world([spec("a", breaks), spec("b", three)])
    assert sections["a"].status == "failed"
    assert "no such thing" in sections["a"].finding
    assert sections["b"].status == "reduced"
    assert "ValueError" in runner.tracebacks[0]


def test_too_little_time_names_the_budget_that_would_do(world):
    def dear(subject: Subject) -> Records:
        subject.allowance.count(price=30, wanted=10, floor=4)
        raise AssertionError("there was no time for this")

    _, _, sections = world([spec("a", dear)], limit=360, left=60)
    assert sections["a"].status == "skipped_budget"
    assert "needs 120 s" in sections["a"].finding
    assert "--budget 1" in sections["a"].finding


def test_shares_of_what_is_left_and_never_more_than_twice_its_own():
    plan = Plan(360, lambda: 100.0)
    a, b = spec("a", share=0.06), spec("b", share=0.02)
    free = 100 - RESERVE * 360
    assert plan.allowance(a, [b]).seconds == pytest.approx(min(0.75 * free, MOST * 0.06 * 360))
    assert plan.allowance(b, []).seconds == pytest.approx(MOST * 0.02 * 360)
    assert Plan(0, lambda: 1.0).allowance(a, [b]).seconds == float("inf")


def test_an_allowance_counts_what_fits():
    assert Allowance(float("inf")).count(1e9, 200, 32) == 200
    assert Allowance(10).count(0.1, 200, 32) in (99, 100)
    assert Allowance(10).count(0, 200, 32) == 200
    assert Allowance(0.5).count(0.1, 3, 32) == 3
    with pytest.raises(TooLittleTimeError) as error:
        Allowance(1).count(1, 200, 32)
    assert error.value.needs == 32


@pytest.mark.parametrize("count", [1, 7, 20, 99, 100, 1000])
def test_a_sample_holds_the_classes_in_proportion(count):
    labels = np.repeat([0, 1], [80, 20])
    rows = np.arange(100) * 3
    found = sampled(rows, labels, count, seed=1)
    assert len(found) == min(count, 100)
    assert (np.diff(found) > 0).all()
    assert np.isin(found, rows).all()
    rare = labels[found // 3].sum()
    assert abs(rare - 0.2 * len(found)) <= 1
    assert (sampled(rows, labels, count, seed=1) == found).all()

"""The cost and method sections (specs/study.md, 4.15, 4.16)."""

from __future__ import annotations

import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.evaluate.benchmarks import method
from beholder.evaluate.benchmarks.base import SECTIONS
from beholder.evaluate.benchmarks.cost import COLUMNS, finding, summarise

OPTIONS = Options.parse(data="planted")
MISSING = "not installed: pip install beholder[export]"
ROWS = [
    ("eager", 1, 80.0, 95.0, 12.5, 300.0, None, None, None),
    ("eager", 8, 500.0, 600.0, 16.0, 420.0, None, None, None),
    ("openvino", 1, 27.0, 31.0, 37.0, 310.0, 1e-4, 1.0, None),
    ("openvino", 8, 210.0, 230.0, 38.0, 340.0, 1e-4, 1.0, None),
    ("careless", 1, 9.0, 10.0, 111.0, 100.0, 0.5, 0.998, None),
    ("onnxruntime", 1, None, None, None, None, None, None, MISSING),
    ("end to end", 1, 33.0, 38.0, 30.0, None, None, None, None),
    ("single pass", 1, 14.0, 16.0, 71.0, None, None, None, "accuracy 85.5 %"),
]


def timed(rows=ROWS):
    evidence = planted.perfect(60)
    evidence.cost = pl.DataFrame(rows, schema=planted.COST_SCHEMA, orient="row")
    return evidence


@pytest.mark.parametrize(
    ("limit", "severity", "said"),
    [
        (None, "none", "27 ms, 38 images/s (openvino), 340 MiB."),
        (31, "good", "within 31 ms in nine of ten runs"),
        (30.9, "look", "one run in ten takes more than 30.9 ms (31)"),
        (27, "look", "one run in ten"),
        (26.9, "act", "slower than the 26.9 ms wanted"),
    ],
)
def test_severity_is_none_unless_a_latency_is_wanted(limit, severity, said):
    row = {
        "engine": "openvino",
        "latency_p50_ms": 27.0,
        "latency_p90_ms": 31.0,
        "images_per_s": 38.0,
        "memory_mb": 340.0,
    }
    assert finding(row, limit)[0] == severity
    assert said in finding(row, limit)[1]


def test_the_fastest_engine_that_answers_alike_is_told():
    section = summarise(timed(), OPTIONS)
    assert section.finding == "27 ms, 38 images/s (openvino), 340 MiB."
    assert section.severity == "none"
    assert section.values["latency_ms"].estimate == 27
    assert section.values["latency_ms"].unit == "ms"
    assert section.values["latency_ms"].higher_is_better is False


def test_an_engine_that_answers_differently_is_marked_and_a_missing_one_is_a_row():
    table = summarise(timed(), OPTIONS).frame("engines")
    assert table.columns == [*COLUMNS, "note"]
    notes = dict(table.select("engine", "note").iter_rows())
    assert notes["careless"] == "answers differ"
    assert notes["onnxruntime"] == MISSING
    assert notes["single pass"] == "accuracy 85.5 %"
    assert notes["eager"] is None


def test_the_figure_shows_engines_at_the_smallest_batch_with_whiskers():
    figure = summarise(timed(), OPTIONS).figures["latency"]
    assert figure.data.row(1) == ("openvino", 27.0, 27.0, 31.0)
    assert "onnxruntime" not in figure.data["label"].to_list()


def test_a_wanted_latency_gives_a_severity():
    assert summarise(timed(), Options.parse(data="x", latency_ms=20)).severity == "act"


def test_a_busy_machine_is_said():
    evidence = timed()
    evidence.environment = {"load_at_start": 3.5, "cores": 2}
    lines = summarise(evidence, OPTIONS).method
    assert "Measured on a busy machine (load 3.5 on 2 cores)." in lines


@pytest.mark.parametrize("rows", [[], ROWS[5:6]])
def test_without_a_timed_engine_there_is_a_sentence_and_no_section(rows):
    section, _ = SECTIONS["cost"].run(timed(rows), OPTIONS)
    assert section.status == "not_applicable"
    assert section.finding


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "solar"}, "beholder study solar"),
        ({"data": "my pictures"}, "beholder study 'my pictures'"),
        ({"data": "/home/somebody/cells"}, "beholder study cells"),
        ({"data": "wds:/home/somebody/cells"}, "beholder study wds:cells"),
        ({"data": "hf:place/name"}, "beholder study hf:place/name"),
        ({"data": "x", "risk": 0.05, "target": 0.9}, "beholder study x --target 0.9 --risk 0.05"),
        ({"data": "x", "classes": ("a", "b c")}, "beholder study x --classes 'a,b c'"),
        ({"data": "x", "cache": False, "strict": True}, "beholder study x --no-cache --strict"),
        ({"data": "x", "out": "/home/me/runs/a"}, "beholder study x --out a"),
        ({"data": "x", "source_column": "patient"}, "beholder study x --source-column patient"),
    ],
)
def test_the_command_names_what_differs_from_the_defaults_and_no_absolute_path(options, words):
    assert method.command(Options.parse(**options)) == words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((656, 2624, "holdout", 3), "656 of 2,624 images were judged, held back from training, "),
        ((60, 60, "cross_fit", 1), "60 of 60 images were judged, each by a model that had not"),
        ((60, 80, "given", 1), "the given test part."),
        ((60, 60, None, 0), "by the given model."),
        ((0, 60, None, 0), "60 images; none was judged."),
    ],
)
def test_the_method_says_what_was_judged(arguments, said):
    assert said in method.finding(*arguments)


def test_facts_are_flattened_and_assumptions_kept():
    evidence = planted.perfect(60)
    evidence.model = {"name": "lite0", "head": {"name": "kernel", "options": {"C": 3}}}
    evidence.split = {"kind": "holdout", "seeds": [0, 1, 2], "train": 1968}
    evidence.notes = ["Normalisation assumed."]
    section = method.summarise(evidence, OPTIONS)
    facts = {(part, name): value for part, name, value in section.frame("facts").iter_rows()}
    assert facts["model", "head.options.C"] == "3"
    assert facts["split", "seeds"] == "0, 1, 2"
    assert facts["split", "train"] == "1,968"
    assert section.assumptions == ["Normalisation assumed."]
    assert section.method == ["Command: beholder study planted"]
    assert {"group", "source"} <= set(section.frame("definitions")["term"])

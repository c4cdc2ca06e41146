"""The verdict: one sentence of at most 45 words, one severity, what to do next (4.1)."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.core.sections import Section, Severity, Table, Value
from beholder.evaluate.benchmarks import (
    accuracy,
    calibration,
    confusion,
    cost,
    data,
    groups,
    method,
    mistakes,
)
from beholder.evaluate.benchmarks.base import SECTIONS, Evidence
from beholder.evaluate.benchmarks.verdict import (
    first_sentence,
    headline,
    overall,
    sentence,
    shortened,
    verdict,
)

OPTIONS = Options.parse(data="planted", strict=True)
MODULES = (data, accuracy, groups, confusion, mistakes, calibration, cost, method)
IDS = [module.__name__.rsplit(".", 1)[1] for module in MODULES]


def judged(evidence: Evidence) -> dict[str, Section]:
    return {id: SECTIONS[id].run(evidence, OPTIONS)[0] for id in IDS}


def found(**severities: Severity) -> dict[str, Section]:
    return {
        id: Section(id=id, title=id, finding=f"About {id}. And more.", severity=severity)
        for id, severity in severities.items()
    }


@pytest.mark.parametrize(
    ("severities", "worst"),
    [
        ({"accuracy": "good", "calibration": "act"}, "look"),
        ({"accuracy": "good", "calibration": "look"}, "look"),
        ({"accuracy": "good", "data": "act"}, "look"),
        ({"accuracy": "good", "corruptions": "act"}, "look"),
        ({"accuracy": "good", "groups": "act"}, "act"),
        ({"accuracy": "act", "groups": "good"}, "act"),
        ({"accuracy": "good", "groups": "good", "data": "good"}, "good"),
        ({"accuracy": "none", "data": "good"}, "none"),
    ],
)
def test_only_some_sections_can_raise_the_verdict_to_act(severities, worst):
    assert overall(found(**severities)) == worst


@pytest.mark.parametrize(
    ("severities", "said"),
    [
        ({"groups": "good", "mistakes": "good"}, "About accuracy."),
        ({"groups": "look", "mistakes": "look"}, "About accuracy. About groups."),
        ({"groups": "look", "mistakes": "act"}, "About accuracy. About mistakes."),
        ({"calibration": "act", "groups": "act"}, "About accuracy. About groups."),
        ({"data": "act", "calibration": "act"}, "About accuracy. About calibration."),
    ],
)
def test_the_worst_act_is_said_else_the_worst_look(severities, said):
    sections = found(accuracy="good", **severities)
    assert sentence(sections, planted.perfect(60)) == said


def test_unreadable_data_comes_before_everything_else():
    sections = found(accuracy="act", groups="act", data="act")
    sections["data"].values["skipped"] = Value(estimate=0.3)
    assert sentence(sections, planted.perfect(60)) == "About accuracy. About data."


def test_long_findings_lose_their_clauses_then_words():
    start = " ".join(["word"] * 30)
    assert shortened(
        start,
        "short one; with a long clause that does not fit into it any more at all whatever one does",
    ).endswith("word short one.")
    assert len(shortened(" ".join(["word"] * 60)).split()) == 45
    assert shortened("Done.", "") == "Done."


def test_a_full_stop_in_a_number_does_not_end_a_sentence():
    assert first_sentence("Right 86.2 % (83.9 to 88.4). More would help.") == (
        "Right 86.2 % (83.9 to 88.4)."
    )


@pytest.mark.parametrize(
    ("evidence", "severity", "said"),
    [
        (
            planted.perfect(),
            "good",
            "On 656 unseen images in each of 3 splits the model is right 100.0 %",
        ),
        (planted.constant(), "act", "no better than always answering class 0"),
        (planted.random_labels(), "act", "no better than"),
        (planted.group(0.25), "act", "On site bad the model is right"),
        (planted.wrong_order(), "act", "a are called b, b are called c, c are called a"),
        (planted.fixed_model(0.5, {"a": 24}), "look", "With only 24 images,"),
        (planted.of_kind("unlabelled"), "none", "60 images, no labels."),
        (planted.of_kind("one_class"), "none", "60 images, one class to learn."),
        (planted.of_kind("multilabel"), "none", "60 images with several labels each."),
    ],
)
def test_planted_faults_reach_the_verdict_in_45_words(evidence, severity, said):
    result = verdict(judged(evidence), evidence, OPTIONS)
    assert result["severity"] == severity
    assert said in result["sentence"]
    assert len(result["sentence"].split()) <= 45
    assert len(result["next"]) <= 5
    assert all(set(step) == {"sentence", "command", "gain"} for step in result["next"])


def test_only_commands_that_exist_are_suggested():
    evidence = planted.overconfident(1, 2000)
    commands = [s["command"] for s in verdict(judged(evidence), evidence, OPTIONS)["next"]]
    assert [c for c in commands if c] == [
        "beholder study planted --risk 0.05 --strict",
        "beholder study planted --target 0.9 --strict",
        "beholder study planted --source-column NAME --strict",
    ]


def test_what_is_given_already_is_not_asked_for():
    evidence = planted.overconfident(1, 2000)
    evidence.source_given = True
    options = Options.parse(data="planted", target=0.9, risk=0.05)
    steps = verdict(judged(evidence), evidence, options)["next"]
    assert not any(step["command"] for step in steps)


def test_the_named_group_and_the_skipped_files_are_things_to_do():
    evidence = planted.group(0.25)
    evidence.skipped = pl.DataFrame({"path": ["a"], "reason": ["truncated"], "detail": [""]})
    steps = [s["sentence"] for s in verdict(judged(evidence), evidence, OPTIONS)["next"]]
    assert steps[0] == "1 file skipped: read the list in skipped.csv, mend what should be in."
    assert steps[1] == "Look at the mistakes on site bad, and add images like them."


def test_a_measured_gain_of_more_images_is_given():
    evidence = planted.fixed_model(0.9, {"a": 400})
    whole = evidence.frame.select(
        pl.lit(1.0).alias("share"), pl.lit(0).alias("draw"), "id", "correct"
    )
    half = whole.with_columns(
        pl.lit(0.5).alias("share"), pl.Series("correct", np.arange(400) < 200)
    )
    evidence.learning = pl.concat([whole, half])
    steps = verdict(judged(evidence), evidence, OPTIONS)["next"]
    gains = [step["gain"] for step in steps if step["gain"] is not None]
    assert len(gains) == 1
    assert gains[0].low > 0


def test_the_headline_holds_five_tiles_and_none_where_nothing_was_measured():
    tiles = headline(judged(planted.group(0.25)))
    assert set(tiles) == {
        "accuracy",
        "balanced_accuracy",
        "worst_group",
        "label_errors",
        "refuse_threshold",
        "latency_ms",
    }
    assert tiles["worst_group"]["name"] == "site bad"
    assert tiles["worst_group"]["estimate"].method == "beta"
    assert tiles["label_errors"] is None
    assert tiles["latency_ms"] is None
    assert all(x is None for x in headline(judged(planted.of_kind("unlabelled"))).values())


def test_every_section_survives_a_round_trip_through_json():
    for evidence in (planted.group(0.25), planted.overconfident(3, 400), planted.perfect(60)):
        for section in judged(evidence).values():
            again = Section.model_validate_json(section.model_dump_json())
            assert again.to_dict() == section.to_dict()


def test_sections_are_the_same_twice():
    first, second = (judged(planted.group(0.25)) for _ in range(2))
    for id in IDS:
        first[id].budget.seconds = second[id].budget.seconds = 0.0
        assert first[id].to_dict() == second[id].to_dict()


@pytest.mark.parametrize(("mild", "said"), [(True, "act"), (False, "look")])
def test_corruptions_count_when_mild_changes_cost_much(mild, said):
    sections = found(accuracy="good", corruptions="act")
    frame = pl.DataFrame({"change": ["JPEG 90"], "to_act_on": [mild]})
    sections["corruptions"].tables["pipeline"] = Table(frame=frame)
    assert overall(sections) == said

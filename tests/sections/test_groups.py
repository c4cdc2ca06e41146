"""The groups section on planted gaps (specs/study.md, 4.4 and section 10)."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.evaluate.benchmarks.base import SECTIONS
from beholder.evaluate.benchmarks.groups import COLUMNS, Facts, clusters, finding, summarise

OPTIONS = Options.parse(data="planted")
SIZES = dict(zip("abcdefgh", (200, 120, 80, 60, 40, 20, 10, 5), strict=True))
NONE_NAMED = "No group differs by more than chance; a gap below"


@pytest.mark.parametrize(
    ("facts", "severity", "said"),
    [
        (Facts("site x", True, 80, 0.6, 0.10), "act", "On site x the model is right 60.0 %"),
        (Facts("site x", True, 80, 0.6, 0.099), "look", "9.9 points less than on the rest (80"),
        (Facts("width Q1", False, 80, 0.6, 0.5), "look", "width Q1"),
        (
            Facts("site x", True, 80, 0.6, 0.2, "b"),
            "act",
            "mostly because it holds more of class b",
        ),
        (Facts(visible=0.0766), "good", "a gap below 7.7 points could not have been seen."),
        (Facts(visible=0.1, shown=(("site a", 0.857),)), "good", "(site a 85.7 %)."),
        (Facts(errors=0), "good", "there is not one error"),
    ],
)
def test_the_finding_changes_exactly_at_its_borders(facts, severity, said):
    assert finding(facts)[0] == severity
    assert said in finding(facts)[1]


def test_a_bad_group_is_named_worst_in_nine_of_ten_seeds():
    sections = [summarise(planted.group(0.25, seed=seed), OPTIONS) for seed in range(10)]
    named = [s for s in sections if s.severity == "act" and "site bad" in s.finding]
    assert len(named) >= 9
    assert all(s.frame("slices")["slice"][0] == "site bad" for s in named)


def test_without_a_bad_group_hardly_any_is_named():
    sections = [summarise(planted.fixed_model(0.85, SIZES, seed), OPTIONS) for seed in range(30)]
    assert sum(NONE_NAMED not in s.finding for s in sections) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_five_images_at_forty_per_cent_are_never_named(seed):
    evidence = planted.fixed_model(0.85, SIZES, seed)
    tiny = (evidence.frame["group_site"] == "h").to_numpy()
    label = evidence.frame["label"].to_numpy()
    predicted = evidence.frame["predicted"].to_numpy().copy()
    predicted[tiny] = np.where([True, True, False, False, False], label[tiny], 1 - label[tiny])
    planted_again = planted.evidence(
        label, planted.answers(predicted, 2), groups={"site": evidence.frame["group_site"]}
    )
    section = summarise(planted_again, OPTIONS)
    row = section.frame("slices").filter(pl.col("slice") == "site h")
    assert row["raw"][0] == 0.4
    assert "named" not in section.tables or "site h" not in section.frame("named")["slice"]


def test_renaming_the_groups_changes_names_only():
    one = planted.group(0.25)
    two = planted.group(0.25)
    names = {name: f"zz {name[::-1]}" for name in one.frame["group_site"].unique()}
    two.frame = two.frame.with_columns(pl.col("group_site").replace(names))
    first, second = summarise(one, OPTIONS), summarise(two, OPTIONS)
    numbers = [s.frame("slices").drop("slice").sort(pl.all()) for s in (first, second)]
    assert numbers[0].equals(numbers[1])
    assert first.finding.replace("site bad", f"site {names['bad']}") == second.finding
    assert first.values == second.values


def test_a_bad_hidden_slice_is_found_by_its_brightness_and_is_only_look():
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 2
    dark = np.arange(240) < 60
    right = rng.random(240) < np.where(dark, 0.5, 0.95)
    evidence = planted.evidence(
        labels,
        planted.answers(np.where(right, labels, 1 - labels), 2),
        columns={"brightness": np.where(dark, 20.0, 120.0) + rng.random(240)},
    )
    section = summarise(evidence, OPTIONS)
    assert section.severity == "look"
    assert "brightness Q1" in section.finding
    assert section.frame("named")["given"].to_list() == [False]


def test_a_constant_property_makes_no_slices():
    section = summarise(planted.constant(), OPTIONS)  # 64 x 64 throughout
    assert section.finding.startswith("There is nothing to compare")
    assert not section.tables


def test_a_gap_that_comes_from_the_class_mix_says_so():
    """Class 1 is always wrong, class 0 always right; the bad site holds mostly class 1."""
    labels = np.r_[np.ones(60, int), np.zeros(20, int), np.zeros(300, int), np.ones(40, int)]
    sites = ["bad"] * 80 + ["fine"] * 340
    evidence = planted.evidence(
        labels, planted.answers(np.zeros(420, int), 2), groups={"site": sites}
    )
    finding_ = summarise(evidence, OPTIONS).finding
    assert "site bad" in finding_
    assert finding_.endswith("mostly because it holds more of class class 1.")


def test_pairs_of_group_columns_are_compared():
    """Only north x night is bad: neither north nor night alone explains it as well."""
    rng = np.random.default_rng(1)
    place, time = rng.choice(["north", "south"], 600), rng.choice(["day", "night"], 600)
    labels = rng.integers(0, 2, 600)
    bad = (place == "north") & (time == "night")
    right = rng.random(600) < np.where(bad, 0.5, 0.95)
    evidence = planted.evidence(
        labels,
        planted.answers(np.where(right, labels, 1 - labels), 2),
        groups={"place": place.tolist(), "time": time.tolist()},
    )
    section = summarise(evidence, OPTIONS)
    assert section.severity == "act"
    assert "On place north, time night the model" in section.finding


def test_clusters_of_alike_images_are_compared_and_shown_by_their_central_images():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8))
    which = np.arange(240) % 4
    embeddings = (centres[which] + 0.05 * rng.normal(size=(240, 8))).astype(np.float32)
    labels = rng.integers(0, 2, 240)
    right = rng.random(240) < np.where(which == 2, 0.4, 0.95)
    evidence = planted.evidence(
        labels, planted.answers(np.where(right, labels, 1 - labels), 2), embeddings=embeddings
    )
    section = summarise(evidence, OPTIONS)
    assert section.severity == "look"
    assert "cluster" in section.finding
    buckets = [picture.bucket for picture in section.pictures]
    assert buckets == [f"cluster {k}" for k in range(1, 5) for _ in range(4)]


def test_fewer_than_a_hundred_images_make_no_clusters():
    assert clusters(np.ones((99, 4)), 0) is None


def test_tables_and_figure_have_the_columns_of_the_specification():
    section = summarise(planted.group(0.25), OPTIONS)
    assert section.frame("slices").columns == list(COLUMNS)
    assert section.figures["slices"].kind == "forest"
    assert section.figures["slices"].data.columns == ["label", "value", "low", "high", "raw", "n"]
    assert section.values["worst"].method == "beta"


def test_fewer_than_forty_judged_images_are_not_cut_up():
    section, _ = SECTIONS["groups"].run(planted.fixed_model(0.8, {"a": 20, "b": 19}), OPTIONS)
    assert section.status == "not_applicable"
    assert section.finding == "Too few judged images to compare groups (39 < 40)."


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_name_no_group(seed):
    assert NONE_NAMED in summarise(planted.random_labels(seed=seed), OPTIONS).finding


def test_a_perfect_model_names_no_group():
    section = summarise(planted.perfect(), OPTIONS)
    assert section.severity == "good"
    assert "named" not in section.tables

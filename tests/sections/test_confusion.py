"""The confusion section on planted tables (specs/study.md, 4.5)."""

from __future__ import annotations

import numpy as np
import planted
import pytest
from scipy.stats import fisher_exact

from beholder.core.options import Options
from beholder.evaluate.benchmarks.base import SECTIONS
from beholder.evaluate.benchmarks.confusion import (
    asymmetry_tests,
    drawn_classes,
    finding,
    pair_tests,
    summarise,
)

OPTIONS = Options.parse(data="planted")


def of_table(table: np.ndarray, classes: str | None = None):
    """Evidence whose confusion table is `table` [C, C]."""
    true, predicted = np.nonzero(table)
    count = table[true, predicted]
    labels, answers = np.repeat(true, count), np.repeat(predicted, count)
    return planted.evidence(labels, planted.answers(answers, len(table)), classes=classes)


def spread(classes: int, right: int, wrong: int) -> np.ndarray:
    """`right` on the diagonal, `wrong` in every other cell."""
    return np.full((classes, classes), wrong) + np.eye(classes, dtype=int) * (right - wrong)


@pytest.mark.parametrize(
    ("pair", "lean", "accuracy", "severity", "said"),
    [
        (("a", "b", 12, 60), None, "good", "good", "a is called b in 12 of 60 cases."),
        (("a", "b", 12, 60), ("c", "d", 9, 0), "look", "look", "a is called b in 12 of 60"),
        (None, ("a", "b", 12, 3), "act", "look", "a is called b 12 times, b is called a 3 times"),
        (None, None, "good", "good", "The errors show no pattern"),
        (None, None, "none", "good", "The errors show no pattern"),
    ],
)
def test_severity_follows_accuracy_and_is_never_act(pair, lean, accuracy, severity, said):
    found = finding(pair, lean, accuracy)
    assert found[0] == severity
    assert said in found[1]


def test_a_pair_that_stands_out_is_named_with_its_count():
    table = spread(5, 50, 1)
    table[0, 1] = 30
    section = summarise(of_table(table, "abcde"), OPTIONS)
    assert section.finding == "a is called b in 30 of 83 cases."
    first = section.frame("pairs").row(0, named=True)
    assert (first["true"], first["predicted"], first["count"]) == ("a", "b", 30)
    assert first["share_of_true"] == pytest.approx(30 / 83)
    assert first["share_of_errors"] == pytest.approx(30 / 49)
    assert first["p_holm"] < 0.05


def test_pairs_have_the_columns_of_the_specification():
    section = summarise(of_table(spread(3, 20, 2)), OPTIONS)
    columns = ["true", "predicted", "count", "share_of_true", "share_of_errors", "p_holm"]
    assert section.frame("pairs").columns == columns


def test_the_test_of_a_pair_is_fishers_on_the_cells_that_can_hold_errors():
    """Pair 0 -> 1 among errors that are not of class 1 and not answered 0: (8, 2; 3, 7)."""
    table = np.array([[0, 8, 1, 1], [0, 0, 0, 0], [5, 1, 0, 3], [5, 2, 4, 0]])
    row = pair_tests(table).filter(a=0, b=1)
    p = fisher_exact([[8, 2], [3, 7]], "greater").pvalue
    assert row["p_holm"][0] == pytest.approx(min(1, 12 * p))


def test_two_classes_name_no_pair_but_say_which_way_the_errors_lean():
    section = summarise(of_table(np.array([[100, 20], [2, 100]]), "ab"), OPTIONS)
    assert section.frame("pairs")["p_holm"].min() == 1
    assert section.finding.startswith("The errors lean one way: a is called b 20 times")


def test_asymmetry_is_the_exact_binomial_test():
    """2 against 8: p = .10938 (specs/study.md, section 8)."""
    row = asymmetry_tests(np.array([[9, 8], [2, 9]])).row(0, named=True)
    assert (row["a"], row["b"], row["a_called_b"], row["b_called_a"]) == (0, 1, 8, 2)
    assert row["p_holm"] == pytest.approx(0.10938, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_random_labels_name_nothing(seed):
    section = summarise(planted.random_labels(seed=seed), OPTIONS)
    assert section.finding.startswith("The errors show no pattern")


def test_cells_hold_count_and_row_share():
    grid = summarise(of_table(np.array([[30, 10], [5, 55]]), "ab"), OPTIONS).figures["counts"].data
    assert grid.row(1) == ("a", "b", 0.25, "10 (25 %)")
    assert len(grid) == 4


def test_above_25_classes_the_most_confused_are_drawn_alike_ones_side_by_side():
    table = np.eye(30, dtype=int) * 20
    for i in range(0, 26, 2):  # 13 far pairs i, 29 - i
        table[i, 29 - i] = table[29 - i, i] = 5
    drawn = drawn_classes(table).tolist()
    assert len(drawn) == 25
    assert len(set(drawn)) == 25
    place = {label: k for k, label in enumerate(drawn)}
    together = [abs(place[i] - place[29 - i]) for i in range(0, 26, 2) if {i, 29 - i} <= set(drawn)]
    assert len(together) == 12
    assert set(together) == {1}


def test_without_errors_it_says_so():
    section, _ = SECTIONS["confusion"].run(planted.perfect(), OPTIONS)
    assert section.status == "not_applicable"
    assert section.finding == "No errors on 656 images."

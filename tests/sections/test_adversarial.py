"""The adversarial section (specs/study.md, 4.10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.core.sections import Value
from beholder.evaluate.benchmarks.adversarial import (
    NOTHING,
    Facts,
    attackable_or_why,
    finding,
    smallest_of_half,
    summarise,
    warning,
)
from beholder.evaluate.benchmarks.adversarial_asked import CONTROL, SHOWN, TRIED, portions
from beholder.evaluate.benchmarks.verdict import shortened

OPTIONS = Options.parse(data="planted")
SIZES = (1, 2, 4)
NO_CONTROL = pl.DataFrame(schema=CONTROL)


def name(i: int) -> str:
    return f"{i:06d}.png"


def tried(
    attack: Sequence[int], noise: Sequence[int] = (), fgsm: Sequence[int] | None = ()
) -> pl.DataFrame:
    """Rows from the smallest sizes that fool, 0 = none; noise and one step never do by default."""
    n = len(attack)
    marks = [attack, noise or [0] * n, None if fgsm is None else (fgsm or [0] * n)]
    rows = [
        (name(i), size, *(None if m is None else 0 < m[i] <= size for m in marks))
        for i in range(n)
        for size in SIZES
    ]
    return pl.DataFrame(rows, TRIED, orient="row")


def control(usual: Sequence[bool], longer: Sequence[bool]) -> pl.DataFrame:
    rows = [(name(i), 2, *pair) for i, pair in enumerate(zip(usual, longer, strict=True))]
    return pl.DataFrame(rows, CONTROL, orient="row")


def attacked(rows: pl.DataFrame, right: int = 80, wrong: int = 20, effort=20, attack="pgd", **more):
    """100 judged images, the first 80 answered rightly; `rows` of the first."""
    predicted = np.array([0] * right + [1] * wrong)
    evidence = planted.evidence(np.zeros(right + wrong, int), planted.answers(predicted, 2), **more)
    evidence.records["adversarial"] = {
        "tried": rows,
        "control": NO_CONTROL,
        "shown": pl.DataFrame([(name(0), 2, "class 1")], SHOWN, orient="row"),
        "setting": pl.DataFrame([{"attack": attack, "effort": effort, "restarts": 1}]),
    }
    return evidence


def kept(share: float) -> Value:
    return Value(estimate=share, low=share, high=share + 0.04, n=64)


@pytest.mark.parametrize(
    ("facts", "severity", "said"),
    [
        (Facts(kept(0.8)), "good", "Not broken by this attack: changes of at most 2/255 made"),
        (Facts(kept(0.799)), "look", "as in most models without adversarial training."),
        (Facts(kept(0.0)), "look", "made on purpose leave 0.0 % of the right answers (0.0 to 4.0)"),
        (Facts(kept(0.8), threat=True), "good", "another attack may do more."),
        (Facts(kept(0.799), threat=True), "act", "and attackers are expected."),
        (Facts(kept(0.9), "masking suspected"), "look", "Masking suspected; not broken by this"),
        (Facts(kept(0.1), "masking suspected"), "look", "Masking suspected; changes of"),
        (Facts(kept(0.1), "masking suspected", True), "act", "attackers are expected"),
        (Facts(kept(0.9), "masking suspected", True), "look", "Masking suspected; not broken"),
    ],
)
def test_findings_at_their_borders(facts, severity, said):
    assert finding(facts)[0] == severity
    assert said in finding(facts)[1]


def test_a_verdict_without_room_keeps_the_figure():
    sentence = finding(Facts(kept(0.0)))[1]
    start = " ".join(["word"] * 29) + "."
    assert shortened(start, sentence).endswith("leave 0.0 % of the right answers.")


def test_no_sentence_claims_robustness():
    for share in (0.0, 0.5, 0.8, 1.0):
        sentence = finding(Facts(kept(share)))[1].lower()
        assert "robust" not in sentence
        assert "safe" not in sentence


@pytest.mark.parametrize(
    ("rows", "longer", "said"),
    [
        (tried([1, 2, 0], fgsm=[1, 2, 0]), NO_CONTROL, ""),
        (tried([2, 2, 0], fgsm=[1, 0, 0]), NO_CONTROL, "single step fools more images at 1/255"),
        (tried([2, 0, 0], fgsm=[0, 2, 4]), NO_CONTROL, "single step fools more images at 4/255"),
        (tried([1] * 10), control([False] * 10, [True] + [False] * 9), ""),
        (tried([1] * 10), control([False] * 9, [True] + [False] * 8), "40 steps fool 1 of 9"),
        (tried([1] * 10), control([True] * 9, [False] * 9), ""),
        (tried([1] * 10, noise=[4, 4] + [0] * 8), NO_CONTROL, ""),
        (tried([1] * 10, noise=[4, 4, 4] + [0] * 7), NO_CONTROL, "noise of 4/255 alone fools 3 of"),
        (tried([1] * 3, fgsm=None), NO_CONTROL, ""),
    ],
)
def test_controls_warn_at_their_borders(rows, longer, said):
    found = warning(rows, longer)
    assert said in found
    assert bool(found) == bool(said)
    assert ("masking suspected" in found) == ("step" in said)


def test_half_of_the_images_decides_the_smallest_size():
    assert smallest_of_half(tried([1, 2, 4, 0])) == 2
    assert smallest_of_half(tried([1, 1, 0, 0])) == 1
    assert smallest_of_half(tried([1, 0, 0])) is None
    assert smallest_of_half(tried([0, 4])) == 4


def test_accuracy_under_attack_is_that_of_all_judged_images():
    """40 of 80 right ones attacked: 4 fall at 1, 8 at 2, 20 at 4; Wilson by hand."""
    evidence = attacked(tried([1] * 4 + [2] * 4 + [4] * 12 + [0] * 20, noise=[4] + [0] * 39))
    section = summarise(evidence, OPTIONS)
    table = section.frame("accuracy")
    assert table["eps"].to_list() == ["0", "1/255", "2/255", "4/255"]
    assert table["n"].to_list() == [100, 40, 40, 40]
    assert table["accuracy"].to_list() == pytest.approx([0.8, 0.72, 0.64, 0.4])
    assert table["noise_accuracy"].to_list()[1:] == pytest.approx([0.8, 0.8, 0.78])
    assert table["fgsm_accuracy"].to_list()[1:] == pytest.approx([0.8, 0.8, 0.8])
    assert table["noise_accuracy"][0] is None
    values = section.values
    assert [values[f"eps{size}"].estimate for size in SIZES] == pytest.approx([0.72, 0.64, 0.4])
    assert values["eps2"].low == pytest.approx(0.8 * 0.652427, abs=1e-5)  # Wilson of 32/40
    assert values["eps2"].high == pytest.approx(0.8 * 0.895000, abs=1e-5)
    assert values["eps2"].method == "wilson"
    assert values["median_eps"].estimate == 4
    assert section.n == 40
    assert section.severity == "good"  # 32 of 40 = 80 % stay


def test_few_images_only_give_a_hint():
    section = summarise(attacked(tried([0] * 16)), OPTIONS)
    assert section.severity == "look"
    assert section.finding.startswith("With only 16 images, take this as a hint: Not broken by")
    assert section.values["median_eps"].why == "half of the images stand 4/255"


def test_an_expected_attacker_makes_it_act():
    threat = Options.parse(data="planted", threat="adversarial")
    assert summarise(attacked(tried([1] * 40)), threat).severity == "act"
    assert summarise(attacked(tried([1] * 40)), OPTIONS).severity == "look"


def test_the_figure_begins_without_attack_and_has_a_band_for_the_attack_only():
    figure = summarise(attacked(tried([2] * 40)), OPTIONS).figures["accuracy"]
    lines = figure.data.partition_by("series", as_dict=True)
    assert {key[0] for key in lines} == {"attack", "one step", "random noise"}
    assert lines[("attack",)]["y"].to_list() == pytest.approx([0.8, 0.8, 0, 0])
    assert lines[("attack",)]["low"].null_count() == 0
    assert lines[("random noise",)]["low"].null_count() == 4
    assert figure.to_svg().startswith("<svg")


def test_a_black_box_has_no_single_step_and_says_which_attack():
    section = summarise(attacked(tried([4] * 40, fgsm=None), attack="square", effort=100), OPTIONS)
    assert section.frame("accuracy")["fgsm_accuracy"].null_count() == 4
    assert set(section.figures["accuracy"].data["series"]) == {"attack", "random noise"}
    assert any("Square attack: at most 100 answers" in line for line in section.method)
    assert "control" not in section.tables


def test_the_longer_control_is_a_table():
    evidence = attacked(tried([1] * 40))
    evidence.records["adversarial"]["control"] = control([True] * 15 + [False], [True] * 16)
    row = summarise(evidence, OPTIONS).frame("control").row(0, named=True)
    assert row == {"eps": "2/255", "n": 16, "fooled": 15, "fooled_by_40_steps": 16}


def test_a_picture_stands_between_its_image_and_the_attacked_one():
    (picture,) = summarise(attacked(tried([2] * 40)), OPTIONS).pictures
    ids = [picture.id, *(other.id for other in picture.beside)]
    assert ids == [f"adversarial/000000.png/{part}" for part in ("image", "change", "attacked")]
    assert picture.beside[1].caption == "changed by at most 2/255: class 1"


def test_units_are_resampled_whole():
    units = np.repeat(np.arange(25), 4)
    section = summarise(attacked(tried([2] * 20 + [0] * 20), units=units), OPTIONS)
    assert section.values["eps2"].method == "none" or section.values["eps2"].resamples is None
    assert section.values["eps2"].estimate == pytest.approx(0.4)
    many = attacked(tried([2] * 40 + [0] * 40), units=units)
    assert summarise(many, OPTIONS).values["eps2"].method == "bootstrap"


def test_where_nothing_is_right_nothing_is_attacked():
    nothing = attacked(tried([]), right=0, wrong=40)
    assert attackable_or_why(nothing) == NOTHING
    assert attackable_or_why(attacked(tried([1]))) is None
    assert attackable_or_why(planted.of_kind("unlabelled")).startswith("No labels")
    section = summarise(attacked(tried([])), OPTIONS)
    assert (section.status, section.finding) == ("not_applicable", NOTHING)


@pytest.mark.parametrize("count", [1, 4, 15, 64])
def test_every_beginning_of_the_sample_has_all_classes_in_proportion(count):
    rows, labels = np.arange(100, 300), np.repeat([0, 1], [150, 50])
    parts = portions(rows, labels, count, seed=3)
    assert sum(map(len, parts)) == count
    assert max(map(len, parts)) <= 4
    taken = np.concatenate(parts)
    assert len(set(taken)) == count
    for end in range(4, count + 1, 4):
        assert abs((labels[taken[:end] - 100] == 1).sum() - end / 4) <= 1

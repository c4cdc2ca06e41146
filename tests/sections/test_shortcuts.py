"""The section on shortcuts: labels that files give away, and the table of metadata (4.13)."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import planted
import polars as pl
import pytest
from PIL import Image

from beholder.core.options import Options
from beholder.data.curate.metadata import ORDER, columns, header, neutral, order
from beholder.evaluate.benchmarks.base import SECTIONS, Evidence
from beholder.evaluate.benchmarks.shortcuts import (
    Facts,
    Guess,
    chance,
    enough,
    finding,
    strata_of,
    summarise,
    told_by,
)

OPTIONS = Options.parse(data="planted")
LIKE = ("file size",)


@pytest.mark.parametrize(
    ("facts", "severity", "said"),
    [
        (Facts(0), "none", "Too few images to try"),
        (Facts(90, varies=False), "good", "all files are alike"),
        (Facts(90, True, 0.9, 0.81, 0.005, (), 0.9, 0.81, 0.005, LIKE), "act", "file size alone"),
        (Facts(90, True, 0.9, 0.81, 0.005, LIKE, 0.9, 0.80, 0.005), "look", "file size alone"),
        (Facts(90, True, 0.9, 0.81, 0.005, LIKE, 0.9, 0.81, 0.01), "look", "file size alone"),
        (Facts(90, True, 0.7, 0.66, 0.005, LIKE), "look", "(AUROC 0.70)"),
        (Facts(90, True, 0.7, 0.65, 0.005), "good", "can hardly be guessed"),
        (Facts(90, True, 0.7, 0.66, 0.01), "good", "cannot be guessed"),
        (Facts(90, True, 0.9, None, 0.005), "good", "(AUROC 0.90; 0.5 is chance)"),
        (Facts(90, True, 0.9, 0.7, 0.005, ("a", "b", ORDER)), "look", "from a, b and order in"),
        (
            Facts(90, True, 0.9, 0.7, 0.005, (ORDER,)),
            "look",
            "(AUROC 0.90). If neighbours in the folder show one",
        ),
    ],
)
def test_the_finding_follows_from_its_facts(facts: Facts, severity: str, said: str):
    assert finding(facts)[0] == severity
    assert said in finding(facts)[1]


def test_features_are_named_that_carry_a_quarter_of_the_worst_loss():
    table = pl.DataFrame(
        {"feature": list("abcd"), "drop": [0.1, 0.4, 0.09, None], "alone": [0.6, 0.7, 0.8, 0.9]}
    )
    assert told_by(table, "drop") == ("b", "a")


def made(jump: float, n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [n, 2], y, fold: the first column tells the class by `jump` deviations."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, 2))
    x[:, 0] += jump * y
    return x, y, rng.permutation(n) % 5


@pytest.mark.parametrize("kind", ["logistic", "boosted trees", "one tree"])
def test_a_guess_finds_the_column_that_tells(kind):
    x, y, fold = made(4.0)
    guess = Guess(kind, x, y, fold, 0)
    assert guess.auroc > 0.95
    rng = np.random.default_rng(0)
    tells, idle = (guess.drop(x, np.array(own), rng) for own in ((True, False), (False, True)))
    assert tells > 0.3
    assert abs(idle) < 0.05


def test_chance_is_told_from_a_shortcut():
    rng = np.random.default_rng(0)
    x, y, fold = made(1.0)
    strata = np.zeros(len(y), int)
    assert chance([Guess("logistic", x, y, fold, 0).probability], y, strata, rng) == 1 / 201
    idle = Guess("logistic", x[:, 1:], y, fold, 0)
    assert chance([idle.probability], y, strata, rng) > 0.05


def test_what_the_group_tells_is_no_shortcut_within_it():
    """The column is the group, and the group the label but for some: within groups nothing."""
    rng = np.random.default_rng(1)
    group = np.arange(300) % 2
    y = np.where(rng.random(300) < 0.1, 1 - group, group)
    x = (group + 0.01 * rng.normal(size=300))[:, None]
    guess = Guess("logistic", x, y, rng.permutation(300) % 5, 0)
    assert guess.auroc > 0.85
    frame = pl.DataFrame({"group_site": group.astype(str)})
    assert chance([guess.probability], y, strata_of(frame, ["group_site"]), rng) > 0.05
    assert chance([guess.probability], y, strata_of(frame, []), rng) < 0.01


def test_false_alarms_are_rare():
    """Labels that have nothing to do with the columns: p < .05 in at most 5 of 40 sets."""
    alarms = 0
    for seed in range(40):
        x, _, fold = made(0.0, 80, seed)
        rng = np.random.default_rng(seed)
        y = rng.permutation(np.arange(80) % 2)
        alarms += chance([Guess("logistic", x, y, fold, 0).probability], y, 0 * y, rng) < 0.05
    assert alarms <= 5


def test_classes_need_ten_images_in_five_units():
    labels = np.repeat([0, 1, 2, 3, -1], [10, 12, 9, 20, 5])
    unit = np.concatenate([np.arange(31), np.full(20, 99), np.arange(100, 105)])
    assert set(labels[enough(labels, unit)]) == {0, 1}
    assert len(enough(labels[:10], unit[:10])) == 0


def section_of(telling: bool, n: int = 120) -> Evidence:
    labels = np.arange(n) % 2
    evidence = planted.evidence(labels, planted.answers(labels, 2))
    score = np.linspace(0.3, 0.7, n) + (0.5 * labels if telling else 0)
    both = np.stack([1 - score, score], 1).tolist()
    worth = [("file size", 0.4, 0.4, 0.9), ("brightness", None, 0.01, 0.5)]
    columns = ["feature", "drop_file", "drop", "alone"]
    evidence.records["shortcuts"] = {
        "scores": evidence.frame.select(
            "id", *(pl.Series(part, both, pl.List(pl.Float64)) for part in ("file", "all"))
        ),
        "features": pl.DataFrame(worth, columns, orient="row"),
        "guesses": pl.DataFrame(
            {
                "part": ["file", "all"],
                "model": ["logistic"] * 2,
                "auroc": [0.5] * 2,
                "p": [0.005 if telling else 0.5] * 2,
            }
        ),
    }
    return evidence


def test_a_label_that_files_give_away_is_to_act_on():
    section = summarise(section_of(True), OPTIONS)
    assert section.severity == "act"
    assert "from file size alone" in section.finding
    assert section.values["auroc"].estimate == 1
    assert section.frame("features")["feature"].to_list() == ["file size", "brightness"]


def test_a_label_that_they_do_not_is_good():
    section = summarise(section_of(False), OPTIONS)
    assert section.severity == "good"
    assert 0.45 < (section.values["auroc"].estimate or 0) < 0.55


def test_nothing_to_look_at_is_said():
    evidence = section_of(True)
    records = evidence.records["shortcuts"]
    evidence.records["shortcuts"] = {name: table.head(0) for name, table in records.items()}
    section = summarise(evidence, OPTIONS)
    assert section.severity == "none"
    assert section.figures == {}


@pytest.mark.parametrize("kind", ["unlabelled", "one_class", "multilabel"])
def test_other_kinds_of_data_have_no_label_to_guess(kind):
    assert SECTIONS["shortcuts"].needs(planted.of_kind(kind))


# the table


def test_the_words_of_a_path_do_not_name_the_class():
    assert neutral("cat/IMG_0012 cat.jpg", ["cat", "dog"]) == ("img", "0012", "jpg")
    assert neutral("site-3/b/17.png", ["a", "b"]) == ("site", "3", "17", "png")


def test_order_counts_numbers_as_numbers_and_class_names_aside():
    paths = ["a/cat_10.png", "a/dog_9.png", "a/cat_2.png", "b/x.png"]
    words = [neutral(path, ["cat", "dog"]) for path in paths]
    assert order(paths, words).tolist() == [1.0, 0.5, 0.0, 0.0]


def stored(image: Image.Image, **options) -> SimpleNamespace:
    stream = io.BytesIO()
    image.save(stream, options.pop("format", "JPEG"), **options)
    return SimpleNamespace(store=SimpleNamespace(read=lambda key: stream.getvalue()))


def test_a_header_tells_tables_camera_and_hour():
    image = Image.new("RGB", (8, 8), "grey")
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "Canon", "EOS", "2024:05:06 17:08:09"
    tables, camera, hour = header(stored(image, quality=60, exif=exif), "", "JPEG")  # pyright: ignore[reportArgumentType]
    assert (camera, hour) == ("Canon EOS", 17.0)
    assert tables
    assert tables != header(stored(image, quality=95), "", "JPEG")[0]  # pyright: ignore[reportArgumentType]
    assert header(stored(image, format="PNG"), "", "PNG") == (None, None, None)  # pyright: ignore[reportArgumentType]


def test_a_file_that_vanished_or_broke_tells_nothing():
    broken = SimpleNamespace(store=SimpleNamespace(read=lambda key: b"\xff\xd8\xff"))
    assert header(broken, "", "JPEG") == (None, None, None)  # pyright: ignore[reportArgumentType]


def test_constant_columns_are_left_out_and_unknown_numbers_are_marked():
    n = 100
    table = pl.DataFrame(
        {
            "file size": np.linspace(1, 2, n),
            **dict.fromkeys(
                ("width", "height", "aspect", "brightness", "colourfulness"), [1.0] * n
            ),
            "hour": [7.0] * 50 + [None] * 50,
            ORDER: [0.0] * n,
            **dict.fromkeys(("mode", "file format", "JPEG tables"), ["x"] * n),
            "camera": ["A"] * 50 + ["B"] * 50,
            "words": [["day"]] * 30 + [["night"]] * 69 + [["once"]],
        }
    )
    x, names = columns(table)
    assert names == ["file size", "hour", "camera", "camera", "path", "path", "path"]
    assert x.shape == (n, 7)
    assert np.isfinite(x).all()

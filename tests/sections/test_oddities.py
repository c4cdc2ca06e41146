"""The section on odd images: planted ones, and what is said of them (specs/study.md, 4.14)."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest

from beholder.core.options import Options
from beholder.evaluate.benchmarks.base import SECTIONS, Evidence
from beholder.evaluate.benchmarks.oddities import (
    BLANK,
    GAUSSIAN,
    LENGTHY,
    NEIGHBOURS,
    TINY,
    Facts,
    by_features,
    by_measures,
    finding,
    robust_z,
    summarise,
)

OPTIONS = Options.parse(data="planted")


@pytest.mark.parametrize(
    ("facts", "severity", "said"),
    [
        (Facts(200), "good", "None of 200 images stands out."),
        (Facts(200, 2), "good", "2 of 200 images are unlike the others."),
        (Facts(200, 3), "look", "3 of 200 images are unlike the others."),
        (Facts(100, 1, 1), "good", "1 image is blank."),
        (Facts(100, 2, 2), "act", "2 images are blank."),
        (Facts(100, 0, 0, 1), "good", "1 file cannot be read."),
        (Facts(100, 0, 0, 2), "act", "2 files cannot be read."),
        (Facts(500, 10, 0, 0, (0.5, 0.9), 0.01), "look", "50.0 % of the time, on the rest 90.0 %,"),
        (Facts(500, 10, 0, 0, (0.8, 0.9), 0.2), "look", "on the rest 90.0 %."),
        (Facts(10, searched=False), "good", "Features were not compared"),
    ],
)
def test_the_finding_follows_from_its_facts(facts: Facts, severity: str, said: str):
    assert finding(facts)[0] == severity
    assert said in finding(facts)[1]


def test_robust_z_of_a_constant_knows_only_rare_others():
    values = np.zeros(300)
    values[:2] = 5, -5
    assert robust_z(values)[:3].tolist() == [np.inf, -np.inf, 0]
    values[:20] = 5  # 7 % of the images: another kind of them, not odd ones
    assert not robust_z(values).any()


def images(n: int = 200, **changed) -> pl.DataFrame:
    """Ordinary measures of `n` images of 64 x 64; `changed`: column -> value of the first."""
    rng = np.random.default_rng(0)
    columns = {
        "id": [f"{i:06d}.png" for i in range(n)],
        "width": np.full(n, 64),
        "height": np.full(n, 64),
        **{
            name: centre + scale * rng.uniform(-1, 1, n)
            for name, centre, scale in (
                ("brightness", 120, 20),
                ("contrast", 50, 10),
                ("entropy", 6, 1),
                ("sharpness", 4, 1),
                ("clipped", 0.1, 0.05),
                ("colourfulness", 30, 10),
            )
        },
    }
    for name, value in changed.items():
        columns[name] = np.concatenate([[value], columns[name][1:]])
    return pl.DataFrame(columns)


def flagged(frame: pl.DataFrame) -> set[tuple[str, str]]:
    return set(by_measures(frame).select("id", "measure").iter_rows())


def test_ordinary_images_are_not_flagged():
    assert flagged(images()) == set()


@pytest.mark.parametrize(
    ("changed", "measures"),
    [
        ({"brightness": 3.0}, {"brightness", BLANK}),
        ({"brightness": 250.0}, {"brightness", BLANK}),
        ({"entropy": 0.9}, {"entropy", BLANK}),
        ({"sharpness": -6.9}, {"sharpness"}),
        ({"colourfulness": 150.0}, {"colourfulness"}),
        ({"width": 31}, {"width", "aspect", TINY}),
        ({"width": 400}, {"width", "aspect", LENGTHY}),
        ({"height": 257}, {"height", "aspect", LENGTHY}),
    ],
)
def test_a_planted_oddity_is_flagged_by_its_measures(changed, measures):
    assert flagged(images(**changed)) == {("000000.png", name) for name in measures}


def test_where_most_images_are_small_none_is_odd_for_it():
    assert flagged(images().with_columns(width=pl.lit(8), height=pl.lit(8))) == set()


def test_many_blank_images_are_all_told():
    table = by_measures(images(50).with_columns(brightness=pl.lit(0.0), entropy=pl.lit(0.0)))
    assert (table["measure"] == BLANK).sum() == 50


@pytest.mark.parametrize("name", [NEIGHBOURS, GAUSSIAN])
def test_planted_outliers_are_found_and_hardly_any_other(name: str):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 24)).astype(np.float32)
    x[:4] += 4 * np.sign(rng.normal(size=(4, 24)))
    distance, p, odd = by_features(x, np.arange(400), 0)[name]
    assert odd[:4].all()
    assert odd[4:].sum() <= 2
    assert distance[:4].min() > distance[4:].max()
    assert ((p >= 0) & (p <= 1)).all()


def test_copies_of_an_outlier_do_not_vouch_for_each_other():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 24)).astype(np.float32)
    x[:12] = x[0] + 4 * np.sign(x[0])
    unit = np.concatenate([np.zeros(12, int), np.arange(1, 389)])
    assert by_features(x, unit, 0)[NEIGHBOURS][2][:12].all()


def test_features_are_compared_alike_each_time():
    x = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    one, other = (by_features(x, np.arange(60), 0) for _ in range(2))
    for name in one:
        assert all(np.array_equal(a, b) for a, b in zip(one[name], other[name], strict=True))


def section_of(odd: int = 4, wrong: int = 3, n: int = 100, blank: int = 0) -> Evidence:
    """The first `odd` images are flagged, the first `wrong` answered wrongly."""
    labels = np.arange(n) % 2
    predicted = np.where(np.arange(n) < wrong, 1 - labels, labels)
    measured = images(n).drop("id", "width", "height").to_dict(as_series=False)
    evidence = planted.evidence(labels, planted.answers(predicted, 2), columns=measured)
    evidence.frame = evidence.frame.with_columns(pl.Series("oddity", np.arange(n) < odd))
    ids = evidence.frame["id"].head(odd).to_list()
    rows = [(id, "contrast", 99.0, 8.0 + k, None) for k, id in enumerate(ids)]
    rows += [(id, NEIGHBOURS, 3.0, None, 1e-4) for id in ids]
    rows += [(id, BLANK, 2.0, None, None) for id in ids[:blank]]
    schema = {"id": pl.String, "measure": pl.String, "value": pl.Float64}
    schema |= {"z": pl.Float64, "p": pl.Float64}
    evidence.records["oddities"] = {
        "oddities": pl.DataFrame(rows, schema, orient="row"),
        "searched": pl.DataFrame({"features": [True]}),
    }
    return evidence


def test_an_image_with_two_flags_is_counted_and_shown_once_by_its_oddest():
    section = summarise(section_of(), OPTIONS)
    assert section.values["odd"].estimate == 0.04
    assert [picture.id for picture in section.pictures] == [f"00000{k}.png" for k in (3, 2, 1, 0)]
    assert section.pictures[0].caption == "contrast 99"
    assert len(section.frame("oddities")) == 8
    assert set(section.figures) == {"contrast"}


def test_blank_ones_come_first():
    section = summarise(section_of(blank=2), OPTIONS)
    assert [picture.bucket for picture in section.pictures[:3]] == [BLANK, BLANK, "contrast"]
    assert section.severity == "act"


def test_the_flagged_are_held_against_the_rest():
    """3 of 4 wrong against 0 of 96: Fisher's p = 4 / C(100, 3)."""
    section = summarise(section_of(), OPTIONS)
    assert section.values["accuracy_odd"].estimate == 0.25
    assert section.values["accuracy_rest"].estimate == 1
    assert section.values["p_worse"].estimate == pytest.approx(4 / 161700)
    assert "less than chance explains" in section.finding


def test_without_flags_there_is_still_a_figure():
    section = summarise(section_of(odd=0), OPTIONS)
    assert section.severity == "good"
    assert set(section.figures) == {"brightness"}


@pytest.mark.parametrize("kind", ["unlabelled", "one_class", "multilabel"])
def test_it_applies_to_every_kind_of_data(kind):
    assert SECTIONS["oddities"].needs(planted.of_kind(kind)) is None

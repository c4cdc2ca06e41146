"""What must be refused: the finding's borders, the recommendation, exact shares; and asked anew."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest
import torch
from study.world import SMALL, alone, folders

from beholder.core.options import Options
from beholder.core.sections import Value
from beholder.data.sources import open_images
from beholder.evaluate.benchmarks.trusted import CrossFitted, Trusted, enough, halves, too_few
from beholder.evaluate.benchmarks.unknown import Facts, finding, summarise
from beholder.evaluate.benchmarks.unknown_asked import DETECTORS, ROWS, recommended
from beholder.study import study
from beholder.trust import guard
from beholder.trust.detectors.answers import MaxSoftmax
from beholder.trust.detectors.base import Detector
from beholder.trust.detectors.knn import KNN

ALARMS = Value(estimate=0.05, low=0.03, high=0.07, n=500)


def facts(worst: float, **changed) -> Facts:
    return Facts(**{"detector": "knn", "worst_set": "noise", "best": 1.0, "worst": worst,
                    "false_refusals": ALARMS} | changed)  # fmt: skip


@pytest.mark.parametrize(
    ("told", "severity", "words"),
    [
        (facts(1.0), "good", "refuses 100 % of foreign and broken images and refuses 5.0 %"),
        (facts(0.9), "good", "refuses 90 to 100 %"),
        (facts(0.89), "look", "least of noise"),
        (facts(0.5), "look", "least of noise"),
        (facts(0.49), "act", "does not notice noise: it refuses 49 %"),
        (facts(1.0, benign=0.15), "good", "your own images."),
        (facts(1.0, benign=0.16), "look", "brightened, it refuses 16 % of them"),
        (facts(1.0, false_refusals=Value(estimate=0.09, low=0.06, high=0.12)), "look", "9.0 %"),
        (facts(1.0, false_refusals=Value(estimate=0.01, low=0.0, high=0.02)), "good", "1.0 %"),
        (facts(0.4, given=True), "act", "40 % of the images that must be refused"),
        (facts(1.0, missing=("rust", 3, 1.0)), "act", "of 3 images of it knn refuses 100 %"),
        (facts(1.0, missing=("rust", 1, 0.0)), "act", "does not know rust: of 1 image of it"),
    ],
)
def test_the_finding_at_its_borders(told, severity, words):
    found, sentence = finding(told)
    assert found == severity
    assert words in sentence
    assert len(sentence.split()) <= 45


def rows(set: str, kind: str, detector: str, refused: list[bool], half: int = 1) -> pl.DataFrame:
    n = len(refused)
    columns = {
        "set": [set] * n,
        "kind": [kind] * n,
        "half": [half] * n,
        "unit": range(n),
        "detector": [detector] * n,
        "score": [float(r) for r in refused],
        "refused": refused,
        "grey": [True] * n,
    }
    return pl.DataFrame(columns, ROWS)


def test_the_detector_of_the_best_worst_set_is_recommended_and_the_users_set_decides_alone():
    scores = pl.concat(
        [
            rows("noise", "broken", "a", [True, True]),
            rows("blank", "broken", "a", [False, False]),
            rows("noise", "broken", "b", [True, False]),
            rows("blank", "broken", "b", [True, False]),
            rows("benign", "benign", "a", [True, True]),
        ]
    )
    assert recommended(scores) == "b"
    own = [rows("mine", "own", "a", [True, True]), rows("mine", "own", "b", [True, False])]
    assert recommended(pl.concat([scores, *own])) == "a"


def evidence_of(scores: pl.DataFrame):
    evidence = planted.perfect(60)
    detectors = [("knn", 0.5, 40, True), ("energy", 0.5, 40, False)]
    how = {"how": "So.", "learned": 40, "form": "PNG, 8 x 8 pixels, grey", "unsaved": ""}
    evidence.records["unknown"] = {
        "scores": scores,
        "detectors": pl.DataFrame(detectors, DETECTORS, orient="row"),
        "how": pl.DataFrame([how]),
    }
    return evidence


def test_figures_are_those_of_the_other_half_and_of_the_recommended_detector():
    scores = pl.concat(
        [
            rows("own images", "trusted", "knn", [True] * 2 + [False] * 38, half=0),
            rows("own images", "trusted", "energy", [True] * 20 + [False] * 20, half=0),
            rows("noise", "broken", "knn", [True] * 9 + [False]),
            rows("noise", "broken", "knn", [False] * 50, half=0),
            rows("noise", "broken", "energy", [False] * 10),
            rows("re-saved as JPEG 90", "benign", "knn", [True] + [False] * 9),
        ]
    )
    found = summarise(evidence_of(scores), Options(data="x"))
    assert (found.severity, found.n, found.files) == ("good", 40, ["guard"])
    worst = found.values["refused_worst"]
    assert (worst.estimate, worst.n) == (0.9, 10)
    assert worst.low == pytest.approx(0.595850, abs=1e-4)  # Wilson, 9 of 10
    assert found.values["false_refusals"].estimate == 0.05
    assert found.values["benign_refused"].estimate == 0.1
    first = found.frame("sets").row(0, named=True)
    assert (first["set"], first["detector"], first["n"]) == ("noise", "knn", 10)
    assert first["auroc"] == pytest.approx(0.9 * 0.95 + 0.9 * 0.05 / 2 + 0.1 * 0.95 / 2)
    assert first["auroc_grey"] == 0.5
    assert found.figures["refused"].data["text"].to_list() == ["90", "0", "10"]


def test_too_few_images_is_a_sentence_and_no_error():
    evidence = planted.perfect(12)
    how = {"how": "So.", "learned": 12, "form": None, "unsaved": ""}
    evidence.records["unknown"] = {
        "scores": pl.DataFrame(schema=ROWS),
        "how": pl.DataFrame([how], schema_overrides={"form": pl.String}),
    }
    found = summarise(evidence, Options(data="x"))
    assert found.status == "not_applicable"
    assert "12 trusted images are too few" in found.finding
    assert summarise(planted.perfect(5), Options(data="x")).status == "not_applicable"
    assert "about 27 are needed" in too_few(3, 0.05)


@pytest.mark.parametrize(("n", "fits"), [(26, True), (25, False), (0, False)])
def test_three_of_four_folds_must_give_a_threshold(n, fits):
    fold = np.full(40, -1)
    fold[:n] = np.arange(n) % 4
    learned = np.arange(n)
    assert enough(Trusted(learned, learned, fold, ""), 0.05) is fits


def test_halves_are_equal_and_do_not_depend_on_the_order():
    ids = [f"image {number}" for number in range(21)]
    half = halves(ids)
    assert half.sum() == 10
    assert (halves(ids[::-1])[::-1] == half).all()


@pytest.fixture
def crossed() -> CrossFitted:
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0)) + 3
    return CrossFitted.fit(lambda: KNN(3), {"pooled": x, "logits": x}, np.arange(80) % 4)


def test_no_image_is_scored_by_a_detector_that_saw_it(crossed):
    own = {"pooled": crossed.whole.bank_}
    assert KNN(1).fit_levels(own).score_levels(own).image.max() < 1e-3
    assert (crossed.calibration > 1e-3).all(), "its own copy is in no bank it is held against"


def test_p_leaves_the_image_itself_out(crossed):
    crossed.calibration = np.array([1.0, 2.0, 3.0, 4.0])
    p = crossed.p_values(np.array([4.0, 1.0, 4.5, 2.5]), np.array([True, True, False, False]))
    assert p.tolist() == pytest.approx([1 / 4, 4 / 4, 1 / 5, 3 / 5])


def test_a_learned_image_is_held_against_the_threshold_of_other_folds(crossed):
    crossed.fold = np.repeat([0, 1], 40)
    crossed.calibration = np.where(crossed.fold == 0, 1.0, 10.0)
    refused = crossed.refused(np.array([5.0, 5.0, 5.0]), 0.05, np.array([-1, 0, 1]))
    assert refused.tolist() == [False, False, True]


def test_a_detector_of_answers_is_not_fitted_by_fold():
    logits = torch.tensor([[3.0, 0.0], [0.0, 0.1]]).repeat(20, 1)
    found = CrossFitted.fit(MaxSoftmax, {"logits": logits}, np.arange(40) % 4)
    assert found.parts == []
    assert found.score({"logits": logits[:2]}, np.array([0, -1]))[0] < 0.1


def test_answers_of_two_classes_are_symmetric_for_max_softmax_but_not_for_energy():
    from beholder.trust.detectors.answers import energy, max_softmax

    logits = torch.tensor([[0.0, 4.0], [0.0, -4.0]])
    assert max_softmax(logits)[0] == pytest.approx(float(max_softmax(logits)[1]))
    assert energy(logits)[0] < energy(logits)[1]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A study of three digits, cross-fitted, with 20 images per set."""
    where = tmp_path_factory.mktemp("unknown")
    folders(where / "three", ["one", "two", "zero"], 44)
    with alone(where / "cache") as patch:
        patch.setattr("beholder.evaluate.benchmarks.unknown_asked.WANTED", 20)
        patch.setattr("beholder.data.synthesize.foreign.FOREIGN", ("photos", "digits"))
        options = SMALL | {"sections": ("unknown", "accuracy"), "without": (), "budget": 0}
        report = study(where / "three", out=where / "run", **options)
        saved = guard.score(where / "run" / "guard", str(where / "three"))
    return report, saved, where


def test_every_set_and_detector_is_asked(asked):
    section = asked[0]["unknown"]
    assert section.status == "measured"
    sets = section.frame("sets")
    kinds = dict(sets.group_by("kind").agg(pl.col("set").n_unique()).iter_rows())
    assert kinds == {"far": 2, "broken": 5, "benign": 2, "near": 3}
    assert {"gaussian_ad", "knn", "max_softmax"} <= set(sets["detector"])
    assert sets.filter(pl.col("kind") == "broken")["n"].unique().to_list() == [10]


def test_blank_and_noise_are_refused(asked):
    section = asked[0]["unknown"]
    best = section.frame("detectors").filter("recommended")["detector"][0]
    sets = section.frame("sets").filter(pl.col("detector") == best)
    refused = dict(sets.select("set", "refused").iter_rows())
    assert min(refused["blank"], refused["noise"]) >= 0.95


def test_realised_false_refusals_hold_what_was_asked_for(asked):
    found = asked[0]["unknown"].values["false_refusals"]
    assert found.low <= 0.05 <= found.high


def test_every_image_gets_a_p_value(asked):
    frame = asked[0].predictions
    assert frame["p_unknown"].null_count() == 0
    assert frame["p_unknown"].min() > 0
    assert frame["refused"].mean() <= 0.12
    assert (frame["refused"] == (frame["p_unknown"] <= 0.05)).all()


def test_the_guard_on_disk_scores_as_the_study_did(asked):
    report, saved, where = asked
    best = report["unknown"].frame("detectors").filter("recommended").row(0, named=True)
    detector = Detector.load(where / "run" / "guard")
    assert detector.called == best["detector"]
    assert detector.threshold(0.05) == pytest.approx(best["threshold"], rel=1e-5)
    p = saved.frame("scores").join(report.predictions, on="id")
    same = (p["refused"] == p["refused_right"]).mean()
    assert same >= 0.9, "they differ in who learned from the image"
    blank = [np.full((32, 32, 3), 90, np.uint8)] * 3
    assert detector.decide(blank).refused.all()


def test_a_set_of_the_user_decides(asked, tmp_path):
    _, _, where = asked
    folders(tmp_path / "nine", ["a", "b"], 15, first=100)
    with alone(where / "cache") as patch:
        patch.setattr("beholder.evaluate.benchmarks.unknown_asked.WANTED", 10)
        options = SMALL | {"sections": ("unknown",), "without": (), "budget": 0}
        options["unknown"] = str(tmp_path / "nine")
        report = study(where / "three", out=tmp_path / "run", **options)
    section = report["unknown"]
    assert "far" not in section.frame("sets")["kind"]
    assert "own" in section.frame("sets")["kind"]
    assert "that must be refused" in section.finding
    assert len(open_images(tmp_path / "nine")) == 30


def test_a_given_model_is_guarded_by_half_of_the_data_and_lacks_a_class(asked, tmp_path):
    _, _, where = asked
    folders(tmp_path / "four", ["one", "two", "zero", "rust"], 36, first=60)
    with alone(where / "cache") as patch:
        patch.setattr("beholder.evaluate.benchmarks.unknown_asked.WANTED", 8)
        patch.setattr("beholder.data.synthesize.foreign.FOREIGN", ("photos",))
        options = SMALL | {"sections": ("unknown",), "without": (), "budget": 0}
        options["model"] = str(where / "run")
        report = study(tmp_path / "four", out=tmp_path / "run", **options)
    section = report["unknown"]
    assert section.severity == "act"
    assert "does not know rust: of 36 images" in section.finding
    assert "one half of the images" in section.method[0]
    assert section.values["false_refusals"].n == 54
    rust = section.frame("sets").filter(pl.col("kind") == "missing")
    assert set(rust["detector"]) == {"gaussian_ad", "knn", "max_softmax", "energy"}

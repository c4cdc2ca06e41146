"""Answers for every image, and never by a head that learned from it where it is judged."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from beholder.core.errors import DataError
from beholder.core.features import SHARD, Features
from beholder.core.split import Sealed, SealedError, Split, split
from beholder.train import answers as module
from beholder.train.answers import Answers, Labelled, Trainer, answer, parts
from beholder.train.heads import Problem

DIM = 8


def planted(
    count: int, classes: int = 2, unlabelled: int = 0, seed: int = 0
) -> tuple[Features, Labelled, np.ndarray]:
    """Clouds in two views, labels, thumbnails; the last images have no label."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % classes
    image = rng.normal(size=(count, DIM)) + 2.5 * np.eye(DIM)[label]
    views = {"image": image, "mirror": image + 0.1 * rng.normal(size=image.shape)}
    features = Features(
        {
            name: [x[i : i + SHARD].astype(np.float32) for i in range(0, count, SHARD)]
            for name, x in views.items()
        },
        {"pooled": slice(0, 4), "rest": slice(4, DIM)},
        DIM,
    )
    label = label.copy()
    label[count - unlabelled :] = -1
    soft = np.where(label[:, None] >= 0, np.eye(classes)[label], 0)
    ids = np.array([f"{i:04d}.png" for i in range(count)], dtype=object)
    data = Labelled(ids, label, soft, np.arange(count))
    return features, data, rng.random((count, 16)).astype(np.float32)


def table(data: Labelled) -> pl.DataFrame:
    label = [int(k) if k >= 0 else None for k in data.label]
    return pl.DataFrame(
        {"id": data.ids.tolist(), "label": label, "unit": data.unit},
        schema_overrides={"label": pl.Int32},
    )


def given(roles: np.ndarray) -> Split:
    return Split(roles, np.full(len(roles), -1, np.int8), "given", (), ())


@pytest.fixture(scope="module")
def holdout() -> tuple[Labelled, list[Split], Answers]:
    features, data, small = planted(480, unlabelled=20)
    splits = [split(table(data), seed) for seed in range(2)]
    assert splits[0].kind == "holdout"
    told: list[int] = []
    found = answer(features, data, splits, small, 0, told.append)
    assert told == [1, 1]
    return data, splits, found


@pytest.fixture(scope="module")
def crossed() -> tuple[Labelled, Answers]:
    return cross_fitted()


def cross_fitted() -> tuple[Labelled, Answers]:
    features, data, small = planted(60, classes=3)
    folded = split(table(data))
    assert folded.kind == "cross_fit"
    return data, answer(features, data, [folded], small, seed=1)


def test_every_image_has_an_answer(holdout: tuple[Labelled, list[Split], Answers]) -> None:
    found = holdout[2]
    assert found.probability.shape == found.logits.shape == (480, 2)
    assert np.isfinite(found.logits).all()
    np.testing.assert_allclose(found.probability.sum(1), 1, atol=1e-6)


def test_judged_images_are_repeated_once_per_split(
    holdout: tuple[Labelled, list[Split], Answers],
) -> None:
    data, splits, found = holdout
    for number, each in enumerate(splits):
        judged = data.ids[(each.roles == "test") & (data.label >= 0)]
        own = found.repeats.filter(pl.col("seed") == number)
        assert sorted(own["id"]) == sorted(judged)
        assert own["correct"].mean() > 0.85


def test_the_repeats_of_the_first_split_are_its_answers(
    holdout: tuple[Labelled, list[Split], Answers],
) -> None:
    data, _, found = holdout
    hits = dict(zip(data.ids, found.probability.argmax(1) == data.label, strict=True))
    first = found.repeats.filter(pl.col("seed") == 0)
    assert first["correct"].to_list() == [bool(hits[id]) for id in first["id"]]


def test_four_baselines_judge_the_same_images(
    holdout: tuple[Labelled, list[Split], Answers],
) -> None:
    data, splits, found = holdout
    judged = sorted(data.ids[(splits[0].roles == "test") & (data.label >= 0)])
    names = ["majority", "thumbnail", "reference", "portable"]
    assert found.baselines["name"].unique(maintain_order=True).to_list() == names
    truth = dict(zip(data.ids, data.label, strict=True))
    right = {}
    for name in names:
        own = found.baselines.filter(pl.col("name") == name)
        assert sorted(own["id"]) == judged
        right[name] = np.mean([truth[r["id"]] == r["predicted"] for r in own.iter_rows(named=True)])
    assert right["reference"] > 0.85
    assert right["portable"] > 0.85
    assert right["thumbnail"] < 0.7  # noise


def test_the_learning_curve_has_three_draws_and_the_whole(
    holdout: tuple[Labelled, list[Split], Answers],
) -> None:
    learning = holdout[2].learning
    draws = learning.group_by("share", "draw").len().sort("share", "draw")
    assert draws["share"].to_list() == [0.25] * 3 + [0.5] * 3 + [1.0]
    assert draws["len"].n_unique() == 1


def test_training_images_are_answered_by_heads_that_did_not_see_them() -> None:
    features, data, small = planted(440, seed=3)
    noise = np.random.default_rng(0).permutation(data.label)  # labels that cannot be learned
    data = Labelled(data.ids, noise, np.eye(2)[noise], data.unit)
    roles = np.where(np.arange(440) < 110, "test", "train")
    found = answer(features, data, [given(roles)], small, seed=0)
    training = (found.probability.argmax(1) == noise)[roles == "train"]
    assert 0.4 < training.mean() < 0.6


def test_a_given_split_is_obeyed() -> None:
    features, data, small = planted(120)
    roles = np.where(np.arange(120) % 4 == 0, "test", "train").astype("<U5")
    roles[1::4] = "val"
    found = answer(features, data, [given(roles)], small, seed=0)
    assert set(found.repeats["id"]) == set(data.ids[roles == "test"])
    assert set(found.shipped.rows) == set(np.flatnonzero(roles != "test"))


def test_a_given_split_without_test_images_judges_nothing() -> None:
    features, data, small = planted(60, classes=3)
    found = answer(features, data, [given(np.full(60, "train"))], small, seed=0)
    for frame in (found.repeats, found.baselines, found.learning):
        assert len(frame) == 0
        assert frame.schema["id"] == pl.String
    assert np.isfinite(found.probability).all()


def test_a_given_split_without_training_images_is_an_error() -> None:
    features, data, small = planted(60)
    with pytest.raises(DataError, match="to train on"):
        answer(features, data, [given(np.full(60, "test"))], small, seed=0)


def test_in_cross_fitting_every_image_is_judged_once(crossed: tuple[Labelled, Answers]) -> None:
    data, found = crossed
    assert sorted(found.repeats["id"]) == sorted(data.ids)
    assert len(found.shipped.rows) == 60
    assert len(found.learning) == 0
    assert found.learning.columns == ["share", "draw", "id", "correct"]
    assert (found.probability.argmax(1) == data.label).mean() > 0.85


def test_a_class_of_one_unit_is_answered_by_heads_that_did_not_see_it() -> None:
    features, data, small = planted(80)
    label = data.label.copy()
    label[:6] = 2
    unit = data.unit.copy()
    unit[:6] = 0
    data = Labelled(data.ids, label, np.eye(3)[label], unit)
    folded = split(table(data))
    found = answer(features, data, [folded], small, seed=0)
    assert not set(found.repeats["id"]) & set(data.ids[:6])
    assert (found.probability[:6].argmax(1) != 2).all()


def test_without_two_independent_images_a_head_is_made_and_nothing_judged() -> None:
    features, data, small = planted(40)
    data = Labelled(data.ids, data.label, data.soft, np.zeros(40, int))
    nothing = split(table(data))
    assert parts(nothing, data) == []
    found = answer(features, data, [nothing], small, seed=0)
    assert len(found.repeats) == len(found.baselines) == 0
    assert np.isfinite(found.probability).all()


@pytest.mark.parametrize("count", [60, 480])
def test_no_fit_ever_sees_an_image_that_it_is_judged_on(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, data, small = planted(count, unlabelled=10)
    splits = [split(table(data), seed) for seed in range(2)]
    learned: list[set[int]] = []
    judged: list[set[int]] = []
    init, check = Problem.__init__, Sealed.__init__

    def spy(
        self: Problem, features: Features, rows: np.ndarray, *rest: object, **more: object
    ) -> None:
        learned.append(set(rows.tolist()))
        init(self, features, rows, *rest, **more)  # type: ignore[arg-type]

    def seal(self: Sealed, ids: np.ndarray) -> None:
        ids = list(ids)
        judged.append({int(id[:4]) for id in ids})
        learned.append(set())
        check(self, ids)

    monkeypatch.setattr(Problem, "__init__", spy)
    monkeypatch.setattr(Sealed, "__init__", seal)
    answer(features, data, splits, small, seed=0)
    current = iter(judged)
    sealed: set[int] = set()
    fits = 0
    for rows in learned:
        if not rows:
            sealed = next(current)
            continue
        fits += 1
        assert not rows & sealed
        assert (data.label[list(rows)] >= 0).all()
    assert fits >= 7


def test_a_sealed_image_cannot_be_fitted() -> None:
    features, data, _ = planted(60)
    trainer = Trainer(features, data, 0)
    with pytest.raises(SealedError, match=r"0007\.png"):
        trainer.train(np.arange(30), Sealed(["0007.png"]))


def test_a_wrong_split_is_caught_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    features, data, small = planted(60)
    monkeypatch.setattr(module, "parts", lambda *_: [(np.arange(40), np.arange(30, 60))])
    monkeypatch.setattr(module, "select", lambda *_, **__: pytest.fail("something was fitted"))
    with pytest.raises(SealedError):
        answer(features, data, [given(np.full(60, "train"))], small, seed=0)


def test_the_same_seed_gives_the_same_answers(crossed: tuple[Labelled, Answers]) -> None:
    a, b = crossed[1], cross_fitted()[1]
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.probability, b.probability)
    assert a.repeats.equals(b.repeats)
    assert a.baselines.equals(b.baselines)

"""Hardening: what a copy is, how it is learned from, and when it is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beholder.core.features import SHARD, Features
from beholder.core.model import VisionModel
from beholder.data.scanned import Scanned
from beholder.data.sources import open_images
from beholder.train.harden import add_copies, changed, changed_copy
from beholder.train.heads import Candidate, Problem, decide, probability, select
from beholder.train.made import make_encoder
from beholder.train.passes import FeaturePass

LOGISTIC = [Candidate("logistic", 1e-2)]


def picture(seed: int = 0, side: int = 48) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, side)[:, None, None] + np.zeros((side, side, 3))
    return (ramp + rng.normal(0, 6, ramp.shape)).clip(0, 255).astype(np.uint8)


def test_a_change_is_mild_and_keeps_form() -> None:
    for seed in range(40):
        before = picture(seed)
        after = changed(before, np.random.default_rng(seed))
        assert after.shape == before.shape
        assert after.dtype == np.uint8
        assert 0 < np.abs(after.astype(int) - before).mean() < 25


def test_a_copy_is_drawn_by_seed_and_id_alone() -> None:
    image = picture()
    assert np.array_equal(changed_copy(image, "a", 0), changed_copy(image, "a", 0))
    assert not np.array_equal(changed_copy(image, "a", 0), changed_copy(image, "b", 0))
    assert not np.array_equal(changed_copy(image, "a", 0), changed_copy(image, "a", 1))


def world(weak: float) -> tuple[Features, np.ndarray, Features]:
    """Features of two classes: one column is a strong sign that a change turns round, twelve are
    weak ones (as many standard deviations apart) that it leaves alone. Second: labels; third: the
    changed images.
    """
    rng = np.random.default_rng(0)
    label = np.arange(240) % 2
    sign = 2.0 * label - 1
    rest = weak * sign[:, None] + rng.normal(0, 1, (240, 12))
    strong = sign + rng.normal(0, 0.2, 240)
    clean = Features.of(np.column_stack([strong, rest]).astype(np.float16))
    copies = Features.of(np.column_stack([-6 * strong, rest]).astype(np.float16))
    clean.views["mirror"], clean.views["copy"] = clean.views["image"], copies.views["image"]
    return clean, label, copies


def fitted(features: Features, label: np.ndarray, harden: bool) -> Any:
    rows, soft = np.arange(len(label)), np.eye(2)[label]
    return select(features, rows, label, soft, rows, candidates=LOGISTIC, harden=harden)


def accuracy(head: Any, features: Features, label: np.ndarray) -> float:
    found = probability(head, decide(head, features, np.arange(len(label)))).argmax(1)
    return float((found == label).mean())


def test_learning_from_copies_mends_what_a_change_breaks() -> None:
    features, label, copies = world(weak=0.9)
    plain, taught = (fitted(features, label, harden) for harden in (False, True))
    assert plain.with_copies is None
    assert not plain.hardened
    assert plain.copies == []
    assert accuracy(plain.head, copies, label) < 0.8
    assert taught.hardened
    assert taught.copies == ["copy"]
    assert accuracy(taught.head, copies, label) > 0.97
    assert accuracy(taught.head, features, label) > 0.97


def test_what_costs_a_point_is_not_chosen() -> None:
    features, label, _ = world(weak=0.0)
    plain, taught = (fitted(features, label, harden) for harden in (False, True))
    assert plain.scores[str(plain.candidate)] == 1
    assert taught.with_copies < 0.9
    assert not taught.hardened
    assert np.array_equal(taught.decisions, plain.decisions)
    states = plain.head.state_dict(), taught.head.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_copy_is_in_the_fold_of_its_image_and_decides_nothing() -> None:
    features, label, _ = world(0.5)
    rows, soft, fold = np.arange(240), np.eye(2)[label], np.arange(240) // 60
    problem = Problem(features, rows, label, soft, fold, ["image"], copies=["copy"])
    assert np.array_equal(problem.fold_of_row, [*fold, *fold])
    decisions = problem.cross_fit(LOGISTIC[0])
    head = problem.fit(LOGISTIC[0], fold != 2)
    held = np.flatnonzero(fold == 2)
    assert np.allclose(decisions[held], decide(head, features, held), atol=0.05)


class Passed:
    """A stage that counts."""

    done = 0

    @contextmanager
    def __call__(self, name: str, total: int, note: str) -> Iterator[Any]:
        yield self

    def advance(self, count: int = 1) -> None:
        self.done += count

    def note(self, text: str) -> None:
        pass


@pytest.fixture
def passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[FeaturePass, VisionModel, Features]:
    monkeypatch.setenv("BEHOLDER_CACHE", str(tmp_path / "cache"))
    find = importlib.util.find_spec  # no OpenVINO: its conversion costs more than all the rest
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "openvino" else find(name, package),
    )
    for number in range(16):
        place = tmp_path / "data" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 32)).save(place / f"{number}.png")
    data = Scanned(
        open_images(str(tmp_path / "data")),
        max_pixels=10**6,
        workers=1,
        use_cache=True,
    )
    vision, _ = make_encoder("untrained:test_resnet", [32], "squash", 0)
    found = FeaturePass(
        data, device="cpu", workers=1, seed=0, place=tmp_path / "place", stage=Passed()
    )
    vision, features = found.run(vision, lambda: float("inf"))
    return found, vision, features


def test_copies_are_features_of_the_changed_images(passed: Any) -> None:
    found, vision, features = passed
    add_copies(found, vision, features, lambda: float("inf"))
    assert found.given_up == []
    assert len(features.views["copy"]) == -(-16 // SHARD)
    ids = found.data.images.table["id"]
    pixels = changed_copy(vision.prepare(found.data.images.read(3)), ids[3], 0).copy()
    with torch.inference_mode():
        own = vision.descriptor(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    taken = features.take(np.array([3]), "copy")
    assert np.allclose(taken, own.numpy(), rtol=2e-3, atol=2e-3)
    assert not np.allclose(taken, features.take(np.array([3])), rtol=2e-2, atol=2e-2)


def test_without_time_there_is_no_hardening_and_the_study_says_so(passed: Any) -> None:
    found, vision, features = passed
    add_copies(found, vision, features, lambda: 0.0)
    assert found.given_up == ["no hardening"]
    assert not features.has("copy")

"""Fine-tuning: the cached cut of an encoder, what it learns, its budget, and when it is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import beholder.train.finetune as module
from beholder.core.errors import BudgetError, ModelError
from beholder.core.features import Features
from beholder.core.model import VisionModel
from beholder.core.split import Split
from beholder.data.scanned import Scanned
from beholder.data.sources import open_images
from beholder.train.answers import Labelled, answer
from beholder.train.finetune import Tuned, finetune
from beholder.train.heads import Candidate
from beholder.train.made import make_encoder
from beholder.train.passes import FeaturePass
from beholder.train.tail import Taught, boundary, cut, learn
from beholder.train.tuning import CPU, GPU, affordable, weights_of

STAGED = ("test_resnet", "test_efficientnet", "test_convnext")


def encoder(name: str, classes: int = 3, side: int = 64) -> VisionModel:
    torch.manual_seed(0)
    backbone: Any = timm.create_model(name, num_classes=classes)
    names = [str(k) for k in range(classes)]
    return VisionModel(backbone, name, classes=names, input_size=(side, side))


@pytest.mark.parametrize("name", STAGED)
def test_gradients_on_cached_maps_are_those_of_the_whole_encoder(name: str) -> None:
    vision = encoder(name)
    trunk, tail, shape = cut(vision)
    images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        maps = trunk.flat(images).unflatten(1, shape)
    torch.nn.functional.cross_entropy(tail(maps), labels).backward()
    whole = vision.backbone
    logits = whole.forward_head(whole.forward_features(vision.normalise(images)))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = dict(whole.named_parameters())
    trained = dict(tail.backbone.named_parameters())
    assert 0 < len(trained) < len(expected)
    for part, parameter in trained.items():
        own, other = parameter.grad, expected[part].grad
        assert own is not None
        assert other is not None
        assert torch.allclose(own, other, rtol=1e-3, atol=1e-6), part


@pytest.mark.parametrize("name", STAGED)
def test_the_cut_is_before_stride_16(name: str) -> None:
    shape = cut(encoder(name))[2]
    assert 64 / 8 in shape


def test_trained_weights_go_back_into_the_encoder() -> None:
    vision = encoder("test_resnet")
    trunk, tail, _ = cut(vision)
    with torch.no_grad():
        for parameter in tail.parameters():
            parameter.add_(0.01)
    tail.to_backbone(vision.backbone)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole = vision.backbone(vision.normalise(images))
        assert torch.allclose(tail(trunk.maps(images)), whole, atol=1e-5)


def test_an_encoder_without_stages_is_refused() -> None:
    with pytest.raises(ModelError, match="needs an encoder of stages"):
        boundary(encoder("test_vit", side=160).backbone)


def taught(vision: VisionModel, count: int = 48) -> tuple[Any, Taught, torch.Tensor, torch.Tensor]:
    """Tail, and maps of images whose class is the third that is bright."""
    trunk, tail, shape = cut(vision)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.3
    for number, label in enumerate(labels):
        images[number, :, 21 * label : 21 * label + 21] += 0.5
    with torch.no_grad():
        maps = trunk.flat(images).numpy().astype(np.float16)
    soft = np.eye(3, dtype=np.float32)[labels]
    return tail, Taught(Features.of(maps), shape, soft, np.ones(count, np.float32)), images, labels


def test_it_learns_and_keeps_the_statistics_of_batch_norm() -> None:
    tail, data, _, labels = taught(encoder("test_resnet"))
    frozen = [buffer.clone() for buffer in tail.buffers()]
    recipe = replace(CPU, batch=16, lr=3e-3, head_lr=1e-2)
    assert len(list(learn(tail, data, recipe, 8, seed=0))) == 8 * 3
    assert all(torch.equal(a, b) for a, b in zip(frozen, tail.buffers(), strict=True))
    with torch.no_grad():
        found = tail(torch.from_numpy(data.maps.take()).unflatten(1, data.shape)).argmax(1)
    assert (found == labels).float().mean() > 0.8


def test_the_same_seed_gives_the_same_weights() -> None:
    found = []
    for seed in (0, 0, 1):
        tail, data, _, _ = taught(encoder("test_resnet"), 12)
        list(learn(tail, data, replace(CPU, batch=6), 4, seed=seed))
        found.append(torch.cat([parameter.detach().flatten() for parameter in tail.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_weights_are_the_mean_of_the_last_three_epochs() -> None:
    tail, data, _, _ = taught(encoder("test_resnet"), 12)
    name, weight = next(iter(tail.named_parameters()))
    steps = learn(tail, data, replace(CPU, batch=6), 5, seed=0)
    after = [weight.detach().clone() for _ in steps][1::2]
    assert torch.allclose(weight, torch.stack(after[-3:]).mean(0), atol=1e-6), name


def test_epochs_are_cut_to_the_time_and_never_below_four() -> None:
    assert affordable(10, float("inf"), 12) == 12
    assert affordable(10, 79, 12) == 7
    assert affordable(10, 40, 12) == 4
    with pytest.raises(BudgetError, match="4 epochs of 10 s, 40 s in all; 39 s are there"):
        affordable(10, 39.0, 12)


def test_classes_are_weighted_only_where_they_are_uneven() -> None:
    assert np.array_equal(weights_of(np.array([0] * 5 + [1])), np.ones(6))
    found = weights_of(np.array([0] * 6 + [1]))
    assert np.allclose(found, [7 / 12] * 6 + [3.5])
    assert found.mean() == pytest.approx(1)


class Stages:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str, total: int, note: str) -> Iterator[Any]:
        self.done[name] = 0
        yield Stage(self.done, name)


class Stage:
    def __init__(self, done: dict[str, int], name: str) -> None:
        self.done, self.name = done, name

    def advance(self, count: int = 1) -> None:
        self.done[self.name] += count

    def note(self, text: str) -> None:
        pass


def tune(*world: Any, seconds: float = float("inf")) -> Tuned:
    vision, features, labelled, answers, split, passed = world
    return finetune(vision, features, labelled, answers, split, passed, seconds)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """48 images of two classes (a bright half at the top or at the left), an untrained encoder, its
    answers, a split with 12 test images."""
    monkeypatch.setenv("BEHOLDER_CACHE", str(tmp_path / "cache"))
    find = importlib.util.find_spec  # no OpenVINO: its conversion costs more than all the rest
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "openvino" else find(name, package),
    )
    monkeypatch.setattr(
        "beholder.train.heads.grid", lambda images, smallest: [Candidate("logistic", 1e-3)]
    )
    rng = np.random.default_rng(0)
    for number in range(48):
        pixels = rng.integers(0, 90, (64, 64, 3))
        half = pixels[:32] if number % 2 else pixels[:, :32]
        half += 100
        place = tmp_path / "data" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02d}.png")
    data = Scanned(open_images(str(tmp_path / "data")), max_pixels=10**6, workers=1, use_cache=True)
    stages = Stages()
    passed = FeaturePass(
        data, device="cpu", workers=1, seed=0, place=tmp_path / "place", stage=stages
    )
    vision, _ = make_encoder("untrained:test_resnet", [64], "squash", 0)
    vision = VisionModel(vision.backbone, vision.name, input_size=(64, 64))
    vision, features = passed.run(vision, lambda: float("inf"))
    label = data.images.table["label"].to_numpy()
    labelled = Labelled(
        data.images.table["id"].to_numpy(), label, np.eye(2, dtype=np.float32)[label], data.unit
    )
    roles = np.where(np.arange(48) % 4 == 3, "test", "train")
    split = Split(roles, np.full(48, -1), "holdout", (), ())
    answers = answer(features, labelled, [split], np.zeros((48, 4), np.float32), 0)
    return vision, features, labelled, answers, split, passed


def test_only_what_was_not_learned_from_is_answered(world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "CPU", replace(CPU, batch=8, epochs=4))
    monkeypatch.setattr(module, "_score", lambda found, label, like: next(better))
    better = iter([0.9, 0.5])
    vision, _, labelled, answers, split, passed = world
    before = vision.weights_hash
    tuned = tune(*world)
    assert vision.weights_hash == before
    assert tuned.found is not None
    model, features, found = tuned.found
    assert model.weights_hash != before
    kept, test = found.shipped.rows, np.flatnonzero(split.roles == "test")
    assert not set(kept) & set(test)
    there = np.flatnonzero(np.isfinite(found.probability[:, 0]))
    assert set(there) == {*kept, *test}
    assert np.allclose(found.probability[there].sum(1), 1)
    pixels = np.stack([model.prepare(passed.data.images.read(int(row))) for row in test])
    model.head = found.shipped.head
    with torch.inference_mode():
        own = model.logits(torch.from_numpy(pixels).permute(0, 3, 1, 2)).softmax(1).numpy()
    assert np.allclose(own, found.probability[test], atol=2e-3)
    assert set(found.repeats["id"]) == set(labelled.ids[test])
    assert {"frozen", "portable", "majority"} <= set(found.baselines["name"])
    assert len(features) == 48
    assert "fine-tuned for 4 epochs: on 9 training images kept aside" in tuned.note
    assert answers.shipped.rows.tolist() != kept.tolist()


def test_the_frozen_encoder_stays_where_it_is_as_good(world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "CPU", replace(CPU, batch=8, epochs=4))
    monkeypatch.setattr(module, "_score", lambda found, label, like: 0.9)
    tuned = tune(*world)
    assert tuned.found is None
    assert tuned.note.startswith("The encoder stays as it was.")


def test_without_the_time_for_four_epochs_the_time_is_named(world: Any) -> None:
    with pytest.raises(BudgetError, match="--finetune-budget") as raised:
        tune(*world, seconds=0.0)
    assert "4 epochs" in str(raised.value)


def test_a_cross_fitted_set_is_left_alone(world: Any) -> None:
    *some, split, passed = world
    tuned = tune(*some, replace(split, kind="cross_fit"), passed)
    assert tuned.found is None
    assert "cross-fitting" in tuned.note


def test_every_layer_can_be_trained_in_the_common_loop(world: Any, monkeypatch: Any) -> None:
    recipe = replace(GPU, batch=16, epochs=4)
    monkeypatch.setattr(module, "CPU", recipe)
    monkeypatch.setattr(module, "_score", lambda found, label, like: next(better))
    better = iter([0.9, 0.5])
    vision = world[0]
    tuned = tune(*world)
    assert tuned.found is not None
    old, new = vision.backbone.state_dict(), tuned.found[0].backbone.state_dict()
    changed = {name for name, value in old.items() if not torch.equal(value, new[name])}
    assert next(iter(old)) in changed

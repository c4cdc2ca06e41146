"""A run on disk: the whole model for us, a plain classifier for timm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from beholder.core.errors import ModelError
from beholder.core.features import Features
from beholder.core.model import DecisionHead, VisionModel
from beholder.models.classifier_heads import LinearHead
from beholder.models.encoder import create_encoder
from beholder.models.run import attach_portable, fold_linear, load, save_model
from beholder.train.heads import Candidate, Problem

SIDE = 64
IMAGES = torch.from_numpy(
    np.random.default_rng(0).integers(0, 256, (6, 3, SIDE, SIDE), dtype=np.uint8)
)
BLEND = Candidate("blend", parts=(Candidate("logistic", 1e-2), Candidate("kernel", 1.0)))


def planted(name: str, classes: int, side: int = SIDE) -> tuple[VisionModel, LinearHead]:
    """A model with a head on 40 random images, and a linear head on its pooled map."""
    backbone, _ = create_encoder(f"untrained:{name}")
    model = VisionModel(
        backbone,
        name,
        classes=[f"class {k}" for k in range(classes)],
        input_size=(side, side),
        mirror=True,
        crop="center",
    )
    rng = np.random.default_rng(1)
    with torch.inference_mode():
        rows = model.descriptor(torch.from_numpy(rng.random((40, 3, side, side), np.float32)))
    labels = np.arange(40) % classes
    features = Features.of(rows.numpy())
    made = []
    for columns, one in ((None, BLEND), (model.layout["pooled"], Candidate("logistic", 0.1))):
        fold = np.arange(40) // classes % 2
        problem = Problem(
            features, np.arange(40), labels, np.eye(classes)[labels], fold, ["image"], columns
        )
        decisions = problem.cross_fit(one)
        head = problem.fit(one)
        head.fit_calibration(decisions, labels)
        made.append(head.eval())
    model.head = made[0]
    return model, made[1]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_run_gives_the_logits_of_the_model_that_was_saved(
    name: str, classes: int, tmp_path: Path
) -> None:
    model, portable = planted(name, classes, side=160 if name == "test_vit" else SIDE)
    with torch.inference_mode():
        before = model.logits(resize(IMAGES, model))
    assert attach_portable(model.backbone, portable, classes)
    save_model(model, {"candidate": str(BLEND)}, tmp_path)
    again = load(tmp_path)
    with torch.inference_mode():
        after = again.logits(resize(IMAGES, again))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    for key in ("name", "classes", "input_size", "mirror", "crop", "mean", "std", "interpolation"):
        assert getattr(again, key) == getattr(model, key)
    assert again.weights_hash == model.weights_hash
    assert again.head_hash == model.head_hash
    assert again.describe() == model.describe()


def resize(images: torch.Tensor, model: VisionModel) -> torch.Tensor:
    return nn.functional.interpolate(images.float() / 255, model.input_size)


@pytest.mark.parametrize("classes", [2, 4])
def test_timm_opens_the_portable_model(classes: int, tmp_path: Path) -> None:
    model, portable = planted("test_resnet", classes)
    assert attach_portable(model.backbone, portable, classes)
    save_model(model, {}, tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert plain.num_classes == classes
    assert tuple(plain.pretrained_cfg["input_size"]) == (3, SIDE, SIDE)
    with torch.inference_mode():
        found = plain(model.normalise(IMAGES))
        pooled = model.features(IMAGES)
        expected = portable.logits(portable(pooled))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_portable_model_knows_the_names_of_classes(tmp_path: Path) -> None:
    model, portable = planted("test_resnet", 2)
    attach_portable(model.backbone, portable, 2)
    save_model(model, {}, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == ["class 0", "class 1"]
    assert config["num_classes"] == 2


def test_a_folded_head_is_the_head() -> None:
    _, portable = planted("test_resnet", 4)
    weight, bias = fold_linear(portable, 4)
    rows = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        rows @ weight.T + bias, portable.logits(portable(rows)), atol=1e-4, rtol=1e-4
    )


class Cosine(nn.Module):
    """A classifier that is not one linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(classes, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x) @ self.weight.T


def odd_classifier(model: VisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a backbone that makes its own kind of classifier."""
    backbone = model.backbone
    reset = backbone.reset_classifier

    def reset_classifier(classes: int) -> None:
        reset(classes)
        if classes:
            backbone.fc = Cosine(backbone.num_features, classes)

    monkeypatch.setattr(backbone, "reset_classifier", reset_classifier)


def two_paths(model: VisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a backbone whose answer is more than its classifier's."""
    forward_head = model.backbone.forward_head

    def doubled(x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return forward_head(x, pre_logits=pre_logits) * (1 if pre_logits else 2)

    monkeypatch.setattr(model.backbone, "forward_head", doubled)


@pytest.mark.parametrize("spoil", [odd_classifier, two_paths])
def test_a_run_without_a_portable_model_still_opens(spoil, tmp_path: Path, monkeypatch) -> None:
    model, portable = planted("test_resnet", 3)
    with torch.inference_mode():
        before = model.logits(IMAGES)
    spoil(model, monkeypatch)
    assert not attach_portable(model.backbone, portable, 3)
    save_model(model, {}, tmp_path)
    again = load(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(again.logits(IMAGES), before, atol=1e-5, rtol=1e-5)
    assert again.classes == ("class 0", "class 1", "class 2")
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 0


def test_saving_and_loading_leave_the_random_generator_alone(tmp_path: Path) -> None:
    model, portable = planted("test_resnet", 2)
    state = torch.random.get_rng_state()
    attach_portable(model.backbone, portable, 2)
    save_model(model, {}, tmp_path)
    load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_without_a_head_answers_by_its_own_classifier_when_loaded(tmp_path: Path) -> None:
    model, portable = planted("test_resnet", 2)
    attach_portable(model.backbone, portable, 2)
    model.head = None
    save_model(model, {}, tmp_path)
    images = torch.rand(2, 3, *model.input_size)
    again = load(tmp_path)
    assert again.head is None
    assert again.classes == model.classes
    with torch.inference_mode():
        torch.testing.assert_close(again.logits(images), model.logits(images))


def test_a_head_of_another_kind_is_not_saved(tmp_path: Path) -> None:
    model, _ = planted("test_resnet", 2)
    model.head = DecisionHead()
    with pytest.raises(ModelError, match="no head"):
        save_model(model, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    model, portable = planted("test_resnet", 2)
    attach_portable(model.backbone, portable, 2)
    save_model(model, {}, place)
    return place


FILES = ("config.json", "model.safetensors", "head.json", "head.safetensors")


def copied(saved: Path, place: Path) -> Path:
    for name in FILES:
        (place / name).write_bytes((saved / name).read_bytes())
    return place


@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "noise", "list"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_a_model_error(saved: Path, tmp_path: Path, name: str, harm: str) -> None:
    place = copied(saved, tmp_path)
    path = place / name
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "cut": data[: len(data) // 2], "noise": b"\xff" * 99, "list": b"[]"}[
                harm
            ]
        )
    with pytest.raises(ModelError):
        load(place)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("head.json", "kind"),
        ("head.json", "heads"),
        ("head.json", "mirror"),
        ("config.json", "label_names"),
        ("config.json", "pretrained_cfg"),
        ("config.json", "architecture"),
    ],
)
def test_a_fact_that_is_missing_is_a_model_error(
    saved: Path, tmp_path: Path, name: str, key: str
) -> None:
    place = copied(saved, tmp_path)
    facts = json.loads((place / name).read_text())
    del facts[key]
    (place / name).write_text(json.dumps(facts))
    with pytest.raises(ModelError):
        load(place)


def test_support_vectors_lie_in_half_precision(saved: Path) -> None:
    tensors = load_file(saved / "head.safetensors")
    assert tensors["heads.1.points"].dtype == torch.float16
    assert tensors["heads.1.alpha"].dtype == torch.float32


def test_there_is_no_run_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no readable head"):
        load(tmp_path)

"""What every head keeps to, on composed scenes and small backbones."""

from __future__ import annotations

import math

import pytest
import torch

from beholder.core.errors import DataError, ModelError
from beholder.core.model import VisionModel
from beholder.core.predictions import Detections
from beholder.core.registry import systems
from beholder.data.synthesize.scenes import Scenes
from beholder.metrics.coco import evaluate
from beholder.models.encoder import create_encoder
from beholder.models.heads.base import DetectionModel, check
from beholder.models.heads.pyramid import Pyramid

HEADS = systems("head")
BACKBONES = ("resnet10t", "test_convnext", "test_vit")


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(8, size=96, classes=3, sprites=(1, 2), background="plain")


def detector(entry, backbone: str = "resnet10t") -> DetectionModel:
    made, _ = create_encoder(f"untrained:{backbone}")
    encoder = VisionModel(made, backbone)
    form = entry.load()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pyramid = Pyramid(encoder, form.levels, channels=32)
        return DetectionModel(encoder, pyramid, form(classes=3, channels=32))


def batch(scenes: Scenes, rows: range) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    samples = [scenes[row] for row in rows]
    images = torch.stack([torch.from_numpy(s["image"]).permute(2, 0, 1) for s in samples]) / 255
    return images, [
        {
            "boxes": torch.as_tensor(s["boxes"]).float(),
            "labels": torch.as_tensor(s["box_labels"]).long(),
        }
        for s in samples
    ]


@pytest.mark.parametrize("entry", HEADS, ids=lambda entry: entry.name)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_boxes_lie_in_the_image_and_every_parameter_learns(entry, backbone: str, scenes) -> None:
    model = detector(entry, backbone)
    side = 160 if backbone == "test_vit" else 96
    images, targets = batch(scenes, range(2))
    images = torch.nn.functional.pad(images, (0, side - 96, 0, side - 96))
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    terms = model.train().loss(images, targets)
    assert all(torch.isfinite(term) for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    heads = [*model.pyramid.named_parameters(), *model.head.named_parameters()]
    assert [name for name, p in heads if p.requires_grad and p.grad is None] == []
    for found in model.eval().predict(images):
        assert found.boxes.shape == (len(found), 4)
        assert (found.boxes >= 0).all()
        assert (found.boxes <= side).all()
        assert (found.scores.diff() <= 0).all()
        assert set(found.labels.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("entry", HEADS, ids=lambda entry: entry.name)
def test_it_learns_a_few_scenes_by_heart(entry, scenes) -> None:
    model = detector(entry)
    images, targets = batch(scenes, range(8))
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(25):
        terms = model.train().loss(images, targets)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    model.eval()
    together = model.predict(images)
    assert evaluate(together, targets)["ap50"] >= 0.5
    alone = [model.predict(image[None])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=1e-3)
    again = detector(entry)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval().predict(images)[0].boxes, together[0].boxes)


def told(targets, shift: float = 0.0) -> list[Detections]:
    return [
        Detections(t["boxes"] + shift, torch.ones(len(t["boxes"])), t["labels"]) for t in targets
    ]


def test_perfect_boxes_have_an_ap_of_1_and_shifted_ones_of_0(scenes) -> None:
    _, targets = batch(scenes, range(8))
    assert evaluate(told(targets), targets)["ap"] == pytest.approx(1)
    assert evaluate(told(targets, 60.0), targets)["ap50"] == 0
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert evaluate([nothing] * 8, targets)["ap"] == 0
    assert math.isnan(evaluate(told(targets), [told_nothing()] * 8)["ap"])


def told_nothing() -> dict[str, torch.Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}


def test_the_specs_two_boxes_have_an_ap_of_0_851() -> None:
    truth = {
        "boxes": torch.tensor([[10.0, 10, 50, 50], [60, 60, 100, 100]]),
        "labels": torch.tensor([0, 0]),
    }
    boxes = torch.tensor([[10.0, 10, 50, 50], [60, 60, 96, 96.4]])  # IoU .819 for the second
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
    figures = evaluate([found], [truth])
    assert figures["ap"] == pytest.approx(0.851, abs=0.002)
    assert figures["ap75"] == pytest.approx(1)


@pytest.mark.parametrize(
    "box", [[5.0, 5, 5, 9], [0, 0, 99, 9], [-5, 0, 3, 9], [float("nan"), 0, 3, 9]]
)
def test_a_box_that_cannot_be_is_named(box: list[float]) -> None:
    target = {"boxes": torch.tensor([box]), "labels": torch.tensor([0])}
    with pytest.raises(DataError, match="Image 1: box"):
        check([told_nothing(), target], (96, 96))


def test_a_label_below_zero_and_a_missing_label_are_refused() -> None:
    box = torch.tensor([[0.0, 0, 3, 9]])
    with pytest.raises(DataError, match="class -1"):
        check([{"boxes": box, "labels": torch.tensor([-1])}], (96, 96))
    with pytest.raises(DataError, match="1 boxes and 0 labels"):
        check([{"boxes": box, "labels": torch.zeros(0)}], (96, 96))


def test_levels_go_by_stride() -> None:
    made, _ = create_encoder("untrained:resnet10t")
    encoder = VisionModel(made, "resnet10t")
    pyramid = Pyramid(encoder, (3, 4, 5, 6, 7), channels=32)
    maps = pyramid(encoder.feature_maps(torch.rand(1, 3, 96, 128)))
    assert [tuple(x.shape[-2:]) for x in maps.values()] == [
        (12, 16),
        (6, 8),
        (3, 4),
        (2, 2),
        (1, 1),
    ]
    with pytest.raises(ModelError, match="no feature map"):
        Pyramid(encoder, (6, 7))

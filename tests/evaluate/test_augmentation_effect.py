"""Row 58's benchmark: perfect and random models, and every figure by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from torch import Tensor

from beholder.core.model import VisionModel
from beholder.data.synthesize.scenes import Scenes
from beholder.evaluate.benchmarks.augmentation_effect import (
    AugmentationEffect,
    best_threshold,
    blended,
    localised,
    occlude,
    other_class,
    pasted,
    rates,
)
from beholder.metrics.detection import auroc
from beholder.metrics.explanation import max_box_acc, max_box_acc_v2
from beholder.train.recipes.adversarial import pgd

SCENES = Scenes(12, 32, 3, sprites=(1, 1))


def untrained(seed: int, size: int = 64) -> VisionModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = timm.create_model("test_resnet", num_classes=3)
    return VisionModel(backbone, f"net{seed}", classes=SCENES.classes, input_size=(size, size))


@pytest.fixture(scope="module")
def measured() -> tuple[Any, pl.DataFrame]:
    models = {"a": untrained(0), "b": untrained(1)}
    data = {
        "test": SCENES,
        "background": Scenes(10, 32, 3, sprites=(0, 0)),
        "same": SCENES,
    }
    return AugmentationEffect().measure(models, data, seed=0)


def perfect_maps(scenes: Scenes) -> tuple[Tensor, list[Tensor]]:
    masks = torch.stack([torch.from_numpy(sample["masks"].any(0)).float() for sample in scenes])
    return masks, [torch.from_numpy(sample["boxes"]) for sample in scenes]


def test_the_true_mask_as_the_map_localises_everything() -> None:
    solid = Scenes(6, 48, ["pizza", "soccer ball", "globe showing americas"], sprites=(1, 1))
    found = localised(*perfect_maps(solid))
    assert min(found["box"]) > 0.9
    every = np.ones((1, 6))
    for column in ("largest", "parts"):
        assert best_threshold(np.array(found[column]), (0.5, 0.9))(every) == [1.0]


def test_a_map_of_another_image_localises_less() -> None:
    maps, boxes = perfect_maps(Scenes(8, 32, 3, sprites=(1, 1)))
    assert np.mean(localised(maps.roll(1, 0), boxes)["box"]) < 0.3


def test_a_flat_map_finds_nothing() -> None:
    maps = torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.eye(8)])
    found = localised(maps, [torch.tensor([[0.0, 0, 8, 8]])] * 3)
    assert found["box"][0] == 0
    assert [max(row) for row in found["largest"]] == [0, 0, 1]
    assert [max(row) for row in found["parts"]] == [0, 0, 1]


def test_the_best_threshold_is_that_of_the_metric() -> None:
    maps = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[2.0, 3, 14, 15]])] * 4
    found, every = localised(maps, boxes), np.ones((1, 4))
    largest, parts = (np.array(found[name]) for name in ("largest", "parts"))
    assert best_threshold(largest, (0.5,))(every)[0] == pytest.approx(max_box_acc(maps, boxes))
    assert best_threshold(parts, (0.3, 0.5, 0.7))(every)[0] == pytest.approx(
        max_box_acc_v2(maps, boxes)
    )


def test_scores_of_one_distribution_tell_nothing() -> None:
    scores = np.random.default_rng(0).random((2, 3000))
    found = rates(scores[0], scores[1])
    assert auroc(scores[0], scores[1]) == pytest.approx(0.5, abs=0.03)
    assert found["tnr95"] == pytest.approx(0.05, abs=0.03)
    assert found["accuracy"] == pytest.approx(0.5, abs=0.03)


def test_rates_by_hand() -> None:
    apart = rates(np.array([0.0, 1.0]), np.array([2.0, 3.0]))
    assert apart == {"tnr95": 1.0, "accuracy": 1.0}
    found = rates(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.5, 9.0]))
    assert found["accuracy"] == pytest.approx(0.75)  # above 1: half and all; above 3: all and half
    assert rates(np.array([1.0]), np.array([0.0]))["accuracy"] == 0.5


def test_squares_are_black_in_the_middle_or_around() -> None:
    white = torch.ones(1, 3, 8, 8)
    middle, edge = occlude(white, 0.5), occlude(white, 0.5, outside=True)
    assert middle.sum() == 3 * (64 - 16)
    assert middle[..., 2:6, 2:6].sum() == 0
    assert torch.equal(middle + edge, white)
    assert torch.equal(occlude(white, 0.0), white)
    assert occlude(white, 1.0).sum() == 0


def test_images_in_between_are_shares_of_both() -> None:
    black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert blended(black, white, 0.75).unique().tolist() == [0.25]
    cut = pasted(black, white, 0.75)
    assert cut.mean() == 0.25
    assert cut[..., 2:6, 2:6].min() == 1
    assert torch.equal(pasted(black, white, 1.0), black)


def test_partners_are_of_another_class() -> None:
    label = torch.tensor([0, 0, 1, 2, 2])
    partner = other_class(label)
    assert partner.tolist() == [2, 2, 3, 0, 0]
    assert other_class(torch.tensor([1, 1])).tolist() == [0, 1]


def test_every_figure_is_that_of_the_records(measured: Any) -> None:
    section, records = measured
    model = untrained(0)
    images = torch.stack([torch.from_numpy(model.prepare(s["image"])) for s in SCENES])
    images = images.permute(0, 3, 1, 2).float() / 255
    label = torch.tensor([sample["label"] for sample in SCENES])
    with torch.no_grad():
        right = model.logits(images).argmax(1) == label
        fgsm = model.logits(pgd(model, images, label, 4 / 255, 1, 4 / 255)).argmax(1) == label
    assert section.values["a.accuracy"].estimate == pytest.approx(float(right.float().mean()))
    assert section.values["a.fgsm"].estimate == pytest.approx(float(fgsm.float().mean()))
    own = records.filter((pl.col("model") == "a") & (pl.col("set") == "test"))
    assert own["id"].to_list() == [sample["id"] for sample in SCENES]
    hits = np.array(own["centre"].to_list())
    curve = section.frame("curves").filter((pl.col("model") == "a") & (pl.col("how") == "centre"))
    np.testing.assert_allclose(curve["accuracy"].to_numpy(), hits.mean(0))


def test_the_section_has_every_part_for_every_model(measured: Any) -> None:
    section, _ = measured
    assert section.id == "augmentation_effect"
    assert section.status == "measured"
    assert section.n == 12
    for model in ("a", "b"):
        for key in (
            *("accuracy", "fgsm", "gt_known_loc", "top1_loc", "max_box_acc", "max_box_acc_v2"),
            *("auroc_background", "auroc_same"),
        ):
            assert 0 <= section.values[f"{model}.{key}"].estimate <= 1
    models = section.frame("models")
    assert models["model"].to_list() == ["a", "b"]
    assert (models["accuracy_low"] <= models["accuracy"]).all()
    assert len(section.frame("unknown")) == 4
    assert set(section.figures) == {"centre", "edge", "blend", "cut"}
    assert section.finding.count("(") == 3
    assert section.to_dict()


def test_images_of_the_test_itself_are_not_told_from_it(measured: Any) -> None:
    section, _ = measured
    assert section.values["a.auroc_same"].estimate == pytest.approx(0.5)


def test_a_right_class_and_box_are_no_more_than_either(measured: Any) -> None:
    values = measured[0].values
    for model in ("a", "b"):
        both = values[f"{model}.top1_loc"].estimate
        assert both <= values[f"{model}.gt_known_loc"].estimate
        assert both <= values[f"{model}.accuracy"].estimate


def test_a_summary_needs_no_model(measured: Any) -> None:
    section, records = measured
    assert AugmentationEffect().summarise(records).to_dict() == section.to_dict()


def test_images_without_boxes_are_not_localised() -> None:
    section = AugmentationEffect().run(untrained(0), SCENES.images(), limit=8)
    assert "model.accuracy" in section.values
    assert "model.max_box_acc" not in section.values
    assert section.n == 8


def test_it_repeats_with_its_seed() -> None:
    found = [AugmentationEffect().measure(untrained(0), SCENES, limit=4)[1] for _ in range(2)]
    assert found[0].equals(found[1])


@pytest.mark.parametrize(
    ("model", "data", "why"),
    [
        ("x", {"train": SCENES}, "none called test"),
        ("x", SCENES, "no image classifier"),
        ("net", Scenes(4, 32, 4), "not trained on the classes"),
        ("net", Scenes(4, 32, 4, sprites=(0, 0)).images(), "no single label"),
    ],
)
def test_it_says_why_it_does_not_apply(model: str, data: Any, why: str) -> None:
    given = untrained(0) if model == "net" else model
    section = AugmentationEffect().run(given, data)
    assert section.status == "not_applicable"
    assert why in section.finding

"""What the feature pass may cost, which images it keeps, which encoder it runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch

from beholder.core.decode import Unreadable
from beholder.core.errors import BudgetError, DataError, ModelError
from beholder.core.files import digest
from beholder.core.images import TABLE_SCHEMA, Images
from beholder.core.model import VisionModel
from beholder.models.encoder import create_encoder
from beholder.train.made import (
    Pass,
    choose_engine,
    make_encoder,
    names_encoder,
    pick_device,
    plan_pass,
    resized,
    subset,
)

BOTH, ONE = ("image", "mirror"), ("image",)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (float("inf"), Pass(BOTH, 320, 10_000)),
        (2_000, Pass(BOTH, 320, 10_000)),
        (1_999, Pass(ONE, 320, 10_000)),
        (1_000, Pass(ONE, 320, 10_000)),
        (999, Pass(ONE, 224, 10_000)),
        (490, Pass(ONE, 224, 10_000)),
        (489, Pass(ONE, 160, 10_000)),
        (250, Pass(ONE, 160, 10_000)),
        (249, Pass(ONE, 160, 9_960)),
        (50, Pass(ONE, 160, 2_000)),
    ],
)
def test_the_mirror_goes_first_then_the_side_then_images(seconds: float, expected: Pass) -> None:
    assert plan_pass(seconds, 0.1, 10_000, 320, fixed=False) == expected


def test_less_than_two_thousand_images_is_no_honest_pass() -> None:
    with pytest.raises(BudgetError, match=r"2,000 images need 50 s"):
        plan_pass(49.9, 0.1, 10_000, 320, fixed=False)


def test_a_small_set_is_never_cut() -> None:
    with pytest.raises(BudgetError, match="500 images"):
        plan_pass(12, 0.1, 500, 320, fixed=False)
    assert plan_pass(12.5, 0.1, 500, 320, fixed=False) == Pass(ONE, 160, 500)


def test_a_fixed_side_is_kept() -> None:
    assert plan_pass(999, 0.1, 10_000, 320, fixed=True) == Pass(ONE, 320, 9_990)


def test_no_time_left_is_a_budget_error() -> None:
    with pytest.raises(BudgetError, match="--budget"):
        plan_pass(-3, 0.1, 10, 224, fixed=False)


def test_what_was_given_up_is_said() -> None:
    assert Pass(BOTH, 320, 10).shortened(10, 320) == []
    assert Pass(ONE, 224, 2_000).shortened(10_000, 320) == [
        "no mirror images",
        "images at 224 instead of 320 px",
        "2,000 of 10,000 images",
    ]


def dataset(labels: list[int | None], read: Callable[[int], np.ndarray] | None = None) -> Images:
    ids = [f"{i:04d}" for i in range(len(labels))]
    table = pl.DataFrame(
        {"id": ids, "key": ids, "path": ids, "label": labels}, schema_overrides={"label": pl.Int32}
    ).with_columns(
        pl.lit(None, kind).alias(name)
        for name, kind in TABLE_SCHEMA.items()
        if name not in {"id", "key", "path", "label"}
    )

    class Made(Images):
        def read(self, row: int) -> np.ndarray:
            assert read is not None
            return read(row)

    return Made("made", ("a", "b"), table, None, "flat", "classes")  # type: ignore[arg-type]


def order(id: str) -> str:
    return digest("0", id)


def test_a_subset_holds_every_class_in_proportion() -> None:
    labels = [0] * 300 + [1] * 90 + [None] * 30
    keep = subset(dataset(labels), 140, order)
    assert keep.sum() == 140
    assert [int(keep[:300].sum()), int(keep[300:390].sum()), int(keep[390:].sum())] == [100, 30, 10]


def test_a_subset_does_not_depend_on_the_order_of_rows() -> None:
    images = dataset([0, 1] * 100)
    shuffled = dataset([0, 1] * 100)
    mixed = np.random.default_rng(0).permutation(200)
    object.__setattr__(shuffled, "table", images.table[mixed])
    kept = set(images.table["id"].filter(subset(images, 50, order)))
    again = set(shuffled.table["id"].filter(subset(shuffled, 50, order)))
    assert kept == again


def test_another_seed_takes_other_images() -> None:
    images = dataset([0, 1] * 100)
    a, b = (subset(images, 50, lambda id, seed=seed: digest(seed, id)) for seed in "01")
    assert 0 < (a & b).sum() < 50


def test_a_smaller_subset_lies_in_a_larger_one() -> None:
    images = dataset([0, 1, 1] * 60)
    small, large = (subset(images, count, order) for count in (40, 90))
    assert not (small & ~large).any()


@pytest.mark.parametrize(
    ("text", "encoder"),
    [
        ("resnet18", True),
        ("untrained:test_resnet", True),
        ("local-dir:somewhere", False),
        ("hf-hub:timm/x", False),
        ("models/net.onnx", False),
    ],
)
def test_a_bare_name_is_an_encoder(text: str, encoder: bool) -> None:
    assert names_encoder(text) is encoder


def test_a_file_of_that_name_is_a_model_to_judge(tmp_path, monkeypatch) -> None:
    (tmp_path / "resnet18").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert not names_encoder("resnet18")


def test_an_encoder_runs_at_the_side_of_the_images() -> None:
    vision, assumed = make_encoder("untrained:test_resnet", [190, 200, 210], "squash", 0)
    assert vision.input_size == (224, 224)
    assert "random weights" in assumed[0]


def test_a_side_that_the_encoder_cannot_take_is_rounded_up() -> None:
    vision, _ = make_encoder("untrained:test_maxvit", [150] * 20, "center", 0)
    assert vision.input_size in {(150, 150), (160, 160)}
    assert vision.crop == "center"
    assert vision.layout


def test_an_encoder_at_another_side_keeps_its_weights() -> None:
    vision = VisionModel(create_encoder("untrained:test_resnet")[0], "t", crop="center")
    smaller = resized(vision, 96)
    assert smaller.input_size == (96, 96)
    assert (smaller.crop, smaller.backbone) == ("center", vision.backbone)


def test_the_engine_is_tried_on_images_that_can_still_be_read(monkeypatch) -> None:
    vision = VisionModel(create_encoder("untrained:test_resnet")[0], "tiny", input_size=(64, 64))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def read(row: int) -> np.ndarray:
        if row % 2:
            raise Unreadable("missing_file")
        return np.full((70, 50, 3), row, np.uint8)

    engine, price, notes = choose_engine(vision, dataset([0] * 9, read), "cpu")
    assert engine.name == "eager"
    assert price > 0
    assert "pip install" in notes[0]
    with pytest.raises(DataError, match="no longer"):
        choose_engine(vision, dataset([0], lambda row: read(1)), "cpu")


def test_a_device_that_is_not_there_is_named() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in {"cpu", "cuda", "mps"}
    with pytest.raises(ModelError, match="--device nonsense"):
        pick_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="--device cuda"):
            pick_device("cuda")

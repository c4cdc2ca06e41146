"""What a step comes to: accumulation, averages, hooks, wrong losses, sizes, tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train.loop.small import model, settings, squares, trained, weights

from beholder.core.errors import ArgumentError, DataError
from beholder.core.model import VisionModel
from beholder.data.augment.cutmix import CutMix
from beholder.train.data import Phase, ResolutionSchedule
from beholder.train.ema import WeightAverage
from beholder.train.loop import NotFiniteError, fit
from beholder.train.objectives.base import DataInfo, Objective, Step
from beholder.train.objectives.classification import Classification


class Watched(Classification):
    """Writes down the hooks as they are called."""

    def __init__(self) -> None:
        super().__init__(view="raw")
        self.calls: list[tuple[str, int]] = []

    def before_step(self, model: VisionModel, step: Step) -> None:
        self.calls.append(("before", step.number))

    def after_backward(self, model: VisionModel, step: Step) -> None:
        assert all(p.grad is not None for p in model.parameters())
        self.calls.append(("backward", step.number))

    def after_step(self, model: VisionModel, step: Step) -> None:
        self.calls.append(("after", step.number))


class Broken(Classification):
    """A loss that is not a number in some steps."""

    def __init__(self, *steps: int) -> None:
        super().__init__(view="raw")
        self.steps, self.now = steps, -1

    def before_step(self, model: VisionModel, step: Step) -> None:
        self.now = step.number

    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        found = super().loss(model, batch)["ce"]
        return {"ce": found, "extra": found * (float("nan") if self.now in self.steps else 0)}


class Whole(Classification):
    global_batch = True


def test_four_batches_of_8_equal_one_of_32() -> None:
    """Also in the last, shorter group: 75 images are 32, 32, and 11 = 8 + 3."""
    images = squares(75)
    small = trained(images, batch_size=8, accumulate=4, optimiser="sgd", lr=0.1)
    large = trained(images, batch_size=32, optimiser="sgd", lr=0.1)
    assert small.steps == large.steps == 6
    start = nn.utils.parameters_to_vector(model().parameters())
    assert (weights(large) - start).norm() > 0.1
    assert torch.allclose(weights(small), weights(large), atol=1e-6)


def test_the_same_call_repeats_bit_for_bit_and_leaves_global_chance_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    one = trained()
    assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002
    assert torch.equal(weights(one), weights(trained()))
    assert not torch.equal(weights(one), weights(trained(seed=1)))


def test_hooks_come_once_per_step_in_order() -> None:
    objective = Watched()
    fit(objective, model(), squares(), settings(epochs=1, batch_size=4, accumulate=3))
    expected = [(name, step) for step in range(2) for name in ("before", "backward", "after")]
    assert objective.calls == expected


def test_the_average_of_weights_is_the_closed_form() -> None:
    """Constant increments of 1: a_n = sum of w_k times what is left of it."""
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
    average = WeightAverage({"layer": layer}, decay=0.5)
    expected = 0.0
    for t in range(20):
        with torch.no_grad():
            layer.weight += 1
        average.update()
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * (t + 1)
    assert average.average["layer.weight"].item() == pytest.approx(expected, abs=1e-5)
    with average.swapped():
        assert layer.weight.item() == pytest.approx(expected, abs=1e-5)
    assert layer.weight.item() == 20


def test_the_average_leaves_frozen_parameters_and_batch_statistics_alone() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].requires_grad_(False)
    average = WeightAverage({"net": net}, decay=0.9)
    assert sorted(average.average) == ["net.1.bias", "net.1.weight"]
    net(torch.randn(8, 2))
    statistics = net[1].running_mean.clone()
    with average.swapped():
        assert torch.equal(net[1].running_mean, statistics)


def test_a_loss_that_is_no_number_names_itself_the_step_and_the_images(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="'extra' is nan in step 2"):
        fit(Broken(2), model(), squares(), settings(), out=tmp_path / "r")
    told = json.loads((tmp_path / "r" / "nonfinite.json").read_text())
    assert told["loss"] == "extra"
    assert len(told["ids"]) == 6  # the last batch of 22 in eights


def test_at_most_ten_steps_in_a_row_are_left_out() -> None:
    skipping = settings(epochs=4, on_nonfinite="skip")
    run = fit(Broken(*range(1, 4)), model(), squares(), skipping)
    assert run.steps == 12
    assert torch.isfinite(weights(run)).all()
    with pytest.raises(NotFiniteError, match="step 11"):
        fit(Broken(*range(1, 20)), model(), squares(), settings(epochs=8, on_nonfinite="skip"))


def test_a_loss_of_the_whole_batch_is_not_accumulated() -> None:
    with pytest.raises(ArgumentError, match="accumulate = 2"):
        fit(Whole(), model(), squares(), settings(accumulate=2))


def test_gradients_are_clipped() -> None:
    free = trained(epochs=1, batch_size=32, optimiser="sgd", lr=1.0, momentum=0.0)
    held = trained(
        epochs=1, batch_size=32, optimiser="sgd", lr=1.0, momentum=0.0, clip=1e-3, weight_decay=0
    )
    start = nn.utils.parameters_to_vector(model().parameters())
    assert (weights(held) - start).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert (weights(free) - start).norm() > 0.01


def test_mixed_labels_reach_the_loss_and_stop_in_the_last_epochs() -> None:
    class Seen(Classification):
        def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            target = batch.get("target", batch["label"])
            shapes.append(tuple(target.shape))
            if target.ndim == 2:
                assert torch.allclose(target.sum(1), torch.ones(len(target)))
            return super().loss(model, batch)

    shapes: list[tuple[int, ...]] = []
    fit(Seen(view="raw"), model(), squares(), settings(mixing=CutMix(), no_mixing=1))
    assert shapes == [(8, 3), (8, 3), (6, 3), (8,), (8,), (6,)]


def test_images_grow_by_the_schedule() -> None:
    class Sized(Classification):
        def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            seen.append((len(batch["image"]), batch["image"].shape[-1]))
            return super().loss(model, batch)

    seen: list[tuple[int, int]] = []
    phases = ResolutionSchedule((Phase(0, (32, 32), 11), Phase(1, (64, 64))))
    fit(Sized(view="raw"), model("test_convnext"), squares(), settings(resolution=phases))
    assert seen == [(11, 32), (11, 32), (8, 64), (8, 64), (6, 64)]


def test_a_size_that_the_backbone_does_not_take_is_named() -> None:
    phases = ResolutionSchedule((Phase(0, (8, 8)),))
    with pytest.raises(ArgumentError, match="8 x 8"):
        fit(Classification(), model("test_convnext"), squares(), settings(resolution=phases))


def test_drop_path_follows_its_schedule() -> None:
    class Looking(Classification):
        def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            rates.append({m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")})
            return super().loss(model, batch)

    rates: list[set[float]] = []
    net = model(drop_path_rate=0.3)
    fit(Looking(view="raw"), net, squares(), settings(schedules={"drop_prob": _rising}))
    assert rates == [{0.05 * number} for number in range(6)]


def _rising(step: Step) -> float:
    return 0.05 * step.number


class Both(Objective):
    """Two tasks, each a linear layer of its own on the features; shapes differ."""

    needs = frozenset({"image", "label"})
    classifies = True

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[tuple[str, int, tuple[int, ...]]] = []

    def setup(self, model: VisionModel, data: DataInfo) -> None:
        super().setup(model, data)
        self.heads = nn.ModuleDict({"near": nn.Linear(64, 3), "far": nn.Linear(64, 5)})

    def views(self, sample: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        side = 32 if sample["task"] == "near" else 64
        image = torch.from_numpy(sample["image"]).permute(2, 0, 1)[None] / 255
        image = nn.functional.interpolate(image, (side, side))[0]
        return {"image": image, "label": sample["label"], "task": sample["task"]}

    def loss(self, model: VisionModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        (task,) = set(batch["task"])
        self.tasks.append((task, len(batch["label"]), tuple(batch["image"].shape[1:])))
        found = self.heads[task](model.features(batch["image"]))
        return {task: nn.functional.cross_entropy(found, batch["label"])}


@pytest.mark.parametrize("policy", ["alternate", "joint"])
def test_two_tasks_of_different_shapes_in_one_run(policy: str, tmp_path: Path) -> None:
    objective = Both()
    data = {"near": squares(22), "far": squares(40, classes=5, first=500)}
    config = settings(policy=policy, epochs=1)
    run = fit(objective, model("test_convnext"), data, config, validation=data)
    shapes = {"near": (3, 32, 32), "far": (3, 64, 64)}
    steps = objective.tasks[: 10 if policy == "joint" else 8]
    assert all(shape == shapes[task] for task, _, shape in steps)
    names = [task for task, _, _ in steps]
    if policy == "joint":
        assert names == ["near", "far"] * 5
        assert run.steps == 5
    else:
        assert set(names) == {"near", "far"}
        assert run.steps == 8
    assert {"near", "far", "loss"} <= run.last("validation").keys()


def test_unlabelled_images_are_left_out_and_no_label_at_all_is_an_error() -> None:
    images = squares(22)
    some = images.table.with_columns(
        label=images.table["label"].set(images.table["label"] == 2, None)
    )
    run = trained(cast(Any, images).__class__(**{**vars(images), "table": some}), epochs=1)
    assert run.steps == 2
    none = images.table.with_columns(label=images.table["label"] * None)
    with pytest.raises(DataError, match="'label'"):
        trained(images.__class__(**{**vars(images), "table": none}))
    with pytest.raises(DataError, match="too few"):
        trained(squares(1))


def test_early_stop_keeps_the_best_weights(tmp_path: Path) -> None:
    config = settings(epochs=30, patience=2, lr=0.3, optimiser="sgd")
    run = fit(
        *(Classification(view="raw"), model(), squares(), config),
        validation=squares(9, first=100),
        out=tmp_path / "r",
    )
    assert run.finished
    assert run.steps < 90
    unwritten = fit(
        *(Classification(view="raw"), model(), squares(), config),
        validation=squares(9, first=100),
    )
    assert torch.equal(weights(unwritten), weights(run))
    best = torch.load(tmp_path / "r" / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == run.steps - 6
    kept = run.model.backbone.state_dict()
    assert all(torch.equal(kept[n], best["state"][f"model.backbone.{n}"]) for n in kept)


def test_compiling_changes_no_name_in_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def compile(function: Any) -> Any:
        compiled.append(function.__name__)
        return lambda *args, **options: function(*args, **options)

    monkeypatch.setattr(torch, "compile", compile)
    net = model()
    names = list(net.state_dict())
    run = fit(Classification(view="raw"), net, squares(), settings(epochs=1, compile=True))
    assert compiled == ["forward_features", "forward_head"]
    assert list(run.model.state_dict()) == names
    assert "forward_features" not in vars(net.backbone)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_weights_stay_float32_whatever_the_precision(precision: str) -> None:
    run = trained(precision=precision, epochs=1)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert weights(run).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "--epochs = 0"),
        ({"lr": -1.0}, "--lr = -1.0"),
        ({"ema": 1.5}, "--ema = 1.5"),
        ({"optimiser": "adamax"}, "adamax"),
        ({"batch_size": 0}, "--batch-size = 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        settings(**wrong)

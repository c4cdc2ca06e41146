"""What every registered objective must do, on any backbone that it allows."""

from __future__ import annotations

import functools
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import default_collate

from beholder.core.errors import BeholderError, DataError, ModelError
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.registry import Entry, make, systems
from beholder.data.sources import open_images
from beholder.metrics.features import collapse
from beholder.models.run import save_model
from beholder.train.config import TrainConfig
from beholder.train.loop import fit
from beholder.train.objectives.base import DataInfo, Objective, Step, abilities
from beholder.train.objectives.teacher import Teacher

SMALL: dict[str, dict[str, Any]] = {"barlow_twins": {"projector": (64, 64)}}
"""Options that make an objective cheap; the others run with their own defaults."""
BATCH_OF_ONE = {"barlow_twins"}
"""Objectives whose statistics need more than one image."""
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": (1, 1, 1, 1)},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 2,
        "embed_dim": 24,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 4, 8),
    },
}
TINY = {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}
"""A ResNet-10 that takes milliseconds."""
FEW = 16
ENTRIES = systems("objective")
TRAINED = [entry for entry in ENTRIES if entry.load().trains]


def pytest_names(entries: list[Entry]) -> Any:
    return pytest.mark.parametrize("entry", entries, ids=[entry.name for entry in entries])


@functools.cache
def digits(count: int = FEW) -> Images:
    images = open_images("digits")
    return images.where(pl.Series(np.arange(len(images)) < count))


def info(side: int) -> DataInfo:
    return DataInfo(digits().classes, FEW, (side, side))


def vision(name: str = "resnet18", side: int = 32, **options: Any) -> VisionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = timm.create_model(name, num_classes=0, **(options or TINY))
    return VisionModel(backbone, name, input_size=(side, side)).train()


def ready(entry: Entry, model: VisionModel, seed: int = 0) -> Objective:
    """The objective, set up on the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective: Objective = make("objective", entry.name, **SMALL.get(entry.name, {}))
        objective.setup(model, info(model.input_size[0]))
    return objective.train()


def sample(row: int = 0) -> dict[str, Any]:
    """A digit with whatever an objective may need."""
    label = digits()[row]
    extra = {"labels": [label["label"]], "caption": f"the digit {label['label']}"}
    return label | extra


def batch_of(objective: Objective, count: int = FEW, epoch: int = 0) -> dict[str, Any]:
    views = [
        objective.views(sample(row), torch.Generator().manual_seed(1000 * epoch + row))
        for row in range(count)
    ]
    return default_collate(views)


def forward(objective: Objective, model: VisionModel, batch: dict[str, Any]) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few images
        return objective.loss(model, batch)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return all(map(same, a, b))
    return bool(a == b)


@pytest_names(TRAINED)
def test_views_are_a_function_of_the_generator(entry: Entry) -> None:
    objective = ready(entry, vision())
    assert same(batch_of(objective, 4), batch_of(objective, 4))
    assert not same(batch_of(objective, 4), batch_of(objective, 4, epoch=1))


@pytest_names(TRAINED)
def test_views_can_be_made_in_another_process(entry: Entry) -> None:
    objective = ready(entry, vision())
    again = pickle.loads(pickle.dumps(objective))
    assert same(batch_of(objective, 2), batch_of(again, 2))


@pytest.mark.parametrize("name", BACKBONES)
@pytest_names(TRAINED)
def test_gradient_reaches_the_backbone_and_no_teacher(entry: Entry, name: str) -> None:
    model = vision(name, 64, **BACKBONES[name])
    missing = entry.load().requires - abilities(model.backbone)
    if missing:
        with pytest.raises(ModelError, match=next(iter(missing))):
            ready(entry, model)
        return
    objective = ready(entry, model)
    batch = batch_of(objective)
    objective.before_step(model, Step(0, 10))
    terms = forward(objective, model, batch)
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    objective.total(terms, Step(0, 10)).backward()
    trained = [*model.backbone.named_parameters(), *objective.named_parameters()]
    without = [key for key, p in trained if p.requires_grad and p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for _, p in trained if p.grad is not None)
    for teacher in (m for m in objective.modules() if isinstance(m, Teacher)):
        assert all(p.grad is None for p in teacher.parameters())


@pytest_names(TRAINED)
def test_sixty_steps_lower_the_loss_and_collapse_nothing(entry: Entry) -> None:
    model = vision(side=16)
    objective = ready(entry, model)
    batch = default_collate(
        [objective.views(digits(64)[row], torch.Generator().manual_seed(row)) for row in range(64)]
    )
    groups = objective.param_groups(model, 2e-3, 0.01)
    optimiser = torch.optim.AdamW([{k: g[k] for k in g if k != "names"} for g in groups])
    losses = []
    for number in range(60):
        step = Step(number, 60)
        objective.before_step(model, step)
        total = objective.total(forward(objective, model, batch), step)
        optimiser.zero_grad()
        total.backward()
        objective.after_backward(model, step)
        optimiser.step()
        objective.after_step(model, step)
        losses.append(total.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    model.eval()
    images = torch.from_numpy(np.stack([model.prepare(digits(64).read(row)) for row in range(64)]))
    with torch.no_grad():
        features = objective.features(model, images.permute(0, 3, 1, 2))
    assert not collapse(features.numpy()).alarming


class Killed(Exception):
    pass


@pytest_names(TRAINED)
def test_a_killed_run_goes_on_bit_for_bit(entry: Entry, tmp_path: Path) -> None:
    config = TrainConfig(
        epochs=2, batch_size=8, lr=1e-3, device="cpu", workers=0, checkpoint_every=0, log_every=1
    )

    def run(place: Path, kill: int = 0) -> Any:
        def progress(step: int, total: int, figures: Any) -> None:
            if step == kill:
                raise Killed

        objective: Objective = make("objective", entry.name, **SMALL.get(entry.name, {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return fit(objective, vision(), digits(), config, out=place, on_progress=progress)

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill=3)
    resumed = run(tmp_path / "killed")
    assert resumed.resumed_from == 2
    for one, other in ((whole.model, resumed.model), (whole.objective, resumed.objective)):
        assert same(one.state_dict(), other.state_dict())


@pytest_names(TRAINED)
def test_state_survives_safetensors(entry: Entry) -> None:
    objective, other = ready(entry, vision()), ready(entry, vision(), seed=1)
    state = {key: value.contiguous() for key, value in objective.state_dict().items()}
    other.load_state_dict(load(save(state)))
    assert same(objective.state_dict(), other.state_dict())


@pytest_names(ENTRIES)
def test_a_missing_key_is_named_with_the_objective(entry: Entry) -> None:
    objective: Objective = make("objective", entry.name, **SMALL.get(entry.name, {}))
    for key in objective.needs:
        without = {name: value for name, value in sample().items() if name != key}
        with pytest.raises(DataError, match=rf"{entry.name} .*'{key}'"):
            objective.views(without, torch.Generator())


@pytest_names(TRAINED)
def test_a_batch_of_one_works_or_is_refused_with_a_reason(entry: Entry) -> None:
    model = vision()
    objective = ready(entry, model).eval()
    model.eval()
    batch = batch_of(objective, 1)
    if entry.name in BATCH_OF_ONE:
        with pytest.raises(BeholderError, match="1 image"):
            forward(objective, model, batch)
    else:
        terms = forward(objective, model, batch)
        assert all(torch.isfinite(term) for term in terms.values())


@pytest_names(TRAINED)
def test_what_is_exported_loads_in_timm(entry: Entry, tmp_path: Path) -> None:
    model = vision(layers=(2, 2, 2, 2))
    objective = ready(entry, model)
    found = objective.export(model.eval())
    save_model(found, {}, tmp_path)
    loaded: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    normal = found.normalise(images)
    pooled = loaded.forward_head(loaded.forward_features(normal), pre_logits=True)
    torch.testing.assert_close(pooled, found.features(images))
    classifier = isinstance(loaded.get_classifier(), nn.Linear)
    assert classifier is objective.classifies
    if classifier:
        torch.testing.assert_close(loaded(normal), found.logits(images))

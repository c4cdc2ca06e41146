"""What every verifier keeps to, on small random networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from beholder.core.errors import ArgumentError, ModelError
from beholder.core.registry import systems
from beholder.trust.verify.base import Counterexample, Proved, Region, Unknown, answer
from beholder.trust.verify.bounds import Bounds, margins

VERIFIERS = systems("verifier")


def network(seed: int, convolutional: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if convolutional:
            return nn.Sequential(
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4).eval(),
                nn.ReLU(),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(4, 3),
            ).eval()
        return nn.Sequential(
            nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        ).eval()


def centre(seed: int, side: int = 2) -> torch.Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))


def points(region: Region, count: int) -> torch.Tensor:
    """Random images of the region, half of them corners."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(count, *region.centre.shape, generator=generator)
    share[: count // 2] = share[: count // 2].round()
    return region.lower + share * (region.upper - region.lower)


@pytest.mark.parametrize("entry", VERIFIERS, ids=lambda entry: entry.name)
@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
def test_nothing_proved_is_contradicted_and_no_counterexample_is_false(entry, eps: float) -> None:
    seen = set()
    for seed in range(25):
        model, image = network(seed), centre(seed)
        region = Region.linf(image, eps)
        verdict = entry.load()().verify(model, region)
        seen.add(type(verdict))
        label = answer(model, image)
        with torch.no_grad():
            found = model.double()(points(region, 2000).double()).argmax(1)
        model.float()
        if isinstance(verdict, Proved):
            assert (found == label).all()
            assert verdict.margin > 0
        if isinstance(verdict, Counterexample):
            assert region.holds(verdict.image)
            assert answer(model, verdict.image) == verdict.label != label
    assert seen <= {Proved, Counterexample, Unknown}
    assert Proved in seen or eps > 0.1


@pytest.mark.parametrize("entry", VERIFIERS, ids=lambda entry: entry.name)
def test_a_region_of_one_point_is_proved(entry) -> None:
    model, image = network(0), centre(0)
    assert isinstance(entry.load()().verify(model, Region.linf(image, 0.0)), Proved)


@pytest.mark.parametrize("entry", VERIFIERS, ids=lambda entry: entry.name)
def test_the_model_is_left_as_it_was(entry) -> None:
    model, image = network(0), centre(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    entry.load()().verify(model, Region.linf(image, 0.1))
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.dtype == before[key].dtype


def test_bounds_of_a_linear_network_are_exact() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    model[1].weight.data = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.0]])
    region = Region.linf(torch.full((3, 1, 1), 0.5), 0.1)
    # w0 - w1 = (1, -3, .5): at the centre -.75, less .1 * 4.5
    assert margins(model, region, 0)[1] == pytest.approx(-0.75 - 0.45)


def test_bounds_enclose_what_a_convolutional_network_answers() -> None:
    model, image = network(3, convolutional=True), centre(3, 4)
    region = Region.linf(image, 0.05)
    label = answer(model, image)
    bound = margins(model, region, label)
    with torch.no_grad():
        logits = model.double()(points(region, 2000).double())
    assert (logits[:, [label]] - logits >= bound - 1e-9).all()


def test_a_layer_that_is_not_known_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.GELU(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match="GELU"):
        Bounds().verify(model, Region.linf(centre(0), 0.01))


def test_a_centre_outside_its_region_is_refused() -> None:
    image = centre(0)
    with pytest.raises(ArgumentError, match="between its bounds"):
        Region(image, image + 0.1, image + 0.2)

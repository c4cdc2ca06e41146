"""Every engine gives torch's numbers, in order, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openvino
import pytest
import torch
from torch import nn

from beholder.core import engines
from beholder.core.engines import Eager, FromBytes, OpenVino, fastest, in_flight
from beholder.core.errors import ModelError
from beholder.core.model import VisionModel
from beholder.models.encoder import create_encoder

SIDE = 64
IMAGES = np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def module() -> FromBytes:
    backbone, _ = create_encoder("untrained:test_resnet")
    model = VisionModel(backbone, "tiny", input_size=(SIDE, SIDE))
    return FromBytes(model, "descriptor").eval()


@pytest.fixture(scope="module")
def converted(
    module: FromBytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OpenVino, str]]:
    """An engine of two images, and the cache that its network lies in."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("engines"))
        patch.setenv("BEHOLDER_CACHE", place)
        yield OpenVino(module, (SIDE, SIDE), "tiny", batch=2), place


def plain(module: FromBytes, images: np.ndarray) -> np.ndarray:
    """One image after another, straight through torch."""
    with torch.inference_mode():
        rows = [
            module.module.descriptor(torch.from_numpy(i).permute(2, 0, 1)[None]) for i in images
        ]
    return torch.cat(rows).numpy()


def batches(size: int) -> list[np.ndarray]:
    return [IMAGES[start : start + size] for start in range(0, len(IMAGES), size)]


def test_eager_torch_equals_a_plain_loop(module: FromBytes) -> None:
    found = np.concatenate(list(Eager(module, 4).run(batches(4))))
    np.testing.assert_allclose(found, plain(module, IMAGES), atol=1e-4)


def test_openvino_equals_a_plain_loop_and_keeps_the_order(
    module: FromBytes, converted: tuple[OpenVino, str]
) -> None:
    found = np.concatenate(list(converted[0].run(batches(2))))
    np.testing.assert_allclose(found, plain(module, IMAGES), rtol=1e-3, atol=1e-3)


def test_the_order_is_kept_with_several_requests_in_flight(converted: tuple[OpenVino, str]) -> None:
    engine = converted[0]
    alone = np.concatenate(list(engine.run(batches(2))))
    before = engine.requests
    compiled = before[0].get_compiled_model()
    engine.requests = [compiled.create_infer_request() for _ in range(4)]
    try:
        assert in_flight(engine) == 4
        together = np.concatenate(list(engine.run(batches(2))))
    finally:
        engine.requests = before
    np.testing.assert_array_equal(together, alone)


def test_a_pass_that_is_given_up_leaves_the_engine_ready(converted: tuple[OpenVino, str]) -> None:
    engine = converted[0]
    whole = np.concatenate(list(engine.run(batches(2))))
    started = engine.run(batches(2))
    next(started)
    started.close()
    np.testing.assert_array_equal(np.concatenate(list(engine.run(batches(2)))), whole)


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_neighbours_in_a_batch_do_not_change_an_image(
    module: FromBytes, converted: tuple[OpenVino, str], name: str
) -> None:
    engine = Eager(module, 2) if name == "eager" else converted[0]
    first = next(engine.run([IMAGES[[0, 1]]]))[0]
    beside = next(engine.run([IMAGES[[0, 7]]]))[0]
    padded = next(engine.run([np.stack([IMAGES[0], np.zeros_like(IMAGES[0])])]))[0]
    np.testing.assert_array_equal(first, beside)
    np.testing.assert_array_equal(first, padded)


def test_a_kept_network_is_not_converted_again(
    module: FromBytes, converted: tuple[OpenVino, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, place = converted
    monkeypatch.setenv("BEHOLDER_CACHE", place)

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(OpenVino, "_converted", never)
    again = OpenVino(module, (SIDE, SIDE), "tiny", batch=4)
    assert first.converting > 0
    assert again.converting == 0
    with pytest.raises(AssertionError, match="converted again"):
        OpenVino(module, (SIDE, SIDE), "another key", batch=4)


def test_a_damaged_network_counts_as_none(
    converted: tuple[OpenVino, str], monkeypatch: pytest.MonkeyPatch, own_cache
) -> None:
    path = own_cache / "net.xml"
    path.write_text("<net")
    assert OpenVino._kept(openvino.Core(), path) is None
    path.with_suffix(".bin").write_bytes(b"")
    assert OpenVino._kept(openvino.Core(), path) is None


class Branching(nn.Module):
    """Cannot be exported: it looks at the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.float().flatten(1)
        return flat[:, :3] if flat.sum() > 0 else flat[:, 3:6]


def test_a_model_that_cannot_be_converted_runs_in_torch_with_a_note() -> None:
    engine, seconds, notes = fastest(Branching(), IMAGES[:1], "branching")
    assert engine.name == "eager"
    assert engine.batch == engines.BATCH
    assert seconds > 0
    assert notes[0].startswith("OpenVINO cannot convert this model")
    with pytest.raises(ModelError, match="OpenVINO cannot convert"):
        OpenVino(Branching(), (SIDE, SIDE))


class Scaled:
    """An engine that is off by a factor."""

    name = "openvino"
    converting = 0.0

    def __init__(self, module: nn.Module, size: object, key: object, factor: float = 1.0) -> None:
        self.eager, self.batch, self.factor = Eager(module, engines.BATCH), engines.BATCH, factor

    def run(self, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
        return (self.factor * found for found in self.eager.run(batches))


@pytest.mark.parametrize(("factor", "used"), [(1.01, False), (float("nan"), False), (1.0, True)])
def test_an_engine_that_differs_is_passed_over(
    module: FromBytes, monkeypatch: pytest.MonkeyPatch, factor: float, used: bool
) -> None:
    monkeypatch.setattr(engines, "OpenVino", lambda *args: Scaled(*args, factor=factor))
    monkeypatch.setattr(engines, "in_flight", lambda engine: 1)
    monkeypatch.setattr(engines, "seconds_per_image", lambda *_: 0.0)
    engine, _, notes = fastest(module, IMAGES[:3], "tiny")
    assert (engine.name == "openvino") is used
    assert bool(notes) is not used
    if notes:
        assert "differs from torch" in notes[0]

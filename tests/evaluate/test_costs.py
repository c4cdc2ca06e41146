"""The cost stage measures what fits its time, and says what did not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beholder.core.engines import Eager
from beholder.core.errors import ModelError
from beholder.core.model import VisionModel
from beholder.evaluate import costs
from beholder.evaluate.costs import BATCHES, Way, kept_busy, measure
from beholder.models.encoder import create_encoder

SAMPLE = [np.full((32, 32, 3), shade, np.uint8) for shade in range(0, 250, 30)]


class Timer:
    """Monotonic time and the timers of `metrics.cost`, moved by fake engines alone."""

    now = 0.0


class Fake:
    """An engine of a price per image; answers are a constant and a shade."""

    def __init__(self, name: str, batch: int, price: float, shift: float = 0.0) -> None:
        self.name, self.batch, self.price, self.shift = name, batch, price, shift
        self.parallel = 2

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            Timer.now += self.price * len(batch)
            shade = batch[:, 0, 0, :1].astype(np.float32)
            yield np.concatenate([shade + self.shift, np.full_like(shade, 100)], 1)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> VisionModel:
    made = VisionModel(create_encoder("untrained:test_resnet")[0], "tiny", input_size=(32, 32))
    Timer.now = 0.0
    monkeypatch.setattr("beholder.metrics.cost.time.perf_counter", lambda: Timer.now)
    monkeypatch.setattr(costs.time, "monotonic", lambda: Timer.now)
    return made


def offer(monkeypatch: pytest.MonkeyPatch, *known: Way) -> None:
    monkeypatch.setattr(costs, "ways", lambda *_: list(known))


def fake(name: str, price: float, shift: float = 0.0, needs: float = 0.0) -> Way:
    return Way(name, "torch", "", needs, lambda batch: Fake(name, batch, price, shift))


def measured(model: VisionModel, seconds: float, **options: object) -> pl.DataFrame:
    settings: dict = {"work": Path(), "run": None, "single_pass": "", "seconds": seconds}
    return measure(model, SAMPLE, lambda: SAMPLE[0], **settings | options)


def test_every_engine_has_a_row_per_batch(model: VisionModel, monkeypatch) -> None:
    offer(monkeypatch, fake("eager", 0.01), fake("fast", 0.004))
    found = measured(model, 100)
    engines = found.filter(pl.col("engine") != "end to end")
    assert engines["engine"].to_list() == ["eager"] * 3 + ["fast"] * 3
    for name, price in (("eager", 0.01), ("fast", 0.004)):
        own = engines.filter(pl.col("engine") == name)
        assert own["batch"].to_list() == list(BATCHES)
        assert own["latency_p50_ms"][0] == pytest.approx(1000 * price)
        np.testing.assert_allclose(own["images_per_s"], 1 / price, rtol=1e-6)
    whole = found.filter(pl.col("engine") == "end to end")
    assert whole["latency_p50_ms"][0] == pytest.approx(4)
    assert whole["note"][0].endswith("fast")


def test_what_does_not_fit_is_left_out_and_says_so(model: VisionModel, monkeypatch) -> None:
    offer(monkeypatch, fake("eager", 0.12), fake("fast", 0.05))
    found = measured(model, 16)
    assert Timer.now < 16 * 1.1
    left_out = found.filter(pl.col("note").str.starts_with("left out"))
    assert (left_out["batch"] > 1).all()
    assert left_out["images_per_s"].null_count() == len(left_out)
    assert set(found.filter(pl.col("batch") == 1)["engine"]) >= {"eager", "fast"}


def test_an_engine_that_takes_longer_to_prepare_is_left_out(
    model: VisionModel, monkeypatch
) -> None:
    offer(monkeypatch, fake("eager", 0.01), fake("compiled", 0.01, needs=60))
    found = measured(model, 16)
    row = found.filter(pl.col("engine") == "compiled")
    assert row["note"].to_list() == ["left out: it needs about 60 s"]


def test_missing_packages_and_failures_are_notes(model: VisionModel, monkeypatch) -> None:
    def fail(batch: int) -> Eager:
        raise ModelError("cannot export it: no such operator")

    offer(
        monkeypatch,
        fake("eager", 0.01),
        Way("absent", "no_such_package", "fast", 0, fail),
        Way("broken", "torch", "", 0, fail),
    )
    told: list[int] = []
    found = measured(model, 16, progress=told.append)
    notes = dict(found.select("engine", "note").filter(pl.col("note").is_not_null()).iter_rows())
    assert notes["absent"] == "not installed: pip install beholder[fast]"
    assert notes["broken"] == "cannot export it: no such operator"
    assert sum(told) == 3


def test_other_answers_than_torch_gives_are_counted(model: VisionModel, monkeypatch) -> None:
    offer(monkeypatch, fake("eager", 0.01), fake("fast", 0.01, shift=25.0))
    found = measured(model, 16).filter((pl.col("engine") == "fast") & (pl.col("batch") == 1))
    assert found["max_difference"][0] == 25
    assert found["equal_answers"][0] == 7 / 8  # shade 90 alone crosses 100


def test_an_engine_is_kept_busy_with_all_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "in_flight", lambda engine: engine.parallel)
    found = kept_busy(Fake("fast", 8, 0.0), np.zeros((8, 2, 2, 3), np.uint8))()
    assert [len(part) for part in found] == [8, 8]


def test_memory_is_in_the_first_row(model: VisionModel, monkeypatch) -> None:
    offer(monkeypatch, fake("eager", 0.01))
    monkeypatch.setattr(costs, "_memory", lambda run: 123.0)
    assert measured(model, 16, run=Path("there"))["memory_mb"][0] == 123
    assert measured(model, 16)["memory_mb"].null_count() == 4


def test_the_mirror_is_left_as_it_was(model: VisionModel, monkeypatch) -> None:
    offer(monkeypatch, fake("eager", 0.01))
    model.mirror = True
    monkeypatch.setattr(costs, "Eager", lambda module, batch: Fake("single", batch, 0.006))
    row = measured(model, 16, single_pass="accuracy 85.5 %").filter(
        pl.col("engine") == "single pass"
    )
    assert row["note"].to_list() == ["eager, accuracy 85.5 %"]
    assert row["latency_p50_ms"][0] == pytest.approx(6)
    assert model.mirror

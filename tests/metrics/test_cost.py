"""Prices, against a clock that the tests turn."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from beholder.metrics import cost
from beholder.metrics.cost import latency, macs, peak_memory, throughput


class Clock:
    """Time that passes only while something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def work(self, *seconds: float):
        """A run that takes these times in turn, the last one for ever."""

        def run() -> None:
            self.now += seconds[min(self.calls, len(seconds) - 1)]
            self.calls += 1

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(cost.time, "perf_counter", lambda: made.now)
    return made


def test_multiply_adds_of_a_linear_layer() -> None:
    assert macs(nn.Linear(30, 7), torch.zeros(4, 30)) == 4 * 30 * 7


def test_multiply_adds_of_a_convolution() -> None:
    layer = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2)
    assert macs(layer, torch.zeros(1, 8, 10, 10)) == 5 * 5 * 16 * (8 // 2) * 9


def test_multiply_adds_of_layers_add_up() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert macs(module, torch.zeros(1, 3, 6, 6)) == 36 * 3 * 4 + 4 * 36 * 2


def test_fast_runs_are_repeated_fifty_times_after_ten(clock: Clock) -> None:
    p50, p90 = latency(clock.work(0.002), seconds=3)
    assert clock.calls == 60
    assert (p50, p90) == pytest.approx((2, 2))


def test_the_warm_up_does_not_count(clock: Clock) -> None:
    p50, _ = latency(clock.work(*[0.05] * 10, 0.001), seconds=3)
    assert p50 == pytest.approx(1)


def test_one_slow_run_in_nine_moves_the_ninth_tenth_only(clock: Clock) -> None:
    times = [0.001] * 10 + [0.001] * 44 + [0.009] * 6
    p50, p90 = latency(clock.work(*times), seconds=3)
    assert p50 == pytest.approx(1)
    assert p90 == pytest.approx(np.quantile([1] * 44 + [9] * 6, 0.9))


def test_slow_runs_end_with_the_time(clock: Clock) -> None:
    latency(clock.work(0.1), seconds=1)
    assert clock.now == pytest.approx(1.1)


def test_very_slow_runs_are_measured_three_times(clock: Clock) -> None:
    assert latency(clock.work(5.0), seconds=1) == (5000, 5000)
    assert clock.calls == 1 + 3


def test_throughput_is_images_per_second_without_the_first_run(clock: Clock) -> None:
    assert throughput(clock.work(0.3, 0.1), 8, seconds=1) == pytest.approx(80)
    assert clock.now == pytest.approx(1.0)


def test_a_first_run_beyond_half_of_the_time_is_the_measurement(clock: Clock) -> None:
    assert throughput(clock.work(4.0), 32, seconds=1.5) == pytest.approx(8)
    assert clock.calls == 1


HUNGRY = "x = bytearray(100 * 2**20)\nx[::4096] = bytes([1]) * len(x[::4096])"


def test_a_hundred_mebibytes_are_seen() -> None:
    found = peak_memory("import json", HUNGRY)
    assert found is not None
    assert 99 < found < 103


def test_what_the_imports_took_for_a_while_does_not_hide_the_work() -> None:
    spike = "y = bytearray(300 * 2**20)\ny[::4096] = bytes([1]) * len(y[::4096])\ndel y"
    found = peak_memory(spike, HUNGRY)
    assert found is not None
    assert 99 < found < 103


def test_a_peak_that_is_given_back_counts() -> None:
    found = peak_memory("", HUNGRY + "\ndel x")
    assert found is not None
    assert 99 < found < 103


REFUSED = """
import builtins
kept = builtins.open

def refusing(name, *rest, **more):
    if str(name).endswith("clear_refs"):
        raise PermissionError(13, "no")
    return kept(name, *rest, **more)

builtins.open = refusing
y = bytearray(SPIKE * 2**20)
y[::4096] = bytes([1]) * len(y[::4096])
del y
"""


@pytest.mark.parametrize(("spike", "seen"), [(0, True), (300, False)])
def test_where_a_peak_cannot_be_reset_a_hidden_one_is_not_told(spike: int, seen: bool) -> None:
    code = cost.PEAK.format(setup=REFUSED.replace("SPIKE", str(spike)), work=HUNGRY)
    # A small process starts it: Linux counts the size of the parent as a peak of the child.
    small = "import subprocess, sys; print(subprocess.run([sys.executable, '-c', sys.argv[1]], "
    small += "capture_output=True, text=True).stdout)"
    done = subprocess.run(
        [sys.executable, "-c", small, code], capture_output=True, text=True, check=True
    )
    found = done.stdout.split()
    assert bool(found) is seen
    if found:
        assert 99 < int(found[0]) / 1024 < 110


def test_a_process_that_fails_or_takes_too_long_tells_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert peak_memory("", "raise ValueError") is None
    assert peak_memory("", "import time; time.sleep(9)", timeout=0.3) is None

    def absent(*_: object, **__: object) -> None:
        raise builtins.FileNotFoundError("python")

    monkeypatch.setattr(subprocess, "run", absent)
    assert peak_memory("", "") is None

"""Small worlds for whole studies: digits as files, the smallest encoder, processes of their own.

Children are forked by a server that has imported everything once, so a killed study costs the time
of the study and not that of importing torch.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beholder.evaluate.benchmarks import MEASURED
from beholder.train.heads import Candidate

MODEL = "untrained:test_resnet"
SMALL: dict[str, Any] = {
    "model": MODEL,
    "splits": 1,
    "quiet": True,
    "without": ("cost", *MEASURED),
}
"""Options of the quickest study."""


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images / 16, found.target


def draw(digit: int, number: int, side: int = 32) -> Image.Image:
    """The `number`-th picture of a digit on a background of its own, with its own noise."""
    images, labels = _digits()
    small = images[np.flatnonzero(labels == digit)[number]]
    rng = np.random.default_rng([digit, number])
    ground, ink = rng.uniform(0.1, 0.3, 3), rng.uniform(0.7, 0.9, 3)
    large = np.kron(small, np.ones((side // 8, side // 8)))[:, :, None]
    pixels = ground + (ink - ground) * large + rng.normal(0, 0.04, (side, side, 3))
    return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))


def folders(
    root: Path, sizes: dict[str, int] | Sequence[str], each: int = 30, first: int = 0
) -> Path:
    """Class folders of PNG files; the i-th class shows the digit i."""
    sizes = sizes if isinstance(sizes, dict) else dict.fromkeys(sizes, each)
    for digit, (name, count) in enumerate(sizes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            draw(digit, number).save(root / name / f"{name[:20]}_{number:03d}.png")
    return root


@contextmanager
def alone(cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """A cache of its own, and `quicker` studies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEHOLDER_CACHE", str(cache))
        quicker(patch)
        yield patch


def few_candidates(images: int, smallest_class: int) -> list[Candidate]:
    """The grid of heads without its neighbours."""
    if smallest_class < 5:
        return [Candidate("nearest_mean")]
    return [Candidate("logistic", 1e-3), Candidate("kernel", 3.0)]


def quicker(patch: pytest.MonkeyPatch) -> None:
    """Few candidates, few copies to learn from, and no OpenVINO, whose conversion costs more than a
    whole small study."""
    patch.setattr("beholder.train.heads.grid", few_candidates)
    patch.setattr("beholder.data.curate.duplicates.SELF_MADE", 8)
    find = importlib.util.find_spec
    patch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "openvino" else find(name, package),
    )


def python(code: str, **environment: str) -> str:
    """What a fresh Python process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """`results.json` without what may differ between two runs: times, costs, command, commit."""
    kept = {k: v for k, v in results.items() if k not in ("created", "timing", "command")}
    kept["verdict"] = kept["verdict"] | {
        "next": [advice | {"command": ""} for advice in kept["verdict"]["next"]]
    }
    kept["budget"] = {key: value for key, value in kept["budget"].items() if key != "used_s"}
    kept["headline"] = {k: v for k, v in kept["headline"].items() if k != "latency_ms"}
    kept["sections"] = [
        section
        | {"budget": {k: v for k, v in section["budget"].items() if k != "seconds"}}
        | {"tables": {name: _lasting(table) for name, table in section["tables"].items()}}
        for section in kept["sections"]
        if section["id"] != "cost"
    ]
    return kept


def _lasting(table: dict[str, Any]) -> dict[str, Any]:
    """A table without the revision of the code, which a commit between two runs changes."""
    return table | {"rows": [row for row in table["rows"] if row[:2] != ["environment", "git"]]}


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        pairs = [(f"{at}.{key}", one.get(key), other.get(key)) for key in keys]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        name = [part.get("id", i) if isinstance(part, dict) else i for i, part in enumerate(one)]
        pairs = [(f"{at}[{n}]", a, b) for n, a, b in zip(name, one, other, strict=True)]
    else:
        return [] if one == other else [f"{at}: {one!r} / {other!r}"]
    return [found for place, a, b in pairs for found in differences(a, b, place)]


def same_figures(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True, or an AssertionError that says where two `results.json` differ."""
    found = differences(figures(one), figures(other))
    assert not found, "\n".join(found)
    return True


def torn(*places: Path) -> list[Path]:
    """Files that are not whole: temporary ones, and JSON, Parquet and weights that do not open."""
    import json

    import polars as pl
    from safetensors import safe_open

    def opens(path: Path) -> None:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".parquet":
            pl.read_parquet(path)
        elif path.suffix == ".safetensors":
            safe_open(path, "np").keys()
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".tmp":
            raise AssertionError

    found = []
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        try:
            opens(path)
        except Exception:
            found.append(path)
    return found


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["beholder.study", "beholder.cli", "study.world"])
    return context


class Apart:
    """A `beholder` command in a process of its own; stdout and stderr go to files.

    Args:
        pause: seconds that every batch of the feature pass takes longer.
        killed_at_write: the process kills itself (as `kill -9`) at that write to disk.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        where: Path,
        cache: Path,
        pause: float = 0.0,
        killed_at_write: int = 0,
    ) -> None:
        where.mkdir(parents=True, exist_ok=True)
        self.log = where / f"log-{time.monotonic_ns()}"
        plain = [str(word) for word in words]
        self.process = _server().Process(
            target=_command, args=(plain, where, cache, self.log, pause, killed_at_write)
        )
        self.process.start()

    def wait(self, seconds: float = 60) -> int:
        """Its exit code (negative: the signal that ended it)."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.stderr}")
        return self.process.exitcode

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Until stderr holds these words."""
        end = time.monotonic() + seconds
        while words not in self.stderr:
            assert self.process.is_alive(), self.stderr
            assert time.monotonic() < end, self.stderr
            time.sleep(0.02)

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.process.pid, signal.SIGINT)

    @property
    def stdout(self) -> str:
        return _text(self.log.with_suffix(".out"))

    @property
    def stderr(self) -> str:
        return _text(self.log.with_suffix(".err"))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _command(
    words: list[str], where: Path, cache: Path, log: Path, pause: float, killed_at_write: int
) -> None:
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        target = os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, descriptor)
    os.chdir(where)
    os.environ |= {"BEHOLDER_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    quicker(pytest.MonkeyPatch())
    if pause:
        slow_engine(pytest.MonkeyPatch(), pause)
    if killed_at_write:
        at_write(
            pytest.MonkeyPatch(), killed_at_write, lambda: os.kill(os.getpid(), signal.SIGKILL)
        )
    sys.argv = ["beholder", *words]
    from beholder.cli import main

    try:
        main()
    except Exception:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def slow_engine(patch: pytest.MonkeyPatch, pause: float) -> None:
    """Every batch of eager torch takes `pause` seconds longer."""
    from beholder.core.engines import Eager

    run = Eager.run

    def slowly(self: Eager, batches: Any) -> Iterator[np.ndarray]:
        for result in run(self, batches):
            time.sleep(pause)
            yield result

    patch.setattr(Eager, "run", slowly)


def at_write(patch: pytest.MonkeyPatch, number: int, happens: Any) -> list[int]:
    """`happens()` at the `number`-th fsync from now on; returns a list that counts them."""
    sync, count = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        count[0] += 1
        if count[0] == number:
            happens()
        sync(descriptor)

    patch.setattr(os, "fsync", fsync)
    return count


def cli(words: Sequence[str | Path], patch: pytest.MonkeyPatch) -> int:
    """The exit code of a `beholder` command in this process."""
    from beholder.cli import main

    patch.setattr(sys, "argv", ["beholder", *map(str, words)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 0

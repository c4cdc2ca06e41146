"""Studies that several tests look at, made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from study.world import SMALL, alone, folders

from beholder.evaluate.report import Report
from beholder.study import study
from beholder.train.heads import grid


@dataclass
class Studied:
    """A finished study: its report, and where everything lies."""

    report: Report
    data: Path
    run: Path
    cache: Path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the data and of the studies that are shared."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def given_split(place: Path) -> Path:
    """Two classes in split folders: 24 + 24 images for training, 16 + 16 to be judged."""
    data = place / "given"
    folders(data / "train", ["one", "seven"], 24)
    folders(data / "test", ["one", "seven"], 16, first=24)
    return data


@pytest.fixture(scope="session")
def three_classes(place: Path) -> Path:
    """Class folders: 3 x 14 images, so that answers are cross-fitted."""
    return folders(place / "three", ["eight", "nine", "one"], 14)


@pytest.fixture(scope="session")
def small(given_split: Path, place: Path) -> Studied:
    """The quickest study there is; its cache has the features of `given_split`."""
    cache, run = place / "cache-small", place / "run-small"
    with alone(cache):
        report = study(given_split, out=run, **SMALL)
    return Studied(report, given_split, run, cache)


@pytest.fixture(scope="session")
def whole(three_classes: Path, place: Path) -> Studied:
    """Every section and every candidate, cross-fitted, with quick measurements of the cost."""
    cache, run = place / "cache-whole", place / "run-whole"
    with alone(cache) as patch:
        patch.setattr("beholder.train.heads.grid", grid)
        patch.setattr("beholder.study.COST_SECONDS", 0.5)
        patch.setattr("beholder.evaluate.costs.peak_memory", lambda setup, work: 30.0)
        report = study(three_classes, out=run, **SMALL | {"without": (), "budget": 0.2})
    return Studied(report, three_classes, run, cache)


@pytest.fixture
def known(small: Studied) -> Iterator[pytest.MonkeyPatch]:
    """The cache of `small`, so that no encoder has to run."""
    with alone(small.cache) as patch:
        yield patch


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """An empty cache in `tmp_path / "cache"`."""
    with alone(tmp_path / "cache") as patch:
        yield patch

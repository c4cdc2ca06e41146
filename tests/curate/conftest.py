"""A small folder of digits, with a cache that the tests of curators share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from study.world import alone, folders

from beholder.core.images import Images
from beholder.data.sources import open_images

CLASSES = ("eight", "nine", "one")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 x 14 PNG files of 32 pixels in class folders."""
    return folders(tmp_path_factory.mktemp("curate") / "three", list(CLASSES), 14)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curate-cache")


@pytest.fixture(autouse=True)
def quick(own_cache: Path, shared_cache: Path) -> Iterator[None]:
    """Features are made once for all tests."""
    with alone(shared_cache) as patch:
        patch.setattr("beholder.data.curate.outliers.MADE", 4)
        yield


@pytest.fixture(scope="session")
def images(place: Path) -> Images:
    return open_images(place)

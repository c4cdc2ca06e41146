"""A small classifier of digits that was really trained, and digits that it has not seen."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl
import pytest
from optimize.trained import train_digits

from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.data.sources import open_images


class Trained(NamedTuple):
    model: VisionModel
    unseen: Images


@pytest.fixture(scope="session")
def digits() -> Images:
    return open_images("digits")


@pytest.fixture(scope="session")
def trained(digits: Images) -> Trained:
    learned, unseen = (digits.where(pl.col("id").str.contains(x)) for x in ("-0|-10", "-1[1-4]"))
    return Trained(train_digits(learned), unseen)

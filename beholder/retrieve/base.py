"""The role of a retriever: what makes an index of images and answers queries on it."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import ClassVar, Protocol

import polars as pl

from beholder.core.errors import ModelError
from beholder.core.images import Images

from .embed import Encoder
from .query import Hits, Query


class Index(Protocol):
    """Vectors and what is known of each, on disk, as one thing.

    Attributes:
        skipped: id, reason of images that could not be indexed.
    """

    place: Path
    skipped: pl.DataFrame

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Of the encoder that made its vectors."""
        ...

    def insert(self, data: Images, encoder: Encoder) -> int:
        """Add images; those whose id is there are replaced. How many were put in."""
        ...

    def delete(self, ids: list[str]) -> int:
        """Take images out, for good. How many there were."""
        ...


class Retriever(abc.ABC):
    """Base of every retriever; its options are arguments of its constructor."""

    role: ClassVar[str] = "retriever"

    @abc.abstractmethod
    def index(self, data: Images, encoder: Encoder, place: Path) -> Index:
        """A new index of the images in the directory `place`."""

    @abc.abstractmethod
    def open(self, place: Path) -> Index:
        """An index that is there."""

    @abc.abstractmethod
    def search(self, index: Index, query: Query, encoder: Encoder) -> Hits:
        """The nearest rows; `query` is of this encoder."""

    def find(self, index: Index, query: Query, encoder: Encoder) -> Hits:
        """The nearest rows.

        Raises:
            ModelError: the index was made by another encoder.
            ArgumentError: an empty query, an unknown column in its filter.
        """
        check_encoder(index, encoder)
        return self.search(index, query, encoder)


def check_encoder(index: Index, encoder: Encoder) -> None:
    """Raises ModelError where the index holds vectors of another encoder."""
    if index.fingerprint != encoder.fingerprint:
        raise ModelError(
            f"{index.place.name} was made by the encoder {index.fingerprint[:12]}, not by "
            f"{encoder.name} ({encoder.fingerprint[:12]}).",
            "Ask with the model that made it, or make the index anew.",
        )

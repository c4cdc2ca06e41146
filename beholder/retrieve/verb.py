"""`beholder.index` and `beholder.find`: make an index of images, and ask it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from beholder.core.decode import decode
from beholder.core.errors import ArgumentError, DataError
from beholder.core.files import write_json
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.registry import find as find_system
from beholder.core.registry import make
from beholder.core.run import portable
from beholder.data.sources import open_images
from beholder.models.open import open_vision
from beholder.train.made import pick_device

from .base import Index
from .embed import VisionEncoder
from .query import Hits, Query

SOURCE = "source.json"
"""Which retriever and model made an index."""


def index(
    data: str | Path | Images,
    out: str | Path,
    model: str | Path | VisionModel | None = None,
    *,
    retriever: str = "exact",
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Index:
    """An index of images on disk, to be asked with `find`.

    Args:
        model: what makes the vectors; None = the embedded encoder.
        options: arguments of the retriever, such as `spatial`.
        seed: of a model with random weights.

    Raises:
        DataError, ModelError, ArgumentError: with a hint what to do.
    """
    images = data if isinstance(data, Images) else open_images(data)
    out, options = Path(out), dict(options or {})
    vision = open_vision(model, seed=seed).to(pick_device(device))
    made = make("retriever", retriever, **options).index(images, VisionEncoder(vision), out)
    named = model if isinstance(model, str | Path) else None
    write_json(
        out / SOURCE,
        {
            "retriever": find_system("retriever", retriever).name,
            "options": options,
            "model": None if named is None else str(named),
            "given": isinstance(model, VisionModel),
            "seed": seed,
            "data": portable(images.name),
        },
    )
    return made


def find(
    index: str | Path,
    query: str | Path | np.ndarray | Query,
    model: VisionModel | None = None,
    *,
    k: int = 20,
    where: Mapping[str, object] | None = None,
    device: str = "auto",
) -> Hits:
    """The nearest images of an index.

    Args:
        query: the path of an image, RGB uint8 [H, W, 3], words (for a model that knows some), or a
            whole `Query`.
        model: that made the index, where it was given as an object.
        where: column -> value that a hit must have.

    Raises:
        DataError: no index there.
        ModelError: words, and a model that knows none; another model than made the index.
    """
    place = Path(index)
    facts = _facts(place)
    if model is None and facts["given"]:
        raise ArgumentError(f"{place} was made by a model that has no name.", "Give it as `model`.")
    vision = open_vision(model or facts["model"], seed=facts["seed"]).to(pick_device(device))
    retriever = make("retriever", facts["retriever"], **facts["options"])
    asked = query if isinstance(query, Query) else _query(query, k, where or {})
    return retriever.find(retriever.open(place), asked, VisionEncoder(vision))


def _facts(place: Path) -> dict[str, Any]:
    try:
        return json.loads((place / SOURCE).read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place} holds no index.", "Make one: beholder index DATA --out INDEX."
        ) from error


def _query(query: str | Path | np.ndarray, k: int, where: Mapping[str, object]) -> Query:
    if isinstance(query, np.ndarray):
        return Query(image=query, k=k, where=where)
    path = Path(query)
    if path.is_file():
        return Query(image=decode(path.read_bytes())[0], k=k, where=where)
    return Query(text=str(query), k=k, where=where)

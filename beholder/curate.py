"""`curate`: which images of a data set to use, and what is wrong with the others.

Data, model, features and heads meet here; a curator itself (`beholder.data.curate`) gets what it
needs and knows neither.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from beholder.core.files import cache_dir, is_writable
from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.core.registry import make
from beholder.core.verbs import callable_as
from beholder.data.curate.base import Curator, Manifest, Pool
from beholder.data.scanned import Scanned
from beholder.data.sources import open_images
from beholder.models.open import open_vision
from beholder.train.cross_fit import CrossFit
from beholder.train.made import make_encoder, names_encoder, pick_device
from beholder.train.passes import FeaturePass, Stage

callable_as(__name__, "beholder.curate:curate")


def curate(
    data: str | Path | Images,
    method: str,
    model: str | Path | VisionModel | None = None,
    budget: float | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    workers: int = 2,
    cache: bool = True,
    stage: Stage | None = None,
    **options: Any,
) -> Manifest:
    """Decide which images to keep; no file is touched.

    Args:
        data: a path, `scheme:PLACE`, the name of built-in data, or opened `Images`.
        method: a curator, see `beholder systems`.
        model: gives the features: None = the embedded encoder; a timm name, a run, a `VisionModel`.
        budget: 0.3 = keep 30 %, 300 = keep 300 images, None = what the method decides.
        cache: False neither reads nor writes it.
        stage: told of what is being done, see `beholder.train.passes.Stage`.
        options: of the method.

    Returns:
        The manifest: `.report()`, `.save(url)`, `.apply(images)`.

    Raises:
        DataError, ModelError, ArgumentError: with a hint what to do.

    Example:
        >>> import beholder
        >>> manifest = beholder.curate("digits", "random", budget=100)
        >>> len(manifest.apply(beholder.open_images("digits")))
        100
    """
    curator: Curator = make("curator", method, **options)
    stage = stage or _silent
    images = data if isinstance(data, Images) else open_images(str(data))
    curator.check(images, budget)
    with stage("read", len(images), "") as reading:
        scanned = Scanned(
            images,
            max_pixels=images.max_pixels,
            workers=workers,
            use_cache=cache,
            progress=lambda done: reading.advance(),
        )
    pool = Pool(images, scanned, seed)
    with ExitStack() as cleanup:
        if curator.needs & {"embeddings", "probabilities", "model"}:
            place = None
            if not (cache and is_writable(cache_dir() / "features")):
                place = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="beholder-")))
            vision = _vision(model, scanned, seed).to(pick_device(device))
            _look(pool, curator, vision, place, device, workers, stage)
        with stage(method, 1, "") as searching:
            manifest = curator.manifest(pool, budget)
            searching.advance(1)
    return manifest


def _vision(model: str | Path | VisionModel | None, data: Scanned, seed: int) -> VisionModel:
    """An encoder at the side that fits the images, as `study` makes it, or a model as it is."""
    if model is None or (isinstance(model, str) and names_encoder(model)):
        longest = data.facts.select(pl.max_horizontal("width", "height")).to_series().to_list()
        return make_encoder(model, longest, "squash", seed)[0]
    return open_vision(model, seed=seed)


def _look(
    pool: Pool,
    curator: Curator,
    vision: VisionModel,
    place: Path | None,
    device: str,
    workers: int,
    stage: Stage,
) -> None:
    """Give the pool what the curator needs of the model."""
    data = pool.data
    pool.model = vision
    if not curator.needs & {"embeddings", "probabilities"}:
        return
    if "probabilities" in curator.needs:
        with stage("copies", 1, "") as searching:
            data.find_units(pool.seed)
            searching.advance(1)
    passing = FeaturePass(
        data,
        device=pick_device(device),
        workers=workers,
        seed=pool.seed,
        place=place,
        stage=stage,
    )
    pool.model, features = passing.run(vision, lambda: float("inf"))
    if "embeddings" in curator.needs:
        pool.embeddings = features.take(columns=features.layout["pooled"])
    if "probabilities" in curator.needs:
        pool.probabilities = CrossFit(features, pool.labels, pool.soft, data.unit, pool.seed)


class _Silent:
    """A stage that nobody looks at."""

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@contextmanager
def _silent(name: str, total: int, note: str) -> Iterator[_Silent]:
    yield _Silent()

"""The feature pass over scanned images: from the cache, or by the fastest engine within a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from beholder.core.engines import Engine
from beholder.core.features import Features, View, extract
from beholder.core.files import digest
from beholder.core.model import VisionModel
from beholder.data.scanned import Scanned

from .made import VIEWS, choose_engine, plan_pass, resized, subset

Stage = Callable[[str, int, str], AbstractContextManager[Any]]
"""(name, total, note) -> something with `advance(count)` and `note(text)`."""


class FeaturePass:
    """Features of image and mirror image of every scanned image.

    Args:
        place: directory of the shards; None = the shared cache.
        views: that are wanted; mirror images are the first thing to be given up.
        seed: of the subset that is taken where the time does not allow all.

    Attributes:
        given_up: what the time did not allow, in words.
    """

    def __init__(
        self,
        data: Scanned,
        *,
        device: str,
        workers: int,
        seed: int,
        place: Path | None,
        stage: Stage,
        views: Sequence[View] = VIEWS,
    ) -> None:
        self.data, self.device, self.workers, self.seed = data, device, workers, seed
        self.place, self.stage, self.views = place, stage, views
        self.given_up: list[str] = []

    def run(
        self, vision: VisionModel, seconds: Callable[[], float]
    ) -> tuple[VisionModel, Features]:
        """The encoder (maybe at a smaller side) and the features; `data` may have lost images.

        Args:
            seconds: what the pass may take, asked when the price of an image is known.

        Raises:
            BudgetError: not even the smallest pass fits.
        """
        try:
            cached = self._extract(vision, self.views, _no_engine)
            if not cached.gone:
                rows = len(self.data) * len(self.views)
                with self.stage("features", rows, f"{vision.name}, cached") as stage:
                    stage.advance(rows)
                return vision, cached
        except NotCachedError:
            pass
        with self.stage("engines", 1, "") as stage:
            engine, price, passed_over = choose_engine(vision, self.data.images, self.device)
            stage.advance()
            stage.note("; ".join(passed_over))
        vision, engine, views = self._fit(vision, engine, price, seconds())
        note = f"{vision.name} @{vision.input_size[0]}, {engine.name}"
        while True:
            with self.stage("features", len(self.data) * len(views), note) as stage:
                features = self._extract(vision, views, lambda: engine, stage.advance)
            if not features.gone:
                return vision, features
            self.data.lose(features.gone, self.seed)

    def _fit(
        self, vision: VisionModel, engine: Engine, price: float, seconds: float
    ) -> tuple[VisionModel, Engine, Sequence[View]]:
        """Gives up mirror images, then size, then images, until the pass fits."""
        side, rows = vision.input_size[0], len(self.data)
        fixed = bool(vision.backbone.pretrained_cfg.get("fixed_input_size"))
        plan = plan_pass(seconds, price, rows, side, fixed, self.views)
        self.given_up = plan.shortened(rows, side, self.views)
        if plan.images < rows:
            order = str(self.seed)
            chosen = subset(self.data.images, plan.images, lambda id: digest(order, id))
            self.data.keep(chosen, self.seed)
        if plan.side < side:
            vision = resized(vision, plan.side)
            engine, _, _ = choose_engine(vision, self.data.images, self.device)
        return vision, engine, plan.views

    def _extract(
        self,
        vision: VisionModel,
        views: Sequence[View],
        make_engine: Callable[[], Engine],
        progress: Callable[[int], None] = lambda count: None,
    ) -> Features:
        return extract(
            make_engine,
            self.data.images,
            self.data.hashes,
            describe=vision.describe(),
            prepare=vision.prepare,
            size=vision.input_size,
            layout=vision.layout,
            views=views,
            workers=self.workers,
            directory=self.place,
            progress=progress,
        )


class NotCachedError(Exception):
    """Some features have to be computed."""


def _no_engine() -> Engine:
    raise NotCachedError

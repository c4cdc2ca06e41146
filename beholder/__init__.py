"""beholder: one toolkit for the whole life of an image model.

`import beholder` is quick: everything is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import BeholderError
    from .core.images import Images
    from .core.model import VisionModel
    from .curate import curate
    from .data.sources import open_images
    from .evaluate.report import Report
    from .evaluate.verb import evaluate
    from .models.run import load
    from .retrieve.verb import find, index
    from .study import study
    from .train.verb import pretrain, train
    from .trust import guard

_HOMES = {
    "BeholderError": "core.errors",
    "Images": "core.images",
    "VisionModel": "core.model",
    "curate": "curate",
    "evaluate": "evaluate",
    "find": "retrieve.verb",
    "guard": "trust.guard",
    "index": "retrieve.verb",
    "open_images": "data.sources",
    "Report": "evaluate.report",
    "load": "models.run",
    "pretrain": "train.verb",
    "study": "study",
    "train": "train",
}

__all__ = [
    "BeholderError",
    "Images",
    "Report",
    "VisionModel",
    "curate",
    "evaluate",
    "find",
    "guard",
    "index",
    "load",
    "open_images",
    "pretrain",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'beholder' has no attribute {name!r}")
    found = importlib.import_module(f"beholder.{_HOMES[name]}")
    return found if _HOMES[name].rpartition(".")[2] == name else getattr(found, name)


def __dir__() -> list[str]:
    return sorted(__all__)

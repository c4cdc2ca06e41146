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
    from .data.sources import open_images
    from .evaluate.report import Report
    from .models.run import load
    from .study import study

_HOMES = {
    "BeholderError": "core.errors",
    "Images": "core.images",
    "VisionModel": "core.model",
    "open_images": "data.sources",
    "Report": "evaluate.report",
    "load": "models.run",
    "study": "study",
}

__all__ = ["BeholderError", "Images", "Report", "VisionModel", "load", "open_images", "study"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'beholder' has no attribute {name!r}")
    found = importlib.import_module(f"beholder.{_HOMES[name]}")
    return found if _HOMES[name] == name else getattr(found, name)


def __dir__() -> list[str]:
    return sorted(__all__)

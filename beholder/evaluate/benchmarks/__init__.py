"""The sections of a study, in the order of the report."""

from . import accuracy, calibration, confusion, cost, data, groups, method, mistakes  # noqa: F401
from .base import SECTIONS as _REGISTERED

ORDER = ("data", "accuracy", "groups", "confusion", "mistakes", "calibration", "cost", "method")
MEASURED = tuple(
    id
    for id in (
        *("duplicates", "labels", "oddities", "structure", "inspection", "unknown"),
        *("corruptions", "adversarial", "explanations"),
    )
    if id in _REGISTERED
)
"""Sections that ask the model anew, in the order in which they do."""
SECTIONS = {id: _REGISTERED[id] for id in ORDER}

__all__ = ["MEASURED", "SECTIONS"]

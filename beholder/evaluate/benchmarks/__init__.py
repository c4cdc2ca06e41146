"""The sections of a study, in the order of the report."""

from . import (  # noqa: F401
    accuracy,
    adversarial,
    calibration,
    confusion,
    corruptions,
    cost,
    data,
    duplicates,
    explanations,
    groups,
    inspection,
    labels,
    method,
    mistakes,
    multilabel,
    oddities,
    shortcuts,
    structure,
    unknown,
)
from .base import SECTIONS as _REGISTERED

ORDER = (
    *("data", "accuracy", "multilabel", "inspection", "groups", "confusion", "mistakes"),
    *("calibration", "explanations", "corruptions", "adversarial", "unknown", "labels"),
    *("duplicates", "shortcuts", "oddities", "structure", "cost", "method"),
)
MEASURED = (
    *("duplicates", "labels", "oddities", "shortcuts", "structure", "multilabel", "inspection"),
    *("unknown", "corruptions", "adversarial", "explanations"),
)
"""Sections that ask the model anew, in the order in which they do."""
SECTIONS = {id: _REGISTERED[id] for id in ORDER}

__all__ = ["MEASURED", "SECTIONS"]

"""The five figures on top of a report."""

from __future__ import annotations

from dataclasses import dataclass

from beholder.core.sections import Severity, Value

from .report import Report


@dataclass(frozen=True)
class Tile:
    """A figure with its interval, and the section that explains it.

    `low`, `point`, `high` are positions 0..1 on the tile's bar; None where there is no interval.
    """

    title: str
    number: str
    interval: str
    severity: Severity
    anchor: str
    note: str = ""
    low: float | None = None
    point: float | None = None
    high: float | None = None


def tiles_of(report: Report) -> list[Tile]:
    """Accuracy, worst group, refuse threshold, label errors, latency: those that were measured."""
    head = report.headline
    worst = head.worst_group
    refuser = next((id for id in ("calibration", "unknown") if id in report), "unknown")
    tiles = [
        _tile(report, "Accuracy", head.accuracy, "accuracy"),
        _tile(report, "Worst group", worst.estimate, "groups", worst.name) if worst else None,
        _tile(report, "Refuse below", head.refuse_threshold, refuser),
        _tile(report, "Label errors", head.label_errors, "labels"),
        _tile(report, "Latency", head.latency_ms, "cost"),
    ]
    return [tile for tile in tiles if tile is not None]


def _tile(
    report: Report, title: str, value: Value | None, section: str, note: str = ""
) -> Tile | None:
    if value is None or value.estimate is None:
        return None
    severity = report[section].severity if section in report else "none"
    number = value.text(interval=False)
    if value.low is None or value.high is None:
        return Tile(title, number, value.why or "", severity, section, note)
    unbounded = value.unit != "share"
    most = 1.15 * max(value.high, value.estimate) if unbounded else 1.0
    spots = [
        min(1.0, max(0.0, x / most)) if most > 0 else 0.0
        for x in (value.low, value.estimate, value.high)
    ]
    interval = value.text().removeprefix(number).strip(" ()")
    return Tile(title, number, interval, severity, section, note, *spots)

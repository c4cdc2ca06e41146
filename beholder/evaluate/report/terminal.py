"""What stands in the terminal: a line per stage while it works, and the findings at the end.

Colour only where the terminal has it; severities are words, so nothing is lost without.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from beholder.core.sections import Section

from .report import Report
from .results import DataFacts
from .text import visible

WIDTH = 100
STYLES = {"act": "bold red", "look": "yellow", "good": "green", "none": "dim"}
MARKS = {"act": "ACT", "look": "look", "good": "good", "none": "--"}
SILENCE = 30.0  # seconds between two lines where there is no terminal
WINDOW = 10.0  # seconds over which a rate is smoothed
PAUSE = 0.1  # seconds between two calls of `on_progress`

OnProgress = Callable[[str, int, int, float | None], object]
"""Called with stage, done, total and the seconds that are left of the stage (None: unknown)."""


def duration(seconds: float) -> str:
    """Minutes and seconds, '2:18'; hours where needed."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def file_size(size: float) -> str:
    """'6.1 MB'."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


def heading(data: DataFacts, version: str) -> str:
    """The first line: 'beholder 1.0  solar: 2,624 images, 2 classes, 1 group column'."""
    parts = [f"{data.images:,} images"]
    if data.classes:
        count = len(data.classes)
        parts.append(f"{count:,} {'class' if count == 1 else 'classes'}")
    if data.groups:
        count = len(data.groups)
        parts.append(f"{count} group {'column' if count == 1 else 'columns'}")
    labelled = sum(item.images for item in data.classes)
    if data.uncertain and labelled:
        unsure = labelled - sum(item.certain for item in data.classes)
        parts.append(f"labels uncertain ({100 * unsure / labelled:.0f} %)")
    return f"beholder {version}  {visible(data.name)}: {', '.join(parts)}"


def render(report: Report, console: Console, quiet: bool = False) -> None:
    """Verdict, one row per section, what the budget shortened, where the report lies.

    Args:
        console: where to write; at most 100 columns of it are used.
        quiet: only the verdict.
    """
    width = min(WIDTH, console.width)
    report, severity = report.public(), report.severity
    mark = f"{MARKS[severity].upper():<6}" if severity != "none" else ""
    _row(console, [(mark, STYLES[severity])], report.verdict.sentence, width)
    if quiet:
        return
    console.print()
    room = max([12, *(len(section.id) for section in report.sections)])
    for section in report.sections:
        begin = [(f"  {visible(section.id):<{room}} ", ""), _mark(section)]
        measured = section.status in ("measured", "reduced")
        _row(console, begin, section.finding, width, dim=not measured)
    for line in (_shortened(report), _skipped(report)):
        if line:
            _row(console, [("  ", "")], line, width)
    _last_line(report, console, width)


def _mark(section: Section) -> tuple[str, str]:
    return f"{MARKS[section.severity]:<4}  ", STYLES[section.severity]


def _row(
    console: Console, begin: list[tuple[str, str]], sentence: str, width: int, dim: bool = False
) -> None:
    """A sentence behind its beginning, wrapped with a hanging indent."""
    indent = sum(len(text) for text, _ in begin)
    text = Text.assemble(*begin)
    if indent > width // 2:
        text.append("\n")
        indent = 4
    lines = wrapped(visible(sentence), width - indent)
    margin = "\n" + " " * indent
    text.append((" " * indent if "\n" in text.plain else "") + margin.join(lines))
    if dim:
        text.stylize("dim", len(text) - len(margin.join(lines)))
    console.print(text, no_wrap=True, overflow="ignore", crop=False, highlight=False)


def wrapped(sentence: str, width: int) -> list[str]:
    """Lines of at most `width` cells; a per cent sign stays with its number."""
    lines = [""]
    for word in re.split(r" (?!%)", sentence):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines += chop_cells(word, width)
    return [line for line in lines if line] or [""]


def _shortened(report: Report) -> str:
    """'3 sections shortened by the budget; --budget 20 measures them fully', or nothing."""
    count = len(report.budget.shortened)
    if not count:
        return ""
    more = sum(
        section.budget.seconds * (section.budget.wanted / section.budget.used - 1)
        for section in report.sections
        if section.status == "reduced" and 0 < section.budget.used < section.budget.wanted
    )
    minutes = math.ceil(1.1 * (max(report.budget.limit_s, report.budget.used_s) + more) / 60)
    word = "section" if count == 1 else "sections"
    them = "it" if count == 1 else "them"
    return f"{count} {word} shortened by the budget; --budget {minutes} measures {them} fully"


def _skipped(report: Report) -> str:
    count = len(report.budget.skipped)
    return (
        f"{count} {'section' if count == 1 else 'sections'} skipped by the budget" if count else ""
    )


def _last_line(report: Report, console: Console, width: int) -> None:
    """Where the report lies and how long it took."""
    total = f"total {duration(report.budget.used_s or sum(report.timing.values()))}"
    path = None if report.directory is None else report.directory / "report.html"
    if path is None or not path.exists():
        console.print(Text(total), highlight=False)
        return
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    line = f"report   {visible(str(shown))}   ({file_size(path.stat().st_size)})"
    gap = max(3, width - len(line) - len(total))
    parts = [line, total] if len(line) + gap + len(total) > width else [line + " " * gap + total]
    for part in parts:
        console.print(Text(part), soft_wrap=True, highlight=False)


class Stage:
    """A piece of work in progress. `advance` may be called from any thread."""

    def __init__(self, progress: Progress, name: str, total: int, note: str) -> None:
        self.name, self.total, self.done, self.words = name, total, 0, note
        self._progress = progress
        self.begun = progress.clock()
        self._recent = deque([(self.begun, 0)])

    def advance(self, n: int = 1) -> None:
        """`n` more are done."""
        self.done += n
        now = self._progress.clock()
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[0][0] > WINDOW:
            self._recent.popleft()
        self._progress.moved(self, now)

    def note(self, text: str) -> None:
        """What the line says beside the count."""
        self.words = text
        self._progress.moved(self, self._progress.clock())

    @property
    def rate(self) -> float:
        """Per second, over the last ten seconds."""
        (start, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end - start) if end > start else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left of this stage, None where unknown."""
        rate = self.rate
        return (self.total - self.done) / rate if self.total and rate > 0 else None

    def line(self, seconds: float, width: int = WIDTH) -> str:
        """'  features    5,248  tf_efficientnet_lite0 @300   38 /s   2:18'."""
        counted = f"{self.done:,}/{self.total:,}" if self.total else ""
        done = self.done / seconds if seconds > 1 and self.total else 0.0
        rate = f"{done:,.0f} /s" if done >= 10 else f"{done:.1f} /s" if done else ""
        tail = f"{rate:>9}  {duration(seconds):>5}"
        middle = f"  {self.name:<11} {counted:<15} {visible(self.words)}"
        room = width - len(tail) - 1
        return f"{middle[:room]:<{min(room, 68)}}{tail}"


class Progress:
    """One line per stage on stderr: a moving bar in a terminal, plain lines elsewhere.

    Args:
        quiet: nothing is written; `on_progress` is still called.
        on_progress: called when a stage starts, moves (ten times a second at most) and ends.
        console: where to write; None = stderr.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        quiet: bool = False,
        on_progress: OnProgress | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet, self.on_progress, self.clock = quiet, on_progress, clock
        self.console = console or Console(stderr=True)
        self._bars: Bars | None = None
        self._said = self._called = -math.inf

    @contextmanager
    def stage(self, name: str, total: int, note: str = "") -> Iterator[Stage]:
        """A stage of `total` steps (0: unknown). Stages follow each other, they do not nest."""
        stage = Stage(self, name, total, note)
        self._said = self._called = stage.begun
        self._tell(stage)
        live = self.console.is_terminal and not self.quiet
        if live:
            self._bars = Bars(
                TextColumn("  {task.description:<11}"),
                BarColumn(24),
                TextColumn("{task.fields[words]}"),
                console=self.console,
                transient=True,
            )
            self._bars.add_task(name, total=total or None, words=visible(note))
            self._bars.start()
        elif not self.quiet:
            self._print(f"  {name:<11} {f'0/{total:,}' if total else '':<15} {note}".rstrip())
        try:
            yield stage
        finally:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
            if not self.quiet:
                self._print(stage.line(self.clock() - stage.begun, min(WIDTH, self.console.width)))
            self._tell(stage)

    def moved(self, stage: Stage, now: float) -> None:
        """Show that the stage moved, as often as its reader wants to know."""
        if now - self._called >= PAUSE:
            self._called = now
            self._tell(stage)
        if self._bars is not None:
            counted = f"{stage.done:,}/{stage.total:,}  " if stage.total else ""
            rate = f"{stage.rate:,.1f} /s  " if stage.rate else ""
            left = "" if stage.left is None else f"{duration(stage.left)} left  "
            words = f"{counted}{rate}{left}{visible(stage.words)}"
            self._bars.update(self._bars.task_ids[0], completed=stage.done, words=words)
        elif not self.quiet and now - self._said >= SILENCE:
            self._said = now
            left = "" if stage.left is None else f"  {duration(stage.left)} left"
            self._print(stage.line(now - stage.begun) + left)

    def _tell(self, stage: Stage) -> None:
        if self.on_progress is not None:
            self.on_progress(stage.name, stage.done, stage.total, stage.left)

    def say(self, line: str) -> None:
        """A line of its own, unless quiet."""
        if not self.quiet:
            self._print(line)

    def _print(self, line: str) -> None:
        text = Text(visible(line))
        self.console.print(text, no_wrap=True, overflow="ignore", crop=False, highlight=False)

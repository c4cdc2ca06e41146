"""What a person sees while a training runs: a bar in a terminal, a line per tenth elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Called after every step, see `module.OnProgress`; a context that ends the bar.

    Args:
        console: None = stderr.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet, self.console = quiet, console or Console(stderr=True)
        self.bar: Progress | None = None
        self.begun, self.tenth = time.monotonic(), 0

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        if self.quiet:
            return
        words = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "lr")
        if self.console.is_terminal:
            self._bar(total).update(self._task, completed=done, words=words)
        elif done * 10 // total > self.tenth:
            self.tenth = done * 10 // total
            seconds = time.monotonic() - self.begun
            self.say(f"  step {done:,}/{total:,}  {seconds:,.0f} s  {words}")

    def _bar(self, total: int) -> Progress:
        if self.bar is None:
            self.bar = Progress(
                BarColumn(24),
                TextColumn("{task.completed:,}/{task.total:,} steps"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[words]}"),
                console=self.console,
                transient=True,
            )
            self._task = self.bar.add_task("", total=total, words="")
            self.bar.start()
        return self.bar

"""The command line: each command calls one function and prints what it returned."""

from __future__ import annotations

import importlib
import signal
import sys

import typer

from beholder.core.errors import BeholderError

from .app import app

VERBS = ("study", "evaluate", "train", "explain", "guard", "curate", "retrieve", "systems", "tools")
"""Modules of this package, in the order of their commands in the help."""

ANY_ERROR, BROKEN_PIPE, INTERRUPTED = 1, 141, 130

for _verb in VERBS:
    importlib.import_module(f"beholder.cli.{_verb}")


def main() -> None:
    """Run; errors become one line on stderr and their exit code."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as finished:
        sys.exit(finished.exit_code)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. The same command goes on from here.\n")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(BROKEN_PIPE)
    except BeholderError as error:
        sys.stderr.write(f"beholder: {error}\n")
        sys.exit(error.exit_code)
    except Exception as error:
        code = _told_by_typer(error)
        if code is None:
            sys.exit(_crashed(error))
        sys.exit(code)


def _told_by_typer(error: Exception) -> int | None:
    """A usage error of the command line, shown as such; None for anything else."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is None or code is None:
        return None
    show()
    return int(code)


def _crashed(error: Exception) -> int:
    """One line on stderr, the traceback in the cache's log.txt, never lost."""
    import traceback

    from beholder.core.files import cache_dir

    if isinstance(error, MemoryError):
        sys.stderr.write("beholder: out of memory. Try fewer images or a smaller model.\n")
        return 4
    log = cache_dir() / "log.txt"
    text = traceback.format_exc()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
        where = f"the traceback is in {log}"
    except OSError:
        sys.stderr.write(text)
        where = "the traceback is above"
    sys.stderr.write(f"beholder: {type(error).__name__}: {error} ({where})\n")
    return ANY_ERROR

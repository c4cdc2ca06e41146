"""How long one waits for nothing: `import beholder`, and `beholder --help` as a whole process."""

from __future__ import annotations

import statistics

from .base import Measured, at_most, measured, python, run_process

PROCESSES = 7

IMPORT = """
import time
start = time.perf_counter()
import beholder
print(time.perf_counter() - start)
"""


def measure(quick: bool = False) -> Measured:
    imports, helps, nothing = [], [], []
    for _ in range(3 if quick else PROCESSES):
        imports.append(1000 * float(run_process(python("-c", IMPORT))[2]))
        helps.append(1000 * run_process(python("-m", "beholder.cli", "--help"))[0])
        nothing.append(1000 * run_process(python("-c", "pass"))[0])
    figures = {"import_ms": imports, "help_ms": helps, "python_alone_ms": nothing}
    return measured(
        figures,
        at_most("import beholder", statistics.median(imports), 150, "ms"),
        at_most("beholder --help", statistics.median(helps), 400, "ms"),
    )

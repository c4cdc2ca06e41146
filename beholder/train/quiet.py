"""Lightning without what it says of itself, and with the global switches as they were after it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LOGGERS = ("lightning.pytorch", "lightning.fabric")
TORCH_SAYS = "TORCH_CPP_LOG_LEVEL"


def hush() -> None:
    """Only errors from here on; for a whole process."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")


@contextmanager
def quiet() -> Iterator[None]:
    """`hush`, here and in processes that are started inside."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    said = os.environ.get(TORCH_SAYS)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with warnings.catch_warnings():
            hush()
            os.environ[TORCH_SAYS] = "ERROR"
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        del os.environ[TORCH_SAYS]
        if said is not None:
            os.environ[TORCH_SAYS] = said
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark

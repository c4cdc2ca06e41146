"""What can go wrong, each kind with its exit code (specs/study.md, section 6)."""


class BeholderError(Exception):
    """An error that a person can mend: a sentence that names the value, and a hint what to do.

    Args:
        message: what is wrong, with the offending value in it.
        hint: what to do about it; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.hint}" if self.hint else str(self.args[0])


class ArgumentError(BeholderError):
    """An option or a combination of options that makes no sense."""

    exit_code = 2


class AmbiguousDataError(ArgumentError):
    """The data can be read in two ways; the message names both and the option that picks one."""


class DataError(BeholderError):
    """There is no such data, or nothing in it can be read."""

    exit_code = 3


class ModelError(BeholderError):
    """The model cannot be opened, or does not fit the data."""

    exit_code = 2


class BudgetError(BeholderError):
    """The time allowed is less than the smallest honest job needs."""

    exit_code = 2


class StorageError(BeholderError):
    """Disk full, read-only, or out of memory."""

    exit_code = 4


class MissingExtraError(BeholderError):
    """An optional package is not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed.", f"pip install 'beholder[{extra}]'")


class SectionFailedError(BeholderError):
    """A section of a study failed and `strict` was asked for; the report is written."""

    exit_code = 5

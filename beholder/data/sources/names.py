"""Names: natural order, Unicode NFC, words for splits (specs/study.md section 2)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from beholder.core.errors import AmbiguousDataError, DataError

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
"""Word (lower case) -> role."""

DIGITS = re.compile(r"([0-9]+)")


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key in which '2' comes before '10'; case counts only between otherwise equal names.

    A total order: two keys are equal only if the texts are.
    """
    parts = DIGITS.split(text.casefold())
    key = tuple(
        (0, len(part.lstrip("0")), part.lstrip("0")) if index % 2 else (1, 0, part)
        for index, part in enumerate(parts)
        if part
    )
    return key, text


def normal(text: str) -> str:
    """Unicode NFC, without white space at either end."""
    return unicodedata.normalize("NFC", text).strip()


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in natural order.

    Raises:
        AmbiguousDataError: two of them differ only in case.
    """
    distinct = sorted(set(names), key=natural_key)
    refuse_clashes(distinct)
    return tuple(distinct)


def refuse_clashes(names: Iterable[str]) -> None:
    """Raises `AmbiguousDataError` if two names are equal but for their case."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", name.casefold())
        if folded in seen:
            raise AmbiguousDataError(
                f"The class names {seen[folded]!r} and {name!r} differ only in case:"
                " one class, or two?",
                "Rename one of them, or merge them by a table with the columns path and label.",
            )
        seen[folded] = name


def split_role(word: str, where: str) -> str | None:
    """train, val or test; None for an empty word.

    Args:
        where: names the place in the error ('row 3').

    Raises:
        DataError: an unknown word; lists those known.
    """
    plain = word.strip().casefold()
    if not plain:
        return None
    if plain not in SPLIT_WORDS:
        raise DataError(
            f"{where}: the split {word!r} is not known.",
            f"Known are {', '.join(SPLIT_WORDS)} (in any case); or name another column with"
            " --split-column.",
        )
    return SPLIT_WORDS[plain]

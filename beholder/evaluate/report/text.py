"""Text for people: invisible characters made visible, long names shortened, widths estimated.

Every output of the report (HTML, SVG, Markdown, terminal, CSV) takes its strings through here, so a
file called `a\\u202egpj.exe` looks the same, and harmless, in all of them.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

from beholder.core.sections import Unit, share_text

INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufff9-\ufffb"
    + "".join(chr(plane << 16 | tail) for plane in range(17) for tail in (0xFFFE, 0xFFFF))
    + "]"
)
"""Controls, bidi overrides and marks, lone surrogates and noncharacters."""

SHORT_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str) -> str:
    """The text with control characters, bidi overrides and noncharacters as escapes."""
    return INVISIBLE.sub(lambda found: _escape(found.group()), text)


def _escape(character: str) -> str:
    code = ord(character)
    form = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return SHORT_ESCAPES.get(character, form if code < 0x10000 else f"\\U{code:08x}")


def tied(text: str) -> str:
    """The text in which no line breaks between a number and its per cent sign."""
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", text)


def middle(text: str, limit: int) -> str:
    """At most `limit` characters, with an ellipsis in the middle where some are left out."""
    if len(text) <= limit:
        return text
    head = limit // 2
    tail = limit - 1 - head
    return f"{text[:head]}…{text[-tail:] if tail else ''}"


WIDTHS = (("ijl'|.,:;! ", 0.34), ("rtfI()[]-/", 0.43), ("mMW@%—", 0.98), ("wGOQNHDU", 0.82))
EMS = {character: ems for characters, ems in WIDTHS for character in characters}


def text_width(text: str, size: float = 13.0) -> float:
    """Estimated width in pixels of sans-serif text of `size` pixels; errs on the wide side."""
    ems = 0.0
    for character in text:
        if unicodedata.combining(character):
            continue
        if unicodedata.east_asian_width(character) in "WF":
            ems += 1.02
        else:
            ems += EMS.get(character, 0.72 if character.isupper() else 0.63)
    return ems * size


def shortened(text: str, pixels: float, size: float = 13.0) -> str:
    """`middle` of the text that fits into `pixels`."""
    if text_width(text, size) <= pixels:
        return text
    low, high = 1, min(len(text), 400)
    while low < high:
        half = (low + high + 1) // 2
        low, high = (
            (half, high) if text_width(middle(text, half), size) <= pixels else (low, half - 1)
        )
    return middle(text, low)


def number_text(value: float | None, unit: Unit = "", width: float = 0.0) -> str:
    """A number as a table or a chart writes it, without its unit: shares as per cent."""
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "share":
        return share_text(value, width, unit=False)
    if unit == "count" or (float(value).is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 0.001:
        digits = max(0, 2 - math.floor(math.log10(size)))
        return f"{value:.{min(digits, 4)}f}"
    return f"{value:.1e}"


def p_text(p: float | None) -> str:
    """A probability of a test: three decimals, or the bound."""
    if p is None or not math.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def spoken(name: str) -> str:
    """A column's or value's name in words: `f1_macro` as 'F1 macro'."""
    return " ".join(ACRONYMS.get(word, word) for word in name.split("_"))


ACRONYMS = {
    "auroc": "AUROC",
    "aurc": "AURC",
    "ece": "ECE",
    "f1": "F1",
    "nll": "NLL",
    "mce": "mCE",
    "ncc": "NCC",
    "ms": "(ms)",
    "mb": "(MB)",
    "fpr95": "FPR95",
    "holm": "(Holm)",
    "id": "id",
    "eps": "eps",
    "eps1": "eps 1/255",
    "eps2": "eps 2/255",
    "eps4": "eps 4/255",
    "p50": "p50",
    "brier": "Brier",
}


UNIT_ENDS = {"ms": ("_ms", ""), "MiB": ("_mb", ""), "images/s": ("images_per_s", "throughput")}


def without_unit(name: str, unit: Unit) -> str:
    """The name without the unit that is shown anyway: `latency_p50_ms` as `latency_p50`."""
    end, instead = UNIT_ENDS.get(unit, ("", ""))
    return name.removesuffix(end) + instead if end and name.endswith(end) else name


def capital(text: str) -> str:
    """The text with its first letter large; a symbol such as n or p stays as it is."""
    return text if len(text.split(" ")[0]) == 1 else text[:1].upper() + text[1:]


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV (RFC 4180) in which no cell is taken for a formula by a spreadsheet."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([csv_cell(name) for name in header])
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)
    return stream.getvalue()


def csv_cell(cell: object) -> str:
    """A cell's text; strings that begin with = + - @ get a leading apostrophe."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return repr(cell) if math.isfinite(cell) else ""
    if isinstance(cell, list):
        return csv_cell("|".join(str(item) for item in cell))
    if not isinstance(cell, str):
        return str(cell)
    text = visible(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text

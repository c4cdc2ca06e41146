"""`report.md`: the findings as text that any tracker or chat renders."""

from __future__ import annotations

import re

from beholder.core.sections import Section

from .report import Report
from .text import capital, visible
from .tiles import tiles_of

WORDS = {"good": "good", "look": "look", "act": "act", "none": "–"}
STATUS_WORDS = {
    "measured": "",
    "reduced": "shortened",
    "not_applicable": "not applicable",
    "skipped_budget": "skipped",
    "failed": "failed",
}
SPECIAL = re.compile(r"[\\`*<\[\]|]|(?<!\w)_|_(?!\w)")


def escape(text: str) -> str:
    """The text with what Markdown would take for markup escaped; one line."""
    return SPECIAL.sub(lambda found: "\\" + found.group(), visible(text))


def code(text: str) -> str:
    """Inline code; the fence is longer than any run of backticks inside."""
    shown = visible(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def mark_word(section: Section) -> str:
    """Severity, or why there is none, in a word."""
    return (
        WORDS[section.severity]
        if section.severity != "none"
        else (STATUS_WORDS[section.status] or WORDS["none"])
    )


def markdown(report: Report) -> str:
    """Verdict, tiles as a table, what to do next, findings per section."""
    verdict = report.verdict
    lines = [
        f"# {escape(report.data.name)}",
        "",
        f"**{capital(WORDS[verdict.severity])}.** {escape(verdict.sentence)}",
        "",
        f"beholder {report.beholder} · {report.data.images:,} images · "
        f"model {escape(report.model_facts.name)} · {report.created[:10]}",
    ]
    if tiles := tiles_of(report):
        lines += ["", "| | figure | 95 % interval | |", "|---|---|---|---|"]
        for tile in tiles:
            title = f"{tile.title}: {tile.note}" if tile.note else tile.title
            cells = [
                escape(title),
                escape(tile.number),
                escape(tile.interval),
                WORDS[tile.severity],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if verdict.next:
        lines += ["", "## What to do next", ""]
        for step, item in enumerate(verdict.next, 1):
            command = f" {code(item.command)}" if item.command else ""
            gain = f" Measured gain: {escape(item.gain.text())}." if item.gain else ""
            lines.append(f"{step}. {escape(item.sentence)}{gain}{command}")
    lines += ["", "## Findings", ""]
    lines += [
        f"- **{escape(section.title)}** ({mark_word(section)}): {escape(section.finding)}"
        for section in report.sections
    ]
    return "\n".join(lines) + "\n"

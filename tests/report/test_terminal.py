"""The terminal, the Markdown, and text that is safe in both."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report import fake
from rich.cells import cell_len
from rich.console import Console

from beholder.evaluate.report import markdown, text
from beholder.evaluate.report.terminal import Progress, duration, heading, render, wrapped


def shown(width: int, **report_fields: object) -> str:
    made = fake.report(pictures=False)
    for name, value in report_fields.items():
        setattr(made, name, value)
    console = Console(file=io.StringIO(), width=width)
    render(made, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [30, 44, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal_or_a_hundred_columns(width: int) -> None:
    for line in shown(width).splitlines():
        assert cell_len(line) <= min(100, width), line


def test_no_colour_and_no_escape_where_there_is_no_terminal() -> None:
    assert "\x1b" not in shown(100)
    assert "\u202e" not in shown(100)
    assert "gradient\\u202e reached" in shown(100)


def test_no_colour_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    render(fake.report(pictures=False), console)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[31m" not in out
    assert "[32m" not in out


def test_the_layout_is_verdict_sections_shortened_and_path(tmp_path: Path) -> None:
    made = fake.report(pictures=False)
    made.save(tmp_path)
    console = Console(file=io.StringIO(), width=100)
    render(made, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("ACT   On 656 unseen images the model is right 86.2 % of the time")
    assert lines[1].startswith("      agree with these labels")
    assert lines[2] == ""
    assert lines[3] == (
        "  data         look  2,624 images in 9 classes; the largest is 12 times the smallest."
    )
    assert "  corruptions  ACT   Re-saving the images as JPEG 75 costs 11.5 points; 6 % of the" in (
        "\n".join(lines)
    )
    assert "  cost         --    27 ms per image, 38 images/s with OpenVINO, 340 MiB." in lines
    assert "  1 section shortened by the budget; --budget 7 measures it fully" in lines
    last = "\n".join(lines[-2:])
    assert "report.html" in last
    assert last.endswith("total 5:41")


def test_quiet_shows_the_verdict_alone() -> None:
    console = Console(file=io.StringIO(), width=100)
    render(fake.report(pictures=False), console, quiet=True)
    assert len(console.file.getvalue().splitlines()) == 2  # type: ignore[attr-defined]


def test_a_per_cent_sign_stays_with_its_number() -> None:
    assert wrapped("it answers 62 % of images", 13) == ["it answers", "62 % of", "images"]


def test_the_heading_counts() -> None:
    assert heading(fake.report(pictures=False).data, "1.0") == (
        "beholder 1.0  solar: 2,624 images, 9 classes, labels uncertain (17 %)"
    )
    assert duration(341) == "5:41"
    assert duration(3661) == "1:01:01"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_a_stage_writes_start_end_and_every_thirty_seconds() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(console=Console(file=out, width=100), clock=clock)
    with progress.stage("features", 100, "lite0") as stage:
        for _ in range(100):
            clock.now += 1
            stage.advance(1)
    lines = out.getvalue().splitlines()
    assert lines[0] == "  features    0/100           lite0"
    assert lines[-1].startswith("  features    100/100         lite0")
    assert lines[-1].endswith("1.0 /s   1:40")
    assert len(lines) == 2 + 3
    assert lines[1].endswith("1:10 left")
    assert all(len(line) <= 100 for line in lines)


def test_the_listener_hears_start_and_end_and_the_time_left() -> None:
    heard: list[tuple[str, int, int, float | None]] = []
    clock, out = Clock(), io.StringIO()
    progress = Progress(
        quiet=True,
        on_progress=lambda *call: heard.append(call),
        console=Console(file=out),
        clock=clock,
    )
    with progress.stage("read", 10) as stage:
        for _ in range(10):
            clock.now += 2
            stage.advance()
    assert out.getvalue() == ""
    assert heard[0] == ("read", 0, 10, None)
    assert heard[1] == ("read", 1, 10, 18.0)
    assert heard[-1] == ("read", 10, 10, 0.0)


def test_a_stage_ends_its_line_when_it_fails() -> None:
    out = io.StringIO()
    progress = Progress(console=Console(file=out, force_terminal=True, width=100))

    def fail() -> None:
        with progress.stage("heads", 0, "kernel") as stage:
            stage.note("logistic")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 our own
        fail()
    assert "heads" in out.getvalue().splitlines()[-1]
    assert "logistic" in out.getvalue().splitlines()[-1]


def test_markdown_and_html_hold_the_same_findings() -> None:
    made = fake.report(pictures=False)
    written = made.to_markdown()
    for section in made.sections:
        assert markdown.escape(section.finding) in written
        assert f"- **{markdown.escape(section.title)}**" in written
    assert "| Accuracy | 86.1 % | 83.3 to 88.6 | look |" in written
    assert "`beholder study solar --harden`" in written
    assert "\\<script>" in written


def test_markdown_escapes_what_would_be_markup() -> None:
    assert markdown.escape("_a_ snake_case *b* [c](d) |") == (r"\_a\_ snake_case \*b\* \[c\](d) \|")
    assert markdown.code("a`b``c") == "``` a`b``c ```"


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.text())
def test_visible_text_has_no_controls_and_keeps_the_rest(name: str) -> None:
    seen = text.visible(name)
    assert text.INVISIBLE.search(seen) is None
    if text.INVISIBLE.search(name) is None:
        assert seen == name


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.text(), st.integers(1, 50))
def test_a_shortened_name_fits(name: str, limit: int) -> None:
    assert len(text.middle(name, limit)) <= max(limit, 1)
    assert text.middle(name, len(name)) == name


def test_cells_that_would_be_formulas_are_quoted() -> None:
    cells = ["=1+1", "+1", "-1", "@a", "a", -1.5, None, [1, 2]]
    assert [text.csv_cell(cell) for cell in cells] == (
        ["'=1+1", "'+1", "'-1", "'@a", "a", "-1.5", "", "1|2"]
    )

"""report.html: safe, small, complete, and readable without its script."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re

import html5lib
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report import fake

from beholder.core.sections import Figure, Picture, Section, Table
from beholder.evaluate.report import html, pictures
from beholder.evaluate.report.report import Report
from beholder.evaluate.report.results import DataFacts, Headline, ModelFacts, SplitFacts, Verdict

XHTML = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(scope="module")
def report() -> Report:
    return fake.report()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return report.to_html()


def parse(page: str):
    parser = html5lib.HTMLParser(tree=html5lib.getTreeBuilder("etree"))
    tree = parser.parse(page)
    assert [error[1] for error in parser.errors] == []
    return tree


def text_of(element) -> str:
    return "".join(element.itertext()).replace("\u00a0", " ")


def small(name: str) -> Report:
    """A report in which everything is called `name`."""
    frame = pl.DataFrame({"class": [name], "n": [3], "path": [name]})
    figure = Figure(
        kind="bars", data=pl.DataFrame({"label": [name], "value": [1.0]}), title=name, note=name
    )
    section = Section(
        id="accuracy",
        title=name,
        finding=name,
        tables={name: Table(frame=frame)},
        figures={name: figure},
        pictures=[Picture(id=name, caption=name, alt=name, facts={name: name}, bucket=name)],
        method=[name],
        assumptions=[name],
        files=[name],
    )
    return Report(
        verdict=Verdict(sentence=name),
        headline=Headline(),
        data=DataFacts(name=name),
        split=SplitFacts(),
        model_facts=ModelFacts(name=name),
        sections=[section],
        created="2026-11-25T00:00:00Z",
        command=[name],
        pictures={name: {192: pictures.encode(fake_image(), 192)}},
    )


def fake_image():
    from PIL import Image

    return Image.new("RGB", (8, 6), "red")


NASTY = ["<script>alert(1)</script>", "]]>", "\"'`", "\u202e\u0627\u0644", "\x00", "</style>", "😀"]


@pytest.mark.parametrize("name", NASTY)
def test_hostile_names_leave_the_page_well_formed(name: str) -> None:
    tree = parse(small(name).to_html())
    assert len(tree.findall(f".//{XHTML}script")) == 2
    assert not tree.findall(".//script")


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.text(max_size=40))
def test_any_name_gives_well_formed_html(name: str) -> None:
    tree = parse(small(name).to_html())
    assert len(tree.findall(f".//{XHTML}script")) == 2
    parse("<!DOCTYPE html><title>t</title>" + small(name)._repr_html_())


def test_the_page_is_well_formed_and_has_only_our_scripts(page: str) -> None:
    tree = parse(page)
    scripts = tree.findall(f".//{XHTML}script")
    assert [script.get("type") for script in scripts] == ["application/json", None]
    assert scripts[1].text == html.asset("report.js")
    assert "<script>alert" not in page
    assert not re.search(r"<[^>]*\son[a-z]+=", page)


def test_the_policy_lets_only_our_script_run(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert policy.group(1).replace("&#43;", "+") == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def test_nothing_is_fetched(page: str) -> None:
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page
    sources = re.findall(r'(?:src|data-large)="([^"]{0,20})', page)
    assert sources
    assert all(source.startswith("data:image/webp") for source in sources)


def test_style_and_script_are_small() -> None:
    assert len(html.asset("report.css").encode()) < 20_000
    assert len(html.asset("report.js").encode()) < 15_000
    for line in html.asset("notebook.css").splitlines():
        if "{" in line:
            assert all(
                part.strip().startswith(".beholder") for part in line.split("{")[0].split(",")
            )


def test_sections_stand_in_their_order_with_stable_anchors(report: Report, page: str) -> None:
    tree = parse(page)
    main = tree.find(f".//{XHTML}main")
    anchors = [section.get("id") for section in main.findall(f"{XHTML}section")]
    assert anchors == [*(section.id for section in report.sections), "files"]


def test_every_finding_value_and_command_is_in_the_page(report: Report, page: str) -> None:
    text = text_of(parse(page))
    for section in report.sections:
        assert section.finding.replace("\u202e", "\\u202e") in text
        for value in section.values.values():
            assert value.text(interval=False) in text or value.estimate is None
        for line in section.method + section.assumptions:
            assert line in text
    for step in report.verdict.next:
        assert step.sentence in text
        assert step.command in text
    assert report.verdict.sentence in text


def test_a_section_that_was_not_measured_is_one_line(page: str) -> None:
    tree = parse(page)
    line = tree.find(f".//{XHTML}section[@id='unknown']")
    assert [text_of(part) for part in line] == [
        "Unknown inputs",
        "Not applicable. Only one class: see unknown inputs.",
    ]
    skipped = text_of(tree.find(f".//{XHTML}section[@id='explanations']"))
    assert skipped.lower().count("skipped") == 1


def test_tiles_of_what_was_not_measured_are_left_out(report: Report) -> None:
    tiles = parse(report.to_html()).find(f".//{XHTML}ul[@class='tiles']")
    assert len(tiles) == 5
    head = Headline(accuracy=report.headline.accuracy)
    page = dataclasses.replace(report, headline=head, pictures={}).to_html()
    assert len(parse(page).find(f".//{XHTML}ul[@class='tiles']")) == 1


def test_long_tables_show_twelve_rows_then_at_most_five_hundred(page: str) -> None:
    section = parse(page).find(f".//{XHTML}section[@id='mistakes']")
    tables = section.findall(f".//{XHTML}table")
    counts = [len(table.findall(f"./{XHTML}tbody/{XHTML}tr")) for table in tables]
    assert counts == [12, 500]
    assert "500 of 700 rows" in text_of(section)
    assert tables[1].findall(f".//{XHTML}th/{XHTML}button")


def test_an_interval_stands_in_one_cell_with_its_figure(page: str) -> None:
    section = parse(page).find(f".//{XHTML}section[@id='accuracy']")
    table = section.findall(f".//{XHTML}div[@class='table']//{XHTML}table")[0]
    heads = [text_of(head) for head in table.findall(f".//{XHTML}thead//{XHTML}th")]
    assert heads == ["Class", "n", "Recall (%)", "Precision (%)"]
    assert re.fullmatch(
        r"91\.9 \(\d\d\.\d to \d\d\.\d\)", text_of(table.findall(f".//{XHTML}tr")[2][2])
    )


def test_each_figure_stands_twice_with_its_data_as_csv(report: Report, page: str) -> None:
    figures = sum(len(section.figures) for section in report.sections)
    assert page.count('role="img"') == 2 * figures
    assert page.count('href="data:text/csv;') == figures
    assert page.count(" download=") == figures


def test_a_cell_that_a_spreadsheet_would_run_is_quoted(page: str) -> None:
    assert "%27%3DSUM%28A1%29" in page
    assert "%2C%3DSUM" not in page


def test_pictures_have_size_and_words_and_the_vanished_one_is_counted(page: str) -> None:
    tree = parse(page)
    images = tree.findall(f".//{XHTML}main//{XHTML}img")
    assert len(images) == 24 + 8
    for image in images:
        assert max(int(image.get("width")), int(image.get("height"))) == 192
        assert image.get("alt")
        assert image.get("loading") == "lazy"
    labels = text_of(tree.find(f".//{XHTML}section[@id='labels']"))
    assert "1 picture is not shown" in labels


def test_an_overlong_page_loses_quality_then_pictures_and_says_so(report: Report) -> None:
    whole = len(report.to_html().encode())
    lower = html.report_html(report, limit=whole - 1)
    assert "Pictures at quality 60" in lower
    assert len(lower) < whole
    fewest = html.report_html(report, limit=1)
    assert "At most 0 pictures per section" in fewest
    assert "data:image/webp" not in fewest


def test_the_markdown_to_copy_is_the_one_on_disk(report: Report, page: str) -> None:
    script = parse(page).find(f".//{XHTML}script[@type='application/json']")
    assert json.loads(script.text)["markdown"] == report.to_markdown()
    assert "<" not in script.text


def test_the_notebook_view_is_small_and_has_no_script(report: Report) -> None:
    text = report._repr_html_()
    assert len(text.encode()) <= 200_000
    assert "<script" not in text
    for section in report.sections:
        assert section.title in text
    crowded = dataclasses.replace(
        report,
        sections=[Section(id=f"s{i}", title="t" * 9000, finding="f" * 9000) for i in range(150)],
    )
    assert len(crowded._repr_html_().encode()) <= 200_000


def test_a_single_section_can_be_shown_in_a_notebook(report: Report) -> None:
    text = html.section_html(report["accuracy"])
    assert "86.2" in text
    assert "<svg" in text
    assert "<script" not in text

"""`systems`, `claims` and `backbones`: what there is, and what of it holds."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Annotated, Any

import typer

from beholder.core.errors import ArgumentError

from .app import JUDGE, OUTPUT, app, option

STATE = ("row", "system", "role", "golden", "claim", "state")
AS_JSON = option(OUTPUT, "JSON on stdout, nothing else.", "--json")


@app.command("systems")
def show_systems(
    which: Annotated[
        str | None,
        typer.Argument(help="A row, a role, or a system's name.", show_default=False),
    ] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Which papers are here, and what of each is really there."""
    from beholder.core.registry import ROLES, systems
    from beholder.survey import counts, survey

    if which is None:
        states = survey()
        if as_json:
            return _json(states)
        total = counts(states)
        typer.echo(
            f"{total['complete']} of {total['rows']} systems are complete, "
            f"{total['importable']} import.\n"
        )
        _table(STATE, [_state_line(state) for state in states])
        others = [entry for entry in systems() if entry.row is None]
        typer.echo(f"\n{len(others)} systems more, of no row.\n")
        return _table(("name", "role", "module"), [(e.name, e.role, e.module) for e in others])
    if which in ROLES:
        entries = systems(which)
        if as_json:
            return _json([_entry(entry) for entry in entries])
        typer.echo(f"{len(entries)} systems of the role {which}.\n")
        lines = [(e.name, _row(e.row), e.module, e.extra) for e in entries]
        return _table(("name", "row", "module", "extra"), lines)
    if which.isdigit():
        return _show_row(int(which), as_json)
    return _show_named(which, as_json)


@app.command()
def claims(
    rows: Annotated[
        list[int] | None, typer.Argument(help="Rows to measure.", show_default=False)
    ] = None,
    every: Annotated[bool, option(JUDGE, "Measure every claim there is.", "--all")] = False,
    only_list: Annotated[
        bool, option(OUTPUT, "Show what was recorded; measure nothing.", "--list")
    ] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Does each paper's claim hold on this machine? Measured, with the verdict."""
    from beholder.survey import claim_files, claims_place, recorded

    place = claims_place()
    known = claim_files(place)
    wanted = list(known) if every or (only_list and not rows) else rows or []
    if not wanted and not only_list:
        raise ArgumentError("Which claims?", "Give rows, or --all, or --list what is recorded.")
    if only_list:
        records = [record for row in wanted if (record := recorded(row, place))]
    else:
        if str(place.parent) not in sys.path:
            sys.path.insert(0, str(place.parent))
        run_claim = importlib.import_module("claims.verdict").run_claim
        records = [run_claim(row, place=place) for row in wanted]
    if as_json:
        return _json(records)
    held = sum(record["verdict"] == "holds" for record in records)
    typer.echo(f"{held} of {len(records)} claims hold.")
    for record in records:
        _show_claim(record)


@app.command("backbones")
def show_backbones(
    search: Annotated[
        str, option(JUDGE, "A pattern with * and ?, or a part of the name.", "--search")
    ] = "*",
    params: Annotated[
        str, option(JUDGE, "Parameters, such as '<30M' or '>5M,<30M'.", "--params")
    ] = "",
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Which networks can be trained, timm's and ours, and what each costs."""
    from dataclasses import asdict

    from beholder.models.catalogue import backbones

    found = backbones(search, params)
    if as_json:
        return _json([asdict(one) for one in found])
    ours = sum(one.source == "beholder" for one in found)
    typer.echo(f"{len(found):,} backbones, {ours} of them ours.\n")
    _table(
        ("name", "parameters", "MACs", "input", "features", "weights"),
        [
            (
                one.name,
                _large(one.parameters),
                _large(one.macs),
                "x".join(map(str, one.input_size or ())),
                str(one.features or ""),
                "pretrained" if one.pretrained else "",
            )
            for one in found
        ],
    )


def _show_row(row: int, as_json: bool) -> None:
    from dataclasses import asdict

    from beholder.core.registry import systems
    from beholder.survey import checkout, lacks, paper, recorded, survey

    published = paper(row)
    state = next(state for state in survey() if state["row"] == row)
    entries = [entry for entry in systems() if entry.row == row]
    place = checkout()
    record = recorded(row, place / "claims") if place else None
    if as_json:
        systems_ = [_entry(entry, with_options=True) for entry in entries]
        return _json(state | {"paper": asdict(published), "options": systems_, "record": record})
    typer.echo(f"{published.name}: {published.purpose}\n")
    source = f"github.com/{published.repository}" if published.repository else "not published"
    facts = [
        ("paper", published.title),
        ("authors", published.authors),
        ("year", f"{published.year}, {published.venue}, arXiv {published.arxiv}"),
        ("authors' code", source),
        ("stands in", ", ".join(f"beholder/{home}" for home in published.homes)),
        ("state", "complete" if state["complete"] else "; ".join(lacks(state))),
        ("golden files", ", ".join(state["golden"] or []) or "none"),
        ("tests", ", ".join(state["tests"] or []) or "none"),
    ]
    _table(None, facts)
    for entry in entries:
        _show_options(entry)
    if record:
        typer.echo()
        _show_claim(record)


def _show_named(name: str, as_json: bool) -> None:
    import difflib

    from beholder.core.registry import systems

    known = systems()
    found = [entry for entry in known if entry.name == name.replace("-", "_")]
    if not found:
        near = difflib.get_close_matches(name, {entry.name for entry in known}, n=3)
        hint = f"There is: {', '.join(near)}." if near else "beholder systems lists the rows."
        raise ArgumentError(f"There is no system {name!r}.", hint)
    if as_json:
        return _json([_entry(entry, with_options=True) for entry in found])
    for entry in found:
        row = f", row {entry.row}" if entry.row else ""
        typer.echo(f"{entry.name}: {entry.role}{row}, in {entry.module}.")
        _show_options(entry)


def _show_options(entry: Any) -> None:
    from beholder.core.errors import BeholderError
    from beholder.survey import options

    try:
        found = options(entry)
    except BeholderError as error:
        return typer.echo(f"\n{entry.role} {entry.name}: {error}")
    typer.echo(f"\n{entry.role} {entry.name}" + ("" if found else " has no options"))
    flags = [
        (f"  --{name.replace('_', '-')}", about["type"], about["default"])
        for name, about in found.items()
    ]
    _table(None, flags)


def _show_claim(record: dict[str, Any]) -> None:
    from beholder.survey import part_value

    stale = " (the claim was changed since)" if record.get("stale") else ""
    typer.echo(f"\n{record['row']:02d} {record['verdict']}{stale}: {record['claim']}")
    typer.echo(
        f"   {record['setting']} {len(record['seeds'])} seeds, "
        f"{record['seconds']:,.0f} s, {record['date']}."
    )
    parts = [(part["verdict"], part["text"], part_value(part).text()) for part in record["parts"]]
    _table(None, [("  ", *part) for part in parts])


def _entry(entry: Any, with_options: bool = False) -> dict[str, Any]:
    from dataclasses import asdict

    from beholder.survey import options

    found = asdict(entry) | {"module": entry.module}
    return found | {"options": options(entry)} if with_options else found


def _state_line(state: dict[str, Any]) -> tuple[str, ...]:
    from beholder.survey import lacks

    compared, unread = state["golden"] or [], state["golden_unread"] or []
    claim = state["claim"]
    return (
        f"{state['row']:02d}",
        state["name"],
        ", ".join(state["role"]),
        f"{len(compared)}/{len(compared) + len(unread)}" if compared or unread else "",
        claim["verdict"] if claim else "",
        "complete" if state["complete"] else "; ".join(lacks(state)),
    )


def _large(number: int | None) -> str:
    """4652008 as '4.65 M'."""
    if number is None:
        return ""
    for bound, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= bound:
            return f"{number / bound:.3g} {letter}"
    return str(number)


def _row(row: int | None) -> str:
    return "" if row is None else f"{row:02d}"


def _json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _table(head: tuple[str, ...] | None, lines: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=head is not None, pad_edge=False)
    for column in head or ():
        table.add_column(column, no_wrap=column == "system", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    Console().print(table)

"""File names replaced by short hashes, wherever a report would show them (`--anonymous`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from beholder.core.files import digest
from beholder.core.sections import Section

from .pictures import shown
from .results import Verdict

NAME_COLUMNS = {"id", "path", "file"}


def alias(name: str) -> str:
    """The short hash that stands for a file."""
    return f"image-{digest(name)[:8]}"


def is_name_column(column: str) -> bool:
    """Whether the column of a table holds file names: `id`, `path`, `nearest_id`, `paths`, ..."""
    return column.rsplit("_", 1)[-1].removesuffix("s") in NAME_COLUMNS


def names_of(sections: Sequence[Section]) -> set[str]:
    """Every file name in tables' name columns and in pictures, and the ids of made pictures."""
    pictures = [picture for section in sections for picture in shown(section)]
    names = {id for picture in pictures for id in (picture.id, picture.overlay) if id}
    for section in sections:
        frames = [table.frame for table in section.tables.values()]
        for frame in frames + [figure.data for figure in section.figures.values()]:
            for column in filter(is_name_column, frame.columns):
                names.update(_strings(frame[column].to_list()))
    return names


def _strings(cells: Iterable[object]) -> Iterable[str]:
    for cell in cells:
        if isinstance(cell, str):
            yield cell
        elif isinstance(cell, list):
            yield from _strings(cell)


def anonymised(sections: Sequence[Section], verdict: Verdict) -> tuple[list[Section], Verdict]:
    """Copies in which every file name, alone or inside a sentence, is its `alias`."""
    names = names_of(sections)
    whole = [section.to_dict() for section in sections]
    head = verdict.model_dump(mode="json")
    text = "\n".join(_strings(_leaves([whole, head])))
    # a name such as '17' is no file name when it stands inside a sentence
    inside: dict[str, str] = {}
    for name in names:
        base = name.rsplit("/", 1)[-1]
        for form in (name, base):
            if ("." in form or "/" in form) and form in text:
                inside[form] = alias(name)
    order = sorted(inside, key=len, reverse=True)

    def replace(cell: str) -> str:
        if cell in names:
            return alias(cell)
        for form in order:
            if form in cell:
                cell = cell.replace(form, inside[form])
        return cell

    return (
        [Section.model_validate(_map(section, replace)) for section in whole],
        Verdict.model_validate(_map(head, replace)),
    )


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def _map(value: Any, replace: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, dict):
        return {key: _map(item, replace) for key, item in value.items()}
    return [_map(item, replace) for item in value] if isinstance(value, list) else value

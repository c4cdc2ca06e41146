"""Pages that are made when the documentation is built: the gallery of 76 systems, and the API.

A hook of mkdocs (mkdocs.yml). Nothing it makes is committed, so no page can fall behind: what is
not there is shown as missing.
"""

from __future__ import annotations

import ast
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from beholder.core.errors import BeholderError
from beholder.core.registry import PACKAGE, ROLES, Entry, systems
from beholder.survey import (
    Paper,
    checkout,
    counts,
    lacks,
    options,
    papers,
    part_value,
    recorded,
    survey,
)

NOUNS = {
    "Images": ("core.images", "data.sources"),
    "Models": ("core.model", "models.open", "core.predictions"),
    "Results": ("core.sections", "evaluate.report.report"),
    "Study": ("study",),
    "Runs": ("core.run", "models.run"),
    "Registry": ("core.registry", "survey"),
    "Metrics": (
        *("metrics.intervals", "metrics.bootstrap", "metrics.classification"),
        *("metrics.calibration", "metrics.groups", "metrics.cost", "metrics.detection"),
    ),
    "Errors": ("core.errors",),
}
"""Page -> modules of the package; those that are there are shown."""

CONTROLS = """
<style>
  #systems th {{ min-width: 0 }}
  @media (max-width: 600px) {{ #systems tr > :nth-child(3) {{ display: none }} }}
</style>
<p>
<label>Role <select id="role"><option value="">any</option>{roles}</select></label>
<label>State <select id="state"><option value="">any</option><option>complete</option>
<option>partial</option><option>missing</option></select></label>
<span id="shown"></span>
</p>
"""
FILTER = """
<script>
(function () {
  const rows = [...document.querySelectorAll("#systems tbody tr")];
  const role = document.getElementById("role"), state = document.getElementById("state");
  function filter() {
    let shown = 0;
    for (const row of rows) {
      const fits = (!role.value || row.dataset.role.split(" ").includes(role.value))
        && (!state.value || row.dataset.state === state.value);
      row.hidden = !fits;
      shown += fits;
    }
    document.getElementById("shown").textContent = shown + " of " + rows.length;
  }
  role.onchange = state.onchange = filter;
  filter();
})();
</script>
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API into the navigation."""
    pages = [{title: place} for place, (title, _) in api_pages().items()]
    config.nav = [*(config.nav or [])[:-1], {"API": [{"Overview": "api/index.md"}, *pages]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for place, content in (gallery() | api()).items():
        files.append(File.generated(config, place, content=content))
    return files


def gallery() -> dict[str, str]:
    """Place -> Markdown: the index, and a page for every row."""
    states = {state["row"]: state for state in survey()}
    known = systems()
    pages = {"gallery/index.md": index(list(states.values()))}
    for paper in papers():
        entries = [entry for entry in known if entry.row == paper.row]
        pages[place_of(paper.row)] = page(paper, states[paper.row], entries)
    return pages


def place_of(row: int) -> str:
    return f"gallery/{row:02d}.md"


def index(states: list[dict[str, Any]]) -> str:
    """All rows in a table that can be filtered by role and state."""
    total = counts(states)
    roles = sorted({role for state in states for role in state["role"]}, key=list(ROLES).index)
    choices = "".join(f"<option>{role}</option>" for role in roles)
    purposes = {paper.row: paper.purpose for paper in papers()}
    rows = []
    for state in states:
        claim = state["claim"]
        rows.append(
            f'<tr data-role="{" ".join(state["role"])}" data-state="{state_of(state)}">'
            f'<td>{state["row"]:02d}</td><td><a href="{state["row"]:02d}.html">'
            f"{_text(state['name'])}</a><br>{_text(purposes[state['row']])}</td>"
            f"<td>{', '.join(state['role'])}</td><td>{claim['verdict'] if claim else ''}</td>"
            f"<td>{state_of(state)}</td></tr>"
        )
    return "\n".join(
        (
            "---\nhide: [toc]\n---",
            "# Gallery",
            f"{total['rows']} published systems; {total['importable']} are here, "
            f"{total['complete']} complete: tested, compared with the authors' own figures, "
            "documented, and their paper's claim measured.",
            CONTROLS.format(roles=choices),
            '<div class="md-typeset__scrollwrap"><div class="md-typeset__table">',
            '<table id="systems"><thead><tr><th>row</th><th>system</th><th>role</th>'
            "<th>claim</th><th>state</th></tr></thead><tbody>",
            *rows,
            "</tbody></table></div></div>",
            FILTER,
        )
    )


def state_of(state: dict[str, Any]) -> str:
    """'complete', 'partial' or 'missing'."""
    if state["complete"]:
        return "complete"
    return "partial" if state["systems"] else "missing"


def page(paper: Paper, state: dict[str, Any], entries: list[Entry]) -> str:
    """What a system is for, how to use it, what of it was measured."""
    link = f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"
    code = f"[{paper.repository}](https://github.com/{paper.repository})"
    about = [
        f"# {paper.row:02d} {paper.name}",
        paper.purpose,
        f"*{paper.title}*. {paper.authors}, {paper.year} ({paper.venue}), {link}. "
        f"Authors' code: {code if paper.repository else 'not published'}.",
    ]
    if not entries:
        homes = ", ".join(f"`beholder/{home}`" for home in paper.homes)
        return "\n\n".join((*about, _box("warning", "Missing", f"Not built yet. Home: {homes}.")))
    if not state["complete"]:
        about.append(_box("info", "Not complete", "; ".join(lacks(state)) + "."))
    parts = [*about, *(section(entry) for entry in entries)]
    examples = filter(None, map(example, dict.fromkeys(entry.module for entry in entries)))
    parts += [f"## Example\n\n```pycon\n{text}\n```" for text in examples]
    place = checkout()
    record = recorded(paper.row, place / "claims") if place else None
    parts.append(claim(record) if record else "## Claim\n\nNot measured yet.")
    return "\n\n".join((*parts, evidence(state)))


def section(entry: Entry) -> str:
    """One registered name: how it is called, and its options."""
    title = f"## `{entry.name}`\n\nA system of the role {entry.role} in `{entry.module}`"
    extra = f", extra `[{entry.extra}]`." if entry.extra else "."
    try:
        found = options(entry)
    except BeholderError as error:
        return f"{title}{extra} Its options could not be read here: {error.args[0]}"
    if not found:
        return f"{title}{extra} It has no options."
    lines = [
        f"| `--{name.replace('_', '-')}` | {_code(about['type'])} | {_code(about['default'])} |"
        for name, about in found.items()
    ]
    return "\n".join((f"{title}{extra}\n", "| option | type | default |", "|---|---|---|", *lines))


def example(module: str) -> str:
    """The lines of the first example in a module's docstrings, with what they answer."""
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not path.is_file():
        return ""
    tree = ast.parse(path.read_text())
    defined = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for node in (tree, *defined):
        text = ast.get_docstring(node) or ""
        if ">>> " in text:
            lines = text.split(">>> ", 1)[1].splitlines()
            indent = len(text.split(">>> ", 1)[0].rsplit("\n", 1)[-1])
            body = [line[indent:] for line in lines[1:]]
            end = body.index("") if "" in body else len(body)
            return "\n".join([f">>> {lines[0]}", *body[:end]])
    return ""


def claim(record: dict[str, Any]) -> str:
    """The claim, its verdict, and the figures that decided."""
    kinds = {"holds": "success", "does not hold": "failure"}
    stale = " The claim was changed since." if record["stale"] else ""
    lines = [
        f"| {_cell(part['text'])} | {part_value(part).text()} | {part['verdict']} |"
        for part in record["parts"]
    ]
    return "\n".join(
        (
            "## Claim",
            "",
            record["claim"],
            "",
            _box(
                kinds.get(record["verdict"], "question"),
                record["verdict"].capitalize(),
                f"{record['setting']} Seeds {', '.join(map(str, record['seeds']))}; "
                f"{record['seconds']:,.0f} s on {record['machine']['cpu']}, "
                f"{record['date']}.{stale}",
            ),
            "",
            "| part | measured (95 % interval) | verdict |",
            "|---|---|---|",
            *lines,
        )
    )


def evidence(state: dict[str, Any]) -> str:
    """What was checked against what."""
    lines = [f"- test: `{test}`" for test in state["tests"] or ()]
    lines += [f"- authors' figures compared: `{name}`" for name in state["golden"] or ()]
    lines += [f"- authors' figures not compared: `{name}`" for name in state["golden_unread"] or ()]
    return "\n".join(("## Evidence", "", *(lines or ("None yet.",))))


def api() -> dict[str, str]:
    """Place -> Markdown: a page per noun and per role, from the docstrings."""
    pages = api_pages()
    links = [f"- [{title}]({place.removeprefix('api/')})" for place, (title, _) in pages.items()]
    made = {place: reference(title, modules) for place, (title, modules) in pages.items()}
    return made | {"api/index.md": "\n".join(("# API", "", *links))}


def api_pages() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Place -> title, and modules of the package."""
    pages = {f"api/{name.lower()}.md": (name, modules) for name, modules in NOUNS.items()}
    for role, folder in ROLES.items():
        base = PACKAGE / folder / "base.py"
        modules = [_dotted(base)] if base.is_file() else []
        modules += dict.fromkeys(
            entry.module.removeprefix("beholder.")
            for entry in systems(role)
            if entry.module.startswith("beholder.")
        )
        if modules:
            pages[f"api/{role}.md"] = (f"Role: {role}", tuple(modules))
    return pages


def reference(title: str, modules: Iterable[str]) -> str:
    """One page of docstrings."""
    there = [name for name in modules if _file(name).is_file()]
    return "\n\n".join((f"# {title}", *(f"::: beholder.{name}" for name in there)))


def _file(module: str) -> Path:
    stem = PACKAGE.joinpath(*module.split("."))
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _box(kind: str, title: str, text: str) -> str:
    return f"!!! {kind} {json.dumps(title)}\n\n    {text}"


def _text(words: str) -> str:
    return html.escape(words, quote=False)


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def _code(words: str) -> str:
    return f"<code>{_text(words).replace('|', '&#124;')}</code>" if words else ""

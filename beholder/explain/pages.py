"""One page that lays the methods side by side: self-contained, without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from beholder.core.predictions import COLD, WARM

from .base import EMPTY
from .explained import Explained

QUALITY = 80
WORDS = {"good": "Good", "look": "Look", "act": "Act", "none": ""}


@dataclass(frozen=True)
class Card:
    """A picture and what stands under it."""

    title: str
    src: str
    alt: str
    lines: tuple[str, ...]
    empty: bool = False


@dataclass(frozen=True)
class Row:
    """An image: what the model said, and its cards."""

    name: str
    said: str
    cards: tuple[Card, ...]


def png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    return _encoded(picture, "PNG")


def page(explained: Explained) -> str:
    """The page."""
    section = explained.section()
    table = explained.table
    overlays = {method: explained.overlays(method) for method in explained.explanations}
    signed = any(bool((found.heatmap < 0).any()) for found in explained.explanations.values())
    return ENVIRONMENT.from_string(PAGE).render(
        model=explained.model,
        section=section,
        word=WORDS[section.severity],
        rows=[
            _row(explained, overlays, table.filter(image=name), index)
            for index, name in enumerate(explained.names)
        ],
        methods=[_method_row(row) for row in section.frame("methods").iter_rows(named=True)],
        measured=not table["deletion"].is_null().all(),
        warm=_gradient(WARM),
        cold=_gradient(COLD) if signed else "",
        css=Markup(CSS),
    )  # fmt: skip


def _row(
    explained: Explained, overlays: dict[str, np.ndarray], own: pl.DataFrame, index: int
) -> Row:
    picture = explained.images[index].permute(1, 2, 0).numpy()
    first = own.row(0, named=True)
    label = [f"labelled {first['label']}"] if first["label"] is not None else []
    cards = [Card("image", _url(picture), f"{first['image']} as the model sees it", tuple(label))]
    for facts in own.iter_rows(named=True):
        method = facts["method"]
        cards.append(
            Card(
                method,
                _url(overlays[method][index]),
                f"map of {method} on {first['image']}",
                tuple(_measures(facts)),
                facts["empty"],
            )
        )
    return Row(first["image"], _said(first), tuple(cards))


def _said(facts: dict) -> str:
    """'defective, explained with probability 0.93', or with another target."""
    if facts["target"] is None:
        return f"score {facts['score']:.3g}"
    if facts["target"] == facts["predicted"]:
        return f"answer {facts['target']}, probability {facts['probability']:.2f}"
    return (
        f"answer {facts['predicted']}; explained is {facts['target']}, "
        f"probability {facts['probability']:.2f}"
    )


def _measures(facts: dict) -> list[str]:
    if facts["deletion"] is None:
        return []
    return [
        f"{name} {facts[name]:.2f} (moved {facts[f'{name}_moved']:.2f})"
        for name in ("deletion", "insertion")
    ]


def _method_row(row: dict) -> Sequence[str]:
    names = ("deletion", "deletion_moved", "insertion", "insertion_moved", "survives")
    figures = ["–" if row[name] is None else f"{row[name]:.2f}".replace("-", "−") for name in names]
    return (row["method"], *figures, str(row["empty"]))


def _encoded(picture: np.ndarray, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def _url(picture: np.ndarray) -> str:
    webp = base64.b64encode(_encoded(picture, "WEBP", quality=QUALITY, method=4)).decode()
    return f"data:image/webp;base64,{webp}"


def _gradient(colours: np.ndarray) -> str:
    stops = ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in colours)
    return f"linear-gradient(90deg, {stops})"


ENVIRONMENT = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
ENVIRONMENT.globals["empty"] = EMPTY

CSS = """
:root {
  --ground: #ffffff; --panel: #f7f7f5; --text: #1b1f24; --muted: #57606a; --line: #d8dbdf;
  --good: #0b6e4f; --look: #8a5a00; --link: #0b5cad; color-scheme: light;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --panel: #1d2226; --text: #e8eaed; --muted: #a3adb8; --line: #363d44;
    --good: #4cc38a; --look: #f0b429; --link: #7cb8f2; color-scheme: dark;
  }
}
*, *::before, *::after { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--text); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial,
    sans-serif;
  font-variant-numeric: tabular-nums;
}
h1, h2, h3, p, ul, figure, figcaption { margin: 0; padding: 0; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; }
h2 { font-size: 22px; line-height: 1.3; font-weight: 650; margin-top: 40px; }
h3 { font-size: 16px; font-weight: 600; }
.page { max-width: 1268px; margin: 0 auto; padding: 32px 24px 64px; }
.muted { color: var(--muted); font-size: 13px; }
.verdict {
  margin-top: 24px; padding: 16px 20px; background: var(--panel);
  border-left: 4px solid var(--muted); border-radius: 0 8px 8px 0;
}
.verdict.good { border-color: var(--good); } .verdict.look { border-color: var(--look); }
.verdict b { font-size: 16px; font-weight: 600; }
.good b { color: var(--good); } .look b { color: var(--look); }
.verdict p { font-size: 20px; line-height: 1.4; max-width: 72ch; text-wrap: pretty; }
.scroll { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; font-size: 14px; }
th { font-size: 13px; font-weight: 400; color: var(--muted); vertical-align: bottom; }
th, td {
  padding: 6px 20px 6px 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line);
}
th:first-child, td:first-child { text-align: left; }
td:first-child { font-weight: 600; }
ul.notes {
  list-style: disc; padding-left: 20px; margin-top: 12px; max-width: 84ch; font-size: 14px;
}
.legend { display: flex; flex-wrap: wrap; gap: 4px 24px; margin-top: 12px; font-size: 13px; }
.legend i {
  display: inline-block; width: 96px; height: 10px; border-radius: 2px; margin-right: 8px;
}
.image { margin-top: 24px; padding-top: 16px; border-top: 1px solid var(--line); }
.cards {
  display: grid; gap: 16px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(220px, 44%), 1fr));
}
.cards img {
  display: block; width: 100%; height: auto; border-radius: 4px; background: var(--panel);
}
.cards b { display: block; margin-top: 6px; font-weight: 600; }
.cards span { display: block; font-size: 13px; color: var(--muted); }
.cards .none { color: var(--look); }
@media (max-width: 520px) { .page { padding: 20px 16px 48px; } .verdict p { font-size: 17px; } }
@media print { .cards { break-inside: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Explanations: {{ model }}</title>
<style>{{ css }}</style>
</head>
<body>
<main class="page">
<h1>Where the answers come from</h1>
<p class="muted">{{ model }} · {{ rows | length }} image{{ "" if rows | length == 1 else "s" }}</p>
<div class="verdict {{ section.severity }}">
{% if word %}<b>{{ word }}</b>{% endif %}
<p>{{ section.finding }}</p>
</div>
<h2>Methods</h2>
<div class="scroll"><table>
<tr><th>method</th><th>deletion,<br>lower is better</th><th>moved map</th>
<th>insertion,<br>higher is better</th><th>moved map</th>
<th>likeness with<br>shuffled weights</th><th>maps without<br>positive evidence</th></tr>
{% for row in methods %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<ul class="notes">
{% if measured %}
<li>Deletion: mean probability of the explained class while the hottest places turn black.
Insertion: while they appear in a blurred image. The moved map has the same values in other
places; a map that shows what the model uses is better than it.</li>
<li>Likeness: rank correlation with the map of the same model after its weights were shuffled. Near
1 the map shows the image, not what the model learnt.</li>
{% endif %}
{% for note in section.assumptions %}<li>{{ note }}</li>{% endfor %}
</ul>
<h2>Images</h2>
<p class="legend"><span><i style="background: {{ warm }}"></i>evidence for, weak to strong</span>
{% if cold %}<span><i style="background: {{ cold }}"></i>evidence against</span>{% endif %}
<span class="muted">each map has its own scale</span></p>
{% for row in rows %}
<section class="image">
<h3><bdi>{{ row.name }}</bdi></h3>
<p class="muted">{{ row.said }}</p>
<div class="cards">
{% for card in row.cards %}
<figure><img src="{{ card.src }}" alt="{{ card.alt }}">
<figcaption><b>{{ card.title }}</b>
{% if card.empty %}<span class="none">{{ empty }}</span>{% endif %}
{% for line in card.lines %}<span>{{ line }}</span>{% endfor %}</figcaption></figure>
{% endfor %}
</div>
</section>
{% endfor %}
</main>
</body>
</html>
"""

"""The report of a run: HTML, Markdown, terminal, notebook and JSON from the same plain data."""

from .pictures import render_pictures, wanted_pictures
from .report import Report
from .results import Headline, Next, Results, Verdict, WorstGroup

__all__ = [
    "Headline",
    "Next",
    "Report",
    "Results",
    "Verdict",
    "WorstGroup",
    "render_pictures",
    "wanted_pictures",
]

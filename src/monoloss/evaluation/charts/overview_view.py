"""The overview's charts as HTML, for a notebook or a file."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from monoloss.evaluation.charts.overview import overview_figures
from monoloss.evaluation.charts.style import OverviewFigure, names_of
from monoloss.evaluation.record import EvaluationRecord
from monoloss.files.atomic import atomic_file

_HEAD = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<style>body{font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;margin:0 auto;max-width:60rem;
padding:0 8px}h2{font-size:1.15em;margin:1.4em 0 0}p{opacity:.8;margin:.3em 0;overflow-wrap:anywhere}</style>"""
_COLORS = """<script>
const ink = () => ({"font.color": getComputedStyle(document.body).color});
const paint = () => document.querySelectorAll(".plotly-graph-div").forEach(chart => Plotly.relayout(chart, ink()));
addEventListener("load", paint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
</script>"""
_FRAME_HEIGHT = 640  # pixels; the frame scrolls


class OverviewView:
    """The charts of one or several evaluations, the result of :meth:`monoloss.Evaluation.plot`.

    A notebook shows the charts in a frame. Nothing is loaded from the network: the HTML contains Plotly, about 5 MB.

    Args:
        evaluations: at least one, the baseline first.

    Attributes:
        figures: the charts, each with a title, a caption and a ``plotly.graph_objects.Figure``.
    """

    def __init__(self, evaluations: Sequence[EvaluationRecord]) -> None:
        self._groups = {"": list(evaluations)}
        self.figures: list[OverviewFigure] = overview_figures(self._groups)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows: a frame, so that page and charts do not share styles or scripts."""
        style = f"width:100%;height:{_FRAME_HEIGHT}px;border:1px solid rgba(128,128,128,.4)"
        return (
            f'<iframe title="charts" sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(self._page())}">'
            "</iframe>"
        )

    def __repr__(self) -> str:
        names = ", ".join(map(repr, names_of(self._groups)[""]))
        return f"<charts of {names}: {', '.join(figure.id for figure in self.figures)}>"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the charts as an HTML page, whole or not at all, and return its path; an older file is replaced.

        Raises:
            InputError: `path` is a folder.
        """
        with atomic_file(path) as temporary:
            temporary.write_text(self._page(), encoding="utf-8")
        return Path(path)

    def _page(self) -> str:
        """Return the page of all charts, with Plotly in it."""
        charts = "".join(
            f"<h2>{html.escape(chart.title)}</h2>"
            + chart.figure.to_html(
                full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False}
            )
            + f"<p>{html.escape(chart.caption)}</p>"
            for chart in self.figures
        )
        return f"{_HEAD}<script>{get_plotlyjs()}</script></head><body>{charts}{_COLORS}</body></html>\n"

"""The look of all charts: colours for light and dark pages and for prints; layout and safe text of interactive ones."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from monoloss.errors import InputError
from monoloss.evaluation.charts.names import plain_text, variant_of
from monoloss.evaluation.record import EvaluationRecord

if TYPE_CHECKING:  # pictures use the palette too, without plotly
    import plotly.graph_objects as go

# After Okabe and Ito, for colour-blind readers; the baseline, which comes first, is grey. Each has a contrast of at
# least 3 with white and with #16181d; the first three differ in grey too, for prints.
COLORS = ("#7e7e7e", "#d87f00", "#2b83c6", "#0a9a72", "#c2619a", "#d4540f", "#8b74d6")
DASHES = ("solid", "solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # tell runs apart without colour
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "pentagon")
INK = "#7a7a7a"  # text of a page that sets no `layout.font.color`
QUIET, GRID = "rgba(128, 128, 128, 0.9)", "rgba(128, 128, 128, 0.25)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LEGEND_WIDTH, _LEGEND_LINES = 320, 14  # pixels, as on a phone; lines

Groups = Mapping[str, Sequence[EvaluationRecord]]


class OverviewFigure(NamedTuple):
    """A chart with its title and caption, both plain text."""

    id: str
    """A short name for links."""
    title: str
    caption: str
    """How to read the chart, and what is not drawn."""
    figure: go.Figure
    """The Plotly figure, on a transparent ground; its text takes ``layout.font.color``."""


class RunStyle(NamedTuple):
    """How one run is drawn in every chart."""

    name: str
    """Name of the run, as text for a chart."""
    variant: str
    """Name of the run without its group's name, as text for a chart."""
    color: str
    """Colour of the variant, in every group; the first variant, usually the baseline, is grey."""
    dash: str
    """Dashes of lines, by variant."""
    group_dash: str
    """Dashes of lines, by group."""
    symbol: str
    """Symbol of points, by group."""


def check_groups(groups: Groups) -> dict[str, Sequence[EvaluationRecord]]:
    """Return the groups that have an evaluation; raises InputError if no group has one."""
    if not any(groups.values()):
        raise InputError("groups", "no evaluations", "at least one")
    return {group: evaluations for group, evaluations in groups.items() if evaluations}


def run_styles(names: Mapping[str, Sequence[str]]) -> list[list[RunStyle]]:
    """Return a style for each run of each group, in their order; ``names`` holds the runs by group."""
    index_of_variant: dict[str, int] = {}
    styles: list[list[RunStyle]] = []
    for i, (group, runs) in enumerate(names.items()):
        styles.append([])
        for run in runs:
            variant = variant_of(run, group)
            index = index_of_variant.setdefault(variant, len(index_of_variant))
            color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
            group_dash, symbol = DASHES[(i + 1) % len(DASHES)], SYMBOLS[i % len(SYMBOLS)]
            styles[-1].append(RunStyle(chart_text(run, 36), chart_text(variant, 36), color, dash, group_dash, symbol))
    return styles


def names_of(groups: Groups) -> dict[str, list[str]]:
    """Return the names of the runs of each group."""
    return {group: [evaluation.name for evaluation in evaluations] for group, evaluations in groups.items()}


def chances(groups: Groups) -> dict[str, float]:
    """Return the chance levels of the runs by their label; a single one if all runs were evaluated on the same rows."""
    levels = (float(e.summary.get("chance", math.nan)) for evaluations in groups.values() for e in evaluations)
    return {f"chance {level:.3f}": level for level in levels if math.isfinite(level)}


def chart_text(text: str, longest: int = 60) -> str:
    """Escape text so that a chart shows it as it is: "<b>$x$ & y" becomes neither markup nor link nor formula."""
    return html.escape(plain_text(text, longest), quote=False).replace("$", "&#36;")


def panels(titles: Sequence[str], panel_height: int, entries: Iterable[str] = ()) -> go.Figure:
    """Return a figure of empty charts, one below the other over the same x axis, under a legend.

    The figure is as wide as its container, on a transparent ground; its text takes ``layout.font.color``.

    Args:
        titles: plain text, one a chart; "" for none.
        panel_height: height of one chart in pixels.
        entries: entries of the legend, which gets the height for them.
    """
    from plotly.subplots import make_subplots

    n, title_height = len(titles), 26 if any(titles) else 0
    lines = math.ceil(sum(50 + 7 * len(html.unescape(entry)) for entry in entries) / _LEGEND_WIDTH)
    legend_height = 22 * min(lines, _LEGEND_LINES)
    body = n * (panel_height + title_height) - title_height
    figure = make_subplots(n, 1, shared_xaxes=True, vertical_spacing=title_height / body if n > 1 else 0.0)
    margin = {"l": 56, "r": 16, "t": 12 + title_height, "b": 52}
    legend = {"orientation": "h", "x": 0, "y": 1 + (title_height + 6) / body, "yanchor": "bottom"}
    figure.update_layout(
        template="none",
        autosize=True,
        height=body + legend_height + margin["t"] + margin["b"],
        margin=margin,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONT, "size": 13, "color": INK},
        legend={**legend, "bgcolor": "rgba(0,0,0,0)"},
        hoverlabel={"font": {"family": _FONT, "size": 13}, "align": "left", "namelength": -1},
        hovermode="closest",
    )
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "title_font_size": 13}
    figure.update_xaxes(**axis, showline=True, linecolor=QUIET, ticks="outside", tickcolor=QUIET, ticklen=4)
    figure.update_yaxes(**axis)
    for i, title in enumerate(titles, 1):
        corner = {"xref": "x domain", "yref": f"y{i if i > 1 else ''} domain", "x": 0, "y": 1, "yshift": 3}
        if title:
            text = f"<b>{chart_text(title)}</b>"
            figure.add_annotation(text=text, **corner, xanchor="left", yanchor="bottom", showarrow=False)
    return figure


def level_line(figure: go.Figure, level: float, label: str, *, row: int = 1, upright: bool = False) -> None:
    """Draw a dashed line across chart ``row`` with a label: at a height, or with ``upright`` at an x value."""
    suffix = str(row) if row > 1 else ""
    line = {"color": QUIET, "width": 1.5, "dash": "dash"}
    along, across = ("y", "x") if upright else ("x", "y")
    domain = {f"{along}ref": f"{along}{suffix} domain", f"{across}ref": f"{across}{suffix}"}
    figure.add_shape(
        type="line", line=line, layer="below", **domain,
        **{f"{along}0": 0, f"{along}1": 1, f"{across}0": level, f"{across}1": level},
    )  # fmt: skip
    at = {"x": level, "y": 1} if upright else {"x": 0, "y": level}
    anchor = {"xanchor": "left", "yanchor": "top", "xshift": 3} if upright else {"xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(text=label, showarrow=False, **domain, **at, **anchor)

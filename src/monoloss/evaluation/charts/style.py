"""The look of all charts: colours for light and dark pages and for prints; of interactive ones layout and safe text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from monoloss.errors import InputError
from monoloss.evaluation.charts.names import plain_text, variant_of
from monoloss.evaluation.record import EvaluationRecord

if TYPE_CHECKING:  # the palette is for pictures too, which do without plotly
    import plotly.graph_objects as go

# After Okabe and Ito, for colour-blind readers; the baseline, which comes first, is grey. Each has a contrast of at
# least 3 with white and with #16181d; the first three differ in grey too, for prints.
COLORS = ("#7e7e7e", "#d87f00", "#2b83c6", "#0a9a72", "#c2619a", "#d4540f", "#8b74d6")
DASHES = ("solid", "solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # a second sign beside the colour
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "pentagon")
INK = "#7a7a7a"  # of text, where a page does not set its own `layout.font.color`
QUIET, GRID = "rgba(128, 128, 128, 0.9)", "rgba(128, 128, 128, 0.25)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LEGEND_WIDTH, _LEGEND_LINES = 320, 14  # the width on a phone, in pixels; elsewhere charts take what is left

Groups = Mapping[str, Sequence[EvaluationRecord]]


class OverviewFigure(NamedTuple):
    """A chart with the words around it, which are plain text.

    Attributes:
        id: short, for links.
        title: a headline.
        caption: how to read it, and what is not drawn.
        figure: a ``plotly.graph_objects.Figure`` on a transparent ground; its text takes ``layout.font.color``.
    """

    id: str
    title: str
    caption: str
    figure: go.Figure


class RunStyle(NamedTuple):
    """How one run is drawn in every chart.

    Attributes:
        name: of the run, as text for a chart.
        variant: its name without that of its group, as text for a chart.
        color: the same for the same variant in every group; the first variant, usually the baseline, is grey.
        dash: of lines, by variant.
        group_dash: of lines, by group.
        symbol: of points, by group.
    """

    name: str
    variant: str
    color: str
    dash: str
    group_dash: str
    symbol: str


def check_groups(groups: Groups) -> dict[str, Sequence[EvaluationRecord]]:
    """The groups that have an evaluation; refuses those without any."""
    if not any(groups.values()):
        raise InputError("groups", "no evaluations", "at least one")
    return {group: evaluations for group, evaluations in groups.items() if evaluations}


def run_styles(names: Mapping[str, Sequence[str]]) -> list[list[RunStyle]]:
    """A style for each run of each group, in their order."""
    order: dict[str, int] = {}
    styles: list[list[RunStyle]] = []
    for i, (group, runs) in enumerate(names.items()):
        styles.append([])
        for run in runs:
            variant = variant_of(run, group)
            place = order.setdefault(variant, len(order))
            color, dash = COLORS[place % len(COLORS)], DASHES[place % len(DASHES)]
            group_dash, symbol = DASHES[(i + 1) % len(DASHES)], SYMBOLS[i % len(SYMBOLS)]
            styles[-1].append(RunStyle(chart_text(run, 36), chart_text(variant, 36), color, dash, group_dash, symbol))
    return styles


def names_of(groups: Groups) -> dict[str, list[str]]:
    """The names of the runs of each group."""
    return {group: [evaluation.name for evaluation in evaluations] for group, evaluations in groups.items()}


def chances(groups: Groups) -> dict[str, float]:
    """The scores of chance by their label; one where all runs are judged on the same rows."""
    found = (float(e.summary.get("chance", math.nan)) for evaluations in groups.values() for e in evaluations)
    return {f"chance {value:.3f}": value for value in found if math.isfinite(value)}


def chart_text(text: str, longest: int = 60) -> str:
    """Text that a chart shows as it is: no markup, no link, no formula of it is carried out.

    Example:
        >>> chart_text("<b>$x$ & y")
        '&lt;b&gt;&#36;x&#36; &amp; y'
    """
    return html.escape(plain_text(text, longest), quote=False).replace("$", "&#36;")


def panels(titles: Sequence[str], panel_height: int, entries: Iterable[str] = ()) -> go.Figure:
    """Charts one below the other over the same x axis, under a legend.

    As wide as its place, on a transparent ground; text takes ``layout.font.color``.

    Args:
        titles: plain text, one a chart; empty where there is nothing to say.
        panel_height: of one chart, in pixels.
        entries: of the legend.
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
        place = {"xref": "x domain", "yref": f"y{i if i > 1 else ''} domain", "x": 0, "y": 1, "yshift": 3}
        if title:
            text = f"<b>{chart_text(title)}</b>"
            figure.add_annotation(text=text, **place, xanchor="left", yanchor="bottom", showarrow=False)
    return figure


def level_line(figure: go.Figure, level: float, label: str, *, row: int = 1, upright: bool = False) -> None:
    """A dashed line across a chart, with its label beside it."""
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

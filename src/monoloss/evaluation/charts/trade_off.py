"""Charts of the score against reconstruction or purity, a point for each run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import plotly.graph_objects as go

from monoloss.errors import InputError
from monoloss.evaluation.charts.names import plain_text
from monoloss.evaluation.charts.style import (
    QUIET,
    Groups,
    OverviewFigure,
    RunStyle,
    chances,
    check_groups,
    level_line,
    names_of,
    panels,
    run_styles,
)
from monoloss.evaluation.record import EvaluationRecord


class _TradeOff(NamedTuple):
    """A measure that the score is drawn over: id of the chart, name, label of the x axis, caption."""

    id: str
    word: str
    axis: str
    caption: str


_COSTS = "Up and not to the left of its start is a gain that costs no reconstruction."
TRADE_OFFS = {
    "explained_variance": _TradeOff(
        "score-against-explained-variance", "explained variance", "explained variance, pooled", _COSTS
    ),
    "r2": _TradeOff(
        "score-against-r2",
        "R²",
        "R², mean over dimensions",
        f"{_COSTS} This is the paper's figure; dimensions that hardly vary can make it very low.",
    ),
    "purity_weighted": _TradeOff(
        "score-against-purity",
        "class purity",
        "weighted class purity, mean",
        "The score knows no labels; where purity rises with it, latents come closer to classes.",
    ),
}
_HOVER_MEASURES = {
    "score_mean": "score",
    "lift_mean": "lift",
    "explained_variance": "explained variance",
    "r2": "R²",
    "purity_weighted": "weighted purity",
}


def trade_off_figure(groups: Groups, measure: str = "explained_variance") -> OverviewFigure:
    """Draw the mean score of each run over another measure, with lines from a group's baseline to its other runs.

    Args:
        groups: evaluations by the name of their group, in each the baseline first.
        measure: "explained_variance", "r2" or "purity_weighted".

    Raises:
        InputError: no evaluations, or another measure.
    """
    groups = check_groups(groups)
    if measure not in TRADE_OFFS:
        raise InputError("measure", repr(measure), f"one of {', '.join(TRADE_OFFS)}")
    trade_off = TRADE_OFFS[measure]
    styles = run_styles(names_of(groups))
    figure = panels([""], 360, [style.name for group in styles for style in group])
    points, missing = list[tuple[float, float]](), list[str]()
    lines, marks = list[go.Scatter](), list[go.Scatter]()
    for group_styles, evaluations in zip(styles, groups.values(), strict=True):
        start = _point(evaluations[0], measure)
        for style, evaluation in zip(group_styles, evaluations, strict=True):
            point = _point(evaluation, measure)
            if point is None:
                missing.append(plain_text(evaluation.name))
                continue
            points.append(point)
            marks.append(_mark(style, evaluation, point))
            if start is not None and evaluation is not evaluations[0]:
                lines.append(_line(start, point))
    figure.add_traces([*lines, *marks])
    figure.update_xaxes(title_text=trade_off.axis, range=_range(x for x, _ in points))
    figure.update_yaxes(title_text="MonoScore, mean", range=_range(y for _, y in points))
    levels = chances(groups)
    low, high = figure.layout.yaxis.range
    for label, chance in levels.items():
        if low - (high - low) < chance <= high:  # near enough to leave room for the points
            figure.update_yaxes(range=[min(figure.layout.yaxis.range[0], chance - 0.08 * (high - low)), high])
            level_line(figure, chance, label)
    caption = "One point a run, with means over defined latents; lines lead from a group's baseline to its others. "
    caption += trade_off.caption
    if levels:
        caption += f" At random a latent scores {' or '.join(f'{chance:.3f}' for chance in levels.values())} (chance)."
    if missing:
        caption += f" Not drawn, without a defined score or {trade_off.word}: {', '.join(missing)}."
    return OverviewFigure(trade_off.id, f"Score against {trade_off.word}", caption, figure)


def _point(evaluation: EvaluationRecord, measure: str) -> tuple[float, float] | None:
    """Return the measure and the mean score of a run; None if either is undefined."""
    x, y = (float(evaluation.summary.get(key, math.nan)) for key in (measure, "score_mean"))
    return (x, y) if math.isfinite(x) and math.isfinite(y) else None


def _mark(style: RunStyle, evaluation: EvaluationRecord, point: tuple[float, float]) -> go.Scatter:
    """Draw the mark of one evaluation at its point, with its measures shown on hover."""
    measures = {word: float(evaluation.summary.get(key, math.nan)) for key, word in _HOVER_MEASURES.items()}
    hover = [f"{word} {value:.3f}" for word, value in measures.items() if math.isfinite(value)]
    return go.Scatter(
        x=[point[0]],
        y=[point[1]],
        mode="markers",
        marker={"color": style.color, "symbol": style.symbol, "size": 13, "line": {"width": 0}},
        name=style.name,
        text=["<br>".join([f"<b>{style.name}</b>", *hover])],
        hovertemplate="%{text}<extra></extra>",
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> go.Scatter:
    """Draw a quiet line from a baseline's point to that of a run."""
    return go.Scatter(
        x=[start[0], end[0]],
        y=[start[1], end[1]],
        mode="lines",
        line={"color": QUIET, "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
    )


def _range(values: Iterable[float]) -> list[float]:
    """Return a range of an axis with room around the values, at least 0.05 wide, so that noise does not look large."""
    values = list(values)
    if not values:
        return [0.0, 1.0]
    span = max(values) - min(values)
    room = max(0.12 * span, (0.05 - span) / 2)
    return [min(values) - room, max(values) + room]

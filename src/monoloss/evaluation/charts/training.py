"""The chart of the values logged in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from monoloss.errors import InputError
from monoloss.evaluation.charts.style import Groups, OverviewFigure, names_of, panels, run_styles

MEASURES = {
    "loss": "loss",
    "score": "MonoScore of the batch",
    "explained_variance": "explained variance of the batch",
    "l0": "active latents a row (L0)",
    "dead": "dead latents",
}
_MAX_POINTS = 400  # of a curve
_UNGROUPED = "\0"  # stands for the group of runs without a group; no group has this name


class TrainingCurve(NamedTuple):
    """The logged values of one measure of one run."""

    run: str
    """Name of the SAE, as in its evaluation."""
    measure: str
    """Name of the measure, such as "loss" or "score"."""
    steps: Sequence[int]
    """Optimiser steps, rising."""
    values: Sequence[float]
    """The values at these steps; NaN where undefined."""


def training_curves_figure(curves: Sequence[TrainingCurve], groups: Groups | None = None) -> OverviewFigure:
    """Draw the values logged in training, one panel a measure.

    Of a longer curve 400 evenly spaced points are drawn, the first and the last among them.

    Args:
        curves: curves of "loss", "score", "explained_variance", "l0" and "dead"; other measures are left out.
        groups: evaluations by group; a run has the same colour as in the charts of these groups.

    Raises:
        InputError: no curve of any of these measures.
    """
    curves = [curve for curve in curves if curve.measure in MEASURES]
    if not curves:
        raise InputError("curves", "nothing to draw", f"at least one of {', '.join(MEASURES)}")
    names = names_of(groups or {})
    grouped = {name for runs in names.values() for name in runs}
    names[_UNGROUPED] = list(dict.fromkeys(curve.run for curve in curves if curve.run not in grouped))
    styles = {
        run: style
        for runs, group in zip(names.values(), run_styles(names), strict=True)
        for run, style in zip(runs, group, strict=True)
    }
    rows = {measure: row for row, measure in enumerate((m for m in MEASURES if any(m == c.measure for c in curves)), 1)}
    figure = panels([MEASURES[measure] for measure in rows], 150, {styles[curve.run].name for curve in curves})
    for curve in curves:
        style, drawn = styles[curve.run], _drawn_points(len(curve.steps))
        line = go.Scatter(
            x=[int(curve.steps[i]) for i in drawn],
            y=[float(curve.values[i]) if math.isfinite(curve.values[i]) else None for i in drawn],
            mode="lines" if len(drawn) > 1 else "markers",
            line={"color": style.color, "dash": style.group_dash, "width": 2},
            marker={"color": style.color, "symbol": style.symbol},
            name=style.name,
            legendgroup=style.name,
            showlegend=not any(trace.legendgroup == style.name for trace in figure.data),
            hovertemplate="step %{x}: %{y:.4~g}",
        )
        figure.add_trace(line, row=rows[curve.measure], col=1)
    figure.update_xaxes(title_text="optimiser step", row=len(rows), col=1)
    caption = "As logged while training, on batches of training rows: the score of one batch is not that of the whole "
    caption += "data. Losses of different kinds of SAEs are not on the same scale."
    return OverviewFigure("training", "Training", caption, figure)


def _drawn_points(n: int) -> list[int]:
    """Return the indices of the points that are drawn of a curve of ``n`` points."""
    if n <= _MAX_POINTS:
        return list(range(n))
    return [round(i * (n - 1) / (_MAX_POINTS - 1)) for i in range(_MAX_POINTS)]

"""Charts of what was logged in training."""

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
_MOST_POINTS = 400  # of a curve
_OTHERS = "\0"  # no name of a group


class TrainingCurve(NamedTuple):
    """One logged figure of one run.

    Attributes:
        run: name of the SAE, as its evaluation has it.
        measure: such as "loss" or "score".
        steps: optimiser steps, rising.
        values: at these steps; NaN where undefined.
    """

    run: str
    measure: str
    steps: Sequence[int]
    values: Sequence[float]


def training_curves_figure(curves: Sequence[TrainingCurve], groups: Groups | None = None) -> OverviewFigure:
    """What was logged in training, one panel a measure.

    Of a curve with more than 400 points some are drawn, evenly spaced, the first and the last among them.

    Args:
        curves: of "loss", "score", "explained_variance", "l0" and "dead"; others are left out.
        groups: the evaluations of the runs by group, whose colours the runs take.

    Raises:
        InputError: no curve of these.
    """
    curves = [curve for curve in curves if curve.measure in MEASURES]
    if not curves:
        raise InputError("curves", "nothing to draw", f"at least one of {', '.join(MEASURES)}")
    names = names_of(groups or {})
    known = {name for runs in names.values() for name in runs}
    names[_OTHERS] = list(dict.fromkeys(curve.run for curve in curves if curve.run not in known))
    styles = {
        run: style
        for runs, group in zip(names.values(), run_styles(names), strict=True)
        for run, style in zip(runs, group, strict=True)
    }
    rows = {measure: row for row, measure in enumerate((m for m in MEASURES if any(m == c.measure for c in curves)), 1)}
    figure = panels([MEASURES[measure] for measure in rows], 150, {styles[curve.run].name for curve in curves})
    for curve in curves:
        style, kept = styles[curve.run], _kept(len(curve.steps))
        line = go.Scatter(
            x=[int(curve.steps[i]) for i in kept],
            y=[float(curve.values[i]) if math.isfinite(curve.values[i]) else None for i in kept],
            mode="lines" if len(kept) > 1 else "markers",
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


def _kept(n: int) -> list[int]:
    """Which points of a curve are drawn."""
    if n <= _MOST_POINTS:
        return list(range(n))
    return [round(i * (n - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)]

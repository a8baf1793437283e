"""The interactive charts of an overview: distributions over the latents, trade-offs, training curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from monoloss.errors import InputError
from monoloss.evaluation.charts.names import plain_text
from monoloss.evaluation.charts.style import (
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
from monoloss.evaluation.charts.trade_off import TRADE_OFFS, trade_off_figure
from monoloss.evaluation.charts.training import MEASURES as LOGGED
from monoloss.evaluation.charts.training import TrainingCurve, training_curves_figure
from monoloss.evaluation.record import EvaluationRecord

__all__ = [
    "OverviewFigure",
    "TrainingCurve",
    "latents_figure",
    "overview_figures",
    "trade_off_figure",
    "training_curves_figure",
]

Values = NDArray[np.float64]
_MAX_FILLED = 3  # filled areas in one panel; more would be mud


class _Measure(NamedTuple):
    """Title, label of the x axis and caption of the chart of a column of ``Evaluation.latents``."""

    title: str
    axis: str
    caption: str


_MEASURES = {
    "score": _Measure(
        "MonoScore of the latents",
        "MonoScore of a latent (-1 to 1)",
        "Further right is better; chance is what a latent scores that is active at random. Scores of latents with few "
        "effective rows are noise.",
    ),
    "lift": _Measure(
        "Lift: the score above chance",
        "lift of a latent (chance: 0, at best 1)",
        "The score on a scale where chance is 0 and a latent whose rows are all alike is 1.",
    ),
    "purity_weighted": _Measure(
        "Class purity of the latents, weighted by activation",
        "weighted class purity of a latent (0 to 1)",
        "The share of a latent's activation that falls on its most frequent class.",
    ),
    "n_eff": _Measure(
        "Effective rows behind each latent",
        "effective rows of a latent, logarithmic",
        "How many rows carry a latent. With few of them its score is noise.",
    ),
}


def overview_figures(groups: Groups, curves: Sequence[TrainingCurve] = ()) -> list[OverviewFigure]:
    """Draw all charts that have data: score, lift, purity and n_eff of the latents, trade-offs, training curves.

    Args:
        groups: evaluations by the name of their group (such as the kind of SAE), in each the baseline first. Charts of
            several groups show a run's name without the name of its group in front.
        curves: values logged in training.

    Raises:
        InputError: no evaluations.
    """
    groups = check_groups(groups)
    evaluations = [evaluation for group in groups.values() for evaluation in group]
    figures = [latents_figure(groups, key) for key in _MEASURES if any(key in e.latents for e in evaluations)]
    figures += [trade_off_figure(groups, key) for key in TRADE_OFFS if any(key in e.summary for e in evaluations)]
    if any(curve.measure in LOGGED for curve in curves):
        figures.append(training_curves_figure(curves, groups))
    return figures


def latents_figure(groups: Groups, measure: str = "score") -> OverviewFigure:
    """Draw the distribution of a measure over the latents of each run: steps over shared bins, one panel a group.

    Triangles mark the means over defined latents; the caption counts the undefined ones. Heights are shares instead of
    counts if runs have different numbers of latents.

    Args:
        groups: evaluations by the name of their group, in each the baseline first.
        measure: "score", "lift", "purity_weighted" or "n_eff" (on a logarithmic axis).

    Raises:
        InputError: no evaluations, or another measure.
    """
    groups = check_groups(groups)
    if measure not in _MEASURES:
        raise InputError("measure", repr(measure), f"one of {', '.join(_MEASURES)}")
    text, is_log = _MEASURES[measure], measure == "n_eff"
    columns = {
        group: [defined_values(evaluation, measure, is_log) for evaluation in evaluations]
        for group, evaluations in groups.items()
    }
    levels = {"score": chances(groups), "lift": {"chance": 0.0}}.get(measure, {})
    edges = _edges([column for group in columns.values() for column in group], [*levels.values()], measure)
    n_latents = {_n_latents(evaluation) for evaluations in groups.values() for evaluation in evaluations}
    styles = run_styles(names_of(groups))
    names = [[style.variant if len(groups) > 1 else style.name for style in group] for group in styles]
    figure = panels(list(groups) if len(groups) > 1 else [""], 220, {name for group in names for name in group})
    legend: set[str] = set()
    for row, (group, evaluations) in enumerate(groups.items(), 1):
        for i, (evaluation, values) in enumerate(zip(evaluations, columns[group], strict=True)):
            weight = 100 / _n_latents(evaluation) if len(n_latents) > 1 else 1.0
            style, name = styles[row - 1][i], names[row - 1][i]
            steps = _steps(values, edges, weight, style, is_log=is_log, is_filled=len(evaluations) <= _MAX_FILLED)
            for trace in (steps, _mean_mark(values, style, is_log)):
                trace.update(name=name, legendgroup=name, showlegend=trace is steps and name not in legend)
                figure.add_trace(trace, row=row, col=1)
            legend.add(name)
        top = max(max(trace.y, default=0.0) for trace in figure.select_traces(row=row))
        figure.update_yaxes(range=[0, 1.15 * top or 1.0], row=row, col=1)  # leaves room for the label of a level
        for label, level in levels.items():
            level_line(figure, level, label, row=row, upright=True)
    figure.update_yaxes(title_text="latents" if len(n_latents) == 1 else "share of latents, %")
    figure.update_xaxes(range=[edges[0], edges[-1]])
    if is_log:
        figure.update_xaxes(**_power_ticks(edges))
    figure.update_xaxes(title_text=text.axis, row=len(groups), col=1)
    caption = f"{text.caption} ▲ {'geometric mean' if is_log else 'mean'} over defined latents. "
    return OverviewFigure(measure, text.title, caption + _undefined_text(groups, columns), figure)


def defined_values(evaluation: EvaluationRecord, measure: str, is_log: bool = False) -> Values:
    """Return the defined values of a measure of the latents; with ``is_log`` the log10 of the positive ones."""
    if measure not in evaluation.latents:
        return np.zeros(0)
    values = evaluation.latents[measure].detach().double().cpu().numpy()
    values = np.asarray(values[np.isfinite(values)])
    return np.log10(values[values > 0]) if is_log else values


def _n_latents(evaluation: EvaluationRecord) -> int:
    return len(evaluation.latents["score"])


def _edges(columns: Sequence[Values], levels: Sequence[float], measure: str) -> Values:
    """Return edges of bins for all runs: purity from 0 to 1, others from the lowest to the highest value or level."""
    n_values = max(map(len, columns))
    n_bins = int(np.clip(math.sqrt(n_values) * 2, 15, 50))
    if measure == "purity_weighted":
        return np.linspace(0, 1, 2 * (n_bins // 2) + 1)
    values = np.concatenate([*columns, np.asarray(levels, dtype=float)])
    if len(values) == 0:
        return np.linspace(0, 1, 11)
    low, high = float(values.min()), float(values.max())
    margin = 0.02 * (high - low) or 0.05
    return np.linspace(low - margin, high + margin, n_bins + 1)


def _steps(
    values: Values, edges: Values, weight: float, style: RunStyle, *, is_log: bool, is_filled: bool
) -> go.Scatter:
    """Draw the counts times ``weight`` as a line of steps, with an empty bin on either side."""
    counts = np.histogram(values, edges)[0]
    width = edges[1] - edges[0]
    middles = np.concatenate([[edges[0] - width / 2], (edges[1:] + edges[:-1]) / 2, [edges[-1] + width / 2]])
    heights = [0.0, *(float(count * weight) for count in counts), 0.0]
    bounds = [
        f"{10**a:,.4g} to {10**b:,.4g}" if is_log else f"{a:.3f} to {b:.3f}" for a, b in itertools.pairwise(edges)
    ]
    unit = "latents" if weight == 1 else "% of latents"
    texts = [f"{bound}: {height:,.4g} {unit}" for bound, height in zip(bounds, heights[1:-1], strict=True)]
    return go.Scatter(
        x=[float(f"{x:.6g}") for x in middles],
        y=heights,
        mode="lines",
        line={"shape": "hvh", "color": style.color, "dash": style.dash, "width": 2},
        fill="tozeroy",
        fillcolor=_faint(style.color) if is_filled else "rgba(0,0,0,0)",
        text=["", *texts, ""],
        hovertemplate="%{text}",
    )


def _mean_mark(values: Values, style: RunStyle, is_log: bool) -> go.Scatter:
    """Draw a triangle on the x axis at the mean; none without values."""
    mean = [float(values.mean())] if len(values) else []
    text = [f"mean {10**value:,.4g}" if is_log else f"mean {value:.3f}" for value in mean]
    return go.Scatter(
        x=mean,
        y=[0.0] * len(mean),
        mode="markers",
        marker={"symbol": "triangle-up", "size": 12, "color": style.color},
        cliponaxis=False,
        text=text,
        hovertemplate="%{text}",
    )


def _faint(color: str) -> str:
    """Return a color "#rrggbb" at an opacity of 13 %."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.13)"


def _power_ticks(edges: Values) -> dict[str, list[float] | list[str]]:
    """Return ticks of a log10 axis at 1, 2 and 5 times each power of ten; over a long range at the powers only."""
    low, high = float(edges[0]), float(edges[-1])
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [f"{tick:,.4g}" for tick in ticks]}


def _undefined_text(groups: Groups, columns: Mapping[str, Sequence[Values]]) -> str:
    """Say how many latents of each run are undefined and not drawn, and how many of these are active on no row."""
    parts = []
    for group, evaluations in groups.items():
        for evaluation, values in zip(evaluations, columns[group], strict=True):
            n = _n_latents(evaluation) - len(values)
            density = evaluation.latents.get("density")
            silent = f" ({int((density == 0).sum()):,})" if density is not None else ""
            if n:
                parts.append(f"{plain_text(evaluation.name)} {n:,}{silent} of {_n_latents(evaluation):,}")
    if not parts:
        return "Every latent is defined."
    return f"Not drawn, because undefined (in brackets: active on no row): {'; '.join(parts)}."

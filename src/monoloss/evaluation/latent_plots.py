"""Interactive charts of a single latent."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from monoloss.errors import InputError
from monoloss.evaluation.latent_bars import activation_bars, class_bars
from monoloss.evaluation.plot_style import COLORS, chart_text, panels
from monoloss.evaluation.record import EvaluationRecord


def latent_histogram_figure(evaluation: EvaluationRecord, latent: int) -> go.Figure:
    """How the activations of a latent are distributed over its active rows, in bins of half an octave.

    Raises:
        InputError: there is no such latent, or the evaluation has no histogram.

    Example:
        >>> import torch
        >>> from monoloss.evaluation.examples import Examples
        >>> counts = torch.zeros(1, 80, dtype=torch.int64)
        >>> counts[0, 40], counts[0, 42] = 5, 1
        >>> one = EvaluationRecord("mine", {}, {}, {"score": torch.ones(1)}, Examples.none(1, 1), histogram=counts)
        >>> latent_histogram_figure(one, 0).data[0].y
        (5, 0, 1)
    """
    bars = activation_bars(evaluation, latent)
    if bars is None:
        raise InputError("evaluation", f"{evaluation.name!r}, which has no histogram", "one of this version")
    figure = panels([""], 200)
    figure.add_trace(
        go.Bar(
            x=[math.log2(bar.low) + 0.25 for bar in bars],
            y=[bar.n_rows for bar in bars],
            width=0.46,
            marker_color=COLORS[2],
            text=[f"{bar.range_text}: {bar.n_rows:,} rows" for bar in bars],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    )
    ends = [math.floor(math.log2(bars[0].low)), math.ceil(math.log2(bars[-1].high))] if bars else [0, 1]
    octaves = list(range(ends[0], ends[1] + 1, max(1, (ends[1] - ends[0]) // 8)))
    figure.update_xaxes(
        title_text="activation", tickvals=octaves, ticktext=[f"{2.0**octave:.3g}" for octave in octaves]
    )
    figure.update_yaxes(title_text="active rows")
    return figure


def class_bars_figure(evaluation: EvaluationRecord, latent: int) -> go.Figure:
    """How many of a latent's active rows carry each of its most frequent classes, the most frequent at the top.

    Raises:
        InputError: there is no such latent, or the evaluation knows no classes.

    Example:
        >>> import torch
        >>> from monoloss.evaluation.classes import TopClasses
        >>> from monoloss.evaluation.examples import Examples
        >>> classes = TopClasses(torch.tensor([[1, 0, -1]]), torch.tensor([[5, 2, 0]]))
        >>> one = EvaluationRecord(
        ...     "mine", {}, {}, {"score": torch.ones(1)}, Examples.none(1, 1), top_classes=classes
        ... )
        >>> class_bars_figure(one, 0).data[0].x
        (5, 2)
    """
    bars = class_bars(evaluation, latent)
    if bars is None:
        raise InputError("evaluation", f"{evaluation.name!r}, which has no classes", "one of a store with labels")
    figure = panels([""], 40 + 24 * max(1, len(bars)))
    figure.add_trace(
        go.Bar(
            x=[bar.n_rows for bar in bars],
            y=list(range(len(bars))),  # names may be equal
            orientation="h",
            marker_color=COLORS[2],
            text=[f"{chart_text(bar.name)}: {bar.n_rows:,} rows" for bar in bars],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    )
    names = [chart_text(bar.name, 30) for bar in bars]
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(bars))), ticktext=names, showgrid=False)
    figure.update_xaxes(title_text="active rows")
    return figure

"""Pictures that compare loss variants: distribution of the score, score against reconstruction, class purity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from monoloss.evaluation.charts.names import variant_of
from monoloss.evaluation.result import Evaluation
from monoloss.report.pictures.drawing import (
    COLORS,
    INK,
    MARGIN,
    PLAIN_SIZE,
    QUIET,
    SMALL_SIZE,
    WIDTH,
    check_groups,
    fit,
    inch_axes,
    number,
    picture,
    place_axes,
    save_figure,
    text_width,
    variant_colors,
)
from monoloss.report.pictures.examples_grid import spread_latents, top_examples_grid
from monoloss.report.pictures.trade_off import trade_off

__all__ = [
    "purity_bars",
    "save_figure",
    "score_histogram",
    "spread_latents",
    "top_examples_grid",
    "trade_off",
    "variant_colors",
]

_LEGEND_STEP = 0.21  # inches


def score_histogram(
    evaluations: Sequence[Evaluation],
    title: str | None = None,
    *,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """How the latents of each run spread over the score; the chance line is what a random latent gets.

    The runs share their bins. A triangle marks the mean over defined latents; undefined ones are counted in the legend.

    Args:
        evaluations: one or several, readable up to about three; the baseline first.
        title: replaces the usual headline.
        colors: by name, as from :func:`variant_colors`; without it in order.

    Returns:
        A figure for :func:`save_figure`.

    Raises:
        InputError: no evaluations.

    Example:
        >>> import tempfile, torch
        >>> from monoloss import FeatureStore, SparseAutoencoder, TopKConfig, evaluate
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore.create(folder + "/store", torch.randn(64, 8))
        ...     sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
        ...     figure = score_histogram([evaluate(store, {"mine": sae})["mine"]])
        ...     save_figure(figure, folder + "/scores.png").name
        'scores.png'
    """
    check_groups("evaluations", {"": evaluations})
    colors = variant_colors({"": evaluations}) if colors is None else colors
    scores = [_defined_scores(evaluation) for evaluation in evaluations]
    chances = {f"chance {value:.3f}": value for e in evaluations if math.isfinite(value := e.summary["chance"])}
    height = _LEGEND_STEP * len(evaluations) + 0.12 + 0.17 * len(chances) + 2.7 + 0.55
    note = "A latent right of the chance line is active on images that are more alike than random ones are on average. "
    note += "Scores of latents that few images activate are noise."
    with picture(title or "MonoScore of the latents: the further right, the better", note, height) as figure:
        axes = place_axes(figure, 0.62, 0.55, WIDTH - 0.62 - 0.25, 2.7)
        axes.set_xlabel("MonoScore of a latent (-1 to 1); ▲ mean of the run")
        axes.set_ylabel("latents")
        edges = _bins(scores, list(chances.values()))
        pad = 0.01 * (edges[-1] - edges[0])
        axes.set_xlim(edges[0] - pad, edges[-1] + pad)
        for i, (evaluation, values) in enumerate(zip(evaluations, scores, strict=True)):
            fill = 0.16 if len(evaluations) <= 3 else 0.0  # more would be mud
            _draw_run(axes, values, edges, colors.get(evaluation.name, INK), _line(i), fill)
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        for level, (label, chance) in enumerate(chances.items()):
            _draw_chance(axes, chance, label, level)
        if not any(len(values) for values in scores):
            axes.text(0.5, 0.5, "no latent has a defined score", transform=axes.transAxes, ha="center", color=QUIET)
        _write_legend(inch_axes(figure, height), evaluations, colors)
    return figure


def purity_bars(
    groups: Mapping[str, Sequence[Evaluation]],
    title: str | None = None,
    *,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Class purity, weighted and binary, as bars: mean over the latents with an active row.

    Args:
        groups: evaluations by the name of their group (such as the kind of SAE), in each the baseline first.
        title: replaces the usual headline.
        colors: by the name of the evaluation; by default :func:`variant_colors` of `groups`.

    Returns:
        A figure with one bar a measure and evaluation, its value written at its end.

    Raises:
        InputError: no evaluations, or none with class purity.

    Example:
        >>> import tempfile, torch
        >>> from monoloss import FeatureStore, SparseAutoencoder, TopKConfig, evaluate
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore.create(folder + "/store", torch.randn(64, 8), torch.arange(64) % 4)
        ...     sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
        ...     figure = purity_bars({"TopK": [evaluate(store, {"mine": sae})["mine"]]})
    """
    check_groups("groups", groups, "purity_weighted", "evaluations of a store with labels")
    colors = variant_colors(groups) if colors is None else colors
    step, gap, names_width = 0.27, 0.36, 2.1
    body = sum(gap + step * len(evaluations) for evaluations in groups.values())
    height = body + 0.2 + 0.6
    note = "Share of a latent's active images that belong to its most frequent class; mean over latents."
    panel = (WIDTH - names_width - 0.12 - 2 * 0.3) / 2
    with picture(title or "Class purity: the longer, the fewer classes a latent mixes", note, height) as figure:
        panels = {
            "purity_weighted": ("weighted: by activation", place_axes(figure, names_width, 0.6, panel, body)),
            "purity_binary": (
                "binary: each image counts 1",
                place_axes(figure, names_width + panel + 0.3, 0.6, panel, body),
            ),
        }
        for key, (heading, axes) in panels.items():
            _start_panel(axes, heading, body)
            y = 0.0
            for evaluations in groups.values():
                y += gap
                for evaluation in evaluations:
                    color = colors.get(evaluation.name, INK)
                    _draw_bar(axes, y + step / 2, evaluation.summary.get(key), color, 0.8 * step)
                    y += step
        _name_rows(panels["purity_weighted"][1], groups, step, gap, names_width - MARGIN)
    return figure


def _defined_scores(evaluation: Evaluation) -> NDArray[np.float64]:
    scores = evaluation.latents["score"].detach().double().cpu().numpy()
    return np.asarray(scores[~np.isnan(scores)])


def _bins(scores: Sequence[NDArray[np.float64]], chances: Sequence[float]) -> NDArray[np.float64]:
    """Edges that all runs share: from the lowest to the highest score, the chance within."""
    values = np.concatenate([*scores, np.asarray(chances, dtype=float)])
    if len(values) == 0:
        return np.linspace(0, 1, 11)
    low, high = float(values.min()), float(values.max())
    margin = 0.02 * (high - low) or 0.05
    n_bins = int(np.clip(math.sqrt(max(map(len, scores))) * 2, 15, 40))
    return np.linspace(low - margin, high + margin, n_bins + 1)


def _draw_run(
    axes: Axes,
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    color: str,
    line: Literal["solid", "dashed"],
    fill: float,
) -> None:
    counts = np.histogram(values, edges)[0].astype(np.float64)
    counts[counts == 0] = np.nan  # no line along the axis
    axes.stairs(counts, edges, fill=True, color=color, alpha=fill, linewidth=0)
    axes.stairs(counts, edges, color=color, linewidth=1.8, linestyle=line, gid="run")
    if len(values):
        axes.plot(values.mean(), 0, "^", color=color, markersize=9, markeredgecolor="white", clip_on=False, zorder=5)


def _draw_chance(axes: Axes, chance: float, label: str, level: int) -> None:
    """A dashed line and its label above it, on a line of its own for each value."""
    axes.axvline(chance, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), gid="chance")
    left, right = axes.get_xlim()
    axes.annotate(
        label,
        (chance, 1),
        (0, 3 + 12 * level),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center" if chance < left + 0.92 * (right - left) else "right",
        va="bottom",
        size=SMALL_SIZE,
    )


def _line(index: int) -> Literal["solid", "dashed"]:
    """Dashed where the colours begin again."""
    return "solid" if index < len(COLORS) else "dashed"


def _write_legend(axes: Axes, evaluations: Sequence[Evaluation], colors: Mapping[str, str]) -> None:
    """A line for each run: its colour, its name, its mean and how many latents are undefined."""
    names = [fit(evaluation.name, 3.6, PLAIN_SIZE) for evaluation in evaluations]
    start = 0.52 + max(text_width(name, PLAIN_SIZE) for name in names) + 0.2
    for i, (name, evaluation) in enumerate(zip(names, evaluations, strict=True)):
        y, color = _LEGEND_STEP * (i + 0.5), colors.get(evaluation.name, INK)
        axes.plot([MARGIN, 0.44], [y, y], color=color, linewidth=4, linestyle=_line(i), solid_capstyle="butt")
        n, n_defined = len(evaluation.latents["score"]), len(_defined_scores(evaluation))
        axes.text(0.52, y, name, va="center", gid="legend")
        facts = f"mean {number(evaluation.summary['score_mean'])}, {n - n_defined} of {n} latents undefined"
        axes.text(start, y, facts, va="center", color=QUIET)


def _start_panel(axes: Axes, heading: str, body: float) -> None:
    axes.set_xlim(0, 1.2)  # room for the value of a full bar
    axes.set_ylim(body, 0)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 1)
    axes.vlines([0.25, 0.5, 0.75, 1], 0, body, color="#ececec", linewidth=0.8, zorder=0)
    axes.set_title(heading, loc="left", size=PLAIN_SIZE)
    axes.set_xlabel("class purity (0 to 1)", x=0.5 / 1.2)


def _draw_bar(axes: Axes, y: float, value: float | None, color: str, height: float) -> None:
    """A bar with its value at its end; words where there is none (None: it was not judged)."""
    length = 0.0 if value is None or math.isnan(value) else value
    axes.barh(y, length, height, color=color)
    text = "no labels" if value is None else number(value)
    axes.text(length + 0.02, y, text, va="center", size=SMALL_SIZE, color=INK if length else QUIET)


def _name_rows(
    axes: Axes, groups: Mapping[str, Sequence[Evaluation]], step: float, gap: float, names_width: float
) -> None:
    """The names of groups and variants, left of the first panel."""
    left: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    y = 0.0
    for group, evaluations in groups.items():
        name = fit(group, names_width - 0.1, PLAIN_SIZE, bold=True)
        axes.annotate(name, (0, y + 0.6 * gap), (-72 * names_width, 0), weight="bold", **left)
        y += gap
        for evaluation in evaluations:
            name = fit(variant_of(evaluation.name, group), names_width - 0.1, SMALL_SIZE)
            axes.annotate(name, (0, y + step / 2), (-6, 0), ha="right", size=SMALL_SIZE, **left)
            y += step

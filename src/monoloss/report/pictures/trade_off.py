"""Score against reconstruction: what a loss variant gains, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from monoloss.evaluation.charts.names import variant_of
from monoloss.evaluation.result import Evaluation
from monoloss.report.pictures.drawing import (
    INK,
    MARGIN,
    PLAIN_SIZE,
    QUIET,
    SMALL_SIZE,
    WIDTH,
    check_groups,
    fit,
    inch_axes,
    picture,
    place_axes,
    text_width,
    variant_colors,
)

_MARKERS = "osD^vPX*"
_GROUPS_A_LINE, _LEGEND_STEP = 4, 0.21  # the step in inches


def trade_off(
    groups: Mapping[str, Sequence[Evaluation]],
    title: str | None = None,
    *,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Mean score over defined latents against pooled explained variance, with a line from each group's baseline.

    Args:
        groups: evaluations by the name of their group (such as the kind of SAE), in each the baseline first.
        title: replaces the usual headline.
        colors: by the name of the evaluation; by default :func:`variant_colors` of `groups`.

    Returns:
        A figure; what has no score or no explained variance is named in its note.

    Raises:
        InputError: no evaluations, or none of a model that reconstructs its inputs.
    """
    check_groups("groups", groups, "explained_variance", "models that reconstruct their inputs")
    colors = variant_colors(groups) if colors is None else colors
    points = {group: [_trade_off_point(e) for e in evaluations] for group, evaluations in groups.items()}
    missing = [e.name for group, es in groups.items() for e, p in zip(es, points[group], strict=True) if p is None]
    note = "Each line starts at a baseline; up and not to the left of it is a gain that costs no reconstruction."
    if missing:
        note += f" Not drawn, without a defined score or reconstruction: {', '.join(missing)}."
    legend_height = _LEGEND_STEP * math.ceil(len(groups) / _GROUPS_A_LINE)
    height = legend_height + 0.2 + 3.6 + 0.58
    with picture(title or "Up: latents that mean one thing. Right: a better reconstruction.", note, height) as figure:
        axes = place_axes(figure, 0.75, 0.58, WIDTH - 0.75 - 0.25, 3.6)
        axes.set_xlabel("explained variance, pooled (1: perfect, 0: the mean of the data)")
        axes.set_ylabel("mean MonoScore over defined latents (-1 to 1)")
        axes.grid(color="#ececec", linewidth=0.8)
        axes.set_axisbelow(True)
        drawn = [point for group in points.values() for point in group if point is not None]
        _wide_limits(axes, drawn)
        labels = []
        for marker, (group, evaluations) in zip(_markers(len(groups)), groups.items(), strict=True):
            start = points[group][0]
            for evaluation, point in zip(evaluations, points[group], strict=True):
                if point is None:
                    continue
                if start is not None and point != start:
                    arrow = {"arrowstyle": "-|>", "color": "#9a9a9a", "linewidth": 1.1, "shrinkA": 5, "shrinkB": 6}
                    axes.annotate("", point, start, arrowprops=arrow)
                color = colors.get(evaluation.name, INK)
                axes.plot(*point, marker, color=color, markersize=9, markeredgecolor="white", zorder=3, gid="point")
                labels.append((point, fit(variant_of(evaluation.name, group), 1.5, SMALL_SIZE, n_lines=2)))
        _label_points(axes, labels, [(points[g][0], p) for g in groups for p in points[g]])
        _group_legend(inch_axes(figure, height), list(groups))
    return figure


def _group_legend(axes: Axes, groups: Sequence[str]) -> None:
    """Up to four groups a line, each after its marker."""
    room = (WIDTH - 2 * MARGIN) / min(len(groups), _GROUPS_A_LINE)
    names = [fit(group, room - 0.4, PLAIN_SIZE) for group in groups]
    room = min(room, 0.45 + max(text_width(name, PLAIN_SIZE) for name in names))
    for i, (name, marker) in enumerate(zip(names, _markers(len(groups)), strict=True)):
        x, y = MARGIN + room * (i % _GROUPS_A_LINE), _LEGEND_STEP * (i // _GROUPS_A_LINE + 0.5)
        axes.plot(x + 0.08, y, marker, color=QUIET, markersize=7)
        axes.text(x + 0.22, y, name, va="center", gid="legend")


def _trade_off_point(evaluation: Evaluation) -> tuple[float, float] | None:
    x = evaluation.summary.get("explained_variance", math.nan)
    y = evaluation.summary["score_mean"]
    return (x, y) if math.isfinite(x) and math.isfinite(y) else None


def _wide_limits(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Limits with room for labels around the outermost points; at least 0.05 wide, so that noise stays small."""
    if not points:
        axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", color=QUIET)
        return
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    across, up = (max(0.2 * span, (0.05 - span) / 2) for span in (right - left, high - low))
    axes.set(xlim=(left - across, right + across), ylim=(low - up, high + up))


_NEAR = 10  # points within which a label needs no line to its point


def _label_points(
    axes: Axes,
    labels: Sequence[tuple[tuple[float, float], str]],
    lines: Sequence[tuple[tuple[float, float] | None, tuple[float, float] | None]],
) -> None:
    """Write a label beside each point where it covers least: other labels, points, lines, the edge of the axes."""
    to_pixels = axes.transData.transform
    obstacles = [to_pixels(point) for point, _ in labels]
    for start, end in lines:
        if start is not None and end is not None and start != end:
            obstacles += list(np.linspace(to_pixels(start), to_pixels(end), 60)[3:-3])
    spots, taken = np.array(obstacles).reshape(-1, 2), list[Bbox]()
    for point, label in labels:
        text = axes.annotate(label, point, xytext=(0, 0), textcoords="offset points", size=SMALL_SIZE)
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        best: tuple[float, tuple[float, float], str, str] | None = None
        for distance in (8, 14, 22, 30):
            for angle in (0, 90, 270, 180, 45, 315, 135, 225):
                dx, dy = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
                ha = "center" if abs(dx) < 1 else ("left" if dx > 0 else "right")
                va = "center" if abs(dy) < 1 else ("bottom" if dy > 0 else "top")
                text.set(position=(dx, dy), ha=ha, va=va)
                cost = _cost(text.get_window_extent(), spots, taken, axes.bbox.frozen()) + distance
                if best is None or cost < best[0]:
                    best = (cost, (dx, dy), ha, va)
        assert best is not None  # noqa: S101 - there are candidates
        text.set(position=best[1], ha=best[2], va=best[3])
        if math.hypot(*best[1]) > _NEAR:  # a line says whose label it is
            line = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", point, xytext=best[1], textcoords="offset points", arrowprops=line)
        taken.append(text.get_window_extent().padded(2))


def _cost(box: Bbox, spots: NDArray[np.float64], taken: Sequence[Bbox], room: Bbox) -> float:
    """How much a label would cover or stick out, in squared pixels."""
    box = box.padded(2)
    inside = Bbox.intersection(box, room)
    sticks_out = box.width * box.height - (inside.width * inside.height if inside else 0.0)
    covers = sum(both.width * both.height for other in taken if (both := Bbox.intersection(box, other)) is not None)
    hits = ((spots > box.p0) & (spots < box.p1)).all(axis=1).sum()
    return float(4 * sticks_out + 2 * covers + 40 * hits)


def _markers(n: int) -> str:
    return (_MARKERS * n)[:n]

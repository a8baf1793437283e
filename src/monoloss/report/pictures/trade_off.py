"""Pictures of score against reconstruction: what a loss variant gains, and what it costs."""

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
_GROUPS_A_LINE, _LEGEND_STEP = 4, 0.21  # of the legend; the distance of lines in inches


def trade_off(
    groups: Mapping[str, Sequence[Evaluation]],
    title: str | None = None,
    *,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw mean score over latents with a score against pooled explained variance, with arrows from the baselines.

    Args:
        groups: evaluations by the name of their group (such as the kind of SAE), in each the baseline first.
        title: headline; by default one that explains the axes.
        colors: colour by name of the evaluation; by default :func:`variant_colors` of `groups`.

    Returns:
        A figure; its note names evaluations without a score or without an explained variance, which are not drawn.

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
    """Write the groups' names after their markers, four in a line."""
    width = (WIDTH - 2 * MARGIN) / min(len(groups), _GROUPS_A_LINE)
    names = [fit(group, width - 0.4, PLAIN_SIZE) for group in groups]
    width = min(width, 0.45 + max(text_width(name, PLAIN_SIZE) for name in names))
    for i, (name, marker) in enumerate(zip(names, _markers(len(groups)), strict=True)):
        x, y = MARGIN + width * (i % _GROUPS_A_LINE), _LEGEND_STEP * (i // _GROUPS_A_LINE + 0.5)
        axes.plot(x + 0.08, y, marker, color=QUIET, markersize=7)
        axes.text(x + 0.22, y, name, va="center", gid="legend")


def _trade_off_point(evaluation: Evaluation) -> tuple[float, float] | None:
    """Return explained variance and mean score of an evaluation; None if one of them is undefined."""
    x = evaluation.summary.get("explained_variance", math.nan)
    y = evaluation.summary["score_mean"]
    return (x, y) if math.isfinite(x) and math.isfinite(y) else None


def _wide_limits(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Set limits with space for labels around the outermost points; at least 0.05 wide, so that noise looks small."""
    if not points:
        axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", color=QUIET)
        return
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    across, up = (max(0.2 * span, (0.05 - span) / 2) for span in (right - left, high - low))
    axes.set(xlim=(left - across, right + across), ylim=(low - up, high + up))


_NEAR = 10  # largest distance, in typographic points, of a label that needs no line to its point


def _label_points(
    axes: Axes,
    labels: Sequence[tuple[tuple[float, float], str]],
    lines: Sequence[tuple[tuple[float, float] | None, tuple[float, float] | None]],
) -> None:
    """Write a label beside each point, in the place where it covers least of labels, points, lines and axes' edges."""
    to_pixels = axes.transData.transform
    obstacles = [to_pixels(point) for point, _ in labels]
    for start, end in lines:
        if start is not None and end is not None and start != end:
            obstacles += list(np.linspace(to_pixels(start), to_pixels(end), 60)[3:-3])
    spots, boxes = np.array(obstacles).reshape(-1, 2), list[Bbox]()
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
                cost = _cost(text.get_window_extent(), spots, boxes, axes.bbox.frozen()) + distance
                if best is None or cost < best[0]:
                    best = (cost, (dx, dy), ha, va)
        assert best is not None  # noqa: S101 - at least one place was tried
        text.set(position=best[1], ha=best[2], va=best[3])
        if math.hypot(*best[1]) > _NEAR:
            line = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", point, xytext=best[1], textcoords="offset points", arrowprops=line)
        boxes.append(text.get_window_extent().padded(2))


def _cost(box: Bbox, spots: NDArray[np.float64], boxes: Sequence[Bbox], axes_box: Bbox) -> float:
    """Return the area of a label's box that covers other boxes or spots or is outside the axes, in squared pixels."""
    box = box.padded(2)
    inside = Bbox.intersection(box, axes_box)
    outside = box.width * box.height - (inside.width * inside.height if inside else 0.0)
    covered = sum(part.width * part.height for other in boxes if (part := Bbox.intersection(box, other)) is not None)
    n_spots = ((spots > box.p0) & (spots < box.p1)).all(axis=1).sum()
    return float(4 * outside + 2 * covered + 40 * n_spots)


def _markers(n: int) -> str:
    return (_MARKERS * n)[:n]

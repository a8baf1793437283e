"""Pictures of the time of several algorithms over the number of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from monoloss.errors import InputError
from monoloss.evaluation.charts.style import COLORS
from monoloss.report.pictures.drawing import MARGIN, PLAIN_SIZE, QUIET, SMALL_SIZE, WIDTH, fit, picture, place_axes

_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_LEFT = 0.9  # inches left of the axes
_LABELS_WIDTH = 1.75  # inches right of the axes
_MOST_TICKS = 7


class SpeedLine(NamedTuple):
    """Times of one algorithm."""

    name: str
    measured: Mapping[int, float]
    """Seconds by number of rows."""
    extrapolated: Mapping[int, float]
    """Seconds by number of rows, for more rows than were measured."""


def duration(seconds: float) -> str:
    """Format seconds with two digits in the largest fitting unit from µs to h, such as "46 ms" or "7.0 s"."""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), _UNITS[-1])
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"


def speed_figure(lines: Sequence[SpeedLine], title: str, note: str) -> Figure:
    """Draw time over number of rows on logarithmic axes: solid where measured, dashed where extrapolated.

    Args:
        lines: one to seven lines; each is labelled at its end with its name and its last time.
        title: the headline.
        note: text below the headline, such as what was measured.

    Returns:
        A figure for ``save_figure``.

    Raises:
        InputError: no lines, or a line without a measured time or with one that is not above 0.
    """
    if not lines:
        raise InputError("lines", "none", "at least one")
    for line in lines:
        if not line.measured or not all(
            0 < t < math.inf for t in [*line.measured.values(), *line.extrapolated.values()]
        ):
            raise InputError("lines", f"'{line.name}' with {dict(line.measured)}", "measured times above 0")
    height, left, bottom, up = 4.1, _LEFT, 0.58, 3.4
    with picture(title, note, height) as figure:
        axes = place_axes(figure, left, bottom, WIDTH - _LEFT - _LABELS_WIDTH - MARGIN, up)
        _prepare(axes, lines)
        ends = []
        for line, color in zip(lines, COLORS, strict=False):
            axes.plot(*_points(line.measured), "o-", color=color, markersize=5.5, linewidth=2, gid="measured")
            if line.extrapolated:
                last = max(line.measured)
                dashed = {last: line.measured[last], **line.extrapolated}
                axes.plot(*_points(dashed), "--", color=color, linewidth=1.4, gid="extrapolation")
                hollow: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5.5}
                axes.plot(*_points(line.extrapolated), "o", color=color, gid="extrapolated", **hollow)
            all_times = {**line.measured, **line.extrapolated}
            ends.append((all_times[max(all_times)], line, color))
        _label_ends(axes, sorted(ends, key=lambda end: end[0]), up)
    return figure


def _points(times: Mapping[int, float]) -> tuple[list[int], list[float]]:
    rows = sorted(times)
    return rows, [times[n] for n in rows]


def _prepare(axes: Axes, lines: Sequence[SpeedLine]) -> None:
    """Set limits, ticks, labels and grid of the axes for some lines."""
    rows = sorted({n for line in lines for n in (*line.measured, *line.extrapolated)})
    times = [t for line in lines for t in (*line.measured.values(), *line.extrapolated.values())]
    low, high = min(times) / 1.6, max(times) * 1.6
    axes.set(xscale="log", yscale="log", xlim=(rows[0] / 1.15, rows[-1] * 1.15), ylim=(low, high))
    shown = rows[:: -(-len(rows) // _MOST_TICKS)]
    axes.set_xticks(shown, [f"{n:,}" for n in shown])
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    powers = powers[:: -(-len(powers) // _MOST_TICKS) or 1]
    ticks = {10.0**power: f"{10.0**power:g} s" if power >= -2 else duration(10.0**power) for power in powers}
    ticks = ticks or {math.sqrt(low * high): duration(math.sqrt(low * high))}
    axes.set_yticks(list(ticks), list(ticks.values()))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("rows")
    axes.set_ylabel("time")
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, SpeedLine, str]], up: float) -> None:
    """Write name and last time right of each line's end, apart where lines end close together.

    `ends` holds last time, line and colour, the shortest time first; `up` is the height of the axes in inches.
    """
    texts = []
    for seconds, line, _ in ends:
        name = fit(line.name, _LABELS_WIDTH - 0.2, PLAIN_SIZE, n_lines=2)
        time = duration(seconds) + (", extrapolated" if line.extrapolated else "")
        texts.append((name, fit(time, _LABELS_WIDTH - 0.2, SMALL_SIZE)))
    low, high = (math.log(limit) for limit in axes.get_ylim())
    heights = [up * (math.log(seconds) - low) / (high - low) for seconds, _, _ in ends]
    sizes = [0.17 * (name.count("\n") + 1) + 0.16 for name, _ in texts]
    for (name, time), (_, _, color), y, size in zip(texts, ends, _apart(heights, sizes, up), sizes, strict=True):
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "left", "va": "top", "linespacing": 1.1}
        x = 1 + 0.12 / (WIDTH - _LEFT - _LABELS_WIDTH - MARGIN)
        axes.text(x, (y + size / 2) / up, name, color=color, weight="bold", size=SMALL_SIZE, gid="label", **place)
        axes.text(x, (y - size / 2 + 0.15) / up, time, color=QUIET, size=SMALL_SIZE, gid="label", **place)


def _apart(heights: Sequence[float], sizes: Sequence[float], up: float) -> list[float]:
    """Move the ascending centres of labels so that labels of these sizes neither overlap nor leave the axes."""
    centres = list(heights)
    for i, size in enumerate(sizes):  # upwards from the lowest label
        floor = 0.0 if i == 0 else centres[i - 1] + sizes[i - 1] / 2 + 0.06
        centres[i] = max(centres[i], floor + size / 2)
    top = up + 0.1
    for i in range(len(centres) - 1, -1, -1):  # downwards, for labels that are now above the axes
        centres[i] = min(centres[i], top - sizes[i] / 2)
        top = centres[i] - sizes[i] / 2 - 0.06
    return centres

"""Time over the number of rows."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.lines import Line2D

from monoloss.errors import InputError
from monoloss.evaluation.charts.style import COLORS
from monoloss.report.pictures.drawing import save_figure
from monoloss.report.pictures.speed import SpeedLine, duration, speed_figure
from support.figures import HOSTILE, texts, with_gid

ROWS = [512, 1024, 2048, 4096, 8192]


def lines(*factors: float) -> list[SpeedLine]:
    """One over pairs, then linear ones with times that are multiples of each other."""
    pairs = {n: 2e-6 * n * n for n in ROWS}
    found = [SpeedLine("pairwise", dict(list(pairs.items())[:3]), dict(list(pairs.items())[3:]))]
    return found + [SpeedLine(f"way number {i}", {n: f * n for n in ROWS}, {}) for i, f in enumerate(factors)]


def drawn(figure, gid: str) -> list[list[tuple[float, float]]]:
    return [list(zip(*line.get_data(), strict=True)) for line in with_gid(figure, gid) if isinstance(line, Line2D)]


def test_measured_is_solid_and_extrapolated_dashed_and_hollow() -> None:
    given = lines(1e-3)
    figure = speed_figure(given, "title", "note")
    assert drawn(figure, "measured") == [list(line.measured.items()) for line in given]
    assert drawn(figure, "extrapolated") == [list(given[0].extrapolated.items())]
    assert drawn(figure, "extrapolation") == [[(2048, given[0].measured[2048]), *given[0].extrapolated.items()]]
    (dashed,), (hollow,) = with_gid(figure, "extrapolation"), with_gid(figure, "extrapolated")
    assert dashed.get_linestyle() == "--"
    assert hollow.get_markerfacecolor() == "white"
    assert all(line.get_linestyle() == "-" for line in with_gid(figure, "measured"))
    colors = [line.get_color() for line in with_gid(figure, "measured")]
    assert colors == list(COLORS[:2])
    assert dashed.get_color() == hollow.get_color() == COLORS[0]
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_lines_are_labelled_at_their_ends_in_their_colour() -> None:
    shown = texts(speed_figure(lines(1e-3), "title", "note"))
    assert shown.count("pairwise") == 1
    assert "2.2 min, extrapolated" in shown
    assert "8.2 s" in shown
    names = {text.get_text(): text.get_color() for text in with_gid(speed_figure(lines(1e-3), "t", "n"), "label")}
    assert names["pairwise"] == COLORS[0]
    assert names["way number 0"] == COLORS[1]


@pytest.mark.parametrize(
    "factors", [(1e-3,), (1e-3, 1.01e-3, 1.02e-3), (1e-9, 1e-8, 1e-3), (1.6e-2, 1.7e-2, 1.65e-2, 1.62e-2, 1.5e-2)]
)
def test_labels_neither_overlap_nor_leave_the_picture(factors: tuple[float, ...]) -> None:
    figure = speed_figure(lines(*factors), "A title", "A note")
    boxes = [label.get_window_extent() for label in with_gid(figure, "label")]
    assert len(boxes) == 2 * (len(factors) + 1)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert all(box.x0 >= figure.axes[0].bbox.x1 for box in boxes)


def test_ticks_neither_overlap_nor_are_missing() -> None:
    for factors in ((1e-3,), (1e-9, 1e-8, 1e-3), (1.9e-2,)):
        axes = speed_figure(lines(*factors), "t", "n").axes[0]
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels]
            assert boxes
            assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    many = SpeedLine("many", {2**i: 0.1 * 2**i for i in range(20)}, {})
    assert 4 <= len(speed_figure([many], "t", "n").axes[0].get_xticklabels()) <= 7
    assert speed_figure([SpeedLine("one", {5: 0.02}, {})], "t", "n").axes[0].get_yticklabels()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_drawn_as_they_are(name: str, tmp_path) -> None:
    figure = speed_figure([SpeedLine(name, {1: 1.0, 2: 2.0}, {})], name, name)
    assert save_figure(figure, tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 µs"),
        (2e-6, "2.0 µs"),
        (0.0099, "9.9 ms"),
        (0.00996, "10 ms"),
        (59.94, "60 s"),
        (90.0, "1.5 min"),
        (7200.0, "2.0 h"),
    ],
)
def test_durations_have_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.door
@pytest.mark.parametrize(
    "given",
    [
        [],
        [SpeedLine("nothing", {}, {1: 1.0})],
        [SpeedLine("zero", {1: 0.0}, {})],
        [SpeedLine("nan", {1: 1.0}, {2: float("nan")})],
    ],
)
def test_lines_that_cannot_be_drawn(given: list[SpeedLine]) -> None:
    with pytest.raises(InputError, match="lines"):
        speed_figure(given, "t", "n")


def test_texts_stay_inside_the_picture() -> None:
    for factors in ((1e-3,), (1e-12, 1e3)):
        figure = speed_figure(
            lines(*factors), "A long title of it " * 4, "Time from rows to scores, batches of 2048. " * 3
        )
        axes = figure.axes[0]
        written = [*figure.texts, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
        for text in written:
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= figure.bbox.x1 + 1, text
            assert box.y1 <= figure.bbox.y1 + 1, text

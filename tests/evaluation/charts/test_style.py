"""The look of the charts: text as it is, runs told apart, colours that can be read."""

from __future__ import annotations

import html
import math

import pytest

from monoloss.evaluation.charts.style import COLORS, chances, chart_text, level_line, panels, run_styles
from support.charts import HOSTILE, run


@pytest.mark.parametrize("name", HOSTILE)
def test_chart_text_is_what_a_reader_sees(name: str) -> None:
    shown = html.unescape(chart_text(name, 400))
    kept = "".join(letter for letter in name if letter.isprintable() or letter == "\u200d")
    assert shown.replace(" ", "") == (kept.replace(" ", "") or "(noname)")
    shown.encode()


def test_more_runs_than_colors_can_be_told_apart_by_more_than_color() -> None:
    styles = run_styles({"": [f"run {i}" for i in range(7)]})[0]
    assert len({style.color for style in styles}) == 7
    assert len({style.dash for style in styles[2:]}) >= 5
    by_group = run_styles({str(i): ["base"] for i in range(8)})
    assert len({group[0].symbol for group in by_group}) == 8


def test_colors_are_readable_on_light_and_dark() -> None:
    def luminance(color: str) -> float:
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in COLORS:
        assert 1.05 / (luminance(color) + 0.05) >= 3, color
        assert (luminance(color) + 0.05) / (luminance("#16181d") + 0.05) >= 3, color


def test_markup_links_and_formulas_are_escaped() -> None:
    assert chart_text("<b>$x$ & y") == "&lt;b&gt;&#36;x&#36; &amp; y"


def test_a_variant_has_one_color_and_a_group_one_symbol() -> None:
    names = {"TopK": ["topk-base", "topk-mono"], "BatchTopK": ["batch_topk-mono", "batch_topk-base"]}
    first, second = run_styles(names)
    assert [style.variant for style in (*first, *second)] == ["base", "mono", "mono", "base"]
    assert [style.name for style in second] == names["BatchTopK"]
    assert first[0].color == second[1].color == COLORS[0] != first[1].color == second[0].color
    assert first[0].dash == second[1].dash
    assert {style.symbol for style in first} != {style.symbol for style in second}
    assert {style.group_dash for style in first} != {style.group_dash for style in second}


def test_chance_levels_are_listed_once() -> None:
    runs = [run("a", [0.5]), run("b", [0.6]), run("c", [0.7], chance=-0.1), run("d", [0.8], chance=math.nan)]
    assert chances({"x": runs[:2], "y": runs[2:]}) == {"chance 0.250": 0.25, "chance -0.100": -0.1}


def test_panels_lie_below_each_other_with_room_for_titles_and_legend() -> None:
    figure = panels(["first", "<second>"], 100)
    assert [note.text for note in figure.layout.annotations] == ["<b>first</b>", "<b>&lt;second&gt;</b>"]
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    assert panels(["first", "second", "third"], 100).layout.height > figure.layout.height
    assert panels(["first", "<second>"], 100, ["a run"] * 9).layout.height > figure.layout.height
    assert not panels([""], 100).layout.annotations


@pytest.mark.parametrize("upright", [False, True])
def test_a_level_is_a_line_across_its_own_panel(upright: bool) -> None:
    figure = panels(["", ""], 100)
    level_line(figure, 0.3, "chance", row=2, upright=upright)
    (line,), (label,) = figure.layout.shapes, figure.layout.annotations
    ends = (line.x0, line.x1, line.y0, line.y1)
    assert ends == ((0.3, 0.3, 0, 1) if upright else (0, 1, 0.3, 0.3))
    assert (line.xref, line.yref) == (("x2", "y2 domain") if upright else ("x2 domain", "y2"))
    assert label.text == "chance"

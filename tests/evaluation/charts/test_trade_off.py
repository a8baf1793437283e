"""The score against reconstruction and purity: one point a run, lines from each baseline."""

from __future__ import annotations

import math

import pytest

from monoloss.errors import InputError
from monoloss.evaluation.charts.trade_off import trade_off_figure
from support.charts import run, run_groups

NAN = math.nan


@pytest.mark.parametrize("measure", ["explained_variance", "r2", "purity_weighted"])
def test_trade_off_holds_the_summaries_and_joins_each_baseline_to_its_runs(measure: str) -> None:
    figure = trade_off_figure(run_groups(), measure).figure
    points = {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data if trace.mode == "markers"}
    assert points == {
        e.name: (e.summary[measure], e.summary["score_mean"]) for group in run_groups().values() for e in group
    }
    lines = {(trace.x, trace.y) for trace in figure.data if trace.mode == "lines"}
    for base, mono in (("topk-base", "topk-mono"), ("batch_topk-base", "batch_topk-mono")):
        assert tuple(zip(points[base], points[mono], strict=True)) in lines
    assert len(lines) == 2
    for trace in figure.data:
        if trace.mode == "markers":
            assert trace.text[0].startswith(f"<b>{trace.name}</b>")
            assert f"score {points[trace.name][1]:.3f}" in trace.text[0]


def test_trade_off_names_what_it_cannot_draw() -> None:
    drawn = trade_off_figure({"": [run("base", [0.4], r2=NAN), run("<i>dead", [NAN]), run("mono", [0.5])]}, "r2")
    assert [trace.name for trace in drawn.figure.data] == ["mono"]  # no line without a baseline
    assert drawn.caption.endswith("Not drawn, without a defined score or R²: base, <i>dead.")


@pytest.mark.parametrize(("score", "is_drawn"), [(0.27, True), (0.9, False)])
def test_trade_off_draws_chance_where_it_is_near(score: float, is_drawn: bool) -> None:
    drawn = trade_off_figure({"": [run("one", [score])]})
    assert bool(drawn.figure.layout.shapes) is is_drawn
    low, high = drawn.figure.layout.yaxis.range
    assert (low < 0.25 < high) is is_drawn
    assert low < score < high
    assert "0.250 (chance)" in drawn.caption


@pytest.mark.door
def test_a_measure_that_is_no_trade_off_is_refused() -> None:
    with pytest.raises(InputError, match=r"measure: got 'l0'; expected one of explained_variance, r2"):
        trade_off_figure({"": [run("one", [0.5])]}, "l0")

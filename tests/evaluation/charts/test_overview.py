"""Interactive charts hold the numbers of the evaluations, and show any name as text."""

from __future__ import annotations

import html
import json
import math
import re
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from monoloss.errors import InputError
from monoloss.evaluation.charts.overview import (
    TrainingCurve,
    latents_figure,
    overview_figures,
    trade_off_figure,
    training_curves_figure,
)
from monoloss.evaluation.charts.style import COLORS, chart_text, run_styles
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation
from support.charts import HOSTILE, run

NAN = math.nan


def steps(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.line.shape == "hvh"]


def means(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.marker.symbol == "triangle-up"]


def edges_of(trace: go.Scatter) -> np.ndarray:
    """Steps change half-way between their points."""
    return np.array([(a + b) / 2 for a, b in pairwise(trace.x)])


def groups() -> dict[str, list[Evaluation]]:
    return {
        "TopK": [
            run("topk-base", [0.4, 0.5, NAN], explained_variance=0.8, r2=0.7, purity_weighted=0.3),
            run("topk-mono", [0.6, 0.7, 0.8], explained_variance=0.79, r2=0.71, purity_weighted=0.4),
        ],
        "BatchTopK": [
            run("batch_topk-base", [0.3, 0.5, 0.1], explained_variance=0.82, r2=0.72, purity_weighted=0.2),
            run("batch_topk-mono", [0.5, 0.5, 0.6], explained_variance=0.81, r2=0.74, purity_weighted=0.6),
        ],
    }


@pytest.mark.parametrize("measure", ["score", "lift", "purity_weighted", "n_eff"])
def test_steps_count_the_defined_latents_in_shared_bins(measure: str) -> None:
    rng = np.random.default_rng(0)
    runs = [run("one", [*rng.uniform(-0.2, 0.9, 200), NAN, NAN]), run("two", [*rng.uniform(0.1, 1.0, 201), NAN])]
    traces = steps(latents_figure({"": runs}, measure).figure)
    assert len(traces) == 2
    for trace, evaluation in zip(traces, runs, strict=True):
        values = evaluation.latents[measure].numpy()
        values = values[~np.isnan(values)]
        edges = edges_of(trace)
        np.testing.assert_allclose(edges, edges_of(traces[0]))
        expected = np.histogram(np.log10(values) if measure == "n_eff" else values, edges)[0]
        np.testing.assert_allclose(trace.y[1:-1], expected, atol=1)  # the drawn edges are rounded
        assert sum(trace.y) == len(values)  # an undefined latent is in no bin, not at 0
        assert trace.y[0] == trace.y[-1] == 0


def test_means_are_over_defined_latents() -> None:
    marks = means(latents_figure({"": [run("one", [0.2, 0.4, NAN]), run("two", [NAN, NAN])]}).figure)
    assert marks[0].x == pytest.approx((0.3,))
    assert marks[1].x == ()
    (mark,) = means(latents_figure({"": [run("one", [0.25, 0.75])]}, "n_eff").figure)
    assert mark.x == pytest.approx((2.0,))  # the geometric mean of 10 and 1000
    assert mark.text == ("mean 100",)


def test_runs_of_different_sizes_are_drawn_as_shares() -> None:
    figure = latents_figure({"": [run("one", [0.2, 0.4]), run("two", [0.3, NAN, 0.5, 0.6])]}).figure
    assert [sum(trace.y) for trace in steps(figure)] == pytest.approx([100, 75])
    assert figure.layout.yaxis.title.text == "share of latents, %"
    same = latents_figure({"": [run("one", [0.2, 0.4])]}).figure
    assert same.layout.yaxis.title.text == "latents"


def test_chance_is_a_line_within_the_picture() -> None:
    figure = latents_figure({"": [run("one", [0.8, 0.9])]}).figure
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 0.25
    assert figure.layout.xaxis.range[0] < 0.25
    assert "chance 0.250" in [note.text for note in figure.layout.annotations]
    (line,) = latents_figure({"": [run("one", [0.8, 0.9])]}, "lift").figure.layout.shapes
    assert line.x0 == line.x1 == 0
    for measure in ("purity_weighted", "n_eff"):
        assert latents_figure({"": [run("one", [0.8, 0.9])]}, measure).figure.layout.shapes == ()


def test_each_chance_of_runs_that_differ_in_it_has_a_line() -> None:
    figure = latents_figure({"": [run("one", [0.8]), run("two", [0.9], chance=-0.1), run("x", [0.5], chance=NAN)]})
    assert {line.x0 for line in figure.figure.layout.shapes} == {0.25, -0.1}


def test_caption_counts_undefined_and_silent_latents() -> None:
    one = run("one", [0.5, NAN, NAN, 0.6])
    one.latents["density"][1] = 0.01  # active on a single row: not silent, yet without a score
    assert latents_figure({"": [one]}).caption.endswith(
        "Not drawn, because undefined (in brackets: active on no row): one 2 (1) of 4."
    )
    assert latents_figure({"": [run("one", [0.5])]}).caption.endswith("Every latent is defined.")


def test_a_group_has_a_panel_and_a_variant_one_color_and_one_legend_entry() -> None:
    figure = latents_figure(groups()).figure
    traces = steps(figure)
    assert [trace.xaxis for trace in traces] == ["x", "x", "x2", "x2"]
    assert [trace.name for trace in traces] == ["base", "mono", "base", "mono"]
    assert [trace.showlegend for trace in traces] == [True, True, False, False]
    assert [trace.line.color for trace in traces] == [COLORS[0], COLORS[1], COLORS[0], COLORS[1]]
    assert [note.text for note in figure.layout.annotations][:2] == ["<b>TopK</b>", "<b>BatchTopK</b>"]


@pytest.mark.parametrize("scores", [[NAN, NAN], [0.5], [0.25, 0.25], [1.0, 1.0 + 1e-12], [-1.0, 1.0]])
@pytest.mark.parametrize("measure", ["score", "lift", "purity_weighted", "n_eff"])
def test_any_scores_can_be_drawn(scores: list[float], measure: str) -> None:
    (trace,) = steps(latents_figure({"": [run("one", scores)]}, measure).figure)
    assert sum(trace.y) == sum(not math.isnan(score) for score in scores)


@pytest.mark.parametrize("measure", ["explained_variance", "r2", "purity_weighted"])
def test_trade_off_holds_the_summaries_and_joins_each_baseline_to_its_runs(measure: str) -> None:
    figure = trade_off_figure(groups(), measure).figure
    points = {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data if trace.mode == "markers"}
    assert points == {
        e.name: (e.summary[measure], e.summary["score_mean"]) for group in groups().values() for e in group
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


def test_curves_hold_what_was_logged_in_the_colors_of_the_runs() -> None:
    curves = [
        TrainingCurve("topk-mono", "loss", [10, 20], [0.5, NAN]),
        TrainingCurve("topk-mono", "score", [10, 20], [0.25, 0.5]),
        TrainingCurve("other", "loss", [10], [0.125]),
        TrainingCurve("other", "sparsity", [10], [9.0]),
    ]
    figure = training_curves_figure(curves, groups()).figure
    found = [(trace.name, trace.yaxis, trace.x, trace.y, trace.showlegend) for trace in figure.data]
    assert found == [
        ("topk-mono", "y", (10, 20), (0.5, None), True),
        ("topk-mono", "y2", (10, 20), (0.25, 0.5), False),
        ("other", "y", (10,), (0.125,), True),
    ]
    assert figure.data[0].line.color == COLORS[1]
    assert figure.data[2].line.color == COLORS[2]
    assert [note.text for note in figure.layout.annotations] == ["<b>loss</b>", "<b>MonoScore of the batch</b>"]


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    steps_taken = list(range(0, 50_000, 7))
    (line,) = training_curves_figure(
        [TrainingCurve("a", "loss", steps_taken, [s / 2 for s in steps_taken])]
    ).figure.data
    assert len(line.x) == 400
    assert (line.x[0], line.x[-1]) == (steps_taken[0], steps_taken[-1])
    assert all(y == x / 2 for x, y in zip(line.x, line.y, strict=True))


def test_overview_leaves_out_what_there_is_no_data_for() -> None:
    bare = run("bare", [0.5, 0.6])
    bare = Evaluation(
        "bare",
        {},
        {"score_mean": 0.55, "chance": 0.1},
        {key: bare.latents[key] for key in ("score", "lift", "n_eff", "density")},
        Examples.none(2, 1),
    )
    assert [shown.id for shown in overview_figures({"": [bare]})] == ["score", "lift", "n_eff"]
    curve = TrainingCurve("bare", "loss", [1], [2.0])
    assert [shown.id for shown in overview_figures(groups(), [curve])] == [
        "score",
        "lift",
        "purity_weighted",
        "n_eff",
        "score-against-explained-variance",
        "score-against-r2",
        "score-against-purity",
        "training",
    ]
    # a run without labels among others: its panel says so
    mixed = latents_figure({"": [*groups()["TopK"], bare]}, "purity_weighted")
    assert mixed.caption.endswith("topk-base 1 (1) of 3; bare 2 (0) of 2.")


def test_figures_are_plain_json_without_a_ground() -> None:
    for shown in overview_figures(groups(), [TrainingCurve("topk-mono", "loss", [1, 2], [0.5, NAN])]):
        content = json.loads(shown.figure.to_json())
        assert content["layout"]["paper_bgcolor"] == content["layout"]["plot_bgcolor"] == "rgba(0,0,0,0)"
        assert "bdata" not in shown.figure.to_json()
        assert "width" not in content["layout"]
        # whoever sets the colour of the text sets all of it
        assert not re.findall(r'"(?:title|tick)font":\{[^}]*"color"', shown.figure.to_json())


def test_names_are_text() -> None:
    runs = [run(name, [0.4, 0.5, NAN], purity_weighted=0.5) for name in HOSTILE]
    curves = [TrainingCurve(name, "loss", [1], [0.5]) for name in HOSTILE]
    for shown in overview_figures({"": runs[:5], "<u>$group$": runs[5:]}, curves):
        content = json.loads(shown.figure.to_json())
        names = {trace["name"] for trace in content["data"] if "name" in trace}
        assert len(names) == len(HOSTILE)
        texts = [*names, *(note["text"] for note in content["layout"].get("annotations", []))]
        texts += [text for trace in content["data"] for text in trace.get("text", [])]
        for text in texts:
            rest = text.replace("<b>", "").replace("</b>", "").replace("<br>", "")  # our own
            assert "<" not in rest
            assert "$" not in rest
        templates = {trace["hovertemplate"] for trace in content["data"] if "hovertemplate" in trace}
        assert templates <= {"%{text}", "%{text}<extra></extra>", "step %{x}: %{y:.4~g}"}


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


@pytest.mark.door
def test_what_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match=r"groups: got no evaluations; expected at least one"):
        overview_figures({"TopK": []})
    with pytest.raises(InputError, match=r"measure: got 'purity'; expected one of score, lift"):
        latents_figure({"": [run("one", [0.5])]}, "purity")
    with pytest.raises(InputError, match=r"measure: got 'l0'; expected one of explained_variance, r2"):
        trade_off_figure({"": [run("one", [0.5])]}, "l0")
    with pytest.raises(InputError, match=r"curves: got nothing to draw; expected at least one of loss"):
        training_curves_figure([TrainingCurve("one", "sparsity", [1], [0.5])])


def test_plot_is_a_page_that_loads_nothing(tmp_path) -> None:
    view = run("<script>alert(1)</script>", [0.5, NAN]).plot(run("mono", [0.7, 0.8]))
    page = view.save(tmp_path / "charts.html").read_text(encoding="utf-8")
    n_charts = page.count('class="plotly-graph-div"')
    assert n_charts == len(view.figures) == 6
    assert "<script>alert" not in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    frame = view._repr_html_()
    (inner,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert html.unescape(inner).count('class="plotly-graph-div"') == n_charts
    assert 'sandbox="allow-scripts"' in frame

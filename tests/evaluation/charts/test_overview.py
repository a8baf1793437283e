"""Charts of the latents hold the numbers of the evaluations; an overview has all charts, and any name is text."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from monoloss.errors import InputError
from monoloss.evaluation.charts.overview import TrainingCurve, latents_figure, overview_figures
from monoloss.evaluation.charts.style import COLORS
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation
from support.charts import HOSTILE, run, run_groups

NAN = math.nan


def steps(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.line.shape == "hvh"]


def means(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.marker.symbol == "triangle-up"]


def edges_of(trace: go.Scatter) -> np.ndarray:
    """Steps change half-way between their points."""
    return np.array([(a + b) / 2 for a, b in pairwise(trace.x)])


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
    figure = latents_figure(run_groups()).figure
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
    assert [shown.id for shown in overview_figures(run_groups(), [curve])] == [
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
    mixed = latents_figure({"": [*run_groups()["TopK"], bare]}, "purity_weighted")
    assert mixed.caption.endswith("topk-base 1 (1) of 3; bare 2 (0) of 2.")


def test_figures_are_plain_json_without_a_ground() -> None:
    for shown in overview_figures(run_groups(), [TrainingCurve("topk-mono", "loss", [1, 2], [0.5, NAN])]):
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


@pytest.mark.door
def test_what_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match=r"groups: got no evaluations; expected at least one"):
        overview_figures({"TopK": []})
    with pytest.raises(InputError, match=r"measure: got 'purity'; expected one of score, lift"):
        latents_figure({"": [run("one", [0.5])]}, "purity")

"""Training curves: the values that were logged, in the colours of the runs."""

from __future__ import annotations

import math

import pytest

from monoloss.errors import InputError
from monoloss.evaluation.charts.style import COLORS
from monoloss.evaluation.charts.training import TrainingCurve, training_curves_figure
from support.charts import run_groups

NAN = math.nan


def test_curves_hold_what_was_logged_in_the_colors_of_the_runs() -> None:
    curves = [
        TrainingCurve("topk-mono", "loss", [10, 20], [0.5, NAN]),
        TrainingCurve("topk-mono", "score", [10, 20], [0.25, 0.5]),
        TrainingCurve("other", "loss", [10], [0.125]),
        TrainingCurve("other", "sparsity", [10], [9.0]),
    ]
    figure = training_curves_figure(curves, run_groups()).figure
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


@pytest.mark.door
def test_curves_of_other_measures_are_refused() -> None:
    with pytest.raises(InputError, match=r"curves: got nothing to draw; expected at least one of loss"):
        training_curves_figure([TrainingCurve("one", "sparsity", [1], [0.5])])

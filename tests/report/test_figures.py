"""The histogram of scores and the bars of purity, and what no figure can be made of."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from figure_samples import NAN, dead, evaluation, groups, texts, thumbnails, with_gid
from monoloss.errors import InputError
from monoloss.report.pictures.figures import (
    purity_bars,
    save_figure,
    score_histogram,
    spread_latents,
    top_examples_grid,
    trade_off,
)


def test_histogram_counts_the_defined_latents_of_each_run_in_shared_bins() -> None:
    scores = [[-0.2, 0.1, NAN, 0.9, 0.9], [0.5, NAN, NAN, 0.55, 0.56]]
    figure = score_histogram([evaluation("one", scores[0]), evaluation("two", scores[1])])
    runs = [patch for patch in with_gid(figure, "run") if isinstance(patch, StepPatch)]
    assert len(runs) == 2
    edges = runs[0].get_data().edges
    for run, values in zip(runs, scores, strict=True):
        np.testing.assert_array_equal(run.get_data().edges, edges)
        np.testing.assert_array_equal(np.nan_to_num(run.get_data().values), np.histogram(values, edges)[0])
    assert sum(np.nansum(run.get_data().values) for run in runs) == 7  # an undefined latent is in no bin, not at 0


def test_histogram_says_mean_and_undefined_latents_of_each_run() -> None:
    shown = texts(score_histogram([evaluation("one", [0.25, 0.5, NAN]), evaluation("two", [0.125, NAN, NAN])]))
    assert "mean 0.38, 1 of 3 latents undefined" in shown
    assert "mean 0.12, 2 of 3 latents undefined" in shown


def test_histogram_has_a_legend_entry_and_a_mean_for_each_run() -> None:
    evaluations = [evaluation(f"_run {i}", [0.1 * i, 0.1 * i + 0.2]) for i in range(9)]
    figure = score_histogram(evaluations)
    assert [entry.get_text() for entry in with_gid(figure, "legend")] == [f"_run {i}" for i in range(9)]
    means = [line for line in figure.axes[0].lines if line.get_marker() == "^"]
    np.testing.assert_allclose([m.get_xdata()[0] for m in means], [e.summary["score_mean"] for e in evaluations])
    styles = {(run.get_edgecolor(), run.get_linestyle()) for run in with_gid(figure, "run")}
    assert len(styles) == 9  # colours repeat after seven, then dashed


def test_histogram_marks_chance() -> None:
    figure = score_histogram([evaluation("one", [0.4, 0.6]), evaluation("two", [0.5, 0.9])])
    (line,) = with_gid(figure, "chance")
    assert line.get_xdata()[0] == 0.31
    assert "chance 0.310" in texts(figure)
    left, right = figure.axes[0].get_xlim()
    assert left < 0.31 < right  # also where no latent scores as low


def test_histogram_marks_each_chance_of_runs_that_differ_in_it() -> None:
    one, two = evaluation("one", [0.4, 0.6]), evaluation("two", [0.5, 0.9])
    two = dataclasses.replace(two, summary={**two.summary, "chance": -0.02})
    figure = score_histogram([one, two])
    assert {line.get_xdata()[0] for line in with_gid(figure, "chance")} == {0.31, -0.02}


def test_histogram_without_a_defined_latent() -> None:
    figure = score_histogram([dead()])
    assert "no latent has a defined score" in texts(figure)
    assert "mean undefined, 5 of 5 latents undefined" in texts(figure)
    assert with_gid(figure, "chance") == []


@pytest.mark.parametrize("scores", [[0.5], [0.31, 0.31], [1.0, 1.0 + 1e-12], [-1.0, 1.0]])
def test_histogram_of_narrow_and_wide_scores(scores: list[float]) -> None:
    (run,) = with_gid(score_histogram([evaluation("one", scores)]), "run")
    assert np.nansum(run.get_data().values) == len(scores)


def test_purity_bars_show_both_measures_of_each_evaluation() -> None:
    figure = purity_bars(groups())
    every = [e for es in groups().values() for e in es]
    for axes, key in zip(figure.axes, ("purity_weighted", "purity_binary"), strict=True):
        bars = [bar for container in axes.containers for bar in container]
        assert [bar.get_width() for bar in bars] == [e.summary[key] for e in every]
        assert all(f"{e.summary[key]:.2f}" in [text.get_text() for text in axes.texts] for e in every)
    assert figure.axes[0].get_title(loc="left").startswith("weighted")
    assert figure.axes[1].get_title(loc="left").startswith("binary")


def test_purity_bars_say_where_there_is_no_figure() -> None:
    figure = purity_bars(
        {"TopK": [dead(), evaluation("no labels at all", [0.5], labels=False), evaluation("a", [0.5])]}
    )
    shown = texts(figure)
    assert shown.count("undefined") == shown.count("no labels") == 2
    widths = [bar.get_width() for axes in figure.axes for container in axes.containers for bar in container]
    assert widths == [0, 0, 0.625, 0, 0, 0.5]


@pytest.mark.door
def test_no_evaluations() -> None:
    with pytest.raises(InputError, match=r"^evaluations: got no evaluations; needed at least one$"):
        score_histogram([])
    for draw in (trade_off, purity_bars):
        for nothing in ({}, {"TopK": []}):
            with pytest.raises(InputError, match=r"^groups: got no evaluations; needed at least one$"):
                draw(nothing)


@pytest.mark.door
def test_evaluations_that_lack_the_measure() -> None:
    one = evaluation("one", [0.5], labels=False)
    needed = "groups: got evaluations without purity_weighted; needed evaluations of a store with labels"
    with pytest.raises(InputError, match=f"^{needed}$"):
        purity_bars({"TopK": [one]})
    bare = dataclasses.replace(one, summary={"score_mean": 0.5, "chance": 0.1})
    needed = "groups: got evaluations without explained_variance; needed models that reconstruct their inputs"
    with pytest.raises(InputError, match=f"^{needed}$"):
        trade_off({"TopK": [bare]})


@pytest.mark.door
@pytest.mark.parametrize("n", [0, -1, 1.5, True, "two"])
def test_numbers_of_latents_and_images_that_are_none(n: object) -> None:
    one = evaluation("one", [0.5])
    with pytest.raises(InputError, match=f"^n: got {n!r}; needed an integer at least 1$"):
        spread_latents(one, n)
    with pytest.raises(InputError, match=f"^n: got {n!r}; needed an integer at least 1$"):
        top_examples_grid(one, one, thumbnails, thumbnails, [0], [0], n)


@pytest.mark.door
def test_grid_of_what_is_not_there() -> None:
    one = evaluation("one", [0.5, 0.6])
    for latents, text in (
        (([0], [2]), "latents_right: got latent 2; needed numbers from 0 to 1"),
        (([-1], [0]), "latents_left: got latent -1; needed numbers from 0 to 1"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
            top_examples_grid(one, one, thumbnails, thumbnails, *latents, 2)
    text = "n: got 5; needed at most the 4 examples that left ('one') keeps of a latent"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        top_examples_grid(one, one, thumbnails, thumbnails, [0], [0], 5)


@pytest.mark.door
@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: thumbnails(rows).float(),
        lambda rows: thumbnails(rows)[1:],
        lambda rows: thumbnails(rows)[..., 0],
        lambda rows: thumbnails(rows).expand(-1, 8, 8, 2),
    ],
)
def test_thumbnails_that_are_no_images(wrong) -> None:
    one = evaluation("one", [0.5, 0.6])
    with pytest.raises(
        InputError, match=r"^thumbnails_right: got torch\.\w+ of shape .* for 2 rows; needed torch\.uint8"
    ):
        top_examples_grid(one, one, thumbnails, wrong, [0], [0], 2)


@pytest.mark.door
def test_save_under_another_ending(tmp_path) -> None:
    with pytest.raises(InputError, match=r"^path: got '.*figure\.pdf'; needed a name that ends in \.png$"):
        save_figure(Figure(), tmp_path / "figure.pdf")
    assert list(tmp_path.iterdir()) == []

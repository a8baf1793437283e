from __future__ import annotations

import dataclasses
import itertools
import math
import re
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text
from PIL import Image

from monoloss.errors import InputError
from monoloss.evaluation.examples import TopExamples
from monoloss.evaluation.result import Evaluation
from monoloss.report.drawing import COLORS, fit, plain, text_width, variant_of
from monoloss.report.figures import (
    purity_bars,
    save_figure,
    score_histogram,
    spread_latents,
    top_examples_grid,
    trade_off,
    variant_colors,
)

NAN = math.nan
HOSTILE = [
    "$x_1$ \\frac{1}",
    "_hidden",
    "<script>alert(1)</script>",
    "emoji 😀 👩‍👩‍👧",
    "שלום العربية",
    "\u202ereversed \x00\ttab\nline",
    "undecodable \udcff",
    "中文",
    "%s {} %",
    "W" * 300,
    "a very long name of a run with-batch_topk-8192-latents-and-memory-0.9-seed-42",
    "$",
    "",
]


def evaluation(name: str, scores: list[float], *, shift: float = 0.0, labels: bool = True) -> Evaluation:
    """Figures that look like those of an evaluation; latent j has its examples in rows j, j + 1 and so on."""
    score = torch.tensor(scores, dtype=torch.float64)
    defined, m = score[~score.isnan()], len(scores)
    summary = {
        "score_mean": float(defined.mean()),
        "chance": 0.31,
        "explained_variance": 0.8 + shift,
        "purity_weighted": 0.625 + shift,
        "purity_binary": 0.5 + shift,
    }
    latents = {
        "score": score,
        "lift": score - 0.25,
        "purity_binary": score.abs(),
        "dominant_class": torch.arange(m) % 3,
    }
    if not labels:
        summary = {key: value for key, value in summary.items() if "purity" not in key}
        latents = {key: value for key, value in latents.items() if key in ("score", "lift")}
    rows = torch.arange(m)[:, None] + torch.arange(4)
    return Evaluation(name, {"class_names": ["cat", "dog", "bird"]}, summary, latents, TopExamples(rows, rows.double()))


def dead(name: str = "dead") -> Evaluation:
    one = evaluation(name, [NAN] * 5)
    return dataclasses.replace(one, summary=dict.fromkeys(one.summary, NAN))


def groups() -> dict[str, list[Evaluation]]:
    return {
        "TopK": [evaluation("TopK, baseline", [0.4, 0.5]), evaluation("TopK, memory", [0.6, 0.7], shift=0.013)],
        "BatchTopK": [
            evaluation("batch_topk-baseline", [0.3, 0.5], shift=-0.05),
            evaluation("batch_topk-paper", [0.45, 0.5], shift=-0.04),
            evaluation("batch_topk-memory", [0.6, 0.65], shift=-0.06),
        ],
    }


def thumbnails(rows: torch.Tensor) -> torch.Tensor:
    """Images whose grey is the number of their row."""
    return rows.to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 1)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def with_gid(figure: Figure, gid: str) -> list:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def tiles(figure: Figure) -> list[tuple[float, float, int | None]]:
    """Place and grey of each tile, row by row; None where it is blank."""
    found = []
    for image in figure.findobj(AxesImage):
        left, _, _, top = image.get_extent()
        found.append((round(top, 3), round(left, 3), int(image.get_array()[0, 0])))
    blank = (box for box in figure.axes[0].patches if isinstance(box, Rectangle))
    found += [(round(box.get_y(), 3), round(box.get_x(), 3), None) for box in blank]
    return sorted(found, key=lambda tile: tile[:2])


# score_histogram


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


# trade_off


def test_trade_off_draws_each_evaluation_where_its_figures_are() -> None:
    figure = trade_off(groups())
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in with_gid(figure, "point")]
    expected = [(e.summary["explained_variance"], e.summary["score_mean"]) for es in groups().values() for e in es]
    assert points == expected


def test_trade_off_names_variants_and_groups_and_links_them_to_their_baseline() -> None:
    figure = trade_off(groups())
    shown = texts(figure)
    assert [shown.count(name) for name in ("baseline", "memory", "paper")] == [2, 2, 1]
    assert [entry.get_text() for entry in with_gid(figure, "legend")] == ["TopK", "BatchTopK"]
    arrows = [(note.xyann, note.xy) for note in figure.axes[0].texts if note.arrow_patch is not None]
    drawn = [[(e.summary["explained_variance"], e.summary["score_mean"]) for e in es] for es in groups().values()]
    assert arrows == [(start, end) for start, *ends in drawn for end in ends]
    markers = [line.get_marker() for line in with_gid(figure, "point")]
    assert len(set(markers[:2])) == len(set(markers[2:])) == 1
    assert markers[0] != markers[2]


def test_trade_off_labels_do_not_overlap() -> None:
    close = [evaluation(f"variant number {i}", [0.4 + 0.003 * i], shift=0.002 * i) for i in range(4)]
    figure = trade_off({"close": close, **groups()})
    labels = [text for text in figure.axes[0].texts if text.get_text() and text.get_size() < 10]
    assert len(labels) == 9
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    room = figure.axes[0].bbox
    assert all(room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1 for box in boxes)


def test_trade_off_says_what_it_cannot_draw() -> None:
    no_decoder = evaluation("no decoder", [0.5])
    no_decoder = dataclasses.replace(no_decoder, summary={"score_mean": 0.5, "chance": 0.1})
    figure = trade_off({"TopK": [dead("all dead"), evaluation("good", [0.5]), no_decoder]})
    assert len(with_gid(figure, "point")) == 1
    note = " ".join(" ".join(texts(figure)).split())
    assert "without a defined score or reconstruction: all dead, no decoder." in note


def test_trade_off_with_nothing_to_draw() -> None:
    assert "nothing to draw" in texts(trade_off({"TopK": [dead()]}))


# purity_bars


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


# spread_latents


def test_spread_latents_are_the_middles_of_equal_parts_of_the_ranking() -> None:
    scores = torch.linspace(-0.5, 0.9, 12).tolist()
    one = evaluation("one", [NAN, *scores, NAN])  # latent j has rank 12 - j
    assert spread_latents(one, 3) == [10, 6, 2]
    assert spread_latents(one, 1) == [6]
    assert spread_latents(one, 4) == [11, 8, 5, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 11, 40])
@pytest.mark.parametrize("n_defined", [0, 1, 2, 10, 11])
def test_spread_latents_are_distinct_defined_and_evenly_spaced(n: int, n_defined: int) -> None:
    generator = torch.Generator().manual_seed(n_defined)
    scores = torch.full((20,), NAN)
    scores[torch.randperm(20, generator=generator)[:n_defined]] = torch.rand(n_defined, generator=generator)
    chosen = spread_latents(evaluation("one", scores.tolist()), n)
    assert len(chosen) == len(set(chosen)) == min(n, n_defined)
    ranking = sorted((j for j in range(20) if not scores[j].isnan()), key=lambda j: -float(scores[j]))
    ranks = [ranking.index(latent) for latent in chosen]
    steps = [b - a for a, b in itertools.pairwise(ranks)]
    assert ranks == sorted(ranks)
    assert not steps or max(steps) - min(steps) <= 1
    assert not ranks or abs(ranks[0] - (n_defined - 1 - ranks[-1])) <= 1  # as far from the best as from the worst


def test_spread_latents_of_equal_scores_take_the_lower_number_first() -> None:
    assert spread_latents(evaluation("one", [0.5, 0.5, 0.5]), 3) == [0, 1, 2]


# top_examples_grid


def test_grid_shows_the_most_active_images_of_each_latent_in_order() -> None:
    left, right = evaluation("left", [0.1] * 30), evaluation("right", [0.1] * 30)
    figure = top_examples_grid(left, right, thumbnails, lambda rows: thumbnails(rows + 100), [20, 3], [7, 0], 3)
    greys = [grey for _, _, grey in tiles(figure)]
    assert greys == [20, 21, 22, 107, 108, 109, 3, 4, 5, 100, 101, 102]


def test_grid_leaves_tiles_blank_where_a_latent_has_fewer_images() -> None:
    one = evaluation("one", [0.1, 0.2, 0.3])
    rows = torch.tensor([[5, 6, -1, -1], [-1, -1, -1, -1], [1, 2, 3, 4]])
    one = dataclasses.replace(one, examples=TopExamples(rows, rows.double()))
    other = evaluation("other", [0.1])
    figure = top_examples_grid(one, other, thumbnails, thumbnails, [0, 1, 2], [0], 3)
    greys = [grey for _, _, grey in tiles(figure)]
    assert greys == [5, 6, None, 0, 1, 2, None, None, None, 1, 2, 3]


def test_grid_without_any_image_fetches_none() -> None:
    one = evaluation("one", [NAN, NAN])
    one = dataclasses.replace(one, examples=TopExamples.none(2, 4))
    figure = top_examples_grid(one, one, thumbnails, thumbnails, [0], [1], 4)
    assert [grey for _, _, grey in tiles(figure)] == [None] * 8


def test_grid_of_a_model_without_a_defined_latent() -> None:
    one, other = dead("dead one"), evaluation("other", [0.5, 0.6])
    figure = top_examples_grid(one, other, thumbnails, thumbnails, spread_latents(one, 2), spread_latents(other, 2), 2)
    assert texts(figure).count("no latent to show") == 1
    assert [grey for _, _, grey in tiles(figure)] == [1, 2, 0, 1]
    top_examples_grid(one, one, thumbnails, thumbnails, [], [], 2)


def test_grid_breaks_many_images_into_lines() -> None:
    rows = torch.arange(20)[None]
    one = dataclasses.replace(evaluation("one", [0.5]), examples=TopExamples(rows, rows.double()))
    figure = top_examples_grid(one, one, thumbnails, thumbnails, [0], [0], 20)
    places = tiles(figure)
    assert len(places) == 40
    assert len({top for top, _, _ in places}) == 3
    first_half = [grey for _, left, grey in places if left < figure.axes[0].get_xlim()[1] / 2]
    assert first_half == list(range(20))


def test_grid_writes_the_figures_of_each_latent() -> None:
    left, right = evaluation("left", [0.5, 0.75, NAN]), evaluation("right", [0.625, 0.25], labels=False)
    shown = texts(top_examples_grid(left, right, thumbnails, thumbnails, [1, 2], [0], 2))
    at = shown.index("latent 1")
    assert shown[at : at + 3] == ["latent 1", "score 0.75, lift 0.50, purity 0.75:", "dog"]
    assert "score undefined, lift undefined, purity undefined:" in shown
    assert "score 0.62, lift 0.38" in shown
    assert "mean score 0.62, 1 of 3 latents undefined" in shown


def test_grid_says_that_latents_were_spread_only_where_they_were() -> None:
    left, right = evaluation("left", [0.1, 0.5, 0.3]), evaluation("right", [0.7, 0.6, 0.9])

    def note(latents_left: list[int], latents_right: list[int]) -> str:
        figure = top_examples_grid(left, right, thumbnails, thumbnails, latents_left, latents_right, 2)
        return " ".join(" ".join(texts(figure)).split())

    assert "evenly spaced ranks of the score" in note(spread_latents(left, 2), spread_latents(right, 2))
    for picked in ([1], [2, 1]):
        shown = note(picked, spread_latents(right, 2))
        assert "as they were asked for" in shown
        assert "evenly spaced" not in shown


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 5, 9), (4, 9, 5)])
def test_grid_keeps_the_sides_of_an_image_in_proportion(channels: int, height: int, width: int) -> None:
    def images(rows: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(rows), height, width, channels, dtype=torch.uint8)

    one = evaluation("one", [0.1, 0.2])
    figure = top_examples_grid(one, one, images, images, [0], [1], 2)
    for image in figure.findobj(AxesImage):
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(width / height)
        assert max(right - left, bottom - top) <= 0.9 + 1e-9


@pytest.mark.door
def test_grid_takes_latents_as_a_tensor() -> None:
    one = evaluation("one", [0.1, 0.2])
    figure = top_examples_grid(one, one, thumbnails, thumbnails, torch.tensor([1]), [0], 2)
    assert "latent 1" in texts(figure)


# names


def every_figure(names: list[str]) -> list[Figure]:
    evaluations = [evaluation(name, [0.2, 0.5, 0.4], shift=0.01 * i) for i, name in enumerate(names)]
    named = [dataclasses.replace(e, facts={"class_names": (3 * names)[:3]}) for e in evaluations]
    by_group = {name: evaluations[i:] for i, name in enumerate(names)}
    return [
        score_histogram(evaluations, title=" ".join(names)),
        trade_off(by_group, title=names[0]),
        purity_bars(by_group, title=names[0]),
        top_examples_grid(named[0], named[-1], thumbnails, thumbnails, [0, 1, 2], [2, 1, 0], 2),
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_drawn_as_they_are(name: str, tmp_path) -> None:
    for figure in every_figure([name, "good"]):
        assert save_figure(figure, tmp_path / "figure.png").stat().st_size > 0
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())


def test_dollars_do_not_become_formulas() -> None:
    for figure in every_figure(["$x_1$"]):
        named = [text for text in figure.findobj(Text) if "$x_1$" in text.get_text()]
        assert named
        assert not any(text.get_parse_math() for text in named)


def test_plain_text_is_one_line_of_characters_that_can_be_drawn() -> None:
    assert plain("  a\n\tb \x00\u202e c ") == "a b c"
    assert plain("中文 \udcff") == "□□ □"
    assert plain("naïve שלום ▲ …") == "naïve שלום ▲ …"


def test_long_text_is_fitted_by_leaving_out_its_middle() -> None:
    name = "batch_topk-with-8192-latents-and-memory-of-0.9-" + "x" * 200 + "-seed-42"
    short = fit(name, 2.0, 10.0)
    assert short.startswith("batch_topk-")
    assert short.endswith("-seed-42")
    assert "…" in short
    assert text_width(short, 10.0) <= 2.0
    lines = fit(name, 2.0, 10.0, n_lines=3).splitlines()
    assert 1 < len(lines) <= 3
    assert all(text_width(line, 10.0) <= 2.0 for line in lines)
    assert fit("short", 2.0, 10.0) == "short"


@pytest.mark.parametrize("bold", [False, True])
def test_measured_width_is_the_drawn_width(bold: bool) -> None:
    figure = Figure(dpi=600)
    words = "batch_topk, memory + centred: mean 0.80"
    text = figure.text(0, 0, words, size=10, weight="bold" if bold else "normal", family="DejaVu Sans")
    drawn = text.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 600
    assert text_width(words, 10.0, bold=bold) == pytest.approx(drawn, rel=0.02)


def test_texts_stay_inside_the_picture() -> None:
    for figure in every_figure(["a very long name of a run with batch_topk-8192-latents", "W" * 50, "b"]):
        written = [
            text for axes in figure.axes for text in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)
        ]
        for text in (*figure.texts, *written):
            if text.get_text() and text.get_visible():
                box = text.get_window_extent()
                assert box.x0 >= -1, text
                assert box.x1 <= figure.bbox.x1 + 1, text
                assert box.y0 >= -1, text
                assert box.y1 <= figure.bbox.y1 + 1, text


# colours


def test_a_variant_has_one_colour_in_every_group_and_figure() -> None:
    colors = variant_colors(groups())
    assert colors["TopK, baseline"] == colors["batch_topk-baseline"] == COLORS[0]
    assert colors["TopK, memory"] == colors["batch_topk-memory"] == COLORS[1]
    assert colors["batch_topk-paper"] == COLORS[2]
    wanted = [colors[e.name] for es in groups().values() for e in es]
    assert [mpl.colors.to_hex(line.get_color()) for line in with_gid(trade_off(groups()), "point")] == wanted
    bars = [bar for container in purity_bars(groups()).axes[0].containers for bar in container]
    assert [mpl.colors.to_hex(bar.get_facecolor()) for bar in bars] == wanted
    runs = with_gid(score_histogram(groups()["BatchTopK"], colors=colors), "run")
    assert [mpl.colors.to_hex(run.get_edgecolor()) for run in runs] == wanted[2:]
    one, other = groups()["BatchTopK"][0], groups()["BatchTopK"][2]
    figure = top_examples_grid(one, other, thumbnails, thumbnails, [0], [1], 2, colors=colors)
    assert [line.get_color() for line in figure.axes[0].lines] == [wanted[2], wanted[4]]


@pytest.mark.parametrize(
    ("name", "group", "variant"),
    [
        ("topk-memory", "TopK", "memory"),
        ("batch_topk.memory+centred", "BatchTopK", "memory+centred"),
        ("TopKit", "TopK", "TopKit"),
        ("TopK", "TopK", "TopK"),
        ("TopK-", "TopK", "TopK-"),
        ("memory", "", "memory"),
        ("-memory", "$", "-memory"),
        ("a.b x", "a+b", "x"),
    ],
)
def test_variant_is_the_name_without_its_group(name: str, group: str, variant: str) -> None:
    assert variant_of(name, group) == variant


def test_colours_can_be_told_apart() -> None:
    assert len(set(COLORS)) == len(COLORS) == 7
    grey = [sum(np.array(mpl.colors.to_rgb(color)) * [0.299, 0.587, 0.114]) for color in COLORS[:3]]
    assert min(abs(a - b) for a, b in itertools.combinations(grey, 2)) > 0.05  # the three usual ones also in print


# files and settings


def test_save_writes_a_sharp_png(tmp_path) -> None:
    path = save_figure(score_histogram([evaluation("one", [0.5, 0.6])]), tmp_path / "new" / "figure.png")
    with Image.open(path) as image:
        assert (image.format, image.width) == ("PNG", 1800)
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_save_leaves_nothing_behind_on_error(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = score_histogram([evaluation("one", [0.5, 0.6])])
    save_figure(figure, tmp_path / "figure.png")
    before = (tmp_path / "figure.png").read_bytes()

    def tear(path, **options) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", tear)
    for path in (tmp_path / "figure.png", tmp_path / "new" / "other.png"):
        with pytest.raises(OSError, match="disk full"):
            save_figure(figure, path)
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes() == before


def test_a_figure_can_be_saved_twice_with_the_same_bytes(tmp_path) -> None:
    figure = trade_off(groups())
    first, second = (save_figure(figure, tmp_path / f"{i}.png").read_bytes() for i in range(2))
    assert first == second


def test_settings_of_the_user_neither_change_nor_matter(tmp_path) -> None:
    def picture(name: str) -> bytes:
        figures = every_figure(["one", "two"])
        return b"".join(save_figure(figure, tmp_path / f"{name}.png").read_bytes() for figure in figures)

    usual = picture("usual")
    wild = {
        "font.size": 31.0,
        "font.family": ["monospace"],
        "text.usetex": True,
        "axes.facecolor": "black",
        "savefig.bbox": "tight",
        "savefig.transparent": True,
        "figure.autolayout": True,
        "image.cmap": "jet",
        "lines.linewidth": 9.0,
    }
    with mpl.rc_context(wild):
        before = dict(mpl.rcParams)
        assert picture("wild") == usual
        assert dict(mpl.rcParams) == before


def test_no_pyplot_and_no_backend_is_chosen() -> None:
    code = """
import sys
import matplotlib as mpl
before = mpl.rcParams.copy()
import monoloss.report.figures as figures
import tempfile, torch
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.examples import TopExamples
summary = {"score_mean": 0.5, "chance": 0.1}
one = Evaluation("one", {}, summary, {"score": torch.tensor([0.5])}, TopExamples.none(1, 1))
with tempfile.TemporaryDirectory() as folder:
    figures.save_figure(figures.score_histogram([one]), folder + "/figure.png")
assert "matplotlib.pyplot" not in sys.modules
assert mpl.rcParams.copy() == before
assert mpl.get_backend(auto_select=False) is None
"""
    environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path)), "JAXTYPING_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


# errors


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

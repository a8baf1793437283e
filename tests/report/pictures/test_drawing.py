"""What all figures share: names, colours, files, settings."""

from __future__ import annotations

import itertools
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from monoloss.errors import InputError
from monoloss.evaluation.charts.names import variant_of
from monoloss.evaluation.charts.style import COLORS
from monoloss.report.pictures.drawing import fit, number, plain, save_figure, text_width, variant_colors
from monoloss.report.pictures.examples_grid import top_examples_grid
from monoloss.report.pictures.trade_off import trade_off
from support.figures import HOSTILE, evaluation, every_figure, groups, thumbnails, with_gid


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


def test_a_variant_has_one_colour_in_every_group_and_figure() -> None:
    colors = variant_colors(groups())
    assert colors["TopK, baseline"] == colors["batch_topk-baseline"] == COLORS[0]
    assert colors["TopK, memory"] == colors["batch_topk-memory"] == COLORS[1]
    assert colors["batch_topk-paper"] == COLORS[2]
    wanted = [colors[e.name] for es in groups().values() for e in es]
    assert [mpl.colors.to_hex(line.get_color()) for line in with_gid(trade_off(groups()), "point")] == wanted
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


def test_save_writes_a_sharp_png(tmp_path) -> None:
    path = save_figure(trade_off({"": [evaluation("one", [0.5, 0.6])]}), tmp_path / "new" / "figure.png")
    with Image.open(path) as image:
        assert (image.format, image.width) == ("PNG", 1800)
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_save_leaves_nothing_behind_on_error(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = trade_off({"": [evaluation("one", [0.5, 0.6])]})
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
from monoloss.report.pictures.drawing import save_figure
from monoloss.report.pictures.trade_off import trade_off
import tempfile, torch
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.examples import Examples
summary = {"score_mean": 0.5, "explained_variance": 0.1}
one = Evaluation("one", {}, summary, {"score": torch.tensor([0.5])}, Examples.none(1, 1))
with tempfile.TemporaryDirectory() as folder:
    save_figure(trade_off({"": [one]}), folder + "/figure.png")
assert not {"matplotlib.pyplot", "plotly"} & set(sys.modules)
assert mpl.rcParams.copy() == before
assert mpl.get_backend(auto_select=False) is None
"""
    environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path)), "JAXTYPING_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_numbers_are_rounded_and_undefined_ones_are_said() -> None:
    assert (number(0.716), number(-0.5, 1), number(float("nan"))) == ("0.72", "-0.5", "undefined")


@pytest.mark.door
def test_save_under_another_ending(tmp_path) -> None:
    with pytest.raises(InputError, match=r"^path: got '.*figure\.pdf'; expected a name that ends in \.png$"):
        save_figure(Figure(), tmp_path / "figure.pdf")
    assert list(tmp_path.iterdir()) == []

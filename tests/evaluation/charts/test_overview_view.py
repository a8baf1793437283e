"""The charts as a page and in a notebook: complete, from the disk alone, names as text."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path

import pytest

from monoloss.errors import InputError
from monoloss.evaluation.charts.overview_view import OverviewView
from support.charts import run

NAN = math.nan


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


def test_the_text_form_names_runs_and_charts() -> None:
    view = OverviewView([run("a", [0.5, 0.6]), run("b", [0.7, 0.8])])
    assert repr(view).startswith("<charts of 'a', 'b': score, lift, ")
    assert [figure.id for figure in view.figures] == repr(view).rstrip(">").split(": ")[1].split(", ")


def test_every_chart_has_its_title_and_caption_on_the_page(tmp_path: Path) -> None:
    view = OverviewView([run("a", [0.5, 0.6])])
    (tmp_path / "charts.html").write_text("an older page")
    page = view.save(tmp_path / "charts.html").read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["charts.html"]
    for figure in view.figures:
        assert f"<h2>{html.escape(figure.title)}</h2>" in page
        assert f"<p>{html.escape(figure.caption)}</p>" in page


@pytest.mark.door
def test_a_page_is_not_written_over_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got a folder"):
        OverviewView([run("a", [0.5])]).save(tmp_path)

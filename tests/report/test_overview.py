"""The pages as text: what the tables say, published values beside their own setting, names that are only names."""

from __future__ import annotations

import re

import pytest

from monoloss.report.overview import figure_text, page_files
from monoloss.report.runs import report_runs
from support.reports import PUBLISHED_SETTING, bare


def overview(*evaluations, figures=(), **options):
    return page_files(report_runs(list(evaluations)), figures, **options)["index.html"]


def cell(page, run, measure):
    """What is written in a cell: the figure, and the difference to the baseline."""
    found = re.search(rf'<td data-run="{run}" data-measure="{measure}"[^>]*>(.*?)</td>', page)
    return re.findall(r">([^<>]+)<", found[1])


def test_figures_as_they_are_written():
    assert [figure_text(value, ".3f") for value in (0.12345, -2.0, 1234.5)] == ["0.123", "\u22122.000", "1,234.500"]
    assert figure_text(1234.5, ".1f") == "1,234.5"
    assert figure_text(-0.0001, ".3f") == "0.000"
    assert figure_text(float("nan"), ".3f") == "\u2013"
    assert figure_text(float("inf"), ".3f") == "\u2013"
    assert figure_text(0.0000123, ".3g") == "1.23e\u221205"


def test_differences_to_the_baseline():
    page = overview(bare("plain"), bare("mono", 0.1, score=0.625))
    assert cell(page, "run-0", "score_mean") == ["0.500"]
    assert cell(page, "run-1", "score_mean") == ["0.625", "+0.125"]
    assert cell(page, "run-1", "r2") == ["0.800", "\u00b10"]
    assert cell(page, "run-1", "chance") == ["0.100"]
    assert "What MonoLoss changed" in page


def test_undefined_and_dead_latents_are_counted():
    page = overview(bare())
    assert (cell(page, "run-0", "n_undefined"), cell(page, "run-0", "n_dead")) == (["1"], ["1"])


def test_runs_that_no_loss_sets_apart_claim_nothing():
    assert "What MonoLoss changed" not in overview(bare("one", 0.1), bare("two", 0.2))
    assert "Against the baseline" in overview(bare("one", 0.1), bare("two", 0.2))
    assert 'class="change"' not in overview(bare())


def test_the_best_of_several_is_shown():
    page = overview(bare("plain"), bare("good", 0.1, score=0.7), bare("worse", 0.2, score=0.6))
    assert re.search(r'class="go" href="latents.html#run=(\w+)"', page)[1] == "good"
    assert "with the highest" in page


def test_names_and_titles_are_escaped():
    name = "<img src=x onerror=alert(1)>\"'&"
    page = overview(bare(name, store=name), title=name, figures=[("a", name, name)])
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;") >= 5
    assert "latents.html#run=%3Cimg%20src%3Dx" in page


def test_facts_that_are_equal_are_said_once():
    page = overview(
        bare("plain", n_rows=7, width=3, store="rows"),
        bare("mono", 0.1, n_rows=7, width=3, store="rows"),
    )
    assert page.count("7 rows of width 3") == 1
    assert page.count("MonoLoss, weight 0.1") == 2  # below its name, and among the facts


@pytest.mark.parametrize(("changed", "is_shown"), [({}, True), ({"n_rows": 10_000}, False)])
def test_published_values_are_shown_beside_their_own_setting_only(changed, is_shown):
    page = overview(bare(**(PUBLISHED_SETTING | changed)))
    assert ("paper, with MonoLoss" in page) == is_shown
    assert ("other data or models than here" in page) != is_shown


def test_published_table_is_shown():
    page = overview(bare())
    assert "0.437 \u2192 0.602" in page
    assert "0.643 \u2192 0.597" in page

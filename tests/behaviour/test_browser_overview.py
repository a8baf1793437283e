"""The overview of a report in a real browser, read as a user reads it."""

from __future__ import annotations

import json

import pytest

from support.pages import states, written


def test_overview_draws_every_chart_in_the_colours_of_the_page(visit, report):
    visit.page.emulate_media(color_scheme="dark")
    page = visit.open(report[0], "index.html")
    places = page.locator("[data-figure]")
    assert places.count() >= 6
    for place in places.all():
        place.locator("svg.main-svg").first.wait_for()
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert page.locator(".chart text").first.evaluate("text => getComputedStyle(text).fill") == ink
    assert ink == "rgb(231, 232, 234)"


@pytest.mark.slow
def test_charts_follow_the_colours_of_the_system(visit, report):
    visit.page.emulate_media(color_scheme="light")
    page = visit.open(report[0], "index.html")
    page.locator("svg.main-svg").first.wait_for()
    fill = "getComputedStyle(document.querySelector('.chart text')).fill"
    before = page.evaluate(fill)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => {fill} !== before", arg=before)


def test_figures_of_the_tables_are_those_of_the_files(visit, report):
    folder, evaluations = report
    page = visit.open(folder, "index.html")
    keys = {"base": "run-0", "mono": "run-1"}
    summaries = {}
    for name in evaluations:
        summaries[name] = json.loads((folder.parent / name / "evaluation.json").read_text())["summary"]
        dead, undefined = states(evaluations[name])
        summaries[name] |= {"n_dead": len(dead), "n_undefined": len(undefined)}
    for name, key in keys.items():
        summary = summaries[name]
        cells = page.locator(f".everything td[data-run={key}]")
        found = cells.evaluate_all("cells => cells.map(c => [c.dataset.measure, c.dataset.value, c.innerText])")
        assert {measure for measure, _, _ in found} == set(summary)
        for measure, value, text in found:
            assert float(value) == summary[measure]
            digits = {"n_eff_median": 1, "l0": 1, "nmse": 4}.get(measure, 0 if measure.startswith("n_") else 3)
            first, _, difference = text.partition("\n")
            if measure == "mse":
                continue
            assert first == written(summary[measure], digits)
            if name == "mono" and difference and "\N{PLUS-MINUS SIGN}" not in difference:
                by = summary[measure] - summaries["base"][measure]
                assert difference == ("+" if by > 0 else "") + written(by, digits)
        score = page.locator(f".runs td[data-run={key}][data-measure=score_mean] .value")
        assert score.inner_text() == written(summary["score_mean"], 3)
    assert page.locator(".change .value").first.inner_text() == written(summaries["mono"]["score_mean"], 3)


def test_overview_reads_without_scripts(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((report[0] / "index.html").as_uri())
    assert page.locator(".runs td[data-measure=score_mean]").count() == 2
    assert page.locator("#term-lift").is_visible()
    context.close()


@pytest.mark.slow
def test_a_term_explains_itself_to_pointer_keyboard_and_finger(browser, visit, report):
    page = visit.open(report[0], "index.html")
    term, tip = page.locator(".runs [data-term=lift]"), page.locator("#tip")
    text = page.locator("#term-lift").inner_text()
    assert not tip.is_visible()
    term.hover()
    assert tip.inner_text() == text
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    term.focus()
    assert tip.inner_text() == text
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    touched = context.new_page()
    touched.goto((report[0] / "index.html").as_uri())
    touched.locator(".change [data-term=lift]").first.tap()
    assert touched.locator("#tip").inner_text() == text
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.html", "latents.html"])
def test_pages_are_as_wide_as_the_screen(visit, report, name):
    page = visit.open(report[0], name)
    if name == "index.html":
        page.locator("svg.main-svg").last.wait_for()
    for width in (1440, 1024, 768, 390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function(
            """width => document.documentElement.scrollWidth <= width
              && [...document.querySelectorAll("svg.main-svg")].every(
                (svg) => svg.getBoundingClientRect().width <= svg.closest(".plot").clientWidth + 1)""",
            arg=width,
        )

"""The pages of a report in a real browser, read as a user reads them."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from monoloss.evaluation.similar import closest_matches, similar_latents
from monoloss.report.page import write_report
from support.reports import M, grey_thumbnails, some_evaluations, some_store

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
DIGITS = {"score": 3, "lift": 3, "purity_binary": 3, "purity_weighted": 3, "n_eff": 1}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder and evaluations: a baseline and a MonoLoss run, with images and labels, some latents dead."""
    folder = tmp_path_factory.mktemp("report")
    store = some_store(folder / "store", thumbnails=grey_thumbnails())
    evaluations = [with_dead_latents(one) for one in some_evaluations(store)]
    page = write_report(evaluations, folder / "report", stores=[store], image_size=16)
    for one in evaluations:
        one.save(folder / one.name)
    return page.parent, {one.name: one for one in evaluations}


def with_dead_latents(evaluation):
    """Latents 3 and 4 silent; latent 5 active and yet without a score."""
    latents = {name: column.clone() for name, column in evaluation.latents.items()}
    for name in ("score", "lift", "n_eff"):
        latents[name][3:6] = math.nan
    latents["density"][3:5] = 0
    for name in ("purity_binary", "purity_weighted"):
        latents[name][3:5] = math.nan
    latents["dominant_class"][3:5] = -1
    return replace(evaluation, latents=latents)


def states(evaluation):
    """The latents that are dead, and those that are active and have no score."""
    score, density = evaluation.latents["score"], evaluation.latents["density"]
    dead = {j for j in range(M) if density[j] == 0}
    return dead, {j for j in range(M) if math.isnan(score[j])} - dead


def as_on_the_page(column):
    """Rounded to 6 digits: numbers that a last digit sets apart are equal there."""
    return [float(f"{value:.6g}") for value in column.tolist()]


def written(value, digits):
    return DASH if math.isnan(value) else f"{value:z.{digits}f}".replace("-", MINUS)


def shown(page):
    """Numbers of the latents in the table, from the top."""
    rows = page.locator("#rows [role=row]")
    places = rows.evaluate_all("rows => rows.map(row => [Number(row.ariaRowIndex), Number(row.dataset.latent)])")
    return [latent for _, latent in sorted(places)]


def opened(page):
    """Number of the latent that is open, None without one."""
    titles = page.locator("[data-side=opened] h2")
    return int(titles.first.inner_text().split()[-1]) if titles.count() else None


def wait_for(page, latent):
    page.wait_for_function(
        "latent => document.querySelector('[data-side=opened] h2')?.textContent === `Latent ${latent}`", arg=latent
    )


# ---- the overview ----


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


# ---- the table of latents ----


def test_table_shows_the_columns_of_the_files(visit, report):
    folder, evaluations = report
    page = visit.open(folder, fragment="#run=mono")
    latents = evaluations["mono"].latents
    dead, undefined = states(evaluations["mono"])
    assert {3, 4} <= dead
    assert 5 in undefined
    for row in page.locator("#rows [role=row]").all():
        latent = int(row.get_attribute("data-latent"))
        cells = dict(row.locator("[data-column]").evaluate_all("cs => cs.map(c => [c.dataset.column, c.innerText])"))
        for name, digits in DIGITS.items():
            assert cells[name] == written(as_on_the_page(latents[name])[latent], digits), (latent, name)
        known = int(latents["dominant_class"][latent])
        assert cells["dominant_class"] == (f"class {known}" if known >= 0 else DASH)
        assert float(cells["density"].removesuffix(" %")) == pytest.approx(
            100 * float(latents["density"][latent]), 0.05
        )
        assert cells["alive"] == ("dead" if latent in dead else "no" if latent in undefined else "yes")
    assert sorted(shown(page)) == list(range(M))


def test_sorting_both_ways_with_undefined_ones_last(visit, report):
    folder, evaluations = report
    page = visit.open(folder, fragment="#run=mono")
    for column in ("latent", *DIGITS, "density"):
        values = list(range(M)) if column == "latent" else as_on_the_page(evaluations["mono"].latents[column])
        directions = []
        for _ in range(2):
            page.locator(f"#head [data-sort={column}]").click()
            directions.append(page.locator(f"#head [data-column={column}]").get_attribute("aria-sort"))
            sign = -1 if directions[-1] == "descending" else 1
            defined = sorted((j for j in range(M) if not math.isnan(values[j])), key=lambda j: (sign * values[j], j))
            assert shown(page) == defined + [j for j in range(M) if math.isnan(values[j])], column
        assert sorted(directions) == ["ascending", "descending"]


def test_an_explanation_leaves_with_the_pointer(visit, report):
    page = visit.open(report[0])
    page.locator("#head [data-sort=lift]").click()
    assert page.locator("#tip").is_visible()
    page.locator("#rows [role=row]").nth(10).hover()
    assert not page.locator("#tip").is_visible()


def test_a_rounded_zero_has_no_sign(visit, report):
    page = visit.open(report[0])
    assert page.evaluate("[-0.0004, -0.0006, 0].map((value) => Latents.data.figure(value, 3))") == [
        "0.000", f"{MINUS}0.001", "0.000",
    ]  # fmt: skip


@pytest.mark.slow
def test_sorting_by_class_name(visit, report):
    page = visit.open(report[0], fragment="#run=mono")
    page.locator("#head [data-sort=dominant_class]").click()
    classes = report[1]["mono"].latents["dominant_class"].tolist()
    assert shown(page) == sorted(range(M), key=lambda j: (classes[j] < 0, classes[j], j))


def test_search_by_number_and_by_class(visit, report):
    folder, evaluations = report
    page = visit.open(folder, fragment="#run=mono")
    classes = [f"class {c}" if c >= 0 else "" for c in evaluations["mono"].latents["dominant_class"].tolist()]
    page.locator("#search").fill("1")
    assert set(shown(page)) == {j for j in range(M) if str(j).startswith("1") or "1" in classes[j]}
    page.locator("#search").fill(classes[0].upper())
    assert 0 in shown(page)
    assert set(shown(page)) == {j for j in range(M) if classes[0] in classes[j]}
    page.locator("#search").fill("no such thing")
    assert shown(page) == []
    assert page.locator("#empty").is_visible()
    page.locator("#search").fill("17")
    page.locator("#search").press("Enter")
    wait_for(page, 17)


def test_filters(visit, report):
    folder, evaluations = report
    page = visit.open(folder, fragment="#run=mono")
    latents = evaluations["mono"].latents
    n_dead, n_undefined = map(len, states(evaluations["mono"]))
    assert page.locator("#alive option").all_inner_texts() == [
        "all", f"alive ({M - n_dead - n_undefined})", f"active, no score ({n_undefined})", f"dead ({n_dead})",
    ]  # fmt: skip
    page.locator("#alive").select_option("dead")
    assert set(shown(page)) == states(evaluations["mono"])[0]
    page.locator("#alive").select_option("undefined")
    assert set(shown(page)) == states(evaluations["mono"])[1]
    page.get_by_role("button", name="clear all").click()
    assert len(shown(page)) == M
    middle = float(latents["score"].nanmedian())
    page.locator("#at-least").fill(f"{middle:.4f}")
    page.locator("#measure").select_option("n_eff")
    page.locator("#at-most").fill("8")
    expected = {j for j in range(M) if latents["score"][j] >= round(middle, 4) and latents["n_eff"][j] <= 8}
    assert 0 < len(expected) < M / 2
    assert set(shown(page)) == expected
    assert page.locator("#count").inner_text() == f"{len(expected)} of {M} latents"
    page.locator(".chip", has_text="n_eff").click()
    assert set(shown(page)) == {j for j in range(M) if latents["score"][j] >= round(middle, 4)}
    page.get_by_role("button", name="clear all").click()
    known = int(latents["dominant_class"][0])
    page.locator("#class").select_option(str(known))
    assert set(shown(page)) == {j for j in range(M) if latents["dominant_class"][j] == known}


# ---- a latent ----


def test_deep_links(visit, report):
    folder, _ = report
    page = visit.open(folder, fragment="#latent=7")
    wait_for(page, 7)
    assert page.locator("[data-side=opened] .heading").first.inner_text().endswith("mono")
    page = visit.open(folder, fragment="#run=base&latent=11")
    wait_for(page, 11)
    assert "base" in page.locator("[data-side=opened] .heading").first.inner_text()
    page = visit.open(folder, fragment="#run=run-1&latent=2&with=")
    wait_for(page, 2)
    assert page.locator("[data-side=match]").count() == 0
    page = visit.open(folder, fragment=f"#latent={M}")
    page.locator("#trouble").wait_for()
    assert f"no latent {M}" in page.locator("#trouble").inner_text()


def test_click_opens_and_back_closes(visit, report):
    visit.page.set_viewport_size({"width": 390, "height": 844})
    page = visit.open(report[0])
    assert opened(page) is None
    page.locator("#rows [data-latent='9']").click()
    wait_for(page, 9)
    assert page.evaluate("location.hash") == "#run=mono&latent=9"
    assert page.locator("#list").evaluate("list => list.inert")
    page.go_back()
    page.wait_for_function("() => document.querySelector('[data-side]') === null")
    assert not page.locator("#list").evaluate("list => list.inert")
    page.go_forward()
    wait_for(page, 9)
    page.locator("#close").click()
    page.wait_for_function("() => document.querySelector('[data-side]') === null")


def test_keys_walk_through_the_order_of_the_table(visit, report):
    page = visit.open(report[0])
    page.locator("#head [data-sort=density]").click()
    order = shown(page)
    page.locator(f"#rows [data-latent='{order[0]}']").click()
    wait_for(page, order[0])
    for key, place in (("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("ArrowUp", 0), ("j", 1)):
        page.keyboard.press(key)
        wait_for(page, order[place])
    page.locator("#next").click()
    wait_for(page, order[2])
    page.locator("#previous").click()
    wait_for(page, order[1])
    assert page.locator("#rows [aria-selected=true]").get_attribute("data-latent") == str(order[1])
    assert page.locator("#position").inner_text() == f"2 of {M}"
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('[data-side]') === null")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    wait_for(page, order[2])
    page.go_back()
    page.go_back()  # the latents that were walked through are one step
    wait_for(page, order[1])
    page.go_back()
    page.wait_for_function("() => location.hash === ''")


@pytest.mark.parametrize("name", ["base", "mono"])
def test_a_latent_shows_what_the_files_say(visit, report, name):
    folder, evaluations = report
    one, other = evaluations[name], evaluations["mono" if name == "base" else "base"]
    page = visit.open(folder, fragment=f"#run={name}&latent=8")
    wait_for(page, 8)
    side = "[data-side=opened]"
    for part, examples in (("top", one.examples), ("middle", one.middle_examples), ("bottom", one.bottom_examples)):
        shots = page.locator(f"[data-part={part}] {side} .shot")
        labels = shots.evaluate_all("shots => shots.map(shot => shot.ariaLabel)")
        rows = [row for row in examples.rows[8].tolist() if row >= 0]
        assert [label.split(",")[0] for label in labels] == [f"image-{row}" for row in rows]
        values = [float(label.rpartition(" ")[2]) for label in labels]
        assert values == pytest.approx(examples.values[8][: len(rows)].tolist(), rel=1e-5)
    n_active = int(one.histogram[8].sum())
    assert f"{n_active} active rows" in page.locator(f"[data-part=histogram] {side}").inner_text()
    classes = page.locator(f"[data-part=dominant_class] {side} li").all_inner_texts()
    counts = [count for count in one.top_classes.counts[8].tolist() if count]
    assert [int(text.split("\n")[-1].split()[0]) for text in classes] == counts
    similar = page.locator(f"[data-part=similar] {side} a").all_inner_texts()
    assert [int(text) for text in similar] == similar_latents(one, 8).latents[8].tolist()
    match = closest_matches(one, other)
    heading = page.locator("[data-side=match] .heading").inner_text()
    assert heading.startswith(f"Latent {int(match.latents[8])}")
    assert other.name in heading
    assert heading.endswith(f"cosine {written(float(match.cosines[8]), 2)}")
    score = page.locator("[data-side=match] [data-figure-of=score] .value").inner_text()
    assert score == written(float(other.latents["score"][int(match.latents[8])]), 3)


def test_images_are_those_of_the_rows(visit, report):
    folder, evaluations = report
    page = visit.open(folder, fragment="#run=mono&latent=8")
    wait_for(page, 8)
    page.wait_for_load_state("networkidle")
    shots = page.locator("[data-part=top] [data-side=opened] .shot").all()
    for shot, row in zip(shots, evaluations["mono"].examples.rows[8].tolist(), strict=True):
        with Image.open(io.BytesIO(shot.screenshot())) as picture:
            grey = np.asarray(picture.convert("L"))
        assert abs(float(grey[4:-4, 4:-4].mean()) - (2 * row + 10)) < 3
    shots[0].hover()
    assert f"image-{evaluations['mono'].examples.rows[8, 0]}" in page.locator("#bubble").inner_text()


@pytest.mark.slow
def test_similar_latents_and_matches_are_links(visit, report):
    folder, evaluations = report
    page = visit.open(folder, fragment="#run=mono&latent=8")
    wait_for(page, 8)
    nearest = int(similar_latents(evaluations["mono"], 1).latents[8, 0])
    page.locator("[data-part=similar] [data-side=opened] a").first.click()
    wait_for(page, nearest)
    match = int(closest_matches(evaluations["mono"], evaluations["base"]).latents[nearest])
    page.locator("[data-side=match] h2 a").click()
    page.wait_for_function("() => document.querySelector('#run').selectedOptions[0].text === 'base'")
    wait_for(page, match)
    page.go_back()
    wait_for(page, nearest)


@pytest.mark.slow
def test_another_run_and_nothing_beside_it(visit, report):
    page = visit.open(report[0], fragment="#run=mono&latent=8")
    wait_for(page, 8)
    page.locator("#partner").select_option("")
    page.wait_for_function("() => document.querySelector('[data-side=match]') === null")
    page.locator("#run").select_option("run-0")
    page.wait_for_function("() => location.hash === '#run=base'")
    page.wait_for_function(
        "() => document.querySelector('[data-side=opened] .heading p').textContent.startsWith('base')"
    )


@pytest.mark.slow
def test_tab_reaches_images_and_arrows_walk_through_them(visit, report):
    page = visit.open(report[0], fragment="#run=mono&latent=8")
    wait_for(page, 8)
    first = page.locator("[data-part=top] [data-side=opened] .shot").first
    first.focus()
    page.keyboard.press("ArrowRight")
    label = page.evaluate("document.activeElement.ariaLabel")
    assert label.startswith(f"image-{report[1]['mono'].examples.rows[8, 1]},")
    assert label.split(",")[0] in page.locator("#bubble").inner_text()
    assert opened(page) == 8
    page.keyboard.press("Escape")
    assert not page.locator("#bubble").is_visible()
    assert opened(page) == 8

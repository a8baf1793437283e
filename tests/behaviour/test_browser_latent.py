"""A latent in the explorer of a report in a real browser: how it opens, and what it shows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from monoloss.evaluation.similar import closest_matches, similar_latents
from support.pages import opened, shown, wait_for, written
from support.reports import M


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

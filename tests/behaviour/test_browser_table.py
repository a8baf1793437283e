"""The explorer's table of latents in a real browser: columns, order, search, filters."""

from __future__ import annotations

import math

import pytest

from support.pages import DASH, MINUS, as_on_the_page, shown, states, wait_for, written
from support.reports import M

DIGITS = {"score": 3, "lift": 3, "purity_binary": 3, "purity_weighted": 3, "n_eff": 1}


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

"""Reports of every kind in a real browser: no images or labels, hostile names, one run, very many latents."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from monoloss.evaluation.run import evaluate
from monoloss.evaluation.stored_activations import StoredActivations
from monoloss.report.page import write_report
from monoloss.report.script_files import write_script
from support.pages import wait_for
from support.reports import (
    N,
    as_written_before,
    class_members,
    grey_thumbnails,
    image_files,
    some_evaluations,
    some_models,
    some_store,
)

HOSTILE = (
    "<script>window.hacked=1</script>",
    "\"><img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    'it\'s "quoted" & {{ 7 * 7 }} ${7*7} \\u0041',
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
    "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET} 12 \N{ARABIC LETTER BEH}",
    "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{SNOWMAN}",
    "javascript:window.hacked=1",
    "<!--",
)


def test_hostile_names_are_text(visit, tmp_path):
    classes = [*HOSTILE, *(f"class {number}" for number in range(24 - len(HOSTILE)))]
    ids = [f"{row}{HOSTILE[row % len(HOSTILE)]}" for row in range(N)]
    store = some_store(tmp_path / "store", class_names=classes, ids=ids, thumbnails=grey_thumbnails())
    evaluations = some_evaluations(store)
    evaluations[0] = replace(evaluations[0], name=HOSTILE[0])
    evaluations[1] = replace(evaluations[1], name=HOSTILE[1], metadata={**evaluations[1].metadata, "store": HOSTILE[2]})
    found = write_report(evaluations, tmp_path / "report", stores=[store], title=HOSTILE[3]).parent
    page = visit.open(found, "index.html")
    page.locator("svg.main-svg").last.wait_for()
    assert page.locator("h1").inner_text() == HOSTILE[3]
    assert page.locator(".runs th a").all_inner_texts() == [HOSTILE[0], HOSTILE[1]]
    assert page.locator(".go").count() == 1
    page.locator(".runs th a").last.click()
    page.wait_for_function("() => document.querySelector('[data-side=opened]') !== null")
    assert page.locator("#run").evaluate("run => run.selectedOptions[0].text") == HOSTILE[1]
    latents = evaluations[1].latents
    latent = int((latents["dominant_class"] < len(HOSTILE)).nonzero()[0, 0])
    known = int(latents["dominant_class"][latent])
    page = visit.open(found, fragment=f"#run=run-1&latent={latent}")
    wait_for(page, latent)
    assert page.locator(f"#rows [data-latent='{latent}'] [data-column=dominant_class]").inner_text() == classes[known]
    texts = page.locator("[data-part=dominant_class] [data-side=opened] .name").all_inner_texts()
    assert texts == [classes[c] for c in evaluations[1].top_classes.classes[latent].tolist() if c >= 0]
    row = int(evaluations[1].examples.rows[latent, 0])
    shot = page.locator("[data-part=top] [data-side=opened] .shot").first
    assert shot.get_attribute("aria-label").startswith(ids[row])
    shot.hover()
    assert ids[row] in page.locator("#bubble").inner_text()
    page.locator("#search").fill(classes[known])
    assert page.locator(f"#rows [data-latent='{latent}']").count() == 1
    page.locator("#class").select_option(str(known))
    assert page.evaluate("window.hacked") is None
    assert page.locator("script:not([src])").count() == 0


@pytest.mark.parametrize(
    "names", [["run-1", "run-0"], pytest.param(["base", "undecodable \udcff"], marks=pytest.mark.slow)]
)
def test_runs_named_like_keys_or_beyond_unicode(visit, tmp_path, names):
    store = some_store(tmp_path / "store")
    evaluations = [replace(one, name=name) for one, name in zip(some_evaluations(store), names, strict=True)]
    found = write_report(evaluations, tmp_path / "report", stores=[store]).parent
    page = visit.open(found, "index.html")
    for place, key in enumerate(("run-0", "run-1")):
        page.locator(".runs th a").nth(place).click()
        page.locator("#rows [data-latent='9']").click()
        wait_for(page, 9)
        assert page.locator("#run").input_value() == key
        assert page.locator("#partner").input_value() == ("run-1" if key == "run-0" else "run-0")
        page.goto((found / "index.html").as_uri())
    page = visit.open(found, fragment="#run=gone&latent=3")
    assert page.locator("#trouble").inner_text() == f"This report has no run gone: this is {names[1]}."


def test_an_image_that_cannot_be_read_is_its_id(visit, tmp_path):
    root = tmp_path / "root"
    store = some_store(tmp_path / "store", paths=image_files(root, range(N)))
    evaluations = some_evaluations(store)
    row = int(evaluations[1].examples.rows[8, 1])
    (root / store.paths[row]).unlink()
    found = write_report(evaluations, tmp_path / "report", stores=[store], images=root, image_size=16).parent
    page = visit.open(found, fragment="#latent=8")
    wait_for(page, 8)
    shots = page.locator("[data-part=top] [data-side=opened] .shot")
    assert shots.nth(0).locator("img").count() == 1
    assert shots.nth(1).locator("img").count() == 0
    assert shots.nth(1).inner_text() == f"image-{row}"
    shots.nth(1).hover()
    assert page.locator("#bubble").inner_text().startswith(f"image-{row}")


def test_without_images_and_labels(visit, tmp_path):
    store = some_store(tmp_path / "store", labels=None)
    evaluations = some_evaluations(store)
    found = write_report(evaluations, tmp_path / "report", stores=[store]).parent
    page = visit.open(found, fragment="#latent=8")
    wait_for(page, 8)
    assert page.locator("[data-column=purity_binary], [data-column=dominant_class]").count() == 0
    assert not page.locator("#class-label").is_visible()
    assert page.locator("[data-part=dominant_class], .shot").count() == 0
    rows = [row for row in evaluations[1].examples.rows[8].tolist() if row >= 0]
    lines = page.locator("[data-part=top] [data-side=opened] li bdi").all_inner_texts()
    assert lines == [f"image-{row}" for row in rows]
    assert "data-measure=purity_binary" not in (found / "index.html").read_text(encoding="utf-8").replace('"', "")


@pytest.mark.slow
def test_several_labels_a_row(visit, tmp_path):
    store = some_store(tmp_path / "store", labels=class_members())
    evaluations = some_evaluations(store)
    found = write_report(evaluations, tmp_path / "report", stores=[store]).parent
    page = visit.open(found, fragment="#latent=8")
    wait_for(page, 8)
    row = int(evaluations[1].examples.rows[8, 0])
    labels = ", ".join(f"class {number}" for number in class_members()[row].nonzero()[:, 0].tolist())
    assert labels in page.locator("[data-part=top] [data-side=opened] li").first.inner_text()


@pytest.mark.slow
def test_one_run_of_an_older_file_without_its_store(visit, tmp_path):
    store = some_store(tmp_path / "store")
    evaluation = as_written_before(some_evaluations(store)[1])
    found = write_report([evaluation], tmp_path / "report").parent
    page = visit.open(found, fragment="#latent=8")
    wait_for(page, 8)
    assert page.locator("[data-side=match]").count() == 0
    assert not page.locator("#partner-label").is_visible()
    for part in ("middle", "bottom", "histogram", "dominant_class"):
        assert "Not kept" in page.locator(f"[data-part={part}]").inner_text()
    page = visit.open(found, "index.html")
    assert page.locator(".change").count() == 0
    assert page.locator("h2", has_text="The run").count() == 1
    assert page.locator(".runs .difference").count() == 0


@pytest.mark.slow
def test_activations_of_a_file_beside_a_sae(visit, tmp_path):
    store = some_store(tmp_path / "store")
    torch.save(torch.rand(N, 6).clamp(min=0.4) - 0.4, tmp_path / "a.pt")
    models = {"layer": StoredActivations(tmp_path / "a.pt"), **some_models({"mono": 0.1})}
    found = write_report(
        list(evaluate(store, models, n_examples=4).values()), tmp_path / "report", stores=[store]
    ).parent
    page = visit.open(found, fragment="#run=layer&latent=2")
    wait_for(page, 2)
    assert page.locator("[data-side=match]").count() == 0
    assert "this run has none" in page.locator("#alone").inner_text()
    assert "Only of SAEs" in page.locator("[data-part=similar]").inner_text()


@pytest.mark.slow
def test_twelve_runs(visit, tmp_path):
    store = some_store(tmp_path / "store")
    models = some_models({f"run {number} with quite a long name": number / 10 for number in range(12)})
    found = write_report(
        list(evaluate(store, models, n_examples=4).values()), tmp_path / "report", stores=[store]
    ).parent
    page = visit.open(found, "index.html")
    assert page.locator(".runs tbody tr:not(.group)").count() == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440


def test_a_hundred_thousand_latents_keep_few_rows_in_the_page(visit, tmp_path):
    store = some_store(tmp_path / "store", labels=None)
    found = write_report(some_evaluations(store), tmp_path / "report", stores=[store]).parent
    n = 100_000
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(n, generator=generator).double()
    columns = {name: score.tolist() for name in ("score", "lift", "n_eff", "density")}
    write_script(found / "data" / "run-1" / "columns.js", "columns", columns, key="run-1")
    runs = found / "data" / "runs.js"
    runs.write_text(runs.read_text().replace('"n_latents":24', f'"n_latents":{n}'))
    shutil.rmtree(found / "data" / "run-0")
    page = visit.open(found, fragment="#run=mono&latent=0&with=")
    wait_for(page, 0)
    page.locator("#head [data-sort=latent]").click()
    page.locator("#head [data-sort=latent]").click()
    assert page.locator("#head [data-column=latent]").get_attribute("aria-sort") == "descending"
    rows = page.locator("#rows [role=row]")
    assert rows.count() < 80
    page.locator("#body").evaluate("body => { body.scrollTop = body.scrollHeight; }")
    page.wait_for_function("() => document.querySelector('#rows [data-latent=\"0\"]') !== null")
    last = page.locator("#rows [data-latent='0']")
    assert last.get_attribute("aria-rowindex") == str(n + 1)
    assert last.locator("[data-column=score]").inner_text() == f"{float(score[0]):.3f}"
    assert rows.count() < 80


@pytest.mark.slow
def test_a_missing_file_is_named(browser, tmp_path):
    store = some_store(tmp_path / "store")
    found = write_report(some_evaluations(store), tmp_path / "report", stores=[store]).parent
    (found / "data" / "run-1" / "latents-0000.js").unlink()
    page = browser.new_page()
    page.goto(f"{(found / 'latents.html').as_uri()}#run=mono&latent=1")
    page.locator("#trouble").wait_for()
    assert "data/run-1/latents-0000.js" in page.locator("#trouble").inner_text()
    page.close()

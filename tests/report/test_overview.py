"""The pages as text: what the tables say, which published figures stand beside them, that names are only names."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation
from monoloss.report.overview import figure_text, page_files
from monoloss.report.published import PUBLISHED, VARIANTS, published_beside
from monoloss.report.runs import report_runs
from monoloss.report.terms import TERMS

IMAGENET = {"store": "imagenet-val", "n_rows": 50_000, "class_names": ["a"] * 1000, "centred": False}
CLIP = {"name": "vit_large_patch14_clip_224", "weights": "datacompxl"}
SUMMARY = {"score_mean": 0.5, "score_mean_zero_filled": 0.4, "r2": 0.8, "chance": 0.1, "n_latents": 8192.0}


def some(name="mine", weight=0.0, score=0.5, **metadata):
    latents = {"score": torch.tensor([score, torch.nan, torch.nan]), "density": torch.tensor([0.5, 0.1, 0.0])}
    metadata = {
        "model": "TopKConfig(variant='topk', n_latents=8192, k=64, tied=True, aux=AuxLoss(k=512))",
        "training": {"mono_weight": weight},
    } | metadata
    summary = SUMMARY | {"score_mean": score, "score_mean_zero_filled": score / 3}
    return Evaluation(name, metadata, summary, latents, Examples.none(3, 1))


def overview(*evaluations, figures=(), **options):
    return page_files(report_runs(list(evaluations)), figures, **options)["index.html"]


def cell(page, run, measure):
    """What is written in a cell: the figure, and the difference to the baseline."""
    found = re.search(rf'<td data-run="{run}" data-measure="{measure}"[^>]*>(.*?)</td>', page)
    return re.findall(r">([^<>]+)<", found[1])


def test_figures_as_they_are_written():
    assert [figure_text(value, ".3f") for value in (0.12345, -2.0, 1234.5)] == ["0.123", "\u22122.000", "1,234.500"]
    assert figure_text(float("inf"), ".3f") == "\u2013"
    assert figure_text(0.0000123, ".3g") == "1.23e\u221205"


def test_differences_to_the_baseline():
    page = overview(some("plain"), some("mono", 0.1, score=0.625))
    assert cell(page, "run-0", "score_mean") == ["0.500"]
    assert cell(page, "run-1", "score_mean") == ["0.625", "+0.125"]
    assert cell(page, "run-1", "r2") == ["0.800", "\u00b10"]
    assert cell(page, "run-1", "chance") == ["0.100"]
    assert "What MonoLoss changed" in page


def test_undefined_and_dead_latents_are_counted():
    page = overview(some())
    assert (cell(page, "run-0", "n_undefined"), cell(page, "run-0", "n_dead")) == (["1"], ["1"])


def test_runs_that_no_loss_sets_apart_claim_nothing():
    assert "What MonoLoss changed" not in overview(some("one", 0.1), some("two", 0.2))
    assert "Against the baseline" in overview(some("one", 0.1), some("two", 0.2))
    assert 'class="change"' not in overview(some())


def test_the_best_of_several_is_shown():
    page = overview(some("plain"), some("good", 0.1, score=0.7), some("worse", 0.2, score=0.6))
    assert re.search(r'class="go" href="latents.html#run=(\w+)"', page)[1] == "good"
    assert "with the highest" in page


def test_names_and_titles_are_escaped():
    name = "<img src=x onerror=alert(1)>\"'&"
    page = overview(some(name, store=name), title=name, figures=[("a", name, name)])
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;") >= 5
    assert "latents.html#run=%3Cimg%20src%3Dx" in page


def test_facts_that_are_equal_are_said_once():
    page = overview(some("plain", n_rows=7, width=3, store="rows"), some("mono", 0.1, n_rows=7, width=3, store="rows"))
    assert page.count("7 rows of width 3") == 1
    assert page.count("MonoLoss, weight 0.1") == 2  # below its name, and among the facts


def test_every_term_of_the_pages_is_explained():
    pages = page_files(report_runs([some()]), [])
    used = set(re.findall(r'data-term="(\w+)"', "".join(pages.values())))
    assert used <= set(TERMS)
    for script in ("latent_table.js", "latent_view.js"):
        assert set(re.findall(r'term: "(\w+)"|term\("(\w+)"\)', pages[f"assets/{script}"])) <= {
            pair for key in TERMS for pair in ((key, ""), ("", key))
        }
    for term in TERMS.values():
        assert term.explanation.endswith(".")
        assert term.explanation.count(". ") == 0


@pytest.mark.parametrize(
    ("changed", "there"),
    [
        ({}, True),
        ({"encoder": {"name": "vit_large_patch14_clip_224", "weights": "openai"}}, False),
        ({"encoder": {"name": "vit_large_patch14_clip_224", "weights": {"file": "w.pt"}}}, False),
        ({"encoder": None}, False),
        ({"n_rows": 10_000}, False),
        ({"store": "tiny-imagenet-val", "n_rows": 10_000, "class_names": ["a"] * 200}, False),
        ({"store": "places-val"}, False),
        ({"centred": True}, False),
        ({"model": "TopKConfig(variant='topk', n_latents=8192, k=32, aux=AuxLoss(k=64))"}, False),
        ({"model": "JumpReLUConfig(variant='jump_relu', n_latents=8192)"}, True),
        ({"model": "activations in a.npy"}, False),
    ],
)
def test_published_figures_stand_beside_their_own_setting_only(changed, there):
    metadata = {**IMAGENET, "encoder": CLIP} | changed
    evaluation = some(**metadata)
    assert bool(published_beside(evaluation)) == there
    page = overview(evaluation)
    assert ("paper, with MonoLoss" in page) == there
    assert "other data or models than here" in page or there


def test_published_figures_need_the_number_of_latents():
    evaluation = some(**IMAGENET, encoder=CLIP)
    assert published_beside(evaluation)["score_mean_zero_filled"] == (0.469, 0.550)
    fewer = replace(evaluation, summary={**evaluation.summary, "n_latents": 1024.0})
    assert published_beside(fewer) == {}


def test_published_table_is_whole():
    assert len(PUBLISHED) == 18
    assert all(set(pairs) == set(VARIANTS) for pairs in PUBLISHED.values())
    page = overview(some())
    assert "0.437 \u2192 0.602" in page
    assert "0.643 \u2192 0.597" in page

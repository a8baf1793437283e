"""The folder of a report: complete, self-contained, with the numbers of the evaluations."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from monoloss.errors import InputError
from monoloss.evaluation.charts.overview import TrainingCurve
from monoloss.evaluation.run import evaluate
from monoloss.functional.histogram import histogram_edges
from monoloss.report.page import write_report
from support.reports import (
    M,
    N,
    as_written_before,
    cell_of,
    class_members,
    grey_thumbnails,
    image_files,
    page_data,
    some_evaluations,
    some_models,
    some_store,
)
from support.stores import ODD_IDS, everything_in

HOSTILE = [
    '"><script>alert(1)</script>',
    "emoji 👩‍👩‍👧",
    "שלום \u202e",
    "undecodable \udcff",
    "line\u2028end",
    "'`${x}",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return some_store(tmp_path_factory.mktemp("page") / "val", thumbnails=grey_thumbnails())


@pytest.fixture(scope="module")
def evaluations(store):
    return some_evaluations(store)


@pytest.fixture(scope="module")
def folder(store, evaluations, tmp_path_factory) -> Path:
    """A report of two runs with labels, images and curves."""
    out = tmp_path_factory.mktemp("report") / "out"
    curves = [TrainingCurve("base", "loss", [0, 10], [2.0, 1.0])]
    page = write_report(evaluations, out, stores=[store], curves=curves, title="A <title>")
    assert page == out / "index.html"
    return out


def test_nothing_is_loaded_from_elsewhere(folder):
    """Every file that a page names is there, below the folder; the browser tests see what scripts load."""
    for page in ("index.html", "latents.html"):
        text = (folder / page).read_text(encoding="utf-8")
        assert "A &lt;title&gt;" in text
        for name in re.findall(r"(?:src|href)=\"([^\"#]*)", text):
            if name and not name.startswith(("latents.html", "index.html", "https://arxiv.org/", "data:")):
                assert (folder / name).is_file(), name
        for element in re.findall(r"<(?:script|link|img|iframe)[^>]*>", text):
            assert "//" not in element


def test_one_file_for_many_rows(folder):
    names = everything_in(folder)
    assert {"data/figures.js", "data/runs.js", "assets/plotly.min.js", "images/store-0/sheet-0000.webp"} <= set(names)
    assert {"data/run-1/columns.js", "data/run-1/latents-0000.js", "data/store-0/items-0000.js"} <= set(names)
    assert len([name for name in names if (folder / name).is_file()]) < 30


def test_runs_and_stores(folder, evaluations, store):
    data = page_data(folder)
    for number, (run, evaluation) in enumerate(zip(data["runs"], evaluations, strict=True)):
        expected = {
            "key": f"run-{number}",
            "name": evaluation.name,
            "group": "TopK",
            "baseline": evaluation.name == "base",
            "store": "store-0",
            "n_latents": M,
            "n_alive": evaluation.summary["n_alive"],
            "chance": pytest.approx(evaluation.summary["chance"], rel=1e-5),
            "block": 256,
            "has_decoder": True,
            "has_labels": True,
            "multi_label": False,
        }
        assert {key: run[key] for key in expected} == expected
        assert ["Model", "TopK, 24 latents, k = 3"] in run["facts"]
        assert run["columns"] == list(data["columns"][run["key"]])
    (one,) = data["stores"].values()
    items = data["items"]["store-0/0"]
    assert one | {"n_items": len(items)} == {
        "name": "val",
        "n_items": one["n_items"],
        "n_rows": N,
        "per_sheet": 256,
        "sheet_columns": 16,
        "sheet_suffix": "webp",
        "cell": 64,
        "class_names": store.class_names,
        "multi_label": False,
        "missing": [],
    }
    assert data["histogram_edges"] == pytest.approx(histogram_edges().tolist(), rel=1e-5)
    assert data["terms"]["score"].keys() == {"label", "explanation"}
    assert {figure["id"] for figure in data["figures"]} >= {"score", "training"}
    assert all(figure["figure"].keys() >= {"data", "layout"} for figure in data["figures"])


def test_items_are_the_rows_of_the_store(folder, store):
    data = page_data(folder)
    labels = store.labels().tolist()
    for item, (name, classes, row) in enumerate(data["items"]["store-0/0"]):
        assert (name, classes) == (store.ids[row], [labels[row]])
        cell = cell_of(folder, data["stores"]["store-0"], "store-0", item)
        assert cell.shape == (64, 64, 3)
        assert np.abs(cell.astype(int) - (2 * row + 10)).max() <= 6


def test_a_shown_latent_leads_to_its_rows(folder, evaluations):
    data = page_data(folder)
    rows = [row for _, _, row in data["items"]["store-0/0"]]
    for number, evaluation in enumerate(evaluations):
        for latent, shown in enumerate(data["blocks"][f"run-{number}/0"]):
            expected = [row for row in evaluation.examples.rows[latent].tolist() if row >= 0]
            assert [rows[item] for item, _ in shown["top"]] == expected


@pytest.mark.parametrize("with_store", [True, False])
def test_without_images_or_the_store_itself(tmp_path, with_store):
    store = some_store(tmp_path / "val")
    write_report(some_evaluations(store), tmp_path / "out", stores=[store] if with_store else [])
    data = page_data(tmp_path / "out")
    assert data["stores"]["store-0"]["cell"] is None
    assert data["stores"]["store-0"]["class_names"] == store.class_names
    assert data["stores"]["store-0"]["n_rows"] == N
    assert not (tmp_path / "out" / "images").exists()
    for name, labels, row in data["items"]["store-0/0"]:
        assert name == (store.ids[row] if with_store else f"row {row}")
        assert labels == ([int(store.labels()[row])] if with_store else [])


def test_without_labels(tmp_path):
    store = some_store(tmp_path / "val", labels=None)
    write_report(some_evaluations(store), tmp_path / "out", stores=[store])
    data = page_data(tmp_path / "out")
    assert data["stores"]["store-0"]["class_names"] is None
    assert [run["has_labels"] for run in data["runs"]] == [False, False]
    assert data["runs"][0]["columns"] == ["score", "lift", "n_eff", "density"]
    assert all(labels == [] for _, labels, _ in data["items"]["store-0/0"])


@pytest.mark.parametrize("block", [2**24, 24 * 7])
def test_several_labels_a_row(tmp_path, monkeypatch, block):
    monkeypatch.setattr("monoloss.report.page._BLOCK_LABELS", block)
    members = class_members()
    store = some_store(tmp_path / "val", labels=members)
    write_report(some_evaluations(store), tmp_path / "out", stores=[store])
    data = page_data(tmp_path / "out")
    assert [run["multi_label"] for run in data["runs"]] == [True, True]
    assert data["stores"]["store-0"]["multi_label"] is True
    for _, labels, row in data["items"]["store-0/0"]:
        assert labels == members[row].nonzero().flatten().tolist()


def test_one_run_of_an_older_version(tmp_path, evaluations):
    write_report([as_written_before(evaluations[1])], tmp_path / "out")
    (run,) = page_data(tmp_path / "out")["runs"]
    assert (run["baseline"], run["has_decoder"], run["has_labels"]) == (True, False, True)


def test_runs_on_two_stores(tmp_path, store, evaluations):
    other = some_store(tmp_path / "other", ids=None)
    more = evaluate(other, some_models({"m48": 0.1}, m=48), n_examples=2)["m48"]
    write_report([*evaluations, more], tmp_path / "out", stores=[store, other], image_size=16)
    data = page_data(tmp_path / "out")
    assert [run["store"] for run in data["runs"]] == ["store-0", "store-0", "store-1"]
    assert [data["stores"][key]["cell"] for key in ("store-0", "store-1")] == [16, None]
    assert all(shown["matches"] == {} for shown in data["blocks"]["run-2/0"])
    assert {name for name, _, _ in data["items"]["store-1/0"]} <= {str(row) for row in range(N)}


def test_images_from_a_folder(tmp_path):
    store = some_store(tmp_path / "val", paths=image_files(tmp_path / "root", range(N)), thumbnails=grey_thumbnails())
    (tmp_path / "root" / "some" / "3.png").unlink()
    write_report(some_evaluations(store), tmp_path / "out", stores=[store], images=tmp_path / "root", image_size=32)
    data = page_data(tmp_path / "out")
    items = data["items"]["store-0/0"]
    missing = [item for item, (_, _, row) in enumerate(items) if row == 3]
    assert len(missing) == 1
    assert data["stores"]["store-0"]["missing"] == missing
    overview = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert f"1 of {len(items)} images of val cannot be read" in overview
    for item, (_, _, row) in enumerate(items):
        expected = 128 if row == 3 else 2 * row + 10
        assert np.abs(cell_of(tmp_path / "out", data["stores"]["store-0"], "store-0", item).mean() - expected) <= 6


def test_an_image_root_without_images(tmp_path):
    paths = image_files(tmp_path / "root", range(N))
    store = some_store(tmp_path / "val", paths=paths, image_root=str(tmp_path / "root"))
    for path in paths:
        (tmp_path / "root" / path).unlink()
    write_report(some_evaluations(store), tmp_path / "out", stores=[store])
    assert page_data(tmp_path / "out")["stores"]["store-0"]["cell"] is None


@pytest.mark.door
def test_images_that_are_not_there_are_refused(tmp_path):
    store = some_store(tmp_path / "val", paths=image_files(tmp_path / "root", range(N)))
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="without an image of this report"):
        write_report(some_evaluations(store), tmp_path / "out", stores=[store], images=tmp_path / "other")
    assert not (tmp_path / "out").exists()


def test_hostile_names_are_data(tmp_path):
    texts = [*HOSTILE, *ODD_IDS]
    ids = [f"{texts[row % len(texts)]} {row}" for row in range(N)]
    store = some_store(
        tmp_path / "val", ids=ids, class_names=[f"{text} {n}" for n, text in enumerate(texts + texts[:8])]
    )
    (evaluation, _) = some_evaluations(store, n_examples=4)
    write_report([replace(evaluation, name=text) for text in texts], tmp_path / "out", stores=[store], title=texts[0])
    data = page_data(tmp_path / "out")
    assert [run["name"] for run in data["runs"]] == texts
    assert data["stores"]["store-0"]["class_names"] == store.class_names
    assert all(name == ids[row] for name, _, row in data["items"]["store-0/0"])
    for page in ("index.html", "latents.html"):
        text = (tmp_path / "out" / page).read_text(encoding="utf-8")
        assert "&lt;script&gt;alert" in text
        assert "<script>alert" not in text


def test_a_model_that_is_dead_throughout(tmp_path, store, evaluations):
    dead = evaluations[0]
    none = torch.full_like(dead.latents["score"], math.nan)
    latents = {**dead.latents, "score": none, "lift": none, "density": torch.zeros_like(none)}
    rows = replace(dead.examples, rows=torch.full_like(dead.examples.rows, -1))
    dead = replace(
        dead,
        latents=latents,
        summary=dict.fromkeys(dead.summary, math.nan) | {"n_latents": 24.0, "n_alive": 0.0},
        examples=rows,
        middle_examples=rows,
        bottom_examples=rows,
    )
    write_report([dead], tmp_path / "out", stores=[store])
    data = page_data(tmp_path / "out")
    assert data["stores"]["store-0"]["n_items"] == 0
    assert "items" not in data
    assert data["runs"][0]["n_alive"] == 0
    assert data["runs"][0]["chance"] is None
    assert data["blocks"]["run-0/0"][0]["top"] == []


def test_same_evaluations_same_bytes_and_an_earlier_report_is_replaced(tmp_path, store, evaluations):
    write_report(evaluations, tmp_path / "one", stores=[store])
    (tmp_path / "one" / "images" / "stray.txt").touch()
    write_report(evaluations, tmp_path / "one", stores=[store])
    write_report(evaluations, tmp_path / "two", stores=[store])
    assert everything_in(tmp_path / "one") == everything_in(tmp_path / "two")
    for name in everything_in(tmp_path / "two"):
        if (tmp_path / "two" / name).is_file():
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_an_error_on_the_way_leaves_the_earlier_report(tmp_path, store, evaluations, monkeypatch):
    write_report(evaluations, tmp_path / "out", stores=[store])
    before = everything_in(tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("monoloss.report.page.write_latents", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(evaluations, tmp_path / "out", stores=[store])
    assert everything_in(tmp_path) == before


@pytest.mark.door
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 7}, "image_size: got 7"),
        ({"image_size": 257}, "image_size: got 257"),
        ({"baseline": "x"}, "baseline: got 'x'; expected one of base, mono"),
        ({"images": "."}, "images: got . for stores without paths"),
    ],
)
def test_refused_before_anything_is_written(tmp_path, store, evaluations, options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        write_report(evaluations, tmp_path / "out", stores=[store], **options)
    assert everything_in(tmp_path) == []


@pytest.mark.door
def test_a_report_with_files_of_the_user_is_left_alone(tmp_path, evaluations):
    write_report(evaluations, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").touch()
    before = everything_in(tmp_path)
    with pytest.raises(InputError, match="holds something else"):
        write_report(evaluations, tmp_path / "out")
    assert everything_in(tmp_path) == before


@pytest.mark.door
def test_not_within_an_evaluation(tmp_path, evaluations):
    evaluations[0].save(tmp_path / "base")
    with pytest.raises(InputError, match="within an evaluation"):
        write_report(evaluations, tmp_path / "base" / "report")
    assert everything_in(tmp_path / "base") == ["evaluation.json", "latents.safetensors"]


@pytest.mark.door
def test_a_folder_with_something_else_is_left_alone(tmp_path, evaluations):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(InputError, match="an earlier report's"):
        write_report(evaluations, tmp_path / "out")
    assert everything_in(tmp_path) == ["out", "out/thesis.txt"]

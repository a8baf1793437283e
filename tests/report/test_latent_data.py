"""What the explorer reads of each latent, against the evaluation that it comes from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from monoloss.evaluation.run import evaluate
from monoloss.evaluation.similar import closest_matches, similar_latents
from monoloss.evaluation.stored_activations import StoredActivations
from monoloss.report.latent_data import COLUMNS, matched_runs, shown_rows, write_latents
from monoloss.report.runs import report_runs
from support.reports import M, N, as_written_before, page_data, some_evaluations, some_models, some_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return some_store(tmp_path_factory.mktemp("latents") / "val")


@pytest.fixture(scope="module")
def evaluations(store):
    return some_evaluations(store)


def written(folder, runs, number=0, advance=lambda _: None):
    items = shown_rows([run.evaluation for run in runs])
    write_latents(folder / "data", runs[number], runs, items, advance)
    return page_data(folder), items.tolist()


def close(number, expected):
    return number == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_columns_are_those_of_the_evaluation(evaluations, tmp_path):
    runs = report_runs(evaluations)
    columns = written(tmp_path, runs, 1)[0]["columns"]["run-1"]
    assert list(columns) == list(COLUMNS)
    for name, values in columns.items():
        for value, expected in zip(values, evaluations[1].latents[name].tolist(), strict=True):
            undefined = math.isnan(expected) or (name == "dominant_class" and expected == -1)
            assert value is None if undefined else close(value, expected)
    assert None in columns["score"]  # some of these latents are dead
    assert None in columns["dominant_class"]


def test_each_latent_shows_what_the_evaluation_kept(evaluations, tmp_path):
    runs = report_runs(evaluations)
    data, items = written(tmp_path, runs)
    block, one = data["blocks"]["run-0/0"], evaluations[0]
    assert len(block) == M
    assert items == sorted(set(items))
    for latent, shown in enumerate(block):
        for name, kept in (
            ("top", one.examples),
            ("middle", one.middle_examples),
            ("bottom", one.bottom_examples),
        ):
            expected = [
                (row, value)
                for row, value in zip(kept.rows[latent].tolist(), kept.values[latent].tolist(), strict=True)
                if row >= 0
            ]
            assert [items[item] for item, _ in shown[name]] == [row for row, _ in expected]
            assert close([value for _, value in shown[name]], [value for _, value in expected])
        counts = one.histogram[latent].tolist()
        assert shown["histogram"] == [[number, count] for number, count in enumerate(counts) if count]
        classes, of_each = one.top_classes.classes[latent].tolist(), one.top_classes.counts[latent].tolist()
        assert shown["classes"] == [[c, n] for c, n in zip(classes, of_each, strict=True) if c >= 0]


def test_similar_latents_and_matches(evaluations, tmp_path):
    runs = report_runs(evaluations)
    block = written(tmp_path, runs)[0]["blocks"]["run-0/0"]
    found, matches = similar_latents(evaluations[0], 8), closest_matches(evaluations[0], evaluations[1])
    for latent, shown in enumerate(block):
        assert [other for other, _ in shown["similar"]] == found.latents[latent].tolist()
        assert close([cosine for _, cosine in shown["similar"]], found.cosines[latent].tolist())
        assert shown["matches"].keys() == {"run-1"}
        assert shown["matches"]["run-1"][0] == matches.latents[latent]
        assert close(shown["matches"]["run-1"][1], float(matches.cosines[latent]))


def test_blocks_of_256(store, tmp_path):
    torch.save(torch.rand(N, 600), tmp_path / "codes.pt")
    (evaluation,) = evaluate(store, {"codes": StoredActivations(tmp_path / "codes.pt")}, n_examples=1).values()
    done = []
    data, items = written(tmp_path, report_runs([evaluation]), advance=done.append)
    assert done == [256, 256, 88]
    assert {key: len(block) for key, block in data["blocks"].items()} == {"run-0/0": 256, "run-0/1": 256, "run-0/2": 88}
    for latent in (0, 255, 256, 599):
        shown = data["blocks"][f"run-0/{latent // 256}"][latent % 256]
        assert items[shown["top"][0][0]] == evaluation.examples.rows[latent, 0]
        assert shown["similar"] is None
        assert shown["matches"] == {}


def test_what_an_older_file_lacks_is_null(evaluations, tmp_path):
    runs = report_runs([as_written_before(evaluations[0]), evaluations[1]])
    block = written(tmp_path, runs)[0]["blocks"]["run-0/0"]
    for shown in block:
        assert [shown[name] for name in ("middle", "bottom", "histogram", "classes", "similar")] == [None] * 5
        assert shown["matches"] == {}
        assert isinstance(shown["top"], list)


def test_without_labels_there_are_no_classes(tmp_path):
    data, _ = written(tmp_path, report_runs(some_evaluations(some_store(tmp_path / "bare", labels=None))))
    assert list(data["columns"]["run-0"]) == ["score", "lift", "n_eff", "density"]
    assert all(shown["classes"] is None for shown in data["blocks"]["run-0/0"])


def test_only_shown_rows_and_each_once(evaluations):
    rows = shown_rows(evaluations).tolist()
    kept = [e for one in evaluations for e in (one.examples, one.middle_examples, one.bottom_examples)]
    assert rows == sorted({row for examples in kept for row in examples.rows.flatten().tolist()} - {-1})
    none = [replace(one.examples, rows=torch.full_like(one.examples.rows, -1)) for one in evaluations]
    old = [replace(as_written_before(one), examples=none[0]) for one in evaluations]
    assert shown_rows(old).tolist() == []


def test_matches_are_of_the_same_rows_and_width_and_the_own_group_first(store, tmp_path):
    models = some_models({f"t{number}": 0.1 for number in range(5)} | {"base": 0.0})
    others = some_models({f"v{number}": 0.1 for number in range(5)} | {"vbase": 0.0}, "vanilla")
    evaluations = list(evaluate(store, others | models, n_examples=1).values())
    (elsewhere,) = evaluate(some_store(tmp_path / "other", ids=None), {"x": models["t0"]}, n_examples=1).values()
    narrow = replace(evaluations[0], name="narrow", decoder_directions=evaluations[0].decoder_directions[:, :9])
    runs = report_runs([*evaluations, elsewhere, narrow, replace(as_written_before(evaluations[0]), name="old")])
    by_name = {run.name: run for run in runs}
    assert [run.name for run in matched_runs(runs, by_name["t1"])] == [
        "base", "t0", "t2", "t3", "t4", "vbase", "v0", "v1",
    ]  # fmt: skip
    for name in ("x", "narrow", "old"):
        assert matched_runs(runs, by_name[name]) == []

"""Which runs are compared with which, and how their groups are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monoloss.errors import InputError
from monoloss.evaluation.run import evaluate
from monoloss.evaluation.stored_activations import StoredActivations
from monoloss.report.runs import baseline_of, report_runs
from support.evaluations import tensors_of
from support.reports import N, evaluated, renamed, some_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return some_store(tmp_path_factory.mktemp("runs") / "val")


def test_the_one_without_monoloss_is_the_baseline_of_its_kind(store):
    evaluations = evaluated(store, {"strong": 0.2, "none": 0.0, "weak": 0.1}) + evaluated(store, {"v": 0.1}, "vanilla")
    runs = report_runs(evaluations, [store])
    assert [run.key for run in runs] == ["run-0", "run-1", "run-2", "run-3"]
    assert [run.group for run in runs] == ["TopK", "TopK", "TopK", "Vanilla"]
    assert [run.is_baseline for run in runs] == [False, True, False, True]
    assert [baseline_of(runs, run) for run in runs] == [runs[1], None, runs[1], None]
    assert {run.store for run in runs} == {store}


def test_a_chosen_baseline_comes_first_and_only_in_its_group(store):
    evaluations = evaluated(store, {"none": 0.0, "weak": 0.1}) + evaluated(store, {"b": 0.0, "bm": 0.1}, "batch_topk")
    runs = report_runs(evaluations, baseline="weak")
    assert [run.name for run in runs if run.is_baseline] == ["weak", "b"]
    assert {run.store for run in runs} == {None}


def test_groups_are_named_as_short_as_tells_them_apart(store):
    small, large = evaluated(store, {"s": 0.0}), evaluated(store, {"l": 0.0}, m=48)
    tied = evaluated(store, {"t": 0.0}, "topk_tied")
    groups = [run.group for run in report_runs([*small, *large, *tied])]
    assert groups == ["TopK, 24 latents, k = 3", "TopK, 48 latents, k = 3", "TopK, tied"]
    other = renamed(small[0], "o", store="train", store_fingerprint="x")
    centred = renamed(small[0], "c", centred=True)
    twin = renamed(small[0], "w", store_fingerprint="y")
    groups = [run.group for run in report_runs([*small, other, centred, twin])]
    kind = "TopK, 24 latents, k = 3"
    assert groups[1:3] == [f"{kind}, train", f"{kind}, val, centred"]
    assert len(set(groups)) == 4
    assert groups[0].startswith(f"{kind}, val (")
    keys = [run.store_key for run in report_runs([*small, other, centred, twin])]
    assert keys == ["store-0", "store-1", "store-0", "store-2"]


def test_models_that_are_no_saes_are_one_group(store, tmp_path):
    files = {}
    for name, m in (("a", 5), ("b", 7)):
        torch.save(torch.rand(N, m), tmp_path / f"{name}.pt")
        files[name] = StoredActivations(tmp_path / f"{name}.pt")
    runs = report_runs(list(evaluate(store, files, n_examples=2).values()))
    assert [(run.group, run.is_baseline) for run in runs] == [("Other models", True), ("Other models", False)]
    metadata = dict(runs[1].metadata)
    assert metadata["Model"] == "activations in b.pt, 7 latents"
    assert "Loss" not in metadata
    assert dict(runs[0].metadata)["Data"] == "val, 90 rows of width 32"


def test_nothing_is_lost_on_the_way_to_the_cpu(store):
    (evaluation,) = evaluated(store, {"one": 0.1})
    (run,) = report_runs([evaluation])
    before, after = tensors_of(evaluation), tensors_of(run.evaluation)
    assert before.keys() == after.keys()
    assert len(before) > 8
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name])
    assert run.evaluation.latents.keys() == evaluation.latents.keys()


@pytest.mark.door
def test_refused(store):
    one, other = evaluated(store, {"one": 0.0, "other": 0.1})
    with pytest.raises(InputError, match="evaluations: got none"):
        report_runs([])
    with pytest.raises(InputError, match="2 with the name 'one'"):
        report_runs([one, replace(other, name="one")])
    with pytest.raises(InputError, match="baseline: got 'two'; expected one of one, other"):
        report_runs([one, other], baseline="two")

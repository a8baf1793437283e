"""Which evaluations, stores and logs the folders mean that a user names."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.report.discovery import LocatedEvaluation, find_evaluations, find_stores, training_curves
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.run import train_saes
from support.reports import some_evaluations, some_store
from support.saes import some_config


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two runs with evaluations of two SAEs each, in runs/a and runs/b, on the store "val" beside them."""
    folder = tmp_path_factory.mktemp("place")
    evaluations = some_evaluations(some_store(folder / "val"))
    for run in ("a", "b"):
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "config.yaml").touch()
        for evaluation in evaluations:
            evaluation.save(folder / "runs" / run / "evaluations" / evaluation.name)
    evaluations[0].save(folder / "loose" / "alone")
    (folder / "empty").mkdir()
    (folder / "runs" / ".trash").mkdir()
    evaluations[0].save(folder / "runs" / ".trash" / "evaluations" / "old")
    return folder


def names(found: list[LocatedEvaluation]) -> list[str]:
    return [one.evaluation.name for one in found]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["runs/a"], ["base", "mono"]),
        (["runs/a/evaluations"], ["base", "mono"]),
        (["runs/b/evaluations/mono"], ["mono"]),
        (["runs"], ["a-base", "a-mono", "b-base", "b-mono"]),
        (["runs/a", "runs/a/evaluations/mono"], ["base", "mono"]),
        (["loose", "runs/a"], ["loose-base", "a-base", "mono"]),
        (["runs/b/evaluations/mono", "runs/a"], ["b-mono", "base", "a-mono"]),
    ],
)
def test_each_kind_of_folder(place, monkeypatch, paths, expected):
    monkeypatch.chdir(place)
    assert names(find_evaluations(paths)) == expected


def test_names_that_stay_equal_are_numbered(place, tmp_path):
    for parent in ("one", "two"):
        shutil.copytree(place / "runs" / "a", tmp_path / parent / "run")
    found = names(find_evaluations([tmp_path / "one" / "run", tmp_path / "two" / "run"]))
    assert found == ["run-base", "run-mono", "run-base (2)", "run-mono (2)"]


@pytest.mark.door
@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere", "no such folder"), ("empty", "no evaluation"), ("runs/a/config.yaml", "a file"), (None, "none")],
)
def test_nothing_to_show(place, monkeypatch, path, words):
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match=words):
        find_evaluations([] if path is None else ["runs/a", path])


@pytest.mark.door
def test_a_damaged_evaluation_is_named(place, tmp_path):
    shutil.copytree(place / "runs" / "a", tmp_path / "run")
    (tmp_path / "run" / "evaluations" / "mono" / "latents.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"mono.latents\.safetensors"):
        find_evaluations([tmp_path / "run"])


def test_the_store_is_found_where_it_was(place):
    (store,) = find_stores(find_evaluations([place / "runs"]))
    assert store.folder == place / "val"


def moved(place: Path, folder: Path) -> list[LocatedEvaluation]:
    shutil.copytree(place / "runs" / "a", folder / "run")
    found = find_evaluations([folder / "run"])
    return [
        replace(one, evaluation=replace(one.evaluation, metadata=one.evaluation.metadata | {"store_folder": "../gone"}))
        for one in found
    ]


def test_a_store_that_is_gone_is_found_where_the_user_says_or_in_the_run(place, tmp_path):
    found = moved(place, tmp_path)
    assert find_stores(found) == []
    shutil.copytree(place / "val", tmp_path / "new" / "place")
    assert [store.folder for store in find_stores(found, [tmp_path / "new" / "place"])] == [tmp_path / "new" / "place"]
    shutil.move(tmp_path / "new", tmp_path / "run" / "stores")
    (store,) = find_stores(found)
    assert store.folder == tmp_path / "run" / "stores" / "place"


def test_a_path_from_the_evaluation_on_is_followed(place, tmp_path):
    found = moved(place, tmp_path)
    shutil.copytree(place / "val", tmp_path / "run" / "evaluations" / "gone")
    assert [store.folder.resolve() for store in find_stores(found)] == [tmp_path / "run" / "evaluations" / "gone"]


def test_another_store_in_its_place_is_not_taken(place, tmp_path):
    found = moved(place, tmp_path)
    some_store(tmp_path / "run" / "evaluations" / "gone", ids=None)
    (tmp_path / "run" / "stores").mkdir()
    assert find_stores(found) == []


def test_a_damaged_store_is_as_good_as_gone(place, tmp_path):
    found = moved(place, tmp_path)
    shutil.copytree(place / "val", tmp_path / "run" / "evaluations" / "gone")
    (tmp_path / "run" / "evaluations" / "gone" / "shard-00000.jsonl").unlink()
    assert find_stores(found) == []


@pytest.mark.door
def test_a_given_store_must_be_one_of_theirs(place, tmp_path):
    other = some_store(tmp_path / "other", ids=None)
    with pytest.raises(InputError, match="other, on which no evaluation was made"):
        find_stores(find_evaluations([place / "runs" / "a"]), [other.folder])


def test_curves_of_a_resumed_run(place, tmp_path):
    shutil.copytree(place / "runs" / "a", tmp_path / "run")
    logs = {
        "version_0": "mono/loss,mono/score,mo/loss,step,epoch\n3.0,,9,0,0\n2.0,0.5,9,10,0\n7.0,,9,20,0\n",
        "version_2": "mono/loss,mono/score,step\n1.5,0.625,20\n",
        "version_10": "mono/loss,step,mono/val_score\n,20,0.75\n1.25,30,\n",
    }
    for version, text in logs.items():
        (tmp_path / "run" / "logs" / version).mkdir(parents=True)
        (tmp_path / "run" / "logs" / version / "metrics.csv").write_text(text, encoding="utf-8")
    base, mono = (replace(one) for one in find_evaluations([tmp_path / "run"]))
    assert training_curves(base) == []
    renamed = replace(mono, evaluation=replace(mono.evaluation, name="run-mono"))
    assert [tuple(curve) for curve in training_curves(renamed)] == [
        ("run-mono", "loss", [0, 10, 20, 30], [3.0, 2.0, 1.5, 1.25]),
        ("run-mono", "score", [10, 20], [0.5, 0.625]),
        ("run-mono", "val_score", [20], [0.75]),
    ]


def test_what_training_writes_is_found(tmp_path):
    store = some_store(tmp_path / "stores" / "all")
    saes = {"base": SaeTraining(some_config("topk")), "mono": SaeTraining(some_config("topk"), mono_weight=0.1)}
    config = TrainingConfig(saes, batch_size=30, epochs=2, log_every_steps=2)
    train_saes(store, config, tmp_path / "run", validation=FeatureStore(store.folder), progress=False)
    found = find_evaluations([tmp_path / "run"])
    assert names(found) == ["base", "mono"]
    for one in found:
        curves = {curve.measure: curve for curve in training_curves(one)}
        assert {"loss", "score", "explained_variance", "l0", "dead"} <= set(curves)
        assert list(curves["loss"].steps) == [1, 3, 5]
        assert one.evaluation.metadata["training"]["mono_weight"] == (0.1 if one.sae == "mono" else 0)
    metadata = {key: value for key, value in found[0].evaluation.metadata.items() if key != "store_folder"}
    bare = replace(found[0], evaluation=replace(found[0].evaluation, metadata=metadata))
    assert [one.folder for one in find_stores([bare])] == [store.folder]  # as the run's configuration says


def test_the_run_of_an_evaluation_elsewhere_is_that_of_its_sae(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "saes" / "mono").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    (one,) = find_evaluations([place / "runs" / "a" / "evaluations" / "mono"])
    metadata = one.evaluation.metadata | {"source": "run/saes/mono"}
    replace(one.evaluation, metadata=metadata).save(tmp_path / "out" / "mine")
    (found,) = find_evaluations([tmp_path / "out"])
    assert (found.run, found.sae) == ((tmp_path / "run").resolve(), "mono")

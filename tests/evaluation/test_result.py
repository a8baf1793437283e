"""Evaluations as files: what is written comes back, and nothing else is overwritten."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monoloss.errors import InputError
from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import EVALUATION_FILE, LATENTS, Evaluation
from support.evaluations import tensors_of


@pytest.fixture
def evaluation() -> Evaluation:
    nan = math.nan
    return Evaluation(
        "mono, paper's 3e-4 / ü",
        {"n_rows": 10, "class_names": ["a", "b"], "centred": False, "store_fingerprint": "00ff"},
        {"score_mean": 1 / 3, "lift_mean": nan, "n_latents": 3.0, "l0": 0.1},
        {
            "score": torch.tensor([0.1, nan, 1 / 3], dtype=torch.float64),
            "dominant_class": torch.tensor([1, -1, 0]),
            "density": torch.tensor([[0.5, 7.0], [0.0, 7.0], [1.0, 7.0]], dtype=torch.float64)[:, 0],  # not contiguous
        },
        Examples(
            torch.tensor([[3, 1], [-1, -1], [0, -1]]),
            torch.tensor([[2.0, 0.1], [0.0, 0.0], [5.0, 0.0]], dtype=torch.float64),
        ),
    )


PARTS = ("middle_examples", "bottom_examples", "histogram", "top_classes", "decoder_directions")
FILE_NAMES = {
    "middle_rows", "middle_values", "bottom_rows", "bottom_values", "histogram", "top_classes", "top_class_counts",
    "decoder_directions",
}  # fmt: skip


@pytest.fixture
def full(evaluation: Evaluation) -> Evaluation:
    """With all that a report shows; none of it contiguous."""
    rows = torch.tensor([[3, -1, 0], [1, -1, -1]])
    values = torch.tensor([[0.1, 0.0, 5.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    return replace(
        evaluation,
        middle_examples=Examples(rows.t(), values.t()),
        bottom_examples=Examples((rows + 1).t(), (values + 1).t()),
        histogram=torch.arange(240).reshape(80, 3).t(),
        top_classes=TopClasses(rows.t(), (rows + 2).t()),
        decoder_directions=(torch.arange(12) / 7).half().reshape(4, 3).t(),
    )


def assert_same(one: Evaluation, other: Evaluation) -> None:
    assert (one.name, dict(one.metadata)) == (other.name, dict(other.metadata))
    assert list(one.summary) == list(other.summary)
    for key, value in one.summary.items():
        assert value == other.summary[key] or (math.isnan(value) and math.isnan(other.summary[key]))
    assert set(one.latents) == set(other.latents)
    for key, column in one.latents.items():
        assert column.dtype == other.latents[key].dtype
        assert torch.equal(column.nan_to_num(-9.0), other.latents[key].nan_to_num(-9.0))
    parts, expected = tensors_of(one), tensors_of(other)
    assert set(parts) == set(expected)
    for name, part in expected.items():
        assert parts[name].dtype == part.dtype
        assert torch.equal(parts[name], part), name


def test_round_trip(evaluation, tmp_path):
    folder = evaluation.save(tmp_path / "run" / "evaluations" / "mono")
    assert folder == tmp_path / "run" / "evaluations" / "mono"
    assert_same(Evaluation.load(folder), evaluation)
    assert_same(Evaluation.load(str(folder)), evaluation)
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "latents.safetensors"}
    assert [path.name for path in folder.parent.iterdir()] == ["mono"]  # nothing temporary is left


def test_what_the_files_hold(evaluation, tmp_path):
    folder = evaluation.save(tmp_path / "e")
    written = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    assert written["format_version"] == 1
    assert written["name"] == evaluation.name
    assert written["facts"] == dict(evaluation.metadata)
    assert written["summary"] == {"score_mean": 1 / 3, "lift_mean": None, "n_latents": 3.0, "l0": 0.1}
    columns = load_file(folder / LATENTS)
    assert set(columns) == {"score", "dominant_class", "density", "example_rows", "example_values"}


def test_what_a_report_shows_comes_back(full, tmp_path):
    folder = full.save(tmp_path / "full")
    assert_same(Evaluation.load(folder), full)
    columns = load_file(folder / LATENTS)
    assert set(columns) == {"score", "dominant_class", "density", "example_rows", "example_values"} | FILE_NAMES
    assert columns["decoder_directions"].dtype == torch.float16


def test_files_of_an_earlier_version_lack_it(full, evaluation, tmp_path):
    """They hold the columns and the most active rows only, and are read all the same."""
    folder = full.save(tmp_path / "e")
    columns = load_file(folder / LATENTS)
    save_file({name: column for name, column in columns.items() if name not in FILE_NAMES}, folder / LATENTS)
    loaded = Evaluation.load(folder)
    assert_same(loaded, evaluation)
    assert all(getattr(loaded, name) is None for name in PARTS)
    assert_same(Evaluation.load(loaded.save(tmp_path / "again")), evaluation)


@pytest.mark.parametrize("name", sorted(FILE_NAMES - {"histogram", "decoder_directions"}))
@pytest.mark.door
def test_half_of_a_pair_is_a_damaged_file(full, tmp_path, name):
    folder = full.save(tmp_path / "e")
    columns = load_file(folder / LATENTS)
    del columns[name]
    save_file(columns, folder / LATENTS)
    with pytest.raises(InputError) as caught:
        Evaluation.load(folder)
    assert (
        str(caught.value)
        == f"{folder / LATENTS}: got an unreadable file ('{name}'); expected the files of an evaluation"
    )


def test_replaces_an_earlier_evaluation(evaluation, tmp_path):
    folder = evaluation.save(tmp_path / "e")
    second = replace(evaluation, name="second", summary={"l0": math.nan}, latents={"score": torch.zeros(3)})
    second.save(folder)
    assert_same(Evaluation.load(folder), second)
    (tmp_path / "empty").mkdir()
    assert_same(Evaluation.load(second.save(tmp_path / "empty")), second)


def test_a_second_save_that_fails_leaves_the_first(evaluation, tmp_path):
    folder = evaluation.save(tmp_path / "e")
    with pytest.raises(InputError):
        replace(evaluation, summary={"l0": math.inf}).save(folder)
    assert_same(Evaluation.load(folder), evaluation)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("files", [["notes.txt"], [EVALUATION_FILE, "notes.txt"], [LATENTS, "weights.pt"]])
@pytest.mark.door
def test_other_files_are_not_overwritten(evaluation, tmp_path, files):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("mine", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        evaluation.save(folder)
    expected = "a new folder, or one with an evaluation only"
    assert str(caught.value) == f"{folder}: got a folder with other files; expected {expected}"
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == dict.fromkeys(files, "mine")


@pytest.mark.door
def test_a_file_in_the_place_of_the_folder(evaluation, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="got a file; expected a path for a folder"):
        evaluation.save(file)
    assert file.read_text(encoding="utf-8") == "mine"


def fewer_columns(folder: Path) -> None:
    columns = load_file(folder / LATENTS)
    save_file({"score": columns["score"]}, folder / LATENTS)


def other_json(folder: Path, **changes: object) -> None:
    content = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8")) | changes
    (folder / EVALUATION_FILE).write_text(json.dumps(content), encoding="utf-8")


DAMAGES = {
    "no folder": (EVALUATION_FILE, lambda folder: folder.rename(folder.with_name("away"))),
    "no json": (EVALUATION_FILE, lambda folder: (folder / EVALUATION_FILE).unlink()),
    "torn json": (
        EVALUATION_FILE,
        lambda folder: (folder / EVALUATION_FILE).write_bytes((folder / EVALUATION_FILE).read_bytes()[:-20]),
    ),
    "another version": (EVALUATION_FILE, lambda folder: other_json(folder, format_version=2)),
    "a list for the summary": (EVALUATION_FILE, lambda folder: other_json(folder, summary=[1.0])),
    "text for a number": (EVALUATION_FILE, lambda folder: other_json(folder, summary={"l0": "many"})),
    "facts of another kind": (EVALUATION_FILE, lambda folder: other_json(folder, facts=3)),
    "no latents": (LATENTS, lambda folder: (folder / LATENTS).unlink()),
    "torn latents": (LATENTS, lambda folder: (folder / LATENTS).write_bytes((folder / LATENTS).read_bytes()[:-8])),
    "empty latents": (LATENTS, lambda folder: (folder / LATENTS).write_bytes(b"")),
    "fewer columns": (LATENTS, fewer_columns),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.door
def test_a_damaged_file_is_named(evaluation, tmp_path, damage):
    folder = evaluation.save(tmp_path / "e")
    name, do = DAMAGES[damage]
    do(folder)
    with pytest.raises(InputError) as caught:
        Evaluation.load(folder)
    assert caught.value.argument == str(folder / name)
    assert str(caught.value).startswith(f"{folder / name}: got ")

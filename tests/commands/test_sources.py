"""From what a user names to models with names, and to the folders that their evaluations go to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monoloss.commands.sources import evaluation_folders, find_sources
from monoloss.errors import InputError
from monoloss.evaluation.stored_activations import StoredActivations
from monoloss.sae.model import SparseAutoencoder
from support.saes import D, bits_of, some_config

CPU = torch.device("cpu")


OWN_NAME = "a name of its own for each, written NAME=PATH"


def a_sae(folder: Path, seed: int = 0) -> SparseAutoencoder:
    sae = SparseAutoencoder(D, some_config("topk"), seed=seed)
    sae.save_pretrained(folder)
    return sae


def a_run(folder: Path, *names: str) -> Path:
    """A run folder as training leaves it, but for its measures."""
    for seed, name in enumerate(names):
        a_sae(folder / "saes" / name, seed)
    (folder / "config.yaml").write_text("saes: {}\n", encoding="utf-8")
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs that share a name, a SAE of its own and a file of activations."""
    a_run(tmp_path / "first", "mono", "base")
    a_run(tmp_path / "second", "mono", "large")
    a_sae(tmp_path / "alone")
    (tmp_path / "codes.npy").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(*saes: str, activations: tuple[str, ...] = ()) -> dict[str, str]:
    return {source.name: source.path for source in find_sources(saes, activations)}


def test_names_are_those_of_folders_and_files(work):
    assert named("alone", "first", activations=("codes.npy",)) == {
        "alone": "alone",
        "base": "first/saes/base",
        "mono": "first/saes/mono",
        "codes": "codes.npy",
    }
    assert named(str(work / "first" / "saes" / "mono") + "/") == {"mono": str(work / "first" / "saes" / "mono")}


def test_equal_names_get_their_run_before_them(work):
    assert list(named("first", "second")) == ["base", "first-mono", "large", "second-mono"]
    assert list(named("hf-hub:ann/sae", "hf-hub:bob/sae", "hf-hub:bob/other")) == ["ann-sae", "bob-sae", "other"]
    (work / "deep").mkdir()
    (work / "deep" / "codes.npy").touch()
    assert list(named(activations=("codes.npy", "deep/codes.npy"))) == [f"{work.name}-codes", "deep-codes"]


def test_names_that_are_given_stay(work):
    assert named("mine=first/saes/mono", "second") == {
        "mine": "first/saes/mono",
        "large": "second/saes/large",
        "mono": "second/saes/mono",
    }
    assert list(named("mono=alone", "first/saes/mono")) == ["mono", "first-mono"]
    assert list(named("a=first", "b=second")) == ["a-base", "a-mono", "b-large", "b-mono"]
    assert named(activations=("clip+1.b=codes.npy",)) == {"clip+1.b": "codes.npy"}
    a_sae(work / "k=8")
    assert named("k=8") == {"k_8": "k=8"}
    assert named("x=k=8") == {"x": "k=8"}


def test_names_from_folders_with_other_letters(work):
    a_sae(work / ".hidden sae (1)")
    assert named(".hidden sae (1)") == {"hidden_sae__1_": ".hidden sae (1)"}


def test_hidden_and_unfinished_folders_of_a_run_are_left_out(work):
    (work / "first" / "saes" / ".new.0a1b2c3d.tmp").mkdir()
    (work / "first" / "saes" / "notes.txt").touch()
    assert list(named("first")) == ["base", "mono"]


def test_load(work):
    expected = SparseAutoencoder(D, some_config("topk"), seed=0).eval()
    source = find_sources(["first"])[1]
    sae = source.load(CPU)
    assert isinstance(sae, SparseAutoencoder)
    assert not sae.training
    assert bits_of(sae) == bits_of(expected)
    torch.save({"x": torch.ones(3, 2), "y": torch.zeros(3, 4)}, "a.pt")
    stored = find_sources([], ["a.pt"])[0].load(CPU, key="y")
    assert isinstance(stored, StoredActivations)
    assert stored.shape == (3, 4)


# Where evaluations go


def test_folders_by_default(work):
    sources = find_sources(["first", "second/saes/large", "mine=second/saes/mono", "alone"], ["codes.npy"])
    assert evaluation_folders(sources) == {
        "base": work / "first" / "evaluations" / "base",
        "mono": work / "first" / "evaluations" / "mono",
        "large": work / "second" / "evaluations" / "large",
        "mine": work / "second" / "evaluations" / "mono",
        "alone": Path("evaluations/alone"),
        "codes": Path("evaluations/codes"),
    }


def test_folders_below_out(work):
    sources = find_sources(["first", "second"], ["codes.npy"])
    folders = evaluation_folders(sources, "out")
    assert folders == {name: Path("out") / name for name in ("base", "first-mono", "large", "second-mono", "codes")}
    assert not Path("out").exists()
    (work / "out" / "older").mkdir(parents=True)
    (work / "out" / "older" / "evaluation.json").touch()
    assert evaluation_folders(sources, work / "out")


def test_a_folder_called_saes_is_no_run_by_itself(work):
    a_sae(work / "saes" / "loose")
    assert evaluation_folders(find_sources(["saes/loose"])) == {"loose": Path("evaluations/loose")}


# The door


@pytest.mark.door
def test_error_texts(work):
    (work / "empty").mkdir()
    (work / "unfinished" / "saes").mkdir(parents=True)
    where = "the folder of a SAE or of a run, or a name on the Hub written hf-hub:USER/NAME"
    for saes, text in (
        ([], "saes: got none, and no activations; expected something to evaluate"),
        (["nowhere"], f"nowhere: got no such folder; expected {where}"),
        (["x=nowhere"], f"nowhere: got no such folder; expected {where}"),
        (["codes.npy"], f"codes.npy: got a file; expected {where}"),
        (["empty"], f"empty: got a folder with neither config.json nor saes; expected {where}"),
        (["unfinished"], f"unfinished: got an empty folder saes; expected {where}"),
        (
            ["a/b=alone"],
            "a/b=alone: got the name 'a/b'; expected a name of letters, digits and _ - . +, no dot first",
        ),
        (["=alone"], "=alone: got the name ''; expected a name of letters, digits and _ - . +, no dot first"),
        (
            ["x=alone", "x=first/saes/mono"],
            "names: got 'x' for alone and first/saes/mono; expected a name of its own for each, written NAME=PATH",
        ),
        (
            ["alone", "alone"],
            f"names: got '{work.name}-alone' for alone and alone; expected {OWN_NAME}",
        ),
    ):
        with pytest.raises(InputError) as caught:
            find_sources(saes)
        assert str(caught.value) == text


@pytest.mark.door
def test_folders_that_hold_something_else(work):
    mono = work / "first" / "evaluations" / "mono"
    sources = find_sources(["first", "alone"])
    (work / "thesis").mkdir()
    (work / "thesis" / "chapter.tex").touch()
    mono.mkdir(parents=True)
    (mono / "notes.txt").touch()
    twice = find_sources(["a=first/saes/mono", "b=first/saes/mono"])
    for given, out, text in (
        (sources, "thesis", "out: got thesis, which holds chapter.tex; expected a new folder, or one with evaluations"),
        (
            sources,
            "codes.npy",
            f"codes.npy/base: got a path below the file {work}/codes.npy; expected a path for a folder",
        ),
        (
            sources,
            None,
            f"{mono}: got a folder with other files; expected a new folder, or one with an evaluation only",
        ),
        (
            twice,
            None,
            f"saes: got the SAE of {mono} twice; expected each once, or names of their own and an out folder",
        ),
    ):
        with pytest.raises(InputError) as caught:
            evaluation_folders(given, out)
        assert str(caught.value) == text
    assert list(evaluation_folders(twice, "out")) == ["a", "b"]

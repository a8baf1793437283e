"""``monoloss evaluate``, called in-process: what it prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss.cli import main
from monoloss.data.store import FeatureStore
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.run import evaluate
from monoloss.sae.model import SparseAutoencoder
from support.saes import generator_of, some_config, structured_rows, structured_store

N, D, M = 120, 32, 24


def a_sae(folder: Path, variant: str, seed: int = 0, d: int = D) -> SparseAutoencoder:
    sae = SparseAutoencoder(d, some_config(variant, M), seed=seed)
    sae.calibrate_([structured_rows(200, d)[0]])
    sae.save_pretrained(folder)
    return sae.eval()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a store, a run of two SAEs, another SAE and a file of activations."""
    monkeypatch.chdir(tmp_path)
    structured_store(tmp_path / "val", N, rows_per_shard=50)
    a_sae(tmp_path / "run" / "saes" / "base", "topk")
    a_sae(tmp_path / "run" / "saes" / "mono", "batch_topk", 1)
    (tmp_path / "run" / "config.yaml").touch()
    a_sae(tmp_path / "alone", "jump_relu", 2)
    np.save(tmp_path / "codes.npy", torch.randn(N, 5, generator=generator_of(1)).numpy())
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["evaluate", "--progress", "false", *argv])
    return code, *capsys.readouterr()


def assert_same(one: Evaluation, other: Evaluation, tolerance: float = 0.0) -> None:
    """Without a tolerance to the bit, as of two calls with the same batches."""
    assert dict(one.summary) == pytest.approx(dict(other.summary), rel=tolerance, abs=tolerance, nan_ok=True)
    assert torch.equal(one.examples.rows, other.examples.rows)
    for name, column in other.latents.items():
        torch.testing.assert_close(one.latents[name], column, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)


def test_a_run_is_evaluated_into_its_folder(work, capsys):
    code, out, err = run(capsys, "--store", "val", "--saes", "run")
    assert (code, err) == (0, "")
    store = FeatureStore(work / "val")
    saes = {name: SparseAutoencoder.from_pretrained(work / "run" / "saes" / name) for name in ("base", "mono")}
    for name, expected in evaluate(store, saes).items():
        written = Evaluation.load(work / "run" / "evaluations" / name)
        assert_same(written, expected)
        assert written.name == name
        assert written.metadata["source"] == f"run/saes/{name}"
        assert (written.metadata["store"], written.metadata["store_fingerprint"]) == ("val", store.fingerprint)
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert f"{expected.summary['score_mean']:.3f}" in line
        assert f"{expected.summary['explained_variance']:.3f}" in line
    assert "120 rows of val" in out
    assert f"scores {expected.summary['chance']:.3f} (chance)" in out
    assert f"Evaluations in {work / 'run' / 'evaluations'}: base, mono" in out
    assert out.index("TopK") < out.index("base") < out.index("BatchTopK") < out.index("mono")
    assert sorted(path.name for path in work.iterdir()) == ["alone", "codes.npy", "run", "val"]


def test_many_models_on_one_pass(work, capsys, monkeypatch):
    passes = []
    batches = FeatureStore.batches
    monkeypatch.setattr(FeatureStore, "batches", lambda store, size: passes.append(size) or batches(store, size))
    argv = ["--saes", "run", "x=alone", "--activations", "codes.npy", "--out", "out", "--batch_size", "37"]
    code, out, _ = run(capsys, "--store", "val", *argv)
    assert code == 0
    assert passes == [37]
    assert sorted(path.name for path in (work / "out").iterdir()) == ["base", "codes", "mono", "x"]
    assert Evaluation.load("out/codes").summary["n_latents"] == 5
    assert Evaluation.load("out/codes").metadata["source"] == "codes.npy"
    assert "r2" not in Evaluation.load("out/codes").summary
    assert 0 < Evaluation.load("out/x").summary["l0"] < M
    assert "JumpReLU" in out
    assert f"Evaluations in {work / 'out'}: base, mono, x, codes" in out
    assert not (work / "run" / "evaluations").exists()


def test_without_a_run_they_go_to_the_working_folder(work, capsys):
    code, out, _ = run(capsys, "--store", "val", "--saes", "alone", "--activations", "mine=codes.npy")
    assert code == 0
    assert sorted(path.name for path in (work / "evaluations").iterdir()) == ["alone", "mine"]
    assert f"Evaluations in {work / 'evaluations'}: alone, mine" in out


def test_options_reach_the_evaluation(work, capsys):
    code, out, _ = run(
        capsys, *("--store", "val", "--saes", "alone", "--out", "out", "--center", "true"),
        *("--purity", "false", "--n_examples", "3", "--device", "cpu"),
    )  # fmt: skip
    assert code == 0
    written = Evaluation.load("out/alone")
    store = FeatureStore(work / "val")
    sae = SparseAutoencoder.from_pretrained(work / "alone")
    assert_same(written, evaluate(store, {"a": sae}, center=store.mean, purity=False, n_examples=3)["a"])
    assert written.examples.rows.shape == (M, 3)
    assert written.metadata["centred"] is True
    assert "purity_binary" not in written.summary
    assert "centred" in out


def test_latents_per_pass_changes_nothing(work, capsys):
    assert run(capsys, "--store", "val", "--saes", "run")[0] == 0
    assert run(capsys, "--store", "val", "--saes", "run", "--out", "parts", "--latents_per_pass", "7")[0] == 0
    for name in ("base", "mono"):
        whole = Evaluation.load(work / "run" / "evaluations" / name)
        assert_same(Evaluation.load(work / "parts" / name), whole, tolerance=1e-5)  # products of float32
    code, _, err = run(capsys, "--store", "val", "--saes", "run", "--latents_per_pass", "0")
    assert code == 2
    assert "latents_per_pass" in err


def test_a_second_evaluation_replaces_the_first_and_leaves_others(work, capsys):
    for saes in (["run"], ["run/saes/mono", "x=alone"], ["run/saes/base"]):
        assert run(capsys, "--store", "val", "--saes", *saes, "--out", "out")[0] == 0
    assert sorted(path.name for path in (work / "out").iterdir()) == ["base", "mono", "x"]


@pytest.mark.door
def test_figures_on_another_store_do_not_take_the_place_of_a_runs(work, capsys):
    assert run(capsys, "--store", "val", "--saes", "run")[0] == 0
    written = work / "run" / "evaluations" / "base" / "evaluation.json"
    before = written.read_bytes()
    structured_store(work / "other", N, seed=1)
    for argv in (["--store", "other"], ["--store", "val", "--center", "true"]):
        code, out, err = run(capsys, *argv, "--saes", "run")
        assert (code, out) == (2, "")
        assert err.startswith(f"monoloss: {written.parent}: got an evaluation on another store, or centred otherwise")
        assert run(capsys, *argv, "--saes", "run", "--out", "out")[0] == 0
    assert written.read_bytes() == before
    assert run(capsys, "--store", "val", "--saes", "run")[0] == 0  # and the same again may


def test_the_key_of_an_archive(work, capsys):
    np.savez("both.npz", a=np.eye(N, 3), b=np.eye(N, 4))
    assert run(capsys, "--store", "val", "--activations", "both.npz", "--key", "b")[0] == 0
    assert Evaluation.load("evaluations/both").summary["n_latents"] == 4


def test_names_of_runs_in_brackets_are_no_markup(work, capsys):
    structured_store(work / "[red]val", 30)
    code, out, _ = run(capsys, "--store", "[red]val", "--saes", "alone", "--out", "[b]out")
    assert code == 0
    assert "30 rows of [red]val" in out
    assert "[b]out: alone" in out


def test_help(capsys):
    assert main(["evaluate", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--store", "--saes PATH [PATH ...]", "--activations PATH [PATH ...]", "--out", "--center"):
        assert option in text


# What is refused, before anything is read


def set_up(work: Path, kind: str) -> list[str]:
    """Arguments with one thing wrong."""
    if kind == "other width":
        a_sae(work / "narrow", "topk", d=D - 1)
        return ["--saes", "run", "narrow"]
    if kind == "other rows":
        np.save("short.npy", np.zeros((N - 1, 2)))
        return ["--activations", "short.npy"]
    if kind == "torn":
        file = work / "alone" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        return ["--saes", "alone"]
    if kind == "full out":
        (work / "out").mkdir()
        (work / "out" / "thesis.tex").touch()
        return ["--saes", "alone", "--out", "out"]
    return {
        "no store": ["--store", "nowhere", "--saes", "alone"],
        "nothing": [],
        "no folder": ["--saes", "run", "nowhere"],
        "equal names": ["--saes", "x=alone", "x=run/saes/mono"],
        "no file": ["--activations", "none.npy"],
        "out is a file": ["--saes", "alone", "--out", "codes.npy"],
        "batch size": ["--saes", "alone", "--batch_size", "0"],
        "no file for the key": ["--saes", "alone", "--key", "x"],
        "no labels": ["--store", "bare", "--saes", "alone", "--purity", "true"],
    }[kind]


@pytest.mark.door
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("other width", ["models['narrow']", "32", "31"]),
        ("other rows", ["short.npy", "119 rows", "120"]),
        ("torn", ["alone", "model.safetensors"]),
        ("full out", ["out", "thesis.tex"]),
        ("no store", ["nowhere"]),
        ("nothing", ["saes", "something to evaluate"]),
        ("no folder", ["nowhere", "no such folder"]),
        ("equal names", ["'x'", "alone", "run/saes/mono"]),
        ("no file", ["none.npy", "No such file"]),
        ("out is a file", ["codes.npy", "the file"]),
        ("batch size", ["batch_size", "0", "at least 1"]),
        ("no labels", ["bare", "labels"]),
        ("no file for the key", ["--key", "'x'", "files of activations"]),
    ],
)
def test_refused_in_one_sentence_before_the_pass(work, capsys, monkeypatch, kind, words):
    FeatureStore.create(work / "bare", structured_rows(9)[0])
    argv = set_up(work, kind)
    there = sorted(work.rglob("*"))
    monkeypatch.setattr(FeatureStore, "_batches", lambda *_: pytest.fail("a row was read"))
    code, out, err = run(capsys, *([] if "--store" in argv else ["--store", "val"]), *argv)
    assert (code, out) == (2, "")
    assert err.startswith("monoloss: ")
    assert len(err.strip().splitlines()) == 1
    for word in ("got", "expected", *words):
        assert word in err
    assert sorted(work.rglob("*")) == there


@pytest.mark.parametrize("argv", [["--saes"], ["--n_examples", "x"], ["--devise", "cpu"], ["--device", "tpu"]])
def test_unusable_arguments_end_with_2(work, capsys, argv):
    assert run(capsys, "--store", "val", *argv)[0] == 2
    assert run(capsys, "--saes", "alone")[0] == 2


@pytest.mark.door
@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_that_is_not_there(work, capsys):
    code, _, err = run(capsys, "--store", "val", "--saes", "alone", "--device", "cuda")
    assert code == 2
    assert "device: got 'cuda' on a machine without it; expected 'cpu' or 'auto'" in err


# What stops the pass


@pytest.mark.door
def test_a_bad_row_in_the_middle_writes_nothing(work, capsys):
    z = np.zeros((N, 3), dtype=np.float32)
    z[77, 1] = np.nan
    np.save("bad.npy", z)
    argv = ["--saes", "run", "--activations", "bad.npy", "--out", "out", "--batch_size", "16"]
    code, out, err = run(capsys, "--store", "val", *argv)
    assert (code, out) == (2, "")
    assert "bad.npy: got nan (row 77, latent 1)" in err
    assert not (work / "out").exists()


def test_ctrl_c_ends_with_130_and_writes_nothing(work, capsys, monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SparseAutoencoder, "forward", interrupted)
    assert run(capsys, "--store", "val", "--saes", "run")[0] == 130
    assert not (work / "run" / "evaluations").exists()

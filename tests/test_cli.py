"""What the command line does with what it is given, called in-process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch

import monoloss.demo
from monoloss import SparseActivations, SparseAutoencoder
from monoloss.cli import main
from monoloss.data.store import FeatureStore
from monoloss.demo import Digits


@pytest.fixture
def small(monkeypatch):
    """A demo of a second or two."""
    monkeypatch.setattr(monoloss.demo, "EPOCHS", 2)


def run_demo(tmp_path, capsys, *more):
    code = main(["demo", "--out", str(tmp_path / "out"), "--progress", "false", *more])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.mark.parametrize("argv", [["--help"], ["demo", "--help"], ["--version"]])
def test_help_and_version_end_with_0(argv, capsys):
    assert main(argv) == 0
    assert capsys.readouterr().out


def test_demo_help_names_its_options(capsys):
    main(["demo", "--help"])
    text = capsys.readouterr().out
    assert "--seed" in text
    assert "--out" in text


@pytest.mark.parametrize("argv", [[], ["paint"], ["demo", "--sed", "1"], ["demo", "--seed", "x"], ["demo", "--seed"]])
def test_unusable_arguments_end_with_2(argv, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err
    assert "Traceback" not in err


def refused(code, err, *words):
    """Exit code 2 and one sentence that holds the words."""
    assert code == 2
    assert err.startswith("monoloss: ")
    assert len(err.strip().splitlines()) == 1
    for word in ("got", "expected", *words):
        assert word in err


@pytest.mark.door
def test_negative_seed(tmp_path, capsys):
    code, _, err = run_demo(tmp_path, capsys, "--seed", "-1")
    refused(code, err, "seed", "-1", "at least 0")


@pytest.mark.door
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_out_that_holds_something_else_is_left_alone(tmp_path, capsys, kind):
    foreign = tmp_path / "out"
    if kind == "folder":
        foreign.mkdir()
        foreign = foreign / "thesis.txt"
    foreign.write_text("years of work", encoding="utf-8")
    code, _, err = run_demo(tmp_path, capsys)
    refused(code, err, "out", "an earlier demo's")
    assert foreign.read_text(encoding="utf-8") == "years of work"


def broken_rows(tmp_path, kind):
    x, labels, ids = torch.rand(300, 8) + 0.1, torch.arange(300) % 10, None
    if kind == "zero row":
        x[7] = 0
    if kind == "NaN row":
        x[7, 3] = torch.nan
    if kind == "unequal rows":
        labels = labels[:-1]
    return FeatureStore.create(tmp_path / "made", x, labels, ids)


def held_out(tmp_path, width=8, labels=True):
    return FeatureStore.create(
        tmp_path / "held", torch.rand(50, width) + 0.1, torch.arange(50) % 10 if labels else None
    )


def data_of(kind, tmp_path):
    """What the demo gets instead of its digits: everything in order but for one thing."""
    rows = 300 if kind != "large batch" else 100
    if kind in ("zero row", "NaN row", "unequal rows"):
        return Digits(broken_rows(tmp_path, kind), held_out(tmp_path))
    train = FeatureStore.create(tmp_path / "made", torch.rand(rows, 8) + 0.1, torch.arange(rows) % 10)
    if kind == "truncated shard":
        shard = tmp_path / "made" / "shard-00000.safetensors"
        shard.write_bytes(shard.read_bytes()[:-100])
        train = FeatureStore(tmp_path / "made")
    return Digits(train, held_out(tmp_path, width=9 if kind == "other width" else 8, labels=kind != "no labels"))


@pytest.mark.door
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("zero row", ["embeddings", "7"]),
        ("NaN row", ["embeddings", "7"]),
        ("unequal rows", ["labels", "299", "300"]),
        ("truncated shard", ["shard-00000.safetensors"]),
        ("other width", ["store", "9", "8"]),
        ("large batch", ["batch_size", "256", "100"]),
    ],
)
def test_bad_data_is_one_sentence_and_leaves_nothing(small, monkeypatch, tmp_path, capsys, kind, words):
    monkeypatch.setattr(monoloss.demo, "digits_stores", lambda *_: data_of(kind, tmp_path))
    code, out, err = run_demo(tmp_path, capsys)
    refused(code, err, *words)
    assert not out
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name not in ("made", "held")]


@pytest.mark.door
def test_purity_without_labels(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(monoloss.demo, "digits_stores", lambda *_: data_of("no labels", tmp_path))
    code, _, err = run_demo(tmp_path, capsys)
    refused(code, err, "labels")
    assert not (tmp_path / "out").exists()


@pytest.mark.door
@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (lambda n: SparseActivations(torch.full((n, 1), torch.nan), torch.zeros(n, 1, dtype=torch.int64), 4), ["nan"]),
        (lambda n: torch.full((n, 4), torch.nan), ["activations", "nan (row 0, latent 0)"]),
        (lambda n: torch.ones(n - 1, 4), ["shape"]),
        (
            lambda n: SparseActivations(torch.ones(n, 2), torch.zeros(n, 2, dtype=torch.int64), 4),
            ["index 0 twice in row"],
        ),
    ],
)
def test_bad_activations_are_one_sentence(small, monkeypatch, tmp_path, capsys, codes, words):
    class Model:
        def encode(self, inputs):
            return codes(inputs.shape[0])

    monkeypatch.setattr(monoloss.demo, "train_saes", lambda *_, **__: {"mine": Model()})
    code, _, err = run_demo(tmp_path, capsys)
    refused(code, err, *words)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_with_130_and_leaves_nothing(monkeypatch, tmp_path, capsys):
    def interrupted(self, inputs):
        raise KeyboardInterrupt

    monkeypatch.setattr(SparseAutoencoder, "forward", interrupted)
    code, _, err = run_demo(tmp_path, capsys)
    assert code == 130
    assert "interrupted" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["train_saes", "evaluate", "draw"])
def test_sigterm_ends_with_143_and_leaves_nothing(small, monkeypatch, tmp_path, capsys, where):
    monkeypatch.setattr(monoloss.demo, where, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = run_demo(tmp_path, capsys)
    assert code == 143
    assert "terminated" in err
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_the_middle_of_a_step(monkeypatch, tmp_path, capsys):
    forward = SparseAutoencoder.forward

    def hit(self, inputs):
        signal.raise_signal(signal.SIGTERM)
        return forward(self, inputs)

    monkeypatch.setattr(SparseAutoencoder, "forward", hit)
    code, _, err = run_demo(tmp_path, capsys)
    assert code == 143
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.door
def test_seed_that_is_too_large(tmp_path, capsys):
    code, _, err = run_demo(tmp_path, capsys, "--seed", str(2**32))
    refused(code, err, "seed", "below 4294967296")


@pytest.mark.door
def test_out_below_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert main(["demo", "--out", str(tmp_path / "file" / "deep" / "out")]) == 2
    refused(2, capsys.readouterr().err, "below the file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_missing_extra_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(sys.modules, "monoloss.demo")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, _, err = run_demo(tmp_path, capsys)
    refused(code, err, "sklearn", "pip install 'monoloss[demo]'")


def test_installed_command_runs():
    result = subprocess.run([sys.executable, "-m", "monoloss.cli", "--version"], capture_output=True, check=False)
    assert result.returncode == 0

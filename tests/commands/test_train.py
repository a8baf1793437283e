"""``monoloss train``, called in-process."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
import yaml

from monoloss import FeatureStore, SparseAutoencoder
from monoloss.cli import main
from monoloss.training.config_files import read_config
from support.resumed_runs import all_bits
from support.saes import structured_store

SAES = """
  topk: {sae: {variant: topk, n_latents: 32, k: 3, aux: {k: 4}}, mono_weight: 1e-2, mono_memory: 0.9}
  batch_topk: {sae: {variant: batch_topk, n_latents: 32, k: 3}, mono_weight: 1e-3, mono_center: true}
  jump_relu: {sae: {variant: jump_relu, n_latents: 32, bandwidth: 0.2}, mono_weight: 1e-3, mono_embeddings: scaled}
  vanilla: {sae: {variant: vanilla, n_latents: 32}, lr_schedule: cosine}
"""
CONFIG = f"batch_size: 50\nepochs: 2\nlog_every_steps: 2\nsaes:{SAES}"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    structured_store(folder / "train", 200)
    structured_store(folder / "held out", 80, seed=1)
    return folder


@pytest.fixture
def call(stores, tmp_path, capsys, monkeypatch):
    """Runs the command in a folder that holds ``run.yaml``; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG, encoding="utf-8")

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(["train", *argv, "--progress", "false"])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def refused(code, out, err):
    """Exit code 2 and one sentence, which is returned."""
    assert code == 2
    assert out == ""
    assert err.startswith("monoloss: ")
    assert len(err.strip().splitlines()) == 1
    return err.removeprefix("monoloss: ").strip()


def test_trains_evaluates_and_says_where_it_is(call, stores, tmp_path):
    code, out, err = call(
        *("--config", "run.yaml", "--store", str(stores / "train"), "--out", "run"),
        *("--validation", str(stores / "held out"), "--saes.topk.sae.k", "5", "--epochs=1"),
    )
    assert (code, err) == (0, "")
    saes = {name: SparseAutoencoder.from_pretrained(tmp_path / "run" / "saes" / name) for name in yaml.safe_load(SAES)}
    assert saes["topk"].config.k == 5
    for name in saes:
        assert any(line.split()[:1] == [name] for line in out.splitlines())
        assert (tmp_path / "run" / "evaluations" / name / "evaluation.json").is_file()
    assert "SAEs: run/saes" in out
    written = read_config("run/config.yaml")
    assert (written.store, written.validation) == (str(stores / "train"), str(stores / "held out"))
    assert (written.training.epochs, written.training.saes["topk"].sae.k) == (1, 5)


def test_the_config_of_a_run_makes_the_run_again(call, stores, tmp_path):
    assert call("--config", "run.yaml", "--store", str(stores / "train"), "--out", "one")[0] == 0
    assert call("--config", "one/config.yaml", "--out", "two")[0] == 0
    folders = [tmp_path / name for name in ("one", "two")]
    bits = [
        all_bits({path.name: SparseAutoencoder.from_pretrained(path) for path in (run / "saes").iterdir()})
        for run in folders
    ]
    assert bits[0] == bits[1]
    assert (folders[0] / "config.yaml").read_text() == (folders[1] / "config.yaml").read_text()


def test_print_config_is_a_config_and_does_nothing_else(call, tmp_path):
    code, out, err = call(
        "--config", "run.yaml", "--print_config", "--store", "there", "--sweep.vanilla", "[1e-4,3e-4]"
    )
    assert (code, err) == (0, "")
    (tmp_path / "printed.yaml").write_text(out, encoding="utf-8")
    assert call("--config", "printed.yaml", "--print_config")[1] == out
    printed, config = read_config("printed.yaml"), read_config("run.yaml")
    assert printed.store == "there"
    assert list(printed.training.saes) == ["topk", "batch_topk", "jump_relu", "vanilla-0.0001", "vanilla-0.0003"]
    for name in ("topk", "batch_topk", "jump_relu"):
        assert printed.training.saes[name] == config.training.saes[name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["printed.yaml", "run.yaml"]


def hit_at_the_tenth(signum: int) -> Any:
    """A ``forward`` in whose tenth call a signal comes."""
    forward, calls = SparseAutoencoder.forward, []

    def hit(self: SparseAutoencoder, inputs: torch.Tensor) -> Any:
        calls.append(inputs)
        if len(calls) == 10:
            signal.raise_signal(signum)
        return forward(self, inputs)

    return hit


def test_ctrl_c_then_resume_then_finished(call, stores, tmp_path, monkeypatch):
    arguments = ("--config", "run.yaml", "--store", str(stores / "train"), "--validation", str(stores / "held out"))
    assert call(*arguments, "--out", "whole")[0] == 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are born ignoring it
    try:
        for signum, code, text in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")):
            with monkeypatch.context() as patch:
                patch.setattr(SparseAutoencoder, "forward", hit_at_the_tenth(signum))
                place = ("--resume", "run") if signum == signal.SIGTERM else (*arguments, "--out", "run")
                got, out, err = call(*place)
            assert (got, out) == (code, "")
            assert "--resume run resumes it" in err
            assert f"monoloss: {text}" in err
    finally:
        signal.signal(signal.SIGINT, before)
    code, out, err = call("--resume", "run")
    assert (code, err) == (0, "")
    again, same, finished = call("--resume", "run")
    assert (again, same) == (0, out)
    assert "run is finished" in finished
    for name in yaml.safe_load(SAES):
        for file in ("saes/{}/model.safetensors", "evaluations/{}/latents.safetensors"):
            path = file.format(name)
            assert (tmp_path / "run" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_a_run_whose_store_was_moved_goes_on(call, stores, tmp_path, capsys):
    store = FeatureStore(stores / "train")
    moved = FeatureStore.create(tmp_path / "moved", store.embeddings(), store.labels())
    assert moved.fingerprint == store.fingerprint
    assert call("--config", "run.yaml", "--store", str(stores / "train"), "--out", "run")[0] == 0
    assert call("--resume", "run", "--store", "moved")[0] == 0


@pytest.mark.door
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "--config: got nothing; expected a YAML file, or --resume with the folder of a run"),
        (["--config", "none.yaml"], "none.yaml: got No such file or directory; expected a readable YAML file"),
        (["--config", "run.yaml", "--store", "{train}"], "--out: got nothing; expected a folder for the run"),
        (
            ["--config", "run.yaml", "--out", "run"],
            "store: got nothing; expected a feature store, as --store or in the ",
        ),
        (["--config", "run.yaml", "--epoch", "3"], "--epoch: got an unknown key; expected epochs, if that was meant"),
        (["--config", "run.yaml", "--epochs"], "--epochs: got nothing; expected a value"),
        (["--config", "run.yaml", "--epochs", "--out", "run"], "--epochs: got nothing; expected a value"),
        (["--config", "run.yaml", "--saes.topk.sae.tied", "1"], "saes.topk.sae.tied: got 1; expected true or false"),
        (
            ["--config", "run.yaml", "--saes.vanilla.sae.k", "3"],
            "saes.vanilla.sae.k: got an option of topk, batch_topk; expected those of vanilla: variant, n_",
        ),
        (["--config", "run.yaml", "--store", "{train}", "--out", "run", "--batch_size", "201"], "batch_size: got 201"),
        (["--config", "run.yaml", "--store", "nowhere", "--out", "run"], "nowhere/manifest.json: got No such file"),
        (
            ["--config", "run.yaml", "--store", "{train}", "--out", "run.yaml"],
            "run.yaml: got a file; expected a path for",
        ),
        (["--resume", "nowhere"], "nowhere/config.yaml: got no such file; expected the folder of a run for --resume"),
        (
            ["--resume", "nowhere", "--epochs", "3"],
            "--epochs: got a value beside --resume; expected none: a run resumes",
        ),
        (["--resume", "nowhere", "--config", "run.yaml"], "--config: got a value beside --resume; expected none"),
    ],
)
def test_one_sentence_before_any_work(call, stores, tmp_path, argv, expected):
    assert refused(*call(*(word.format(train=stores / "train") for word in argv))).startswith(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.door
def test_other_data_than_the_config_names(call, stores, tmp_path):
    assert call("--config", "run.yaml", "--store", str(stores / "train"), "--out", "run")[0] == 0
    text = refused(*call("--resume", "run", "--store", str(stores / "held out")))
    assert text.startswith(f"store: got {stores / 'held out'} with fingerprint ")
    (tmp_path / "run" / "config.yaml").write_text(
        (tmp_path / "run" / "config.yaml").read_text().replace(str(stores / "train"), str(stores / "held out"))
    )
    assert refused(*call("--resume", "run")) == text
    assert refused(*call("--config", "run/config.yaml", "--out", "other")) == text
    assert refused(*call("--config", "run.yaml", "--store", str(stores / "train"), "--out", "run")) == (
        "run: got a folder that holds a run; expected a new folder, or --resume (resume=True) to resume it"
    )


def test_help_names_options_and_settings(call, capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--config", "--store", "--out", "--validation", "--resume", "--print_config", "--sweep.NAME"):
        assert word in text
    assert main(["--help"]) == 0
    assert "Train one or several SAEs" in " ".join(capsys.readouterr().out.split())

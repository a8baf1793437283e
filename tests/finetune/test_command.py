"""``monoloss finetune``: its options, its output, and the commands that it refuses in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from monoloss.cli import main
from monoloss.finetune.config import DataConfig
from monoloss.finetune.config_files import FineTuneRecord, finetune_text, read_finetune
from monoloss.finetune.model.folder import load_finetuned
from support.finetune_runs import a_run, data_in


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return data_in(tmp_path_factory.mktemp("data"))


def test_the_command(data, tmp_path, capsys):
    record = FineTuneRecord(a_run(data))
    (tmp_path / "run.yaml").write_text(finetune_text(record), encoding="utf-8")
    begin = ["finetune", "--config", str(tmp_path / "run.yaml"), "--mono_weight", "0.05", "--epochs=1"]
    assert main([*begin, "--optimisation.lr", "1e-3", "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    again = read_finetune(tmp_path / "printed.yaml").config
    assert (again.mono_weight, again.epochs, again.optimisation.lr) == (0.05, 1, 1e-3)
    assert main([*begin, "--out", str(tmp_path / "run"), "--progress", "false"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "held out" in shown
    assert str(tmp_path / "run" / "model") in shown
    assert load_finetuned(tmp_path / "run" / "model").provenance.training["mono_weight"] == 0.05
    assert main(["finetune", "--resume", str(tmp_path / "run"), "--data.workers", "0"]) == 0


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--out", "x"], "--config: got nothing; expected a YAML file"),
        (["--config", "none.yaml", "--out", "x"], "none.yaml: got No such file or directory"),
        (["--resume", "x", "--epochs", "3"], "--epochs: got a value beside --resume"),
        (["--resume", "x"], "x/config.yaml: got no such file; expected the folder of a run"),
        (["--config", "c.yaml", "--epoch", "3"], "--epoch: got an unknown key; expected epochs, if that was meant"),
        (["--config", "c.yaml", "--epochs"], "--epochs: got nothing; expected a value"),
        (["--config", "c.yaml"], "--out: got nothing; expected a folder for the run"),
        (["--config", "c.yaml", "--model.lora.ranks", "3"], "model.lora.ranks: got an unknown key; expected rank, if"),
        (["--config", "c.yaml", "--data.embeddings", "null"], "data.embeddings: got nothing; expected a feature store"),
    ],
)
@pytest.mark.door
def test_commands_that_cannot_be_run(data, tmp_path, monkeypatch, capsys, argv, text):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(finetune_text(FineTuneRecord(a_run(data))), encoding="utf-8")
    assert main(["finetune", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"monoloss: {text}")
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.door
def test_a_learning_rate_that_is_too_large_is_named(data, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(finetune_text(FineTuneRecord(a_run(data))), encoding="utf-8")
    begin = ["finetune", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--progress", "false"]
    assert main([*begin, "--epochs", "2", "--optimisation.lr", "1e9"]) == 2
    assert main([*begin[:4], str(tmp_path / "one"), *begin[5:], "--epochs=1", "--optimisation.lr=1e30"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("monoloss: optimisation.lr: got ")
        assert line.endswith("expected a smaller lr or mono_weight: the training has diverged")

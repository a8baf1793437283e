"""``monoloss finetune``: its settings, its output, and the commands that it refuses in one sentence."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from monoloss.cli import main
from monoloss.finetune import run as finetune_run
from monoloss.finetune import run_folder
from monoloss.finetune.config import DataConfig, FineTuneConfig
from monoloss.finetune.config_files import FineTuneRecord, finetune_text, read_finetune
from monoloss.finetune.model.folder import load_finetuned
from support.finetune_runs import a_run, data_in


@pytest.fixture
def config(tmp_path, monkeypatch) -> FineTuneConfig:
    """What ``c.yaml`` in the working folder holds."""
    monkeypatch.chdir(tmp_path)
    config = a_run(DataConfig("cifar10:data"), mono_weight=0.0)
    Path("c.yaml").write_text(finetune_text(FineTuneRecord(config)), encoding="utf-8")
    return config


def test_print_config_is_a_config_with_the_options_over_it(config, capsys):
    assert main(["finetune", "--config", "c.yaml", "--epochs=7", "--optimisation.lr", "1e-3", "--print_config"]) == 0
    Path("printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    printed = read_finetune("printed.yaml").config
    assert (printed.epochs, printed.optimisation.lr) == (7, 1e-3)
    assert printed.model == config.model
    assert sorted(path.name for path in Path().iterdir()) == ["c.yaml", "printed.yaml"]


@pytest.mark.parametrize("words", [["--config", "c.yaml", "--out", "run"], ["--resume", "run"]])
@pytest.mark.parametrize("measures", [{}, {"top1": 0.25, "score_mean": math.nan, "alive": 12.0}])
def test_trains_and_prints_the_measures(config, words, measures, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(finetune_run, "fine_tune", lambda *arguments, **options: calls.append((arguments, options)))
    monkeypatch.setattr(run_folder, "validation_measures", lambda _: measures)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(Path("c.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["finetune", *words, "--progress", "false"]) == 0
    assert calls == [((config, Path("run")), {"resume": words[0] == "--resume", "progress": False})]
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"model: {Path('run/model')}"
    assert ("held out" in out) == bool(measures)
    for word in ("score mean", "0.2500", "nan", " 12 ") if measures else ():
        assert word in out


def test_help_names_options_and_settings(capsys):
    assert main(["finetune", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--config", "--out", "--resume", "--print_config", "--data.images", "--optimisation.lr"):
        assert word in text


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return data_in(tmp_path_factory.mktemp("data"))


def test_a_run_from_the_command_line(data, tmp_path, capsys):
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

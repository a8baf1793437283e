"""``monoloss finetune``: its settings and what it prints; ``tests/finetune/test_run.py`` trains with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from monoloss.cli import main
from monoloss.finetune import run as finetune_run
from monoloss.finetune import run_folder
from monoloss.finetune.config import DataConfig, FineTuneConfig
from monoloss.finetune.config_files import FineTuneRecord, finetune_text, read_finetune
from support.finetune_runs import a_run


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


@pytest.mark.door
def test_no_folder_for_the_run(config, capsys):
    assert main(["finetune", "--config", "c.yaml"]) == 2
    assert capsys.readouterr().err == "monoloss: --out: got nothing; expected a folder for the run\n"


def test_help_names_options_and_settings(capsys):
    assert main(["finetune", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--config", "--out", "--resume", "--print_config", "--data.images", "--optimisation.lr"):
        assert word in text

"""The loggers of a run, and what Lightning prints and does not."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from monoloss.errors import InputError
from monoloss.runs import trainer as engine
from monoloss.runs.checkpoints import Checkpoint
from monoloss.runs.trainer import print_note, quiet_lightning, resume_at_end
from monoloss.training.run import train_saes
from support.resumed_runs import ALL_FOUR
from support.training_runs import a_run


def test_weights_and_biases_is_told_where_the_run_is(store, tmp_path, monkeypatch):
    """The package itself talks to a server: what it would be told is looked at instead."""
    told: list[dict[str, Any]] = []

    class Told(engine.CSVLogger):
        def __init__(self, name: str, save_dir: Any, **options: Any) -> None:
            told.append({"name": name, "save_dir": save_dir, **options})
            super().__init__(save_dir, name="told")

    monkeypatch.setattr(engine, "WandbLogger", Told)
    monkeypatch.setattr(engine, "find_spec", lambda name: name == "wandb")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    config = a_run({"a": ALL_FOUR["vanilla"]}, loggers=["wandb"], log_every_steps=3, epochs=1)
    train_saes(store, config, tmp_path / "run", progress=False)
    assert told == [{"name": "run-0", "save_dir": tmp_path / "run", "project": "monoloss", "group": "run"}]
    assert (tmp_path / "run" / "told" / "version_0" / "metrics.csv").is_file()


@pytest.mark.door
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed(store, tmp_path, monkeypatch, name):
    monkeypatch.setattr(engine, "find_spec", lambda _: None)
    config = a_run({"a": ALL_FOUR["vanilla"]}, loggers=[name])
    with pytest.raises(InputError) as caught:
        train_saes(store, config, tmp_path / "run", progress=False)
    assert str(caught.value) == f"loggers: got '{name}', which is not installed; expected pip install {name}"
    assert not (tmp_path / "run").exists()


def test_weights_are_loaded_from_a_checkpoint_of_the_last_step_alone(tmp_path: Path) -> None:
    class Module(engine.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

    torch.save({"state_dict": {"weight": torch.tensor([1.0, 2.0])}}, tmp_path / "x")
    module, checkpoint = Module(), Checkpoint(tmp_path / "x", 5, {})
    assert not resume_at_end(module, None, 5)
    assert not resume_at_end(module, checkpoint, 6)
    assert module.weight.tolist() == [0.0, 0.0]
    assert resume_at_end(module, checkpoint, 5)
    assert module.weight.tolist() == [1.0, 2.0]


def test_a_note_is_one_line_on_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    text = "see [bold]/a/b[/bold] " + "word " * 40
    print_note(text)
    assert capsys.readouterr() == ("", f"{text}\n")


def test_advice_is_silenced_in_the_block_alone() -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with quiet_lightning():
        warnings.warn("it does not have many workers which may be a bottleneck", stacklevel=1)
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)
        assert logger.level == logging.WARNING
    assert logger.level == level
    with pytest.warns(UserWarning, match="many workers"):
        warnings.warn("it does not have many workers which may be a bottleneck", stacklevel=1)

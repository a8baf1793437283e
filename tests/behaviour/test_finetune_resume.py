"""A fine-tuning run that a signal or an error has stopped resumes to the weights of one that ran through."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monoloss.finetune.config import DataConfig, LoraConfig
from monoloss.finetune.module import FineTuneModule
from monoloss.finetune.run_folder import validation_measures
from monoloss.runs.checkpoints import checkpoints_in, step_of
from support import bounds
from support.finetune_runs import a_run, assert_equal_weights, data_in, trained


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return data_in(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder and the weights of a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(a_run(data), folder)


class StopIn:
    """Raises a signal, or an error, in the training of one batch, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batch: int, signum: int | None = None) -> None:
        training_step, self.n_batches = FineTuneModule.training_step, 0

        def stopping_step(module: Any, batch_: Any, batch_idx: int) -> Any:
            self.n_batches += 1
            if self.n_batches == batch:
                if signum is None:
                    raise ZeroDivisionError
                signal.raise_signal(signum)
            return training_step(module, batch_, batch_idx)

        monkeypatch.setattr(FineTuneModule, "training_step", stopping_step)


@pytest.fixture
def python_answers_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_answers_ctrl_c")
@pytest.mark.parametrize(
    ("signum", "batch", "raised"), [(signal.SIGINT, 2, KeyboardInterrupt), (signal.SIGTERM, 3, SystemExit)]
)
def test_a_signal_saves_the_step_and_the_run_is_resumed(
    data, whole, tmp_path, monkeypatch, capsys, signum, batch, raised
):
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as of a caller; SIG_DFL would end the tests
    try:
        with monkeypatch.context() as patch:
            StopIn(patch, batch, signum)
            with pytest.raises(raised) as caught:
                trained(a_run(data), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    if raised is SystemExit:
        assert caught.value.code == 143
    assert [step_of(path) for path in checkpoints_in(tmp_path / "checkpoints")] == [batch]
    assert f"stopped after step {batch}, and saved" in capsys.readouterr().err
    assert_equal_weights(trained(a_run(data), tmp_path, resume=True), whole[1])


@pytest.mark.parametrize("batch", [2, 4])
def test_a_crashed_run_resumes_from_its_last_checkpoint(data, whole, tmp_path, monkeypatch, batch):
    config = a_run(data, checkpoint_every_steps=2)
    with monkeypatch.context() as patch:
        StopIn(patch, batch)
        with pytest.raises(ZeroDivisionError):
            trained(config, tmp_path)
    assert_equal_weights(trained(config, tmp_path, resume=True), whole[1])


def test_a_trained_run_without_a_model_folder_is_finished(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("monoloss.finetune.run.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(a_run(data), tmp_path)
    assert_equal_weights(trained(a_run(data), tmp_path, resume=True), whole[1])
    assert validation_measures(tmp_path) == bounds.close_summary(validation_measures(whole[0]), bounds.of_score(12))


def test_a_finished_run_gives_its_model(data, whole, capsys):
    folder, weights = whole
    assert_equal_weights(trained(a_run(data), folder, resume=True), weights)
    assert "is finished" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_accumulates_batches_is_resumed(data, tmp_path, monkeypatch):
    """With low-rank updates and dropout, whose draws belong to their step."""
    lora = {"lora": LoraConfig(rank=2, dropout=0.5)}
    config = a_run(data, "test_vit", model=lora, batch_size=3, accumulate_batches=2, mono_memory=0.5, mono_center=True)
    expected = trained(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        StopIn(patch, 7)
        with pytest.raises(ZeroDivisionError):
            trained(replace(config, checkpoint_every_steps=1), tmp_path / "run")
    assert [step_of(path) for path in checkpoints_in(tmp_path / "run" / "checkpoints")] == [3, 2]
    got = trained(replace(config, checkpoint_every_steps=1), tmp_path / "run", resume=True)
    assert_equal_weights(got, expected)

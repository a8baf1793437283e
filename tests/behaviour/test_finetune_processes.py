"""Real processes of ``monoloss finetune``: killed and resumed, and two that share each batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from monoloss.finetune.config import AugmentationConfig, DataConfig
from monoloss.finetune.config_files import FineTuneRecord, finetune_text
from monoloss.finetune.model.folder import load_finetuned
from monoloss.finetune.run_folder import validation_measures
from monoloss.runs.checkpoints import checkpoints_in, step_of
from support import bounds
from support.finetune_runs import a_run, data_in, trained

PATIENCE_S = 600.0


@pytest.fixture
def data(tmp_path) -> DataConfig:
    return data_in(tmp_path / "data")


def started(*argv: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "monoloss.cli", "finetune", *argv, "--progress", "false"]
    around = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    around["PYTHONPATH"] = os.pathsep.join(part for part in sys.path if part)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around)


def finished(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_ran_through(data, tmp_path):
    """A real ``monoloss finetune``, killed and terminated, ends with the same bits as one that was not."""
    config = a_run(data, epochs=12, checkpoint_every_steps=1, validate_every_epochs=20)
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(finetune_text(FineTuneRecord(config)), encoding="utf-8")
    begin = ("--config", str(file), "--out")
    finished(started(*begin, str(tmp_path / "whole")))
    for i, (signum, step) in enumerate([(signal.SIGKILL, 4), (signal.SIGTERM, 10), (signal.SIGKILL, 17)]):
        process = started("--resume", str(run)) if i else started(*begin, str(run))
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            if any(step_of(path) >= step for path in checkpoints_in(run / "checkpoints")):
                break
            time.sleep(0.002)
        process.send_signal(signum)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == (143 if signum == signal.SIGTERM else -signum), err
        assert not (run / "model").exists()
    finished(started("--resume", str(run)))
    path = Path("model", "model.safetensors")
    assert (run / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_train_as_one(data, tmp_path):
    """With a transformer, which has no statistics of a batch.

    MonoLoss has a weight under which roundings grow 3-fold in these steps; at ten times that weight, 5000-fold.
    """
    config = a_run(data, "test_vit", augmentation=AugmentationConfig(), mono_memory=0.5, epochs=3)
    file = tmp_path / "run.yaml"
    file.write_text(finetune_text(FineTuneRecord(config)), encoding="utf-8")
    alone = trained(config, tmp_path / "alone")

    def both(*argv: str) -> list[subprocess.Popen[str]]:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_RUN_ID": "one", "CUDA_VISIBLE_DEVICES": ""}
        place |= {"GROUP_RANK": "0"}
        return [started(*argv, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]

    processes = both("--config", str(file), "--out", str(tmp_path / "run"))
    for process in processes:
        finished(process)
    got = load_finetuned(tmp_path / "run" / "model").state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)
    one, two = validation_measures(tmp_path / "alone"), validation_measures(tmp_path / "run")
    assert two == bounds.close_summary(one, 1e-3)

"""A real ``monoloss train`` that is killed again and again, at any moment, ends with the bits of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monoloss.runs.checkpoints import checkpoints_in, step_of
from monoloss.training.config_files import TrainingRecord, config_text
from support.resumed_runs import ALL_FOUR
from support.saes import structured_store
from support.training_runs import a_run

N_STEPS = 300
PATIENCE_S = 120.0


def start(*argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "monoloss.cli", "train", *argv, "--progress", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(*argv: str) -> None:
    process = start(*argv)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


def stop(process: subprocess.Popen[str], run: Path, step: int, delay_s: float, signum: int) -> tuple[int, str]:
    """Send the signal some time after the run has saved a step, wherever it then is."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        if any(step_of(path) >= step for path in checkpoints_in(run / "checkpoints")):
            break
        time.sleep(0.002)
    time.sleep(delay_s)
    process.send_signal(signum)
    _, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, err


@pytest.mark.slow
def test_ten_kills_and_three_sigterms(tmp_path):
    store = structured_store(tmp_path / "store", 600, rows_per_shard=250)
    training = a_run(ALL_FOUR, epochs=N_STEPS // 12, checkpoint_every_steps=3, log_every_steps=50)
    (tmp_path / "run.yaml").write_text(config_text(TrainingRecord(training, str(store.folder))), encoding="utf-8")
    begin = ("--config", str(tmp_path / "run.yaml"), "--out")
    finish(*begin, str(tmp_path / "whole"))
    draw, run = random.Random(0), tmp_path / "run"
    moments = [(signal.SIGTERM if i in (3, 7, 11) else signal.SIGKILL, 20 * i + draw.randrange(20)) for i in range(13)]
    for i, (signum, step) in enumerate(moments):
        process = start("--resume", str(run)) if i else start(*begin, str(run))
        code, err = stop(process, run, step, draw.uniform(0.0, 0.15), signum)
        if signum == signal.SIGTERM:
            assert code == 143, err
            assert f"--resume {run} resumes it" in err
        else:
            assert code == -signal.SIGKILL, err
        assert not (run / "saes").exists()
    finish("--resume", str(run))
    for name in ALL_FOUR:
        path = Path("saes", name, "model.safetensors")
        assert (run / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), name

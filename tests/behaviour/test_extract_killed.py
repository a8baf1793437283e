"""A real ``monoloss extract``, killed at random moments and resumed, ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.extraction import contents_of, write_images

PATIENCE_S = 120.0
N_IMAGES = 60


def start(images: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "monoloss.cli", "extract", "--encoder", "resnet10t", "--pretrained", "false"]
    command += ["--image_size", "32", "--images", f"imagefolder:{images}", "--out", str(out), "--workers", "2"]
    command += ["--rows_per_shard", "4", "--batch_size", "3", "--progress", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(images: Path, out: Path) -> None:
    process = start(images, out)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


@pytest.mark.slow
def test_five_kills_and_a_sigterm(tmp_path: Path) -> None:
    names = write_images(tmp_path / "images", N_IMAGES)
    for number in (0, 17, 18, 19, 40):
        (tmp_path / "images" / names[number]).write_bytes(b"broken")
    finish(tmp_path / "images", tmp_path / "whole")
    generator, out = random.Random(0), tmp_path / "s"
    for i in range(6):
        signum = signal.SIGTERM if i == 3 else signal.SIGKILL
        n_shards = len(list(out.glob("*.safetensors"))) + generator.randrange(3)
        process = start(tmp_path / "images", out)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            if len(list(out.glob("*.safetensors"))) >= max(n_shards, 1):
                break
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.03))
        process.send_signal(signum)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == (143 if signum == signal.SIGTERM else -signal.SIGKILL), err
        assert not (out / "manifest.json").exists()
    assert 0 < len(list(out.glob("*.safetensors"))) <= N_IMAGES // 4
    finish(tmp_path / "images", out)
    assert contents_of(out) == contents_of(tmp_path / "whole")

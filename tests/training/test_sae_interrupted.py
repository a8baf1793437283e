"""What a run shows, and what happens when it is stopped."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
from rich.console import Console

from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.training import sae as training
from monoloss.training.sae import train_saes
from training_samples import SETTINGS, a_run, logged_by


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the progress bar of a run draws from now on."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(training, "TrainingProgress", partial(training.TrainingProgress, console=console))
    return screen


def test_progress_ends_at_the_last_step_with_the_last_figures(store, tmp_path, monkeypatch):
    screen = a_terminal(monkeypatch)
    train_saes(store, a_run(SETTINGS), tmp_path)
    last = screen.getvalue().split("training")[-1]
    assert "18/18 steps, epoch 3 of 3" in last
    line = logged_by(tmp_path)[-1]
    for name in SETTINGS:
        row = next(row for row in last.splitlines() if row.startswith(name))
        figures = [float(line[f"{name}/{figure}"]) for figure in ("score", "explained_variance", "l0", "dead")]
        assert [float(cell) for cell in row.split()[1:]] == pytest.approx(figures, abs=0.06)


@pytest.fixture
def python_answers_ctrl_c():
    """As in a terminal: a shell's background jobs are born ignoring SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_answers_ctrl_c")
def test_ctrl_c_is_raised_and_gives_terminal_and_signal_back(store, tmp_path, monkeypatch):
    screen, handler = a_terminal(monkeypatch), signal.getsignal(signal.SIGINT)
    n_calls = 0

    def interrupted(*args: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 5:
            signal.raise_signal(signal.SIGINT)
        return objective(*args)

    monkeypatch.setattr(training, "objective", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_saes(store, a_run({"topk": SETTINGS["topk"]}), tmp_path)
    assert n_calls == 5
    assert signal.getsignal(signal.SIGINT) is handler
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
    assert "4/18 steps" in screen.getvalue().split("training")[-1]


def test_sigterm_is_not_swallowed(store, tmp_path, monkeypatch):
    forward, received = SparseAutoencoder.forward, []

    def hit(self, inputs):
        if self.training and not received:
            received.append("sent")
            signal.raise_signal(signal.SIGTERM)
        return forward(self, inputs)

    monkeypatch.setattr(SparseAutoencoder, "forward", hit)
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("mine"))
    try:
        with pytest.raises(SystemExit) as caught:
            train_saes(store, a_run({"a": SETTINGS["topk"]}), tmp_path / "run", progress=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    assert received == ["sent", "mine"]  # what the caller wants done at SIGTERM is done, once


def test_sigterm_ends_a_script_as_it_always_does(tmp_path):
    script = """
import os, signal, sys, torch
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from monoloss import FeatureStore, SaeTraining, SparseAutoencoder, TopKConfig, TrainingConfig, train_saes
forward = SparseAutoencoder.forward
def hit(self, inputs):
    os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, inputs)
SparseAutoencoder.forward = hit
store = FeatureStore.create(sys.argv[1] + "/store", torch.randn(64, 8))
config = TrainingConfig({"a": SaeTraining(TopKConfig("topk", 16, 2))}, batch_size=16, epochs=3)
train_saes(store, config, sys.argv[1] + "/run", progress=False)
print("after")
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=False, text=True)
    assert result.returncode == -signal.SIGTERM
    assert "after" not in result.stdout


def test_an_error_in_a_step_comes_out_as_it_is(store, tmp_path, monkeypatch):
    screen = a_terminal(monkeypatch)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(training, "objective", broken)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        train_saes(store, a_run({"topk": SETTINGS["topk"]}), tmp_path)
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
    with pytest.raises(SystemExit) as caught, training._signals_stay():
        raise SystemExit(3)
    assert caught.value.code == 3

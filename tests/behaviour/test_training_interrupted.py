"""What a run shows, and what happens when it is stopped."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from monoloss.data.store import FeatureStore
from monoloss.runs import checkpoints
from monoloss.runs.checkpoints import checkpoints_in, newest_readable, step_of
from monoloss.runs.signals import stop_signals
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.training import module
from monoloss.training import run as training
from monoloss.training.run import train_saes
from support.saes import bits_of
from support.training_runs import SETTINGS, a_run, logged_by, training_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return training_store(tmp_path_factory.mktemp("training") / "store")


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

    monkeypatch.setattr(module, "objective", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_saes(store, a_run({"topk": SETTINGS["topk"]}), tmp_path)
    assert n_calls == 5  # no other step, and this one is done and saved
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step=00000005.ckpt"]
    assert signal.getsignal(signal.SIGINT) is handler
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
    assert "5/18 steps" in screen.getvalue().split("training")[-1]


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

    monkeypatch.setattr(module, "objective", broken)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        train_saes(store, a_run({"topk": SETTINGS["topk"]}), tmp_path)
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
    with pytest.raises(SystemExit) as caught, stop_signals():
        raise SystemExit(3)
    assert caught.value.code == 3


class SignalIn:
    """Sends itself a signal in the middle of some batches, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *batches: int, signum: int = signal.SIGINT) -> None:
        self.n_batches = 0
        real = module.objective

        def hit(*args: Any) -> Any:
            self.n_batches += 1
            if self.n_batches in batches:
                signal.raise_signal(signum)
            return real(*args)

        monkeypatch.setattr(module, "objective", hit)


def steps_saved(run: Path) -> list[int]:
    return [step_of(path) for path in checkpoints_in(run / "checkpoints")]


@pytest.mark.usefixtures("python_answers_ctrl_c")
@pytest.mark.parametrize(("batch", "step"), [(3, 2), (4, 2), (18, 9)])
def test_the_step_is_finished_and_saved_and_the_run_can_be_resumed(store, tmp_path, monkeypatch, capsys, batch, step):
    config = a_run({"topk": SETTINGS["topk"]}, accumulate_batches=2)
    whole = bits_of(train_saes(store, config, tmp_path / "whole", progress=False)["topk"])
    with monkeypatch.context() as patch:
        SignalIn(patch, batch)
        with pytest.raises(KeyboardInterrupt):
            train_saes(store, config, tmp_path / "run", progress=False)
    assert steps_saved(tmp_path / "run") == [step]
    assert f"stopped after step {step}, and saved" in capsys.readouterr().err
    got = train_saes(store, config, tmp_path / "run", resume=True, progress=False)
    assert bits_of(got["topk"]) == whole


@pytest.mark.usefixtures("python_answers_ctrl_c")
def test_a_second_ctrl_c_ends_at_once(store, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    hits = SignalIn(monkeypatch, 3, 4)
    config = a_run({"topk": SETTINGS["topk"]}, accumulate_batches=4, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train_saes(store, config, tmp_path, progress=False)
    assert hits.n_batches == 4
    assert steps_saved(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("python_answers_ctrl_c")
@pytest.mark.parametrize("n_signals", [1, 2])
def test_a_signal_while_a_checkpoint_is_written_tears_nothing(store, tmp_path, monkeypatch, n_signals):
    save = torch.save

    def hit(content: Any, path: Path) -> None:
        for _ in range(n_signals if content["global_step"] == 3 else 0):
            signal.raise_signal(signal.SIGINT)
        save(content, path)

    monkeypatch.setattr(checkpoints.torch, "save", hit)
    config = a_run({"topk": SETTINGS["topk"]}, checkpoint_every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        train_saes(store, config, tmp_path, progress=False)
    assert steps_saved(tmp_path) == ([3, 2] if n_signals == 1 else [2, 1])
    assert newest_readable(tmp_path / "checkpoints", pytest.fail).n_steps == (3 if n_signals == 1 else 2)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # nothing half-written beside them


@pytest.mark.usefixtures("python_answers_ctrl_c")
def test_a_signal_after_the_last_step_is_not_lost(store, tmp_path, monkeypatch):
    config = a_run({"topk": SETTINGS["topk"]}, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(training.SaeTrainingModule, "on_train_end", lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train_saes(store, config, tmp_path, progress=False)
    assert not (tmp_path / "saes").exists()
    assert list(train_saes(store, config, tmp_path, resume=True, progress=False)) == ["topk"]


def test_who_ignores_ctrl_c_goes_on_ignoring_it(store, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        SignalIn(monkeypatch, 3)
        train_saes(store, a_run({"topk": SETTINGS["topk"]}, epochs=1), tmp_path, progress=False)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "saes").exists()


def test_training_in_a_thread_leaves_signals_alone(store, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    config = a_run({"topk": SETTINGS["topk"]}, epochs=1)
    thread = threading.Thread(target=train_saes, args=(store, config, tmp_path), kwargs={"progress": False})
    thread.start()
    thread.join()
    assert (tmp_path / "saes").exists()
    assert signal.getsignal(signal.SIGTERM) is before

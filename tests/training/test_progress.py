"""The progress bar: what it shows, and that it gives the terminal back."""

from __future__ import annotations

import io
import re

import pytest
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from monoloss.training.progress import TrainingProgress

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class ATrainer(Trainer):
    """Just what the progress bar reads of one."""

    estimated_stepping_batches, max_epochs, global_step, current_epoch, logged_metrics = 20, 2, 0, 0, None
    log_every_n_steps = 1

    def __init__(self, step: int, **figures: float) -> None:
        self.global_step, self.current_epoch, self.logged_metrics = step, step // 10, figures


@pytest.fixture
def progress() -> TrainingProgress:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    return TrainingProgress(["base", "mono.1"], console=console)


def text_of(progress: TrainingProgress) -> str:
    return progress.console.file.getvalue()


def test_shows_steps_epochs_and_the_last_figures_of_each_sae(progress):
    progress.on_train_start(ATrainer(0), LightningModule())
    figures = {"base/score": 0.53219, "base/l0": 16.0, "base/dead": 1234.0, "base/explained_variance": -0.5}
    progress.on_train_batch_end(ATrainer(13, **figures), None, None, None, 12)
    progress.on_train_end(None, None)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text_of(progress)).splitlines()[-4:]
    assert "13/20 steps, epoch 2 of 2" in last[0]
    assert last[1].split() == ["score", "expl.", "variance", "L0", "dead"]
    assert last[2].split() == ["base", "0.532", "-0.500", "16.0", "1234"]
    assert last[3].split() == ["mono.1"]  # nothing logged yet: empty, not 0


def test_reads_no_measure_after_a_step_that_is_not_logged(progress):
    """Reading one waits for a GPU."""

    class Measure(float):
        n_reads = 0

        def __float__(self) -> float:
            Measure.n_reads += 1
            return 0.5

    progress.on_train_start(ATrainer(0), LightningModule())
    for step, n_reads in ((1, 0), (4, 0), (5, 1), (6, 1), (10, 2)):
        trainer = ATrainer(step, **{"base/score": Measure()})
        trainer.log_every_n_steps = 5
        progress.on_train_batch_end(trainer, None, None, None, step - 1)
        assert Measure.n_reads == n_reads
    progress.on_train_end(None, None)
    assert "0.500" in text_of(progress)


@pytest.mark.parametrize("how", ["on_train_end", "on_exception"])
def test_gives_the_terminal_back(progress, how):
    progress.on_train_start(ATrainer(0), LightningModule())
    assert text_of(progress).count(HIDE_CURSOR) == 1
    getattr(progress, how)(None, None)
    getattr(progress, how)(None, None)  # Lightning may call both
    assert text_of(progress).rindex(SHOW_CURSOR) > text_of(progress).rindex(HIDE_CURSOR)
    assert not getattr(progress.console, "_live_stack", None)
    assert not getattr(progress.console, "_live", None)  # before rich 14.1


def test_writes_to_stderr_and_before_the_start_nothing(capsys):
    progress = TrainingProgress(["base"])
    progress.on_exception(None, None)
    assert progress.console.stderr
    assert capsys.readouterr() == ("", "")

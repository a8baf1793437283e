"""The progress bar of a training run, with a table of the last logged measures of each SAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

MEASURES = {  # logged name: title, format
    "score": ("score", ".3f"),
    "explained_variance": ("expl. variance", ".3f"),
    "l0": ("L0", ".1f"),
    "dead": ("dead", ".0f"),
}


class TrainingProgress(Callback):
    """Callback that shows the steps done, and the last score, explained variance, L0 and dead latents of each SAE."""

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        self.names = tuple(names)
        self.console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, epoch {task.fields[epoch]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("training", total=None, epoch=1)
        self._live: Live | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar and the table."""
        self._progress.update(self._task, total=int(trainer.estimated_stepping_batches))
        self._live = Live(Group(self._progress, self._table_of({})), console=self.console, refresh_per_second=4)
        self._live.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Advance the bar; update the table after a logged step alone, as reading measures waits for a GPU."""
        epoch = f"{trainer.current_epoch + 1} of {trainer.max_epochs}"
        self._progress.update(self._task, completed=trainer.global_step, epoch=epoch)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # Lightning sets it from elsewhere
        if self._live is not None and trainer.global_step % every == 0:
            self._live.update(Group(self._progress, self._table_of(trainer.logged_metrics)))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """End the display, with its last state left on the screen."""
        self._stop()

    def on_exception(self, *_: Any, **__: Any) -> None:
        """End the display."""
        self._stop()

    def _stop(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            if not self.console.is_terminal:
                self.console.line()

    def _table_of(self, measures: Mapping[str, Any]) -> Table:
        """Build the table of each SAE's measures, which have been logged as ``NAME/MEASURE``."""
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for title, _ in MEASURES.values():
            table.add_column(title, justify="right")
        for name in self.names:
            logged = [(measures.get(f"{name}/{key}"), style) for key, (_, style) in MEASURES.items()]
            table.add_row(name, *("" if value is None else f"{float(value):{style}}" for value, style in logged))
        return table

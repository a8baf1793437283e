"""Saving a run as it trains: by steps, by time, at the end, and when a signal asks for it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from monoloss.files.atomic import atomic_file
from monoloss.runs.checkpoints import BATCHES, GENERATORS, IDENTITY, checkpoint_file, checkpoints_in, step_of
from monoloss.runs.settings import ResumableBatches
from monoloss.runs.signals import StopSignals


class SaveSchedule(NamedTuple):
    """When a run is saved, beside its last step and a signal.

    Attributes:
        every_steps: optimiser steps between two checkpoints; None saves by time alone.
        every_minutes: time between two checkpoints; None saves by steps alone.
        n_kept: how many of the newest checkpoints are kept.
    """

    every_steps: int | None = None
    every_minutes: float | None = None
    n_kept: int = 2


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are whole or absent; Lightning's own pass through memory and the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one."""
        with atomic_file(path) as temporary:
            torch.save(checkpoint, temporary)


class Checkpoints(Callback):
    """Saves a run at the end of a step: every so many steps or minutes, at the last one, and when a signal came.

    Of several processes all save, and stop, when one of them is to.

    Args:
        folder: where; missing folders are made.
        schedule: how often, and how many are kept.
        n_steps: optimiser steps of the whole run.
        batches: what is trained on.
        identity: what the run is made of, plain nested values; a checkpoint of another run is told apart by it.
        stop: signals that came; after the checkpoint that they ask for, the run stops.
        before: called before each checkpoint, to calibrate thresholds.
    """

    def __init__(
        self,
        folder: Path,
        schedule: SaveSchedule,
        n_steps: int,
        batches: ResumableBatches,
        identity: Mapping[str, Any],
        stop: StopSignals,
        before: Callable[[], object],
    ) -> None:
        self.folder, self.schedule, self.n_steps, self.batches = folder, schedule, n_steps, batches
        self.identity = dict(identity)
        self._stop, self._before = stop, before
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to lose."""
        self._saved_at = monotonic()
        self._stop.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; stop if a signal came. In the middle of a step's batches neither can be.

        After the last batch of an epoch it waits for ``on_train_epoch_end``: Lightning, resumed from a state between
        the two, counts the next epoch as this one.
        """
        n_batches = batch_idx + 1
        if n_batches % trainer.accumulate_grad_batches == 0 and n_batches < len(self.batches):
            self._end_step(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after any other step."""
        self._end_step(trainer)

    def _end_step(self, trainer: Trainer) -> None:
        if trainer.world_size > 1 and self._agreed(trainer, self._stop.received is not None):
            self._stop.received = self._stop.received or signal.SIGTERM
        if self._stop.received is not None or self._agreed(trainer, self._is_due(trainer.global_step)):
            self.save(trainer)
        self._stop.check()

    @staticmethod
    def _agreed(trainer: Trainer, mine: bool) -> bool:
        """Whether any process says so."""
        return mine if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(mine, all=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What Lightning leaves out: whose it is, where the batches stand, and where torch's global generators do."""
        checkpoint[IDENTITY] = self.identity
        checkpoint[BATCHES] = self.batches.state_dict()
        checkpoint[GENERATORS] = {"cpu": torch.get_rng_state()}
        device = trainer.strategy.root_device
        if device.type == "cuda":
            checkpoint[GENERATORS]["cuda"] = torch.cuda.get_rng_state(device)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put batches and generators where they stood."""
        self.batches.load_state_dict(checkpoint[BATCHES])
        generators = checkpoint[GENERATORS]
        torch.set_rng_state(generators["cpu"])
        device = trainer.strategy.root_device
        if "cuda" in generators and device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], device)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of this step, and delete those that are no longer to be kept."""
        step = trainer.global_step
        self._before()
        trainer.save_checkpoint(checkpoint_file(self.folder, step))
        self._saved_at = monotonic()
        if not trainer.is_global_zero:
            return
        earlier = [path for path in checkpoints_in(self.folder) if step_of(path) <= step]
        for path in set(checkpoints_in(self.folder)) - set(earlier[: self.schedule.n_kept]):
            path.unlink()

    def _is_due(self, step: int) -> bool:
        every_steps, every_minutes = self.schedule.every_steps, self.schedule.every_minutes
        if step == self.n_steps or (every_steps is not None and step % every_steps == 0):
            return True
        return every_minutes is not None and monotonic() - self._saved_at >= 60.0 * every_minutes

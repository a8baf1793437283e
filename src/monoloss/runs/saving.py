"""Saving the checkpoints of a run: every so many steps or minutes, at its end, and when a signal stops it."""

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
    """How often checkpoints are saved, besides those at the last step and at a signal, and how many are kept."""

    every_steps: int | None = None
    """Optimiser steps between two checkpoints; None saves by time alone."""

    every_minutes: float | None = None
    """Time between two checkpoints; None saves by steps alone."""

    n_newest: int = 2
    """Number of checkpoints that are kept: the newest ones."""


class WholeFiles(TorchCheckpointIO):
    """Atomic writing of checkpoints, without Lightning's detour through memory and the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint atomically."""
        with atomic_file(path) as temporary:
            torch.save(checkpoint, temporary)


class Checkpoints(Callback):
    """Callback that saves a checkpoint at the end of a step: as scheduled, at the last step, and after a signal.

    Several processes save, and stop, together: as soon as one of them is due to.

    Args:
        folder: folder of the checkpoints; made if missing.
        schedule: how often to save, and how many checkpoints to keep.
        n_steps: optimiser steps of the whole run.
        batches: the training batches, whose position is saved.
        identity: the run's configuration and the fingerprints of its data, as nested plain values; a checkpoint
            of another run is recognised by it.
        stop: the received signals; after a signal the run is saved and stops.
        before: called before each checkpoint, for example to calibrate thresholds.
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
        """Start the clock of ``every_minutes``; from here on a signal waits for the end of the step."""
        self._saved_at = monotonic()
        self._stop.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, and stop after a signal, where the batch is the last of an optimiser step.

        At the last batch of an epoch ``on_train_epoch_end`` does this instead: Lightning, resumed from a state between
        the two, counts the next epoch as this one.
        """
        n_batches = batch_idx + 1
        if n_batches % trainer.accumulate_grad_batches == 0 and n_batches < len(self.batches):
            self._end_step(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is time, and stop after a signal, at the end of an epoch."""
        self._end_step(trainer)

    def _end_step(self, trainer: Trainer) -> None:
        """Save and stop where any process is due to."""
        if trainer.world_size > 1 and self._agreed(trainer, self._stop.received is not None):
            self._stop.received = self._stop.received or signal.SIGTERM
        if self._stop.received is not None or self._agreed(trainer, self._is_due(trainer.global_step)):
            self.save(trainer)
        self._stop.check()

    @staticmethod
    def _agreed(trainer: Trainer, vote: bool) -> bool:
        """Whether ``vote`` is true in any process."""
        return vote if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(vote, all=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint the run's identity, the position of the batches and torch's global random state."""
        checkpoint[IDENTITY] = self.identity
        checkpoint[BATCHES] = self.batches.state_dict()
        checkpoint[GENERATORS] = {"cpu": torch.get_rng_state()}
        device = trainer.strategy.root_device
        if device.type == "cuda":
            checkpoint[GENERATORS]["cuda"] = torch.cuda.get_rng_state(device)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the position of the batches and torch's global random state from a checkpoint."""
        self.batches.load_state_dict(checkpoint[BATCHES])
        generators = checkpoint[GENERATORS]
        torch.set_rng_state(generators["cpu"])
        device = trainer.strategy.root_device
        if "cuda" in generators and device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], device)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of this step; delete older ones beyond ``n_newest``, and those of later steps."""
        step = trainer.global_step
        self._before()
        trainer.save_checkpoint(checkpoint_file(self.folder, step))
        self._saved_at = monotonic()
        if not trainer.is_global_zero:
            return
        up_to_now = [path for path in checkpoints_in(self.folder) if step_of(path) <= step]
        for path in set(checkpoints_in(self.folder)) - set(up_to_now[: self.schedule.n_newest]):
            path.unlink()

    def _is_due(self, step: int) -> bool:
        """Return whether a checkpoint is to be saved at a step: the last one, or by steps or minutes."""
        every_steps, every_minutes = self.schedule.every_steps, self.schedule.every_minutes
        if step == self.n_steps or (every_steps is not None and step % every_steps == 0):
            return True
        return every_minutes is not None and monotonic() - self._saved_at >= 60.0 * every_minutes

"""Checkpoints of a run, for going on with it: written whole, by steps and by time, the newest good one found again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from monoloss.files import atomic_file
from monoloss.training.checkpoint_files import BATCHES, GENERATORS, IDENTITY, SUFFIX, checkpoints_in, step_of
from monoloss.training.run_settings import ResumableBatches, RunSettings
from monoloss.training.signals import StopSignals


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
        config: says how often, and how many are kept.
        n_steps: optimiser steps of the whole run.
        batches: what is trained on.
        identity: what the run is made of, plain nested values; a checkpoint of another run is told apart by it.
        stop: signals that came; after the checkpoint that they ask for, the run stops.
        before: called before each checkpoint, to calibrate thresholds.
    """

    def __init__(
        self,
        folder: Path,
        config: RunSettings,
        n_steps: int,
        batches: ResumableBatches,
        identity: Mapping[str, Any],
        stop: StopSignals,
        before: Callable[[], object],
    ) -> None:
        self.folder, self.config, self.n_steps, self.batches = folder, config, n_steps, batches
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
        if n_batches % self.config.accumulate_batches == 0 and n_batches < len(self.batches):
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
        trainer.save_checkpoint(self.folder / f"step={step:08d}{SUFFIX}")
        self._saved_at = monotonic()
        if not trainer.is_global_zero:
            return
        earlier = [path for path in checkpoints_in(self.folder) if step_of(path) <= step]
        for path in set(checkpoints_in(self.folder)) - set(earlier[: self.config.keep_checkpoints]):
            path.unlink()

    def _is_due(self, step: int) -> bool:
        every_steps, every_minutes = self.config.checkpoint_every_steps, self.config.checkpoint_every_minutes
        if step == self.n_steps or (every_steps is not None and step % every_steps == 0):
            return True
        return every_minutes is not None and monotonic() - self._saved_at >= 60.0 * every_minutes

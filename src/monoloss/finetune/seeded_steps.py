"""The random seed of each step of a fine-tuning run."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from monoloss.finetune.images.seeds import seed_of


class SeededSteps(Callback):
    """Seeds torch before each batch, so that dropout and the like depend on the seed, batch and process alone.

    A resumed run then draws the same numbers as one that was never stopped.

    Args:
        seed: seed of the run.
        rank: number of this process, from 0.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the random state from seed, number of the batch in the run, and process."""
        number = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        torch.manual_seed(seed_of("step", self.seed, number, self.rank))

"""What is random in the steps of a fine-tuning run."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from monoloss.finetune.images.seeds import seed_of


class SeededSteps(Callback):
    """What layers draw in a step, as dropout does, follows from (seed, number of the batch, process) alone.

    Args:
        seed: of the run.
        rank: which process this is.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before each batch."""
        number = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        torch.manual_seed(seed_of("step", self.seed, number, self.rank))

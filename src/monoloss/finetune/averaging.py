"""The average of the weights over a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


def adjusted_decay(decay: float, images_per_update: int = 1, epochs: int = 1) -> float:
    """Decay of an average whose updates are ``images_per_update`` images apart, in a run of so many epochs.

    ``1 - decay`` is times ``images_per_update / epochs`` (at most 1), so that one decay fits runs of different lengths.
    """
    return 1.0 - min(1.0, (1.0 - decay) * images_per_update / epochs)


class AveragedWeights(EMAWeightAveraging):
    """An exponential average of weights and buffers; in its place, the weights themselves while the warm-up lasts.

    It is what is validated, saved, and left in the model at the end of the run.

    Args:
        decay: share that the average keeps of itself at an update, in [0, 1).
        update_every_steps: optimiser steps between two updates.
        n_warmup_steps: optimiser steps of the warm-up.
    """

    def __init__(self, decay: float, update_every_steps: int, n_warmup_steps: int = 0) -> None:
        super().__init__(decay=decay, update_every_n_steps=update_every_steps)
        self._n_warmup = n_warmup_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if it is time; in the warm-up it begins anew each time."""
        if trainer.global_step <= self._n_warmup and self._average_model is not None:
            self._average_model.n_averaged.zero_()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

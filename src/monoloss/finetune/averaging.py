"""The exponential moving average of the weights over a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


def adjusted_decay(decay: float, images_per_update: int = 1, epochs: int = 1) -> float:
    """Return the decay for a run of ``epochs`` whose average is updated every ``images_per_update`` images, in [0, 1).

    It is ``1 - min(1, (1 - decay) images_per_update / epochs)``, so that one decay fits runs of different lengths.
    """
    return 1.0 - min(1.0, (1.0 - decay) * images_per_update / epochs)


class AveragedWeights(EMAWeightAveraging):
    """Keeps an exponential average of weights and buffers, which is validated, saved, and the model's at the end.

    During the warm-up the average is a copy of the weights.

    Args:
        decay: share of the old average in an update, in [0, 1).
        update_every_steps: optimiser steps between two updates.
        n_warmup_steps: optimiser steps of the warm-up.
    """

    def __init__(self, decay: float, update_every_steps: int, n_warmup_steps: int = 0) -> None:
        super().__init__(decay=decay, update_every_n_steps=update_every_steps)
        self._n_warmup = n_warmup_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average every `update_every_steps`; in the warm-up, replace it by the weights instead."""
        # torch's AveragedModel asks for `n_averaged` in an update: a wait where that counter is on a GPU
        if trainer.global_step <= self._n_warmup and self._average_model is not None:
            self._average_model.n_averaged.zero_()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

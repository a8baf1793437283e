"""The average of the weights over a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from monoloss.finetune.config import FineTuneConfig


def decay_of(config: FineTuneConfig) -> float:
    """What the average keeps of itself at each update: ``ema_decay``, adjusted to the run's length where asked for.

    Example:
        >>> from monoloss.finetune.config import DataConfig, ModelConfig, OptimisationConfig
        >>> optimisation = OptimisationConfig(ema_decay=0.99998)
        >>> config = FineTuneConfig(ModelConfig("resnet50"), DataConfig("cifar10:data"), optimisation=optimisation)
        >>> round(decay_of(config), 6)  # 1 - 0.00002 * 1024 * 32 / 90
        0.992718
    """
    optimisation = config.optimisation
    share = 1.0 - (optimisation.ema_decay or 0.0)
    if optimisation.ema_adjusted:
        images = config.batch_size * config.accumulate_batches * optimisation.ema_every_steps
        share = min(1.0, share * images / config.epochs)
    return 1.0 - share


class AveragedWeights(EMAWeightAveraging):
    """An exponential average of weights and buffers; in its place, the weights themselves while the warm-up lasts.

    It is what is validated, saved, and left in the model at the end of the run.

    Args:
        config: with ``optimisation.ema_decay``.
        steps_per_epoch: optimiser steps.
    """

    def __init__(self, config: FineTuneConfig, steps_per_epoch: int) -> None:
        super().__init__(decay=decay_of(config), update_every_n_steps=config.optimisation.ema_every_steps)
        self._n_warmup = config.optimisation.warmup_epochs * steps_per_epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if it is time; in the warm-up it begins anew each time."""
        if trainer.global_step <= self._n_warmup and self._average_model is not None:
            self._average_model.n_averaged.zero_()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

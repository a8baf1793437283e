"""Figures on held-out rows in the course of a run, from the same code that evaluates SAEs afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation.run import evaluate
from monoloss.sae.model import SparseAutoencoder
from monoloss.training.config import TrainingConfig

VALIDATED = {  # logged name: figure of ``Evaluation.summary``
    "val_score": "score_mean",
    "val_score_zero_filled": "score_mean_zero_filled",
    "val_explained_variance": "explained_variance",
    "val_l0": "l0",
    "val_alive": "n_alive",
    "val_purity_binary": "purity_binary",
    "val_purity_weighted": "purity_weighted",
}


class Validation(Callback):
    """Evaluates the SAEs of a run every so many steps; no bit of the training changes by it.

    Args:
        store: the held-out rows.
        every_steps: optimiser steps between two evaluations.
        accumulate_batches: batches a step.
        ready: gives the SAEs by name, ready to encode.
    """

    def __init__(
        self,
        store: FeatureStore,
        every_steps: int,
        accumulate_batches: int,
        ready: Callable[[], Mapping[str, SparseAutoencoder]],
    ) -> None:
        self.store, self.every_steps, self.accumulate_batches = store, every_steps, accumulate_batches
        self._ready = ready

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate if it is time, and log it beside the figures of the same step."""
        step = trainer.global_step
        if (batch_idx + 1) % self.accumulate_batches or step % self.every_steps:
            return
        measures: dict[str, float] = {"epoch": trainer.current_epoch}
        for name, evaluation in evaluate(self.store, dict(self._ready()), n_examples=1).items():
            found = {title: evaluation.summary[key] for title, key in VALIDATED.items() if key in evaluation.summary}
            measures |= {f"{name}/{title}": value for title, value in found.items()}
        for logger in trainer.loggers:
            logger.log_metrics(measures, step=step - 1)  # steps are counted from 0 in the logs
            logger.save()


def check_validation(config: TrainingConfig, store: FeatureStore, validation: FeatureStore | None) -> None:
    """Refuse held-out rows that do not fit, or that are asked for but not there."""
    if validation is None and config.validate_every_steps is not None:
        raise InputError("validate_every_steps", config.validate_every_steps, "a validation store to make use of it")
    if validation is not None and validation.width != store.width:
        got = f"rows of width {validation.width}"
        raise InputError("validation", got, f"the width of the rows to train on, {store.width}")

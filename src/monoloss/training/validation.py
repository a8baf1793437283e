"""Evaluation of a run's SAEs on held-out rows while they are trained, by the code that evaluates saved SAEs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation.run import evaluate
from monoloss.sae.model import SparseAutoencoder
from monoloss.training.config import TrainingConfig

VALIDATED = {  # logged name: key of ``Evaluation.summary``
    "val_score": "score_mean",
    "val_score_zero_filled": "score_mean_zero_filled",
    "val_explained_variance": "explained_variance",
    "val_l0": "l0",
    "val_alive": "n_alive",
    "val_purity_binary": "purity_binary",
    "val_purity_weighted": "purity_weighted",
}


class Validation(Callback):
    """Callback that evaluates the SAEs every so many steps and logs it, without changing a bit of the training.

    Args:
        store: the held-out rows.
        every_steps: optimiser steps between two evaluations.
        accumulate_batches: batches of an optimiser step.
        ready: returns the SAEs by name, ready to encode.
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
        """Evaluate if it is time, and log the result with the step of the training's measures."""
        step = trainer.global_step
        if (batch_idx + 1) % self.accumulate_batches or step % self.every_steps:
            return
        measures: dict[str, float] = {"epoch": trainer.current_epoch}
        for name, evaluation in evaluate(self.store, dict(self._ready()), n_examples=1).items():
            summary = evaluation.summary
            measures |= {f"{name}/{title}": summary[key] for title, key in VALIDATED.items() if key in summary}
        for logger in trainer.loggers:
            logger.log_metrics(measures, step=step - 1)  # steps are counted from 0 in the logs
            logger.save()


def check_validation(config: TrainingConfig, store: FeatureStore, validation: FeatureStore | None) -> None:
    """Refuse held-out rows of another width than the training rows, and evaluations without held-out rows."""
    if validation is None and config.validate_every_steps is not None:
        raise InputError("validate_every_steps", config.validate_every_steps, "a validation store to make use of it")
    if validation is not None and validation.width != store.width:
        got = f"rows of width {validation.width}"
        raise InputError("validation", got, f"the width of the training rows, {store.width}")

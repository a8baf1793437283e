"""Small modules of fine-tuning, batches for them, and their training and validation without a run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from monoloss.finetune.config import DataConfig, FineTuneConfig, OptimisationConfig
from monoloss.finetune.model.model import FineTuneModel
from monoloss.finetune.module import FineTuneModule
from monoloss.finetune.run import module_of
from monoloss.runs.trainer import quiet_lightning
from support.finetune_models import CLASSES, pictures, small_config, small_model

N, D = 12, 5
DATA = DataConfig("imagefolder:images", embeddings="store")
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)


def settings(backbone: str = "test_resnet", optimisation: OptimisationConfig | None = None, **options: Any):
    """A run of one epoch of one batch, where each step is logged."""
    options = {"epochs": 1, "batch_size": N, "log_every_steps": 1, **options}
    optimisation = optimisation or OptimisationConfig(lr=0.05, schedule="constant")
    return FineTuneConfig(small_config(backbone), DATA, optimisation=optimisation, **options)


def module_for(config: FineTuneConfig, model: FineTuneModel | None = None, **options: Any) -> FineTuneModule:
    """The LightningModule of a run."""
    options = {"steps_per_epoch": 1, "width": D, "validation_embeddings": True, **options}
    module = module_of(config, model or small_model(config.model.backbone), **options)
    module.config = config  # for `fit`
    return module


def batch(n: int = N, seed: int = 0, *, mixed: bool = False) -> dict[str, Tensor]:
    """Random images and embeddings with the classes in turn, or (mixed) random shares of them."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % len(CLASSES)
    if mixed:
        targets = torch.rand(n, len(CLASSES), generator=generator)
        targets /= targets.sum(1, keepdim=True)
    embeddings = torch.randn(n, D, generator=generator) + 0.5
    return {"images": pictures(n, seed), "targets": targets, "embeddings": embeddings}


class Batches:
    """An iterable that Lightning takes for one loader; a list would be several."""

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self._batches)


class Recorder(Callback):
    """Keeps what is logged in each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        self.steps.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def fit(module: FineTuneModule, batches: Sequence[dict[str, Tensor]], **options: Any) -> list[dict[str, float]]:
    """Train on these batches; return what was logged in each step."""
    recorder = Recorder()
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=module.config.epochs,
            accumulate_grad_batches=module.config.accumulate_batches,
            precision=module.config.precision,
            log_every_n_steps=1,
            callbacks=[recorder],
            **QUIET,
            **options,
        )
        trainer.fit(module.train(), Batches(batches))
    return recorder.steps


def validate(module: FineTuneModule, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Validate on these batches; return what was logged."""
    with quiet_lightning():
        trainer = Trainer(accelerator="cpu", **QUIET)
        (measures,) = trainer.validate(module, Batches(batches), verbose=False)
    return measures

"""Lightning as the runs use it: the trainer, its loggers, and no output but our own notes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from rich.console import Console

from monoloss.errors import InputError
from monoloss.runs.checkpoints import Checkpoint
from monoloss.runs.layout import LOGS
from monoloss.runs.saving import WholeFiles
from monoloss.runs.settings import RunSettings
from monoloss.runs.signals import StopRequested, StopSignals


def make_trainer(config: RunSettings, run: Path, callbacks: Sequence[Callback], **options: Any) -> Trainer:
    """Make the trainer of a run; it logs to ``run/logs/version_N``, a new version each time.

    ``options`` are options of Lightning's `Trainer`; they replace those that all runs share.
    """
    shared: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "precision": config.precision,
        "max_epochs": config.epochs,
        "accumulate_grad_batches": config.accumulate_batches,
        "logger": _loggers(config, run),
        "log_every_n_steps": config.log_every_steps,
        "callbacks": list(callbacks),
        "plugins": [WholeFiles()],
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return Trainer(**shared | options)


def resume_at_end(module: LightningModule, start: Checkpoint | None, n_steps: int) -> bool:
    """Load the weights of ``start`` and return True if it is of the last step; otherwise do nothing, return False."""
    if start is None or start.n_steps != n_steps:
        return False
    module.load_state_dict(torch.load(start.path, map_location="cpu", weights_only=True)["state_dict"])
    return True


def fit(
    trainer: Trainer,
    module: LightningModule,
    batches: Iterable[Any],
    start: Checkpoint | None,
    stop: StopSignals,
    run: Path,
    held_out: Iterable[Any] | None = None,
) -> None:
    """Train to the last step, from the checkpoint ``start`` if it is given; after a signal print how to resume.

    Raises:
        StopRequested: a signal was received; the run is saved.
    """
    path = None if start is None else start.path
    try:
        trainer.fit(module, batches, held_out, ckpt_path=path, weights_only=True)
        stop.check()  # a signal may have been received after the last step
    except StopRequested:
        print_note(f"stopped after step {trainer.global_step}, and saved; --resume {run} resumes it")
        raise


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise InputError("loggers", f"{name!r}, which is not installed", f"pip install {name}")


def _loggers(config: RunSettings, run: Path) -> list[Logger]:
    """Build the CSV logger of a run, and TensorBoard's and W&B's where the settings ask for them."""
    csv = CSVLogger(run, name=LOGS, flush_logs_every_n_steps=config.log_every_steps)
    loggers: list[Logger] = [csv]
    if "tensorboard" in config.loggers:
        loggers.append(TensorBoardLogger(run, name="tensorboard", version=csv.version))
    if "wandb" in config.loggers:
        options: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "monoloss"), "group": run.name}
        loggers.append(WandbLogger(name=f"{run.name}-{csv.version}", save_dir=run, **options))
    return loggers


def print_note(text: str) -> None:
    """Print a line to the error stream."""
    Console(stderr=True).print(text, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence, in a block, Lightning's lines about the machine and its advice on torch's data loaders."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in (
                ".*does not have many workers.*",
                ".*isinstance.treespec, LeafSpec.*is deprecated.*",  # in Lightning
                ".*The number of training batches.*is smaller than the logging",
                ".*You defined a `validation_step` but have no `val_dataloader`",
            ):
                warnings.filterwarnings("ignore", message=advice)
            yield
    finally:
        logger.setLevel(level)

"""The processes of a fine-tuning run, and what is random in their steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from monoloss.data.extract_ranks import Ranks, joined_ranks
from monoloss.errors import InputError
from monoloss.finetune.chance import seed_of


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


@contextmanager
def training_processes() -> Iterator[Ranks]:
    """The processes that torchrun has started (RANK, WORLD_SIZE), ready to train together; alone without it.

    Raises:
        InputError: processes that do not meet; more on a machine than it has GPUs.
    """
    n_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    ours = n_ranks > 1 and not dist.is_initialized()
    if ours and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError("processes", f"{local + 1} on this machine", "a GPU for each process")
        torch.cuda.set_device(local)
        dist.init_process_group("cuda:nccl,cpu:gloo")
    try:
        with joined_ranks() as ranks:
            yield ranks
    finally:
        if ours and dist.is_initialized():
            dist.destroy_process_group()


def processes_per_machine(n_ranks: int) -> int:
    """How many of the processes run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", n_ranks))

"""The random state of a step depends on seed, batch and process alone."""

from __future__ import annotations

from unittest.mock import Mock

import torch
from lightning.pytorch import LightningModule, Trainer

from monoloss.finetune.seeded_steps import SeededSteps


def drawn(seed: int = 0, rank: int = 0, epoch: int = 0, batch_idx: int = 0) -> float:
    """A number that a layer draws in a batch of an epoch of three."""
    with torch.random.fork_rng(devices=[]):
        trainer = Mock(spec=Trainer, current_epoch=epoch, num_training_batches=3)
        SeededSteps(seed, rank).on_train_batch_start(trainer, Mock(spec=LightningModule), None, batch_idx)
        return float(torch.rand(()))


def test_a_step_draws_the_same_whatever_was_drawn_before():
    expected = drawn(epoch=1, batch_idx=2)
    torch.rand(7)
    assert drawn(epoch=1, batch_idx=2) == expected


def test_batches_epochs_seeds_and_processes_draw_apart():
    others = [drawn(batch_idx=1), drawn(batch_idx=2), drawn(epoch=1), drawn(epoch=2), drawn(seed=1), drawn(rank=1)]
    assert len({drawn(), *others}) == 7

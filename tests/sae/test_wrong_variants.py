"""Faults seen in the field, put into the library one at a time: each is rejected by the check that guards it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

import sae_checks
from monoloss.data.store import FeatureStore
from monoloss.products import codes_matmul
from monoloss.sae import objectives
from monoloss.sae.activations import BatchTopK, batch_topk_codes, topk_codes
from monoloss.sae.model import SaeOutput, SparseAutoencoder
from monoloss.sparse import SparseActivations
from monoloss.training.sae import SaeRun


def normalise_before_the_step(self: SaeRun, *args: Any) -> None:
    for _, _, sae, _ in self.parts():
        sae.normalise_decoder_()
    LightningModule.optimizer_step(self, *args)


def choose_within_the_batch(self: BatchTopK, pre_activations: Tensor) -> SparseActivations:
    return batch_topk_codes(pre_activations, self.k)


def threshold_of_zero(self: BatchTopK, *_: Any) -> None:
    self.threshold.zero_()


def aux_of_all_latents(sae: SparseAutoencoder, output: SaeOutput) -> Tensor:
    """Those least recently active, dead or not."""
    longest = sae.samples_since_active.topk(min(sae.config.aux.k, len(sae.samples_since_active))).indices
    mask = torch.zeros_like(sae.dead).index_fill_(0, longest, True)
    codes = topk_codes(output.pre_activations.masked_fill(~mask, -torch.inf), len(longest))
    left_over = (output.target - output.reconstruction).detach()
    return objectives._error(
        sae, codes_matmul(codes, sae.decoder_rows) * output.scale, left_over, left_over.square().sum(1)
    )


RIGHT_FORWARD, RIGHT_BATCHES = SparseAutoencoder.forward, FeatureStore.batches


def count_in_forward(self: SparseAutoencoder, inputs: Tensor) -> SaeOutput:
    output = RIGHT_FORWARD(self, inputs)
    self.count_activity_(output.codes)
    return output


def drop_short_batches(self: FeatureStore, batch_size: int) -> Any:
    return (batch for batch in RIGHT_BATCHES(self, batch_size) if len(batch.embeddings) == batch_size)


def shuffle_within_batches(self: FeatureStore, batch_size: int) -> Any:
    return (batch._replace(embeddings=batch.embeddings.flip(0)) for batch in RIGHT_BATCHES(self, batch_size))


class Fault(NamedTuple):
    """What is replaced by what, and the check that must notice; a check with a folder takes it as its argument."""

    owner: Any
    name: str
    wrong: Callable[..., Any]
    check: Callable[..., None]
    takes_folder: bool = True


FAULTS = {
    "decoder normalised before the step": Fault(
        SaeRun, "optimizer_step", normalise_before_the_step, sae_checks.check_decoder_rows_after_training
    ),
    "batch top-k at inference": Fault(
        BatchTopK,
        "forward",
        choose_within_the_batch,
        partial(sae_checks.check_a_row_is_its_own_affair, "batch_topk"),
        takes_folder=False,
    ),
    "threshold of 0": Fault(BatchTopK, "calibrate_", threshold_of_zero, sae_checks.check_l0_at_inference),
    "aux-k without dead latents": Fault(
        objectives,
        "_aux_loss",
        aux_of_all_latents,
        sae_checks.check_aux_is_zero_without_dead_latents,
        takes_folder=False,
    ),
    "counters changed by evaluation": Fault(
        SparseAutoencoder, "forward", count_in_forward, sae_checks.check_evaluation_changes_no_tensor
    ),
    "rows dropped": Fault(
        FeatureStore, "batches", drop_short_batches, sae_checks.check_every_row_is_read_once_in_order
    ),
    "rows in another order": Fault(
        FeatureStore, "batches", shuffle_within_batches, sae_checks.check_every_row_is_read_once_in_order
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fault = FAULTS[name]
    arguments = [[tmp_path / which] if fault.takes_folder else [] for which in ("right", "wrong")]
    fault.check(*arguments[0])
    monkeypatch.setattr(fault.owner, fault.name, fault.wrong)
    with pytest.raises(AssertionError):
        fault.check(*arguments[1])

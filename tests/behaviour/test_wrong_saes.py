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

from monoloss.data.store import FeatureStore
from monoloss.functional import loss, moments, sparsity
from monoloss.losses import MonoLoss
from monoloss.sae import activations, objectives
from monoloss.sae.activations import BatchTopK, JumpRelu, batch_topk_codes, jump_relu, jump_relu_l0, topk_codes
from monoloss.sae.config import AuxLoss
from monoloss.sae.model import SaeOutput, SparseAutoencoder
from monoloss.sparse import SparseActivations, selection
from monoloss.sparse.products import codes_matmul
from monoloss.training.module import SaeTrainingModule
from support import jump_relu_checks, sae_checks, sparse_path_checks


def normalise_before_the_step(self: SaeTrainingModule, *args: Any) -> None:
    for _, _, sae, _ in self.parts():
        sae.constrain_()
    LightningModule.optimizer_step(self, *args)


def choose_within_the_batch(self: BatchTopK, pre_activations: Tensor) -> SparseActivations:
    return batch_topk_codes(pre_activations, self.k)


def threshold_of_zero(self: BatchTopK, *_: Any) -> None:
    self.threshold.zero_()


def aux_of_all_latents(sae: SparseAutoencoder, output: SaeOutput, aux: AuxLoss) -> Tensor:
    """Those least recently active, dead or not."""
    longest = sae.samples_since_active.topk(min(aux.k, len(sae.samples_since_active))).indices
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


RIGHT_JUMP, RIGHT_STEP, RIGHT_NEAR = activations._JumpRelu.backward, activations._Step.backward, activations._in_kernel
Gradients = tuple[Tensor | None, Tensor, None, None]


def jump_without_theta(ctx: Any, grad: Tensor) -> Gradients:
    of_pre, of_theta, *_ = RIGHT_JUMP(ctx, grad)
    return of_pre, of_theta / ctx.saved_tensors[1], None, None


def jump_of_the_logarithm(ctx: Any, grad: Tensor) -> Gradients:
    of_pre, of_theta, *_ = RIGHT_JUMP(ctx, grad)
    return of_pre, of_theta * ctx.saved_tensors[1], None, None


def step_of_the_logarithm(ctx: Any, grad: Tensor) -> Gradients:
    return None, RIGHT_STEP(ctx, grad)[1] * ctx.saved_tensors[1], None, None


def l0_after_the_jump(self: JumpRelu, pre_activations: Tensor) -> Tensor:
    return jump_relu_l0(self(pre_activations), self.threshold, self.bandwidth)


def twice_the_width(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return RIGHT_NEAR(pre, threshold, 2 * bandwidth)


def above_the_threshold_only(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return RIGHT_NEAR(pre, threshold, bandwidth) & (pre > threshold)


def active_entries_only(self: JumpRelu, pre_activations: Tensor) -> SparseActivations:
    return SparseActivations.from_dense(jump_relu(pre_activations, self.threshold, self.bandwidth))


RIGHT_STORED, RIGHT_L0 = JumpRelu.stored, objectives._l0_loss


def without_near_entries(self: JumpRelu, pre_activations: Tensor, most: int, *, near: bool) -> Any:
    return RIGHT_STORED(self, pre_activations, most, near=False)


def l0_of_stored_codes(sae: SparseAutoencoder, output: SaeOutput, target: float | None) -> Tensor:
    if isinstance(output.codes, SparseActivations):
        return sae.activation.l0(output.codes)
    return RIGHT_L0(sae, output, target)


def stored_entries_as_codes(self: JumpRelu, pre_activations: Any) -> Any:
    if isinstance(pre_activations, SparseActivations):
        return pre_activations
    return jump_relu(pre_activations, self.threshold, self.bandwidth)


def however_many(values: Tensor, bound: Tensor, _: int) -> Tensor:
    return selection.entries_above(values, bound, values.numel())


def stored_entries_count(activations: SparseActivations) -> Tensor:
    return torch.bincount(activations.flat_indices, minlength=activations.n_latents)


def stored_entries_were_active(self: SparseAutoencoder, codes: SparseActivations) -> None:
    self.samples_since_active.add_(len(codes)).masked_fill_(stored_entries_count(codes) > 0, 0)


def minimum_above_zero(activations: Any) -> Tensor:
    if not isinstance(activations, SparseActivations):
        return RIGHT_MINIMUM(activations)
    return RIGHT_MINIMUM(activations.with_values(activations.values.where(activations.values > 0, torch.inf)))


RIGHT_MINIMUM, RIGHT_SAMPLED = moments.minimum, loss.sampled_matmul


def active_entries_get_a_gradient(codes: SparseActivations, left: Tensor, right: Tensor) -> Tensor:
    return RIGHT_SAMPLED(codes, left, right) * (codes.flat_values > 0)


class Fault(NamedTuple):
    """What is replaced by what, and the check that must notice; a check with a folder takes it as its argument."""

    owner: Any
    name: str
    wrong: Any
    check: Callable[..., None]
    takes_folder: bool = True


SMOOTHED = jump_relu_checks.check_theta_follows_the_smoothed_jump
ITSELF = jump_relu_checks.check_theta_follows_the_jump_itself
OF_MONO_LOSS = jump_relu_checks.check_mono_loss_through_the_jump
JUMP_STEP = partial(sparse_path_checks.check_a_step_has_the_gradients_of_a_dense_step, "jump_relu", mono=MonoLoss())
STORED_ZEROS = sparse_path_checks.check_stored_zeros_are_not_active

FAULTS = {
    "decoder normalised before the step": Fault(
        SaeTrainingModule, "optimizer_step", normalise_before_the_step, sae_checks.check_decoder_rows_after_training
    ),
    "batch top-k at inference": Fault(
        BatchTopK,
        "forward",
        choose_within_the_batch,
        partial(sae_checks.check_codes_do_not_depend_on_other_rows, "batch_topk"),
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

OF_JUMP_RELU: list[tuple[Any, str, Callable[..., Any], list[Callable[[], None]]]] = [
    (activations._JumpRelu, "backward", jump_without_theta, [SMOOTHED, ITSELF, OF_MONO_LOSS]),
    (activations._JumpRelu, "backward", jump_of_the_logarithm, [SMOOTHED, ITSELF, OF_MONO_LOSS]),
    (activations._Step, "backward", step_of_the_logarithm, [SMOOTHED, ITSELF]),
    (JumpRelu, "l0", l0_after_the_jump, [SMOOTHED, ITSELF]),
    (activations, "_in_kernel", twice_the_width, [SMOOTHED, OF_MONO_LOSS]),
    (activations, "_in_kernel", above_the_threshold_only, [SMOOTHED, ITSELF, OF_MONO_LOSS]),
    (JumpRelu, "forward", active_entries_only, [OF_MONO_LOSS]),
]
OF_STORED_ENTRIES: list[tuple[Any, str, Any, Callable[[], None]]] = [
    (JumpRelu, "stored", without_near_entries, JUMP_STEP),
    (activations, "_NEAR", 0.25, JUMP_STEP),
    (objectives, "_l0_loss", l0_of_stored_codes, JUMP_STEP),
    (JumpRelu, "forward", stored_entries_as_codes, JUMP_STEP),
    (activations, "entries_above", however_many, partial(sparse_path_checks.check_the_switch, "jump_relu")),
    (activations, "entries_above", however_many, partial(sparse_path_checks.check_the_switch, "vanilla")),
    (sparsity, "activation_counts", stored_entries_count, STORED_ZEROS),
    (SparseAutoencoder, "count_activity_", stored_entries_were_active, STORED_ZEROS),
    (moments, "minimum", minimum_above_zero, STORED_ZEROS),
    (loss, "sampled_matmul", active_entries_get_a_gradient, STORED_ZEROS),
]
FAULTS |= {
    f"stored: {getattr(wrong, '__name__', name)}-{number}": Fault(owner, name, wrong, check, takes_folder=False)
    for number, (owner, name, wrong, check) in enumerate(OF_STORED_ENTRIES)
}
FAULTS |= {
    f"{wrong.__name__}-{check.__name__}": Fault(owner, name, wrong, check, takes_folder=False)
    for owner, name, wrong, checks in OF_JUMP_RELU
    for check in checks
}


@pytest.mark.parametrize("name", FAULTS)
def test_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fault = FAULTS[name]
    arguments = [[tmp_path / which] if fault.takes_folder else [] for which in ("right", "wrong")]
    fault.check(*arguments[0])
    is_static = isinstance(vars(fault.owner).get(fault.name), staticmethod)
    monkeypatch.setattr(fault.owner, fault.name, staticmethod(fault.wrong) if is_static else fault.wrong)
    with pytest.raises(AssertionError):
        fault.check(*arguments[1])

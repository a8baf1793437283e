"""Training losses of sparse autoencoders besides MonoLoss: reconstruction, sparsity, aux-k loss on dead latents."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monoloss.functional.sparsity import l1
from monoloss.precision import autocast_off, product_dtype
from monoloss.sae.activations import JumpRelu, topk_codes
from monoloss.sae.config import AuxLoss, BatchTopKConfig, JumpReluConfig, TopKConfig, VanillaConfig
from monoloss.sae.model import SaeOutput, SparseAutoencoder
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.products import codes_matmul
from monoloss.waiting import may_branch

# Share of stored entries from which dense products are faster: measured 1/6 with 768 inputs, on CPUs
_DENSE_FROM = 1 / 8


class Objective(NamedTuple):
    """The terms of a training loss, each a scalar on the graph.

    Attributes:
        reconstruction: TopK: mean over rows of ``|x' - x|^2 / |x|^2``; others: of ``|x' - x|^2 / d_in``.
        sparsity: before its weight. JumpReLU: L0, or ``(L0 / target - 1)^2``; Vanilla: L1; others: 0.
        aux: the aux-k loss, before its weight; exactly 0 where no latent is dead, for JumpReLU and Vanilla.
        total: ``reconstruction + sparsity_weight * sparsity + aux_weight * aux``.
    """

    reconstruction: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    total: Float[Tensor, ""]


def objective(sae: SparseAutoencoder, output: SaeOutput) -> Objective:
    """Return the training loss of one batch without MonoLoss; errors are in the space of ``output.target``."""
    size = output.target.square().sum(1)
    reconstruction = _error(sae, output.reconstruction, output.target, size)
    sparsity = aux = reconstruction.new_zeros(())
    match sae.config:
        case TopKConfig() | BatchTopKConfig():
            aux = _aux_loss(sae, output, sae.config.aux)
            total = reconstruction + sae.config.aux.weight * aux
        case JumpReluConfig():
            sparsity = _l0_loss(sae, output, sae.config.target_l0)
            total = reconstruction + sae.config.l0_weight * sparsity
        case VanillaConfig():
            sparsity = l1(output.codes)
            total = reconstruction + sae.config.l1_weight * sparsity
    return Objective(reconstruction, sparsity, aux, total)


def _error(sae: SparseAutoencoder, reconstruction: Tensor, target: Tensor, size: Tensor) -> Tensor:
    """Return the mean squared error of all entries; for TopK of all rows, each divided by its ``size``, ``(n,)``."""
    squared = (reconstruction - target).square()
    if isinstance(sae.config, TopKConfig):
        return (squared.sum(1) / size.clamp(min=torch.finfo(size.dtype).tiny)).mean()
    return squared.mean()


def _l0_loss(sae: SparseAutoencoder, output: SaeOutput, target: float | None) -> Tensor:
    """Return L0 of JumpReLU, differentiable by its thresholds, or ``(L0 / target - 1)^2``."""
    assert isinstance(sae.activation, JumpRelu)  # noqa: S101 - for the type checker
    pre_activations: Activations = output.pre_activations
    if isinstance(output.codes, SparseActivations):
        pre_activations = output.codes.with_values(output.pre_activations[output.codes.rows, output.codes.indices])
    count = sae.activation.l0(pre_activations)
    return count if target is None else (count / target - 1.0).square()


def _decoded(codes: SparseActivations, rows: Tensor) -> Tensor:
    """Return ``codes @ rows``. Few dead latents are nearly all active: a dense product is then several times faster."""
    if codes.values.numel() < _DENSE_FROM * codes.shape[0] * codes.n_latents:
        return codes_matmul(codes, rows)
    with autocast_off(rows.device):
        dtype = product_dtype(codes.dtype, rows.dtype)
        return codes.to_dense().to(dtype) @ rows.to(dtype)


def _aux_loss(sae: SparseAutoencoder, output: SaeOutput, aux: AuxLoss) -> Tensor:
    """Return the error of the ``aux.k`` most active dead latents in rebuilding the residual of the reconstruction."""
    if aux.weight == 0 or not sae.may_have_dead:
        return output.reconstruction.new_zeros(())
    if may_branch(sae.samples_since_active.device):
        dead = sae.dead.nonzero().squeeze(1)
        codes = topk_codes(sae.pre_activations(output.scaled, dead), min(aux.k, len(dead)))
        return _residual_error(sae, output, _decoded(codes, sae.decoder_rows[dead]))
    error = _residual_error(sae, output, _decoded(_dead_codes(sae, output, aux.k), sae.decoder_rows))
    return torch.where(sae.dead.any(), error, 0.0)


def _residual_error(sae: SparseAutoencoder, output: SaeOutput, decoded: Tensor) -> Tensor:
    """Return the error of decoded rows, still to be scaled, in rebuilding the residual of the reconstruction."""
    residual = (output.target - output.reconstruction).detach()
    rounding = torch.finfo(residual.dtype).eps * output.target.square().sum(1)  # a smaller residual counts as 0
    size = torch.maximum(residual.square().sum(1), rounding)
    return _error(sae, decoded * output.scale, residual, size)


def _dead_codes(sae: SparseAutoencoder, output: SaeOutput, k: int) -> SparseActivations:
    """Return the ``k`` most active dead latents of each row among all latents; fewer dead ones leave entries of 0."""
    pre_activations = output.pre_activations.detach().masked_fill(~sae.dead, -torch.inf)
    codes = topk_codes(pre_activations, min(k, sae.config.n_latents))
    return sae.on_graph(codes, output.scaled)

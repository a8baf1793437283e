"""What a sparse autoencoder is trained for besides MonoLoss: reconstruction, and the aux-k loss on dead latents."""

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

_DENSE_FROM = (
    1 / 8
)  # share of stored entries from which dense products are faster: measured 1/6 with 768 inputs, on CPUs


class Objective(NamedTuple):
    """The terms of a training loss, each a scalar on the graph.

    Attributes:
        reconstruction: TopK: mean over rows of ``|x' - x|^2 / |x|^2``; others: of ``|x' - x|^2 / d_in``.
        sparsity: without its weight. JumpReLU: L0, or ``(L0 / target - 1)^2``; Vanilla: L1; others: 0.
        aux: the aux-k loss on dead latents, without its weight; exactly 0 where none is dead, or without such a loss.
        total: ``reconstruction + sparsity_weight * sparsity + aux_weight * aux``.
    """

    reconstruction: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    total: Float[Tensor, ""]


def objective(sae: SparseAutoencoder, output: SaeOutput) -> Objective:
    """The training loss of one batch without MonoLoss, in the input's own space."""
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
    """TopK: squared error of a row in relation to ``size``; others: in the squared unit of the inputs."""
    squared = (reconstruction - target).square()
    if isinstance(sae.config, TopKConfig):
        return (squared.sum(1) / size.clamp(min=torch.finfo(size.dtype).tiny)).mean()
    return squared.mean()


def _l0_loss(sae: SparseAutoencoder, output: SaeOutput, target: float | None) -> Tensor:
    """L0 of JumpReLU on the pre-activations, or how far it is from its target."""
    assert isinstance(sae.activation, JumpRelu)  # noqa: S101 - what the configuration says, for the type checker
    pre_activations: Activations = output.pre_activations
    if isinstance(output.codes, SparseActivations):
        pre_activations = output.codes.with_values(output.pre_activations[output.codes.rows, output.codes.indices])
    count = sae.activation.l0(pre_activations)
    return count if target is None else (count / target - 1.0).square()


def _decoded(codes: SparseActivations, rows: Tensor) -> Tensor:
    """``codes @ rows``; few dead latents are nearly all active, and then a dense product is several times faster."""
    if codes.values.numel() < _DENSE_FROM * codes.shape[0] * codes.n_latents:
        return codes_matmul(codes, rows)
    with autocast_off(rows.device):
        dtype = product_dtype(codes.dtype, rows.dtype)
        return codes.to_dense().to(dtype) @ rows.to(dtype)


def _aux_loss(sae: SparseAutoencoder, output: SaeOutput, aux: AuxLoss) -> Tensor:
    """How far the most active dead latents are from rebuilding what the reconstruction left over."""
    dead = sae.dead.nonzero().squeeze(1) if aux.weight > 0 else sae.samples_since_active[:0]
    if len(dead) == 0:
        return output.reconstruction.new_zeros(())
    codes = topk_codes(sae.pre_activations(output.scaled, dead), min(aux.k, len(dead)))
    rebuilt = _decoded(codes, sae.decoder_rows[dead]) * output.scale
    left_over = (output.target - output.reconstruction).detach()
    rounding = torch.finfo(left_over.dtype).eps * output.target.square().sum(1)  # less than this is nothing left over
    size = torch.maximum(left_over.square().sum(1), rounding)
    return _error(sae, rebuilt, left_over, size)

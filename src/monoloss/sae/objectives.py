"""What a sparse autoencoder is trained for besides MonoLoss: reconstruction, and the aux-k loss on dead latents."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monoloss.products import codes_matmul
from monoloss.sae.activations import topk_codes
from monoloss.sae.config import TopKConfig
from monoloss.sae.model import SaeOutput, SparseAutoencoder


class Objective(NamedTuple):
    """The terms of a training loss, each a scalar on the graph.

    Attributes:
        reconstruction: TopK: mean over rows of ``|x' - x|^2 / |x|^2``; BatchTopK: mean over rows and dimensions.
        aux: the aux-k loss on dead latents, without its weight; exactly 0 where none is dead.
        total: ``reconstruction + aux_weight * aux``.
    """

    reconstruction: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    total: Float[Tensor, ""]


def objective(sae: SparseAutoencoder, output: SaeOutput) -> Objective:
    """The training loss of one batch without MonoLoss, in the input's own space."""
    size = output.target.square().sum(1)
    reconstruction = _error(sae, output.reconstruction, output.target, size)
    aux = _aux_loss(sae, output)
    return Objective(reconstruction, aux, reconstruction + sae.config.aux.weight * aux)


def _error(sae: SparseAutoencoder, reconstruction: Tensor, target: Tensor, size: Tensor) -> Tensor:
    """TopK: squared error of a row in relation to ``size``; BatchTopK: in the squared unit of the inputs."""
    squared = (reconstruction - target).square()
    if isinstance(sae.config, TopKConfig):
        return (squared.sum(1) / size.clamp(min=torch.finfo(size.dtype).tiny)).mean()
    return squared.mean()


def _aux_loss(sae: SparseAutoencoder, output: SaeOutput) -> Tensor:
    """How far the most active dead latents are from rebuilding what the reconstruction left over."""
    dead = sae.dead
    n_dead = int(dead.sum()) if sae.config.aux.weight > 0 else 0
    if n_dead == 0:
        return output.reconstruction.new_zeros(())
    pre_activations = output.pre_activations.masked_fill(~dead, -torch.inf)
    codes = topk_codes(pre_activations, min(sae.config.aux.k, n_dead))
    left_over = (output.target - output.reconstruction).detach()
    rounding = torch.finfo(left_over.dtype).eps * output.target.square().sum(1)  # less than this is nothing left over
    size = torch.maximum(left_over.square().sum(1), rounding)
    return _error(sae, codes_matmul(codes, sae.decoder_rows) * output.scale, left_over, size)

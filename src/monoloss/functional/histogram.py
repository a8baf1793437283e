"""Histograms of the activations of each latent, in fixed bins of half an octave (a factor of sqrt(2))."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monoloss.errors import InputError
from monoloss.functional.sparsity import check_activations, count_not_finite, dense_blocks
from monoloss.precision import sums_device
from monoloss.sparse import Activations, SparseActivations
from monoloss.waiting import may_check

_LOWEST, _HIGHEST = -20, 20  # octaves: the bins reach from 2^-20 to 2^20
N_BINS = 2 * (_HIGHEST - _LOWEST)


class _Bits(NamedTuple):
    """The bit layout of a floating-point type."""

    integer: torch.dtype  # as wide as the floating-point type
    n_fraction: int  # bits of the fraction
    one: int  # the bits of the number 1, read as an integer
    root: int  # the bits of the smallest number that is not below the float64 nearest to sqrt(2)


_BITS = {
    torch.float32: _Bits(torch.int32, 23, 0x3F800000, 0x3FB504F4),
    torch.float64: _Bits(torch.int64, 52, 0x3FF0000000000000, 0x3FF6A09E667F3BCD),
}


def histogram_edges() -> Float[Tensor, " edges"]:
    """Return the edges of the bins of ``activation_histogram``: ``2^(i / 2)`` for i from -40 to 40, ``(81,)`` float64.

    Bin ``b`` counts ``edges[b] <= z < edges[b + 1]``. The first bin counts smaller values too, the last larger ones.
    """
    edges = [math.ldexp(math.sqrt(2) if odd else 1.0, octave) for octave in range(_LOWEST, _HIGHEST) for odd in (0, 1)]
    return torch.tensor([*edges, math.ldexp(1.0, _HIGHEST)], dtype=torch.float64)


@torch.no_grad()
def activation_histogram(activations: Activations, into: Int[Tensor, "m bins"] | None = None) -> Int[Tensor, "m bins"]:
    """Count the active entries (``z > 0``) of each latent in each bin of ``histogram_edges``.

    Exact. Cost O(n m) dense, O(entries) sparse; memory ``80 m`` integers. Histograms of batches add up.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse; negative ones and stored zeros do not count.
        into: histograms of earlier rows, changed in place.

    Returns:
        int64 counts ``(m, 80)`` on ``sums_device``: ``into`` if given, else a new tensor. Those of a latent add up to
        its ``activation_counts``.

    Raises:
        InputError: activations that are not a floating-point ``(n, m)``; on the CPU, one that is not finite; ``into``
            of another shape or dtype.
    """
    check_activations(activations)
    m, sums_dev = activations.shape[1], sums_device(activations.device)
    if into is None:
        into = torch.zeros(m, N_BINS, dtype=torch.int64, device=sums_dev)
    elif into.shape != (m, N_BINS) or into.dtype != torch.int64:
        raise InputError("into", f"shape {tuple(into.shape)}, dtype {into.dtype}", f"int64 counts ({m}, {N_BINS})")
    if may_check(activations.device):
        count_not_finite(activations)
    flat_counts = into.view(-1)
    activations = activations.detach()
    if isinstance(activations, SparseActivations):
        latents, values = activations.flat_indices, activations.flat_values
        latents, values = latents.to(sums_dev), values.to(sums_dev)
        active = values > 0
        cells = latents * N_BINS + _bins(torch.where(active, values, 0.0))
        flat_counts.scatter_add_(0, cells, active.long())
        return into
    first_bins = torch.arange(m, device=sums_dev) * N_BINS
    for _, block in dense_blocks(activations):
        cells = (first_bins + _bins(block.clamp(min=0))).view(-1)  # entries <= 0 fall into bin 0
        flat_counts.scatter_add_(0, cells, torch.ones_like(cells))
        into[:, 0] -= (block <= 0).sum(0)
    return into


def _bins(values: Tensor) -> Int[Tensor, "..."]:
    """Return the bin of each value ``>= 0``: twice its octave, plus 1 from sqrt(2) of the octave on. Reads the bits."""
    values = values if values.dtype == torch.float64 else values.float()
    layout = _BITS[values.dtype]
    bits = values.contiguous().view(layout.integer)
    octave = bits >> layout.n_fraction
    up_to_next = layout.one + (1 << layout.n_fraction) - layout.root
    octave_from_root = (bits + up_to_next) >> layout.n_fraction
    lowest = 2 * ((layout.one >> layout.n_fraction) + _LOWEST)
    return octave.add_(octave_from_root).sub_(lowest).clamp_(0, N_BINS - 1)

"""Batches added to the moments of a long stream in place, a block of latents at a time: little memory, few passes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from monoloss.functional.moments import MonoMoments, batch_moments, rebase, weigh_sparse
from monoloss.functional.sparsity import count_not_finite
from monoloss.precision import autocast_off, product_dtype
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.products import bag_sums, codes_t_matmul

_BLOCK_ELEMENTS = 2**19  # of w that are added in one go: they stay in the cache between the product and the sum
_LONGEST_SUM = 256  # entries of a latent that are added up in float32 before they go into float64


@torch.no_grad()
def add_batch(total: MonoMoments, unit_embeddings: Float[Tensor, "n d"], activations: Activations) -> MonoMoments:
    """Moments of ``total`` and of a batch of unit rows: ``merge(total, batch_moments(...))``, overwriting ``total.w``.

    A batch of few entries touches few of the numbers of ``w``, but its product is as large as ``w``. Here both are
    made a block of latents at a time, so that the block of the product never leaves the cache: no second ``(m, d)``
    tensor, and one pass over the sums. Weights that dominate a latent (see ``moments``) go into the float64
    sums by themselves. The sums of a latent do not depend on the latents beside it where the activations are sparse.

    Raises:
        InputError: on the CPU, an activation that is not finite; ``total`` is then as it was.

    Example:
        >>> total = add_batch(MonoMoments.zeros(2, 1), torch.eye(2), torch.tensor([[1.0], [2.0]]))
        >>> add_batch(total, torch.eye(2), torch.tensor([[0.0], [2.0]])).w
        tensor([[1., 4.]], dtype=torch.float64)
    """
    h, z = unit_embeddings.detach(), activations.detach()
    with autocast_off(h.device):
        if h.device.type == "cpu":
            count_not_finite(z)  # refused before anything is added
        dtype = product_dtype(h.dtype, z.dtype)
        h = h.to(dtype)
        if isinstance(z, SparseActivations):
            return _add_sparse(total, h, z)
        return _add_dense(total, h, z)


def _add_sparse(total: MonoMoments, h: Tensor, z: SparseActivations) -> MonoMoments:
    batch = weigh_sparse(h, z, h.dtype)
    w, b = total.w, torch.minimum(total.b, batch.b)
    none = w.new_zeros(z.n_latents, 0)
    before = rebase(MonoMoments(total.n, w.new_zeros(0), total.b, total.u, total.v, none), b)
    added = rebase(MonoMoments(batch.n, w.new_zeros(0), batch.b, batch.u, batch.v, none), b)
    # What the rows of the sum so far, and those of the batch, weigh beyond their products
    fall = torch.where(total.n > 0, total.b - b, 0.0)
    floor = torch.where(batch.n > 0, batch.b - b, 0.0) + (0.0 if batch.below is None else batch.below)
    for t, h_sum in ((fall, total.h_sum), (floor, batch.h_sum)):
        if bool(t.any()):
            for latents in _blocks(w):
                w[latents].addr_(t[latents], h_sum)
    codes = z.with_values(batch.rest.reshape(z.values.shape))
    if h.device.type == "cpu":
        _add_product(w, codes, batch.h)
    else:
        w.add_(codes_t_matmul(codes, batch.h).to(w.device))
    entries = batch.large
    if len(entries):
        weights, rows = batch.weights[entries].to(w), batch.h[z.rows[entries]].to(w)
        w.index_add_(0, z.flat_indices[entries].to(w.device), weights[:, None] * rows)
    return MonoMoments(total.n + batch.n, total.h_sum + batch.h_sum, b, before.u + added.u, before.v + added.v, w)


def _add_product(w: Tensor, codes: SparseActivations, h: Tensor) -> None:
    """Add ``codes^T h``, on the CPU: each latent a bag of rows of ``h``, which fit the cache."""
    grouped = codes.by_latent
    weights = codes.flat_values.index_select(0, grouped.order)
    if not len(weights):
        return
    is_long = grouped.offsets.diff() > _LONGEST_SUM
    of_long = is_long.repeat_interleave(grouped.offsets.diff()) if bool(is_long.any()) else None
    short = weights if of_long is None else weights.masked_fill(of_long, 0.0)
    for latents in _blocks(w):
        starts = grouped.offsets[latents.start : latents.stop + 1]
        first, last = int(starts[0]), int(starts[-1])
        if first < last:
            w[latents].add_(bag_sums(grouped.rows[first:last], h, starts[:-1] - first, short[first:last]))
    if of_long is not None:
        long = is_long.nonzero().squeeze(1)
        sums = _sums_in_parts(grouped.rows[of_long], h, grouped.offsets.diff()[long], weights[of_long])
        w.index_add_(0, long, sums.to(w))


def _sums_in_parts(rows: Tensor, h: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """Sums of bags of these sizes, one after the other, in float64 over parts of at most `_LONGEST_SUM` entries.

    Equal entries on equal rows round in the same direction each time: 2048 of them in float32 would miss 1e-5.
    """
    n_parts = counts.add(_LONGEST_SUM - 1).div(_LONGEST_SUM, rounding_mode="floor")
    owners = torch.arange(len(counts)).repeat_interleave(n_parts)
    number = torch.arange(len(owners)) - (n_parts.cumsum(0) - n_parts)[owners]
    starts = (counts.cumsum(0) - counts)[owners] + _LONGEST_SUM * number
    sums = torch.zeros(len(counts), h.shape[1], dtype=torch.float64)
    return sums.index_add_(0, owners, bag_sums(rows, h, starts, weights).double())


def _add_dense(total: MonoMoments, h: Tensor, z: Tensor) -> MonoMoments:
    w, parts = total.w, []
    for latents in _blocks(w):
        batch = batch_moments(h, z[:, latents])
        b = torch.minimum(total.b[latents], batch.b)
        rows = w[latents]
        mine = MonoMoments(total.n, total.h_sum, total.b[latents], total.u[latents], total.v[latents], rows)
        before, added = rebase(mine, b), rebase(batch, b)
        if before.w is not rows:
            rows.copy_(before.w)
        rows += added.w.to(w.device)
        parts.append((b, before.u + added.u, before.v + added.v))
    b, u, v = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return MonoMoments(total.n + batch.n, total.h_sum + batch.h_sum, b, u, v, w)


def _blocks(w: Tensor) -> Iterator[slice]:
    m, d = w.shape
    step = max(1, _BLOCK_ELEMENTS // max(1, d)) if w.device.type == "cpu" else m
    for start in range(0, m, step):
        yield slice(start, min(start + step, m))

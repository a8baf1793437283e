"""In-place addition of batches to the moments of a long stream, a block of latents at a time: little memory."""

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
from monoloss.waiting import may_branch, may_check

_BLOCK_ELEMENTS = 2**18  # elements of w in one block, which stays in the cache between the product and the sum
_LONGEST_SUM = 256  # entries of a latent in one float32 sum; such sums are added in float64


@torch.no_grad()
def add_batch(total: MonoMoments, unit_embeddings: Float[Tensor, "n d"], activations: Activations) -> MonoMoments:
    """Return the moments ``merge(total, batch_moments(unit_embeddings, activations))``, overwriting ``total.w``.

    The product of a batch is as large as ``w``, even of few entries. It is computed and added block by block of
    latents, so that a block never leaves the cache: no second ``(m, d)`` tensor, and one pass over ``w``. Weights that
    dominate a latent (``moments._large``) are added to the float64 sums one by one. With sparse activations the sums
    of a latent do not depend on the other latents.

    Raises:
        InputError: on the CPU, an activation that is not finite; ``total`` is then unchanged.
    """
    h, z = unit_embeddings.detach(), activations.detach()
    with autocast_off(h.device):
        if may_check(h.device):
            count_not_finite(z)  # raises before anything is added
        dtype = product_dtype(h.dtype, z.dtype)
        h = h.to(dtype)
        if isinstance(z, SparseActivations):
            return _add_sparse(total, h, z)
        return _add_dense(total, h, z)


def _add_sparse(total: MonoMoments, h: Tensor, z: SparseActivations) -> MonoMoments:
    """Add a batch of sparse activations ``z`` on unit rows ``h`` to ``total``, overwriting ``total.w``."""
    batch = weigh_sparse(h, z, h.dtype)
    w, b = total.w, torch.minimum(total.b, batch.b)
    no_w = w.new_zeros(z.n_latents, 0)
    before = rebase(MonoMoments(total.n, w.new_zeros(0), total.b, total.u, total.v, no_w), b)
    added = rebase(MonoMoments(batch.n, w.new_zeros(0), batch.b, batch.u, batch.v, no_w), b)
    # Weight of every row, in addition to that of its stored entries: in `total` (fall) and in the batch (floor)
    fall = torch.where(total.n > 0, total.b - b, 0.0)
    floor = torch.where(batch.n > 0, batch.b - b, 0.0) + (0.0 if batch.below is None else batch.below)
    for t, h_sum in ((fall, total.h_sum), (floor, batch.h_sum)):
        if not may_branch(w.device) or bool(t.any()):
            for latents in _blocks(w):
                w[latents].addr_(t[latents], h_sum)
    codes = z.with_values(batch.rest.reshape(z.values.shape))
    if h.device.type == "cpu" and may_branch(h.device):
        _add_product(w, codes, batch.h)
    else:
        w.add_(codes_t_matmul(codes, batch.h).to(w.device))
    entries = batch.large
    if entries is not None and len(entries):
        weights, rows = batch.weights[entries].to(w), batch.h[z.rows[entries]].to(w)
        w.index_add_(0, z.flat_indices[entries].to(w.device), weights[:, None] * rows)
    return MonoMoments(total.n + batch.n, total.h_sum + batch.h_sum, b, before.u + added.u, before.v + added.v, w)


def _add_product(w: Tensor, codes: SparseActivations, h: Tensor) -> None:
    """Add ``codes^T h`` to ``w`` in place, on the CPU: for each latent the weighted sum of a bag of rows of ``h``."""
    grouped = codes.by_latent
    weights = codes.flat_values.index_select(0, grouped.order)
    if not len(weights):
        return
    is_long = grouped.offsets.diff() > _LONGEST_SUM
    in_long = is_long.repeat_interleave(grouped.offsets.diff()) if bool(is_long.any()) else None
    short = weights if in_long is None else weights.masked_fill(in_long, 0.0)
    blocks = list(_blocks(w))
    ends = grouped.offsets[[0, *(latents.stop for latents in blocks)]].tolist()
    for latents, first, last in zip(blocks, ends, ends[1:], strict=False):
        if first < last:
            starts = grouped.offsets[latents] - first
            w[latents].add_(bag_sums(grouped.rows[first:last], h, starts, short[first:last]))
    if in_long is not None:
        long = is_long.nonzero().squeeze(1)
        sums = _sums_in_parts(grouped.rows[in_long], h, grouped.offsets.diff()[long], weights[in_long])
        w.index_add_(0, long, sums.to(w))


def _sums_in_parts(rows: Tensor, h: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """Sum bags of ``counts`` entries, stored one bag after the other, in float32 parts that are added in float64.

    A part has at most ``_LONGEST_SUM`` entries. Equal entries on equal rows round in the same direction each time: a
    float32 sum of 2048 of them would be off by more than 1e-5. Returns ``(bags, d)`` float64.
    """
    n_parts = counts.add(_LONGEST_SUM - 1).div(_LONGEST_SUM, rounding_mode="floor")
    owners = torch.arange(len(counts)).repeat_interleave(n_parts)
    number = torch.arange(len(owners)) - (n_parts.cumsum(0) - n_parts)[owners]
    starts = (counts.cumsum(0) - counts)[owners] + _LONGEST_SUM * number
    sums = torch.zeros(len(counts), h.shape[1], dtype=torch.float64)
    return sums.index_add_(0, owners, bag_sums(rows, h, starts, weights).double())


def _add_dense(total: MonoMoments, h: Tensor, z: Tensor) -> MonoMoments:
    """Add a batch of dense activations ``z`` on unit rows ``h`` to ``total``, overwriting ``total.w``."""
    w, parts = total.w, []
    for latents in _blocks(w):
        batch = batch_moments(h, z[:, latents])
        b = torch.minimum(total.b[latents], batch.b)
        rows = w[latents]
        block = MonoMoments(total.n, total.h_sum, total.b[latents], total.u[latents], total.v[latents], rows)
        before, added = rebase(block, b), rebase(batch, b)
        if before.w is not rows:
            rows.copy_(before.w)
        rows += added.w.to(w.device)
        parts.append((b, before.u + added.u, before.v + added.v))
    b, u, v = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return MonoMoments(total.n + batch.n, total.h_sum + batch.h_sum, b, u, v, w)


def _blocks(w: Tensor) -> Iterator[slice]:
    """Yield slices of latents: on the CPU of about ``_BLOCK_ELEMENTS`` elements of ``w``, else all at once."""
    m, d = w.shape
    step = max(1, _BLOCK_ELEMENTS // max(1, d)) if w.device.type == "cpu" else m
    for start in range(0, m, step):
        yield slice(start, min(start + step, m))

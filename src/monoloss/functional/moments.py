"""The sufficient statistics of MonoScore: fixed in size, exact for any order and any split of the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from monoloss.errors import InputError
from monoloss.functional.sparsity import refuse_not_finite
from monoloss.precision import autocast_off, product_dtype, row_norms, sums_device
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.products import bag_sums, codes_t_matmul
from monoloss.waiting import may_branch, may_check

_ROWS_IN_FLOAT64 = 64  # rows of dense activations that are squared in float64 at a time: they stay in the cache
_ROWS_LIFTED = 256  # rows of embeddings that are cast to float64 at a time, likewise
_MOST_LARGE = 16  # large weights of a latent: fewer than 16 have squares over 1 / 16 of the sum of all squares
_MANY_ENTRIES = 64  # entries of a latent in a batch; above it the order of a float32 sum matters
_ROWS_PER_PRODUCT = 8192  # rows that one product sums in its own precision; the products are added in float64


@dataclass(frozen=True)
class MonoMoments:
    """Sums over rows from which MonoScore, chance, lift and n_eff follow; the moments are taken about ``b``.

    With unit embedding rows ``h_i`` and activations ``z_ij``, for each latent ``j``:
    ``b = min z``, ``u = sum (z - b)``, ``v = sum (z - b)^2``, ``w = sum (z - b) h``; and ``n`` rows, ``H = sum h``.
    Every term of ``u`` and ``v`` is >= 0, so nothing cancels. All float64, except ``w`` of a single float32 batch.

    Attributes:
        n: number of rows, scalar.
        h_sum: ``H``, the sum of the unit rows, ``(d,)``.
        b: running minimum of each latent, ``(m,)``; infinity while there is no row.
        u: first moments about ``b``, ``(m,)``.
        v: second moments about ``b``, ``(m,)``.
        w: activation-weighted sums of the unit rows, ``(m, d)``.

    Example:
        >>> first = batch_moments(torch.eye(2), torch.tensor([[1.0], [2.0]]))
        >>> merge(first, batch_moments(torch.eye(2), torch.tensor([[0.0], [2.0]]))).u
        tensor([5.], dtype=torch.float64)
    """

    n: Float[Tensor, ""]
    h_sum: Float[Tensor, " d"]
    b: Float[Tensor, " m"]
    u: Float[Tensor, " m"]
    v: Float[Tensor, " m"]
    w: Float[Tensor, "m d"]

    @classmethod
    def zeros(cls, d: int, m: int, device: torch.device | None = None) -> MonoMoments:
        """Return the moments of no rows, the neutral element of ``merge``."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(n=zeros(), h_sum=zeros(d), b=zeros(m) + torch.inf, u=zeros(m), v=zeros(m), w=zeros(m, d))


def unit_rows(embeddings: Float[Tensor, "n d"], center: Float[Tensor, " d"] | None = None) -> Float[Tensor, "n d"]:
    """Take the mean vector ``center`` off the rows and scale them to length 1; at least float32, differentiable.

    Raises:
        InputError: on the CPU, a row without a direction: zero (after centring) or not finite.
    """
    with autocast_off(embeddings.device):
        rows = embeddings.to(product_dtype(embeddings.dtype))
        if center is not None:
            rows = rows - center.to(rows)
        norms = row_norms(rows)[:, None].to(rows.dtype)
        if may_check(norms.device):
            check_norms(norms, centred=center is not None)
        unit: Tensor = rows / norms
        return unit


def check_norms(norms: Float[Tensor, "n 1"], *, centred: bool) -> None:
    """Raise InputError for the first row whose norm is 0 or not finite."""
    bad = ~(torch.isfinite(norms) & (norms > 0)).flatten()
    if bad.any():
        row = int(bad.nonzero()[0])
        norm = float(norms.detach().flatten()[row])
        kind = "a row of zeros" if norm == 0 else f"a row of length {norm}"
        after = " after the mean vector was taken off" if centred else ""
        raise InputError("embeddings", f"{kind}{after} (row {row})", "rows of finite numbers, not all zero")


def batch_moments(unit_embeddings: Float[Tensor, "n d"], activations: Activations) -> MonoMoments:
    """Return the moments of one batch of unit rows, about the minimum of each latent in the batch.

    Products run in the wider dtype of the two inputs, at least float32, over at most 8192 rows each, and are added in
    float64. Cost O(n m d) dense, O(entries d) sparse. A latent stored sparsely has the minimum
    ``min(0, smallest stored value)`` unless every row stores it.

    Raises:
        InputError: on the CPU, an activation that is not finite.
    """
    h = unit_embeddings.detach()
    z = activations.detach()
    with autocast_off(h.device), torch.no_grad():
        dtype = product_dtype(h.dtype, z.dtype)
        h = h.to(dtype)
        if isinstance(z, SparseActivations):
            moments = _sparse_moments(h, z, dtype)
        else:
            moments = _dense_moments(h, z, dtype)
        moments = replace(moments, w=moments.w.to(dtype))  # on all processes alike, for the all-reduce
    if may_check(moments.u.device) and not torch.isfinite(moments.u).all():
        refuse_not_finite(z)
    return moments


def merge(left: MonoMoments, right: MonoMoments, *, fade: float = 1.0, reuse: bool = False) -> MonoMoments:
    """Return the moments of the rows of ``left`` and ``right``: re-based to the smaller minimum per latent, then added.

    The sums of ``left`` are multiplied by ``fade``. With ``reuse``, ``right.w`` is overwritten with the result's ``w``.
    """
    b = torch.minimum(left.b, right.b)
    left, right = rebase(left, b), rebase(right, b)

    def added(older: Tensor, newer: Tensor) -> Tensor:
        return torch.add(newer, older, alpha=fade)

    return MonoMoments(
        n=added(left.n, right.n),
        h_sum=added(left.h_sum, right.h_sum),
        b=b,
        u=added(left.u, right.u),
        v=added(left.v, right.v),
        w=right.w.add_(left.w, alpha=fade) if reuse else added(left.w, right.w),
    )


def rebase(moments: MonoMoments, b: Float[Tensor, " m"]) -> MonoMoments:
    """Return the moments of the same rows about smaller or equal minima ``b``.

    For a minimum that falls by t: ``v += 2 t u + n t^2; u += n t; w += t H``.
    """
    n = moments.n
    t = torch.where(n > 0, moments.b - b, 0.0)
    if may_branch(t.device) and not t.any():  # nearly always: a ReLU's minimum is 0 from the first batch on
        return replace(moments, b=b)
    return replace(
        moments,
        b=b,
        u=moments.u + n * t,
        v=moments.v + 2.0 * t * moments.u + n * t**2,
        w=torch.addr(moments.w, t.to(moments.w.dtype), moments.h_sum.to(moments.w.dtype)),
    )


def all_reduce(moments: MonoMoments, group: dist.ProcessGroup | None = None) -> MonoMoments:
    """Return the moments of the rows of all processes of ``group`` (None: of all): minimum of ``b``, re-base, sums."""
    b = moments.b.clone()
    dist.all_reduce(b, op=dist.ReduceOp.MIN, group=group)
    moments = rebase(moments, b)
    small = torch.cat([moments.n[None], moments.h_sum, moments.u, moments.v])
    w = moments.w.clone()
    dist.all_reduce(small, group=group)
    dist.all_reduce(w, group=group)
    n, h_sum, u, v = small.split([1, *(part.shape[0] for part in (moments.h_sum, moments.u, moments.v))])
    return MonoMoments(n=n[0], h_sum=h_sum, b=b, u=u, v=v, w=w)


def stored_in_every_row(codes: SparseActivations) -> Tensor:
    """Return a mask ``(m,)`` of the latents stored in every row, whose minimum is that of their stored values."""
    return codes.by_latent.offsets.diff() == codes.shape[0]


def minimum(activations: Activations) -> Float[Tensor, " m"]:
    """Return the smallest activation of each latent, ``(m,)``; entries not stored are 0. Infinity without rows."""
    if not isinstance(activations, SparseActivations):
        if activations.shape[0] == 0:
            return activations.new_full((activations.shape[1],), torch.inf)
        return activations.amin(0)
    everywhere, values = stored_in_every_row(activations), activations.flat_values
    if may_branch(values.device) and not bool(everywhere.any() | ~(values >= 0).all()):
        return values.new_zeros(activations.n_latents)  # nearly always: the entries not stored are the smallest
    start = torch.where(everywhere, torch.inf, 0.0).to(activations.dtype)
    return start.scatter_reduce(0, activations.flat_indices, activations.flat_values, "amin")


def _dense_moments(h: Tensor, z: Tensor, dtype: torch.dtype) -> MonoMoments:
    """Compute the moments of a batch of dense activations ``z`` on unit rows ``h``."""
    sums_dev = sums_device(h.device)
    a = z.to(dtype)
    b = minimum(a)
    a = a - b
    u, v = torch.zeros(2, a.shape[1], dtype=torch.float64, device=sums_dev)
    for part in a.split(_ROWS_IN_FLOAT64):
        wide = part.to(sums_dev).double()
        u += wide.sum(0)
        v += wide.square().sum(0)
    w = _dense_product(a, h, v)
    return MonoMoments(n=_count(h, sums_dev), h_sum=_sum64(h), b=b.to(sums_dev).double(), u=u, v=v, w=w)


def _dense_product(a: Tensor, h: Tensor, v: Tensor) -> Tensor:
    """Return ``w = a^T h``; of float32, the weights that are large in their latent's ``v`` are added at the end."""
    if a.dtype == torch.float64:
        return _product_in_parts(a, h)
    large = _large(a, v.sqrt().to(a), (a > 0).sum(0))
    if may_branch(h.device):
        rows, latents = large.nonzero(as_tuple=True)
        w = _product_in_parts(a.masked_fill(large, 0.0) if len(rows) else a, h)
        return w.index_add_(0, latents.to(w.device), (a[rows, latents, None] * h[rows]).to(w))
    w = _product_in_parts(a.masked_fill(large, 0.0), h).double()
    if len(a):
        weights, rows = a.masked_fill(~large, 0.0).topk(min(_MOST_LARGE, len(a)), dim=0, sorted=False)
        w += bag_sums(rows.t().contiguous(), h.double(), None, weights.t().double().contiguous())
    return w


def _count(h: Tensor, sums_dev: torch.device) -> Tensor:
    """Return the number of rows as a float64 scalar, made on the device: ``torch.tensor`` would copy it there."""
    return torch.full((), float(h.shape[0]), dtype=torch.float64, device=sums_dev)


def _large(a: Tensor, root_v: Tensor, counts: Tensor, latents: Tensor | None = None) -> Tensor:
    """Return a mask of the float32 weights ``a`` whose square is over ``v / 16`` of their latent.

    A float32 sum that starts with such a weight loses digits of all later terms, so they are added at the end. Only
    for latents with many entries (``counts``). ``latents``: the latent of each weight, if ``a`` is not dense.
    """
    bound = torch.where(counts > _MANY_ENTRIES, root_v / 4.0, torch.inf)
    return a > (bound if latents is None else bound.index_select(0, latents))


def _product_in_parts(a: Tensor, h: Tensor) -> Tensor:
    """Return ``a^T h``; of more than 8192 rows in parts, which are added in float64."""
    sums_dev = sums_device(h.device)
    if a.shape[0] <= _ROWS_PER_PRODUCT:
        return (a.t() @ h).to(sums_dev)
    total = torch.zeros(a.shape[1], h.shape[1], dtype=torch.float64, device=sums_dev)
    for part, rows in zip(a.split(_ROWS_PER_PRODUCT), h.split(_ROWS_PER_PRODUCT), strict=True):
        total += (part.t() @ rows).to(sums_dev)
    return total


def _sum64(values: Tensor) -> Tensor:
    """Return the sum over rows in float64."""
    parts = values.to(sums_device(values.device)).split(_ROWS_LIFTED)  # one large sum(0) to another dtype is slow
    return torch.stack([part.double().sum(0) for part in parts]).sum(0)


def _sparse_moments(h: Tensor, z: SparseActivations, dtype: torch.dtype) -> MonoMoments:
    """Compute the moments of a batch of sparse activations ``z`` on unit rows ``h``."""
    batch = weigh_sparse(h, z, dtype)
    w = codes_t_matmul(z.with_values(batch.rest.reshape(z.values.shape)), batch.h)
    if batch.large is not None:
        entries = batch.large
        w = w.index_add_(0, z.flat_indices[entries], batch.weights[entries, None] * batch.h[z.rows[entries]])
    w = w.to(batch.h_sum.device)
    if batch.below is not None:
        w = torch.addr(w, batch.below, batch.h_sum)
    return MonoMoments(n=batch.n, h_sum=batch.h_sum, b=batch.b, u=batch.u, v=batch.v, w=w)


class WeighedBatch(NamedTuple):
    """The sums over a sparse batch without ``w``, and the factors of ``w = weights^T h + below h_sum^T``.

    Attributes:
        n, h_sum, b, u, v: as in `MonoMoments`.
        h: the unit rows, in the dtype that the product runs in.
        weights: of the stored entries, row after row: ``z - b`` where every row stores the latent, else ``z``.
        below: weight of a row that does not store a latent, ``(m,)`` float64; None if all are 0.
        large: positions of the entries with large weights, which are added to the product at the end; None in float64.
        rest: ``weights`` with 0 at the positions ``large``.
    """

    n: Tensor
    h_sum: Tensor
    b: Tensor
    u: Tensor
    v: Tensor
    h: Tensor
    weights: Tensor
    below: Tensor | None
    large: Tensor | None
    rest: Tensor


def weigh_sparse(h: Tensor, z: SparseActivations, dtype: torch.dtype) -> WeighedBatch:
    """Compute the sums over a sparse batch and the weights of its entries, but not the product ``w``. O(entries).

    All in float64, with ``below``, where no branch is wanted (`may_branch`): right whatever the minima are.
    """
    branches, sums_dev = may_branch(h.device), sums_device(h.device)
    if not branches and dtype != torch.float64:
        return weigh_sparse(h.double(), z, torch.float64)
    values, latents = z.flat_values.to(dtype), z.flat_indices
    counts = z.by_latent.offsets.diff()
    b = minimum(z).to(dtype)
    below = None
    if not branches or bool(b.any()):  # else all minima are 0, and entries not stored have no weight
        # A latent stored in every row: its weights are z - b. Else b <= 0, and an entry not stored weighs -b
        everywhere = counts == h.shape[0]
        above, under = torch.where(everywhere, b, 0.0), torch.where(everywhere, 0.0, -b)
        values = values - above.index_select(0, latents)
        below = under if not branches or bool((under > 0).any()) else None
    if dtype != torch.float64 and (h.shape[0] > _ROWS_PER_PRODUCT or below is not None):
        return weigh_sparse(h.double(), z, torch.float64)  # the two parts of w can cancel: float64 keeps its digits
    n, h_sum = _count(h, sums_dev), _sum64(h)
    latents, a = latents.to(sums_dev), values.to(sums_dev).double()
    u = v = torch.zeros(z.n_latents, dtype=torch.float64, device=sums_dev)
    if below is not None:
        below = below.to(sums_dev).double()
        a = a + below.index_select(0, latents)
        unstored = n - counts.to(sums_dev).double()
        u, v = unstored * below, unstored * below.square()
    u, v = u.index_add(0, latents, a), v.index_add(0, latents, a.square())
    large, rest = None, values
    if dtype != torch.float64:
        is_large = _large(values, v.sqrt().to(values), counts, z.flat_indices)
        large = is_large.nonzero().squeeze(1)
        rest = values.masked_fill(is_large, 0.0) if len(large) else values
    return WeighedBatch(n, h_sum, b.to(sums_dev).double(), u, v, h, values, below, large, rest)

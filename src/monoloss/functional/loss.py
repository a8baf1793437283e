"""MonoLoss and its closed-form gradients, dense and sparse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monoloss.checks.gradients import first_derivatives_only
from monoloss.checks.tensors import check_rows
from monoloss.errors import InputError
from monoloss.functional.moments import (
    MonoMoments,
    all_reduce,
    batch_moments,
    merge,
    rebase,
    stored_in_every_row,
    unit_rows,
)
from monoloss.functional.score import is_defined, pair_weight, score_of
from monoloss.precision import autocast_off, product_dtype
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.products import codes_matmul, sampled_matmul
from monoloss.waiting import may_branch, may_check


def mono_loss(
    embeddings: Float[Tensor, "n d"],
    activations: Activations,
    *,
    center: Float[Tensor, " d"] | None = None,
    process_group: dist.ProcessGroup | None = None,
    sync: bool = False,
) -> Float[Tensor, ""]:
    """One minus the mean MonoScore of the latents that have a score in the batch: small where latents mean one thing.

    ``L = 1 - mean_j s_j``, with the exact closed-form gradient
    ``ds_j/da_ij = 2 / (u_j^2 - v_j) (w_j . h_i - a_ij - s_j (u_j - a_ij))``. A minimum that is not 0 is differentiated
    through (the rows that attain it share its gradient equally); a minimum of 0 is the floor of a ReLU and held
    constant. Cost O(n m d) dense; O(entries d) sparse, where only stored entries get a gradient. Autocast does not
    lower the precision.

    Args:
        embeddings: what "similar" means, ``(n, d)``, rows of any length but 0; get a gradient if they require one.
        activations: ``(n, m)``, any sign, dense or :class:`monoloss.SparseActivations`.
        center: mean vector ``(d,)`` taken off the embeddings first; None as in the paper.
        process_group: with ``sync``, the processes whose rows make up the batch; None for all of them.
        sync: score the global batch of all processes. The gradient is then that of the local rows times the number of
            processes, because DistributedDataParallel averages gradients.

    Returns:
        A float32 scalar (float64 for float64 input) in [0, 2]: 0 if all active rows of every latent point the same
        way; 1, with a gradient of zero, where no latent has a score. Dead, constant and single-row latents have none
        and get a gradient of exactly 0.

    Raises:
        InputError: shapes that do not fit; on the CPU also a zero or non-finite row, a non-finite activation.

    Source:
        arXiv 2602.12403, the batch loss; its division by range plus epsilon is left out, as the range cancels.

    Example:
        >>> activations = torch.tensor([[1.0], [1.0], [0.0]], requires_grad=True)
        >>> loss = mono_loss(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), activations)
        >>> round(loss.item(), 4)
        0.4
    """
    check_rows(embeddings, activations, center)
    scores, defined = batch_scores(embeddings, activations, center=center, process_group=process_group, sync=sync)
    return loss_of(scores, defined)


def loss_of(scores: Float[Tensor, " m"], defined: Bool[Tensor, " m"]) -> Float[Tensor, ""]:
    """Return one minus the mean of the defined scores; 1, still on the graph, where no score is defined.

    ``scores`` must be 0 where ``defined`` is False.
    """
    return 1.0 - scores.sum() / defined.sum().clamp(min=1)


def batch_scores(
    embeddings: Float[Tensor, "n d"],
    activations: Activations,
    *,
    center: Float[Tensor, " d"] | None = None,
    process_group: dist.ProcessGroup | None = None,
    sync: bool = False,
) -> tuple[Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """Return differentiable scores of one batch, ``(m,)``, 0 where undefined, and a mask of the latents with a score.

    Arguments as in ``mono_loss``; with ``sync`` the batch is that of all processes.
    """
    h = unit_rows(embeddings, center)
    moments, world = global_moments(h, activations, process_group, sync=sync)
    shared = _shared_minimum(activations, moments, process_group, sync=world > 1)
    summed = _Summed(moments, is_defined(moments), shared, float(world), world == 1 and shared is None)
    return _scores_on_graph(h, activations, summed)


class Memory(NamedTuple):
    """Decayed sums of earlier batches; no minimum is taken off the activations."""

    step: Int[Tensor, ""]
    """Number of batches in the sums."""
    u: Float[Tensor, " m"]
    """Sums of activations."""
    v: Float[Tensor, " m"]
    """Sums of squared activations."""
    w: Float[Tensor, "*m_d"]
    """Sums of activations times unit rows, ``(m, d)``; empty before the first batch."""


def remembered_scores(
    unit_embeddings: Float[Tensor, "n d"],
    activations: Activations,
    memory: Memory,
    fade: float,
    process_group: dist.ProcessGroup | None,
) -> tuple[Float[Tensor, " m"], Bool[Tensor, " m"], Memory]:
    """Return differentiable scores of the decayed sums ``T <- fade T_old + batch``, over the batch of all processes.

    A latent takes part only while ``u^2 >= 2 v`` (see :class:`monoloss.MonoLoss`). Step ``t`` multiplies the gradient
    by ``(1 - fade^t) / (1 - fade)``.

    Returns:
        Scores ``(m,)``, 0 where undefined; a mask of the latents that take part; and the memory after this batch.

    Raises:
        InputError: on the CPU, a negative activation.
    """
    batch, world = global_moments(unit_embeddings, activations, process_group, sync=True)
    _check_not_negative(batch.b)
    total = batch = rebase(batch, torch.zeros_like(batch.b))
    if memory.w.numel():
        u, v, w = (part.to(batch.u.device) for part in memory[1:])
        h_sum = torch.zeros_like(batch.h_sum)  # not remembered: a score about 0 does not use it
        old = MonoMoments(torch.zeros_like(batch.n), h_sum, batch.b, u, v, w.to(batch.w.dtype))
        total = merge(old, batch, fade=fade, reuse=True)
    step = memory.step + 1
    gain = (1.0 - fade ** step.to(total.u)) / (1.0 - fade)
    summed = _Summed(total, _takes_part(total), None, world * gain, is_local_about_zero=False)
    return *_scores_on_graph(unit_embeddings, activations, summed), Memory(step, total.u, total.v, total.w)


def global_moments(
    unit_embeddings: Float[Tensor, "n d"],
    activations: Activations,
    process_group: dist.ProcessGroup | None,
    *,
    sync: bool,
) -> tuple[MonoMoments, int]:
    """Return the moments of the batch and the number of processes they cover: all of the group with ``sync``, else 1.

    Raises:
        InputError: ``sync`` with a group that this process does not belong to.
    """
    world = dist.get_world_size(process_group) if sync and dist.is_available() and dist.is_initialized() else 1
    if world < 1:
        raise InputError("process_group", "a group without this process", "one that this process belongs to, or None")
    moments = batch_moments(unit_embeddings, activations)
    return (all_reduce(moments, process_group) if world > 1 else moments), world


class _Summed(NamedTuple):
    """The moments behind the scores, and what the gradient needs besides the local rows."""

    moments: MonoMoments
    """Moments over the rows of all processes, and of earlier batches with memory."""
    defined: Tensor
    """Mask of the latents with a score, ``(m,)``."""
    shared: Tensor | None
    """Number of rows at the minimum of each latent, ``(m,)``; None where all minima are 0."""
    gain: Tensor | float
    """Factor on the gradient."""
    is_local_about_zero: bool
    """All minima are 0, and the moments are those of the local rows of this batch alone."""


def _scores_on_graph(h: Tensor, activations: Activations, summed: _Summed) -> tuple[Tensor, Tensor]:
    """Return the scores on the graph of ``h`` and ``activations``, and the mask of defined latents, on their device."""
    sparse = isinstance(activations, SparseActivations)
    values, codes = (activations.values, activations.detach()) if sparse else (activations, None)
    scores: Tensor = _Scores.apply(h, values, codes, summed)
    return scores, summed.defined.to(scores.device)


def _shared_minimum(
    activations: Activations, moments: MonoMoments, group: dist.ProcessGroup | None, *, sync: bool
) -> Tensor | None:
    """Count the rows (with ``sync`` of all processes) at each latent's minimum, ``(m,)``, 0 where it is 0, or None."""
    z = activations.detach()
    b = moments.b  # equal on all processes, so that all of them reduce the counts or none does
    if may_branch(b.device) and not b.any():  # the codes of a ReLU: nothing to count
        return None
    at_minimum = _is_at_minimum(z, b)
    if isinstance(z, SparseActivations):
        count = torch.zeros_like(b).index_add(0, z.flat_indices.to(b.device), at_minimum.to(b).reshape(-1))
    else:
        count = at_minimum.to(b.device).sum(0, dtype=b.dtype)
    count = torch.where(b == 0, 0.0, count)
    if sync:
        dist.all_reduce(count, group=group)
    return count


def _is_at_minimum(z: Activations, b: Tensor) -> Tensor:
    """Return a mask of the (stored) entries of ``z`` that equal the minimum ``b`` of their latent."""
    lowest = b.to(device=z.device, dtype=z.dtype)
    if isinstance(z, SparseActivations):
        return z.values == lowest[z.indices]
    return z == lowest


def _takes_part(total: MonoMoments) -> Tensor:
    """Return a mask of the latents with ``u^2 >= 2 v``, whose score is in [-1, 1] at any ``fade``.

    ``v`` fades as ``u`` does, not as ``u^2``: it takes self-pairs off about ``1 + fade`` times.
    """
    return is_defined(total) & (total.u.square() >= 2.0 * total.v)


def _check_not_negative(lowest: Tensor) -> None:
    """Raise InputError, on all processes alike, if a minimum on the CPU is below 0."""
    if may_check(lowest.device) and bool((lowest < 0).any()):
        latent = int((lowest < 0).nonzero()[0])
        got = f"{float(lowest[latent]):.4g} on latent {latent}"
        raise InputError("activations", got, "values of at least 0, because of memory")


class _Scores(torch.autograd.Function):
    """Scores from moments summed over ``h`` and ``values``, with the closed-form gradient with respect to both."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, values: Tensor, codes: SparseActivations | None, summed: _Summed) -> Tensor:
        moments, dtype = summed.moments, product_dtype(h.dtype, values.dtype)
        similarities = w_squared = None
        if codes is not None and ctx.needs_input_grad[1]:  # in the forward pass, so that w can be freed
            similarities = sampled_matmul(codes, h.to(dtype), moments.w.to(device=h.device, dtype=dtype))
            w_squared = _w_squared(codes, similarities, moments.u) if summed.is_local_about_zero else None
        scores = torch.where(summed.defined, score_of(moments, undefined="zero", w_squared=w_squared), 0.0)
        if similarities is not None and summed.shared is None and not ctx.needs_input_grad[0]:
            ctx.summed = summed._replace(moments=replace(moments, w=moments.w.new_zeros(()).expand_as(moments.w)))
        else:
            ctx.summed = summed
        ctx.save_for_backward(h, values)
        ctx.codes, ctx.scores, ctx.similarities = codes, scores, similarities
        return scores.to(device=h.device, dtype=dtype)

    @staticmethod
    @first_derivatives_only("MonoLoss")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, values = ctx.saved_tensors
        (moments, defined, shared, gain, _), scores = ctx.summed, ctx.scores
        with autocast_off(h.device):
            # a / u and w / u instead of a and w: the scale of a latent then shows only in one factor 1 / u
            u = torch.where(defined, moments.u, 1.0)
            factor = 2.0 * gain * grad.to(scores) * (u / torch.where(defined, pair_weight(moments), 1.0))
            factor = torch.where(defined, factor, 0.0)
            minimum_grad = None
            if shared is not None:
                inward = moments.w.double() @ moments.h_sum / u - 1.0 - scores * (moments.n - 1.0)
                minimum_grad = torch.where(shared > 0, -factor * inward / shared.clamp(min=1.0), 0.0)
            batch = _Batch(h, values, ctx.codes, moments, ctx.similarities, grad.dtype)
            values_grad = batch.gradient_of_values(factor, scores, minimum_grad) if ctx.needs_input_grad[1] else None
            h_grad = batch.gradient_of_embeddings(factor * u) if ctx.needs_input_grad[0] else None
        return h_grad, values_grad, None, None


def _w_squared(codes: SparseActivations, similarities: Tensor, like: Tensor) -> Tensor:
    """Return ``|w_j|^2 = sum_i a_ij w_j . h_i``, ``(m,)``, from ``similarities = w_j . h_i`` at the stored entries."""
    terms = codes.flat_values.to(like) * similarities.to(like)
    return torch.zeros_like(like).index_add_(0, codes.flat_indices.to(like.device), terms).clamp_(min=0.0)


class _Batch:
    """The local rows of one backward pass, all in the dtype and on the device of the products."""

    def __init__(
        self,
        h: Tensor,
        values: Tensor,
        codes: SparseActivations | None,
        moments: MonoMoments,
        similarities: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.h = h.to(dtype)
        self.values = values
        self.codes = codes
        self.b = self._like_rows(moments.b)
        self.u = self._like_rows(moments.u).clamp(min=torch.finfo(dtype).tiny)
        self.moments = moments
        self.similarities = similarities

    @property
    def w(self) -> Tensor:
        return self._like_rows(self.moments.w)

    def _like_rows(self, sums: Tensor) -> Tensor:
        """Return float64 sums in the dtype and on the device of the rows."""
        return sums.to(device=self.h.device, dtype=self.h.dtype)

    def _finite(self, factors: Tensor) -> Tensor:
        """Return float64 factors in the dtype of the rows, clamped to its range: infinity times 0 would be NaN."""
        largest = torch.finfo(self.h.dtype).max
        return self._like_rows(factors.clamp(-largest, largest))

    def gradient_of_values(self, factor: Tensor, scores: Tensor, minimum_grad: Tensor | None) -> Tensor:
        """Return the gradient with respect to the activations (the stored ones, if sparse).

        ``factor``: ``2 u / (u^2 - v)`` times gain and incoming gradient, ``(m,)``; ``minimum_grad``: the gradient that
        each entry at the minimum of its latent gets in addition, ``(m,)``, or None.
        """
        factor, scores = self._finite(factor), self._like_rows(scores)
        if self.codes is None or self.similarities is None:
            a = (self.values.to(self.h.dtype) - self.b) / self.u
            grad = factor * (self.h @ self.w.t() / self.u - a - scores * (1.0 - a))
        else:
            latents = self.codes.flat_indices
            u, factor, scores = (per_latent.index_select(0, latents) for per_latent in (self.u, factor, scores))
            a = self.values.reshape(-1).to(self.h.dtype)
            if not may_branch(self.b.device) or bool(self.b.any()):  # the minima are nearly always 0
                a = a - self.b.index_select(0, latents)
            a = a / u
            grad = factor * (self.similarities / u - a - scores * (1.0 - a))
        if minimum_grad is not None:
            z: Activations = self.values if self.codes is None else self.codes
            share = self._finite(minimum_grad)
            share = share if self.codes is None else share[self.codes.flat_indices]
            grad = grad + torch.where(_is_at_minimum(z, self.moments.b).reshape(grad.shape), share, 0.0)
        return grad.reshape(self.values.shape).to(self.values.dtype)

    def gradient_of_embeddings(self, factor: Tensor) -> Tensor:
        """Return the gradient with respect to ``h``. ``factor``: that of ``gradient_of_values`` times ``u``."""
        factor, w = self._finite(factor), self.w / self.u[:, None]
        if self.codes is None:
            return ((self.values.to(self.h.dtype) - self.b) / self.u * factor) @ w
        # An entry weighs z - b if stored and -b if not. For a latent stored in every row, b is taken off the stored
        # entries (`above`), where it cancels exactly; for the others, -b is added to all rows (`below`)
        latents = self.codes.flat_indices
        everywhere = stored_in_every_row(self.codes)
        above, below = torch.where(everywhere, self.b, 0.0), torch.where(everywhere, 0.0, -self.b)
        shifted = self.values.reshape(-1).to(self.h.dtype) - above[latents]
        weights = self.codes.with_values((shifted / self.u[latents] * factor[latents]).reshape(self.values.shape))
        return codes_matmul(weights, w) + (below / self.u * factor) @ w

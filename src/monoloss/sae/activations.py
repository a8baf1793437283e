"""Functions that turn pre-activations into codes, and modules that also hold their thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.checks.gradients import first_derivatives_only
from monoloss.errors import InputError
from monoloss.precision import product_dtype
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.activations import offsets_of_sorted_rows
from monoloss.sparse.selection import above_threshold, entries_above, largest_of_batch, largest_of_rows
from monoloss.waiting import may_branch

_NEAR = 0.501  # bandwidths below the threshold: the kernel reaches 0.5, and rounding may not lose an entry


def topk_codes(pre_activations: Float[Tensor, "n m"], k: int) -> SparseActivations:
    """Return the ``k`` largest pre-activations of every row, negative ones set to 0; these entries have a gradient."""
    indices = largest_of_rows(pre_activations.detach(), k)
    values = pre_activations.gather(1, indices)
    return SparseActivations(values.relu(), indices, pre_activations.shape[1], check=False)


def batch_topk_codes(pre_activations: Float[Tensor, "n m"], k: int) -> SparseActivations:
    """Return the ``k n`` largest entries of ``relu(pre_activations)`` in the whole batch of ``n`` rows, if above 0.

    Among equal entries the lowest row wins, then the lowest latent.
    """
    n, m = pre_activations.shape
    codes = _codes_at(pre_activations, largest_of_batch(pre_activations.detach(), k * n), m)
    return codes.with_values(codes.values.relu())  # on a GPU entries <= 0 fill up the k n entries


def threshold_codes(pre_activations: Float[Tensor, "n m"], threshold: Float[Tensor, ""]) -> SparseActivations:
    """Return the pre-activations above ``threshold``; the code of a row does not depend on the other rows."""
    positions = above_threshold(pre_activations.detach(), threshold)
    return _codes_at(pre_activations, positions, pre_activations.shape[1])


def batch_topk_threshold(parts: Iterable[Float[Tensor, "_ m"]], n_active: int) -> Float[Tensor, ""]:
    """Return the threshold, at least 0, above which ``n_active`` pre-activations of all parts together lie.

    It is half-way between the smallest entry above it and the largest below. Memory: ``n_active`` numbers and a part.
    """
    largest = torch.empty(0)
    for part in parts:
        candidates = torch.cat([largest.to(part), part.detach().relu().reshape(-1)])
        largest = candidates.topk(min(n_active + 1, candidates.shape[0])).values
    if largest.shape[0] <= n_active:
        return largest.new_zeros(())
    return (largest[-2] + largest[-1]) / 2


def positive_entries(pre_activations: Float[Tensor, "n m"], most: int) -> SparseActivations | None:
    """Return the pre-activations above 0 as sparse codes, or None if there are more than ``most``."""
    positions = entries_above(pre_activations, pre_activations.new_zeros(()), most)
    return None if positions is None else _codes_at(pre_activations, positions, pre_activations.shape[1])


def jump_relu(pre_activations: Activations, threshold: Float[Tensor, " m"], bandwidth: float) -> Activations:
    """Return ``pre * (pre > theta)`` with ``pre = relu(pre_activations)``, dense or sparse as ``pre_activations``.

    Sparse pre-activations must store every entry above its threshold or within half a bandwidth of it.

    The gradient of ``theta`` is a straight-through estimate with the rectangle kernel ``K`` (1 within half a unit of
    0): ``d/dtheta = - theta / bandwidth * K((pre - theta) / bandwidth)``, also where the output is 0.
    Source: arXiv 2407.14435, section 3.
    """
    values, latents = _values_and_latents(pre_activations)
    codes: Tensor = _JumpRelu.apply(values.relu(), threshold, bandwidth, latents)
    if isinstance(pre_activations, SparseActivations):
        return pre_activations.with_values(codes.reshape(pre_activations.values.shape))
    return codes


def jump_relu_l0(pre_activations: Activations, threshold: Float[Tensor, " m"], bandwidth: float) -> Float[Tensor, ""]:
    """Return the mean number of latents a row with ``relu(pre_activations) > threshold``.

    Sparse pre-activations must store the same entries as for `jump_relu`. Only the threshold has a gradient, with the
    rectangle ``K`` of `jump_relu`: ``- 1 / bandwidth * K((pre - threshold) / bandwidth)`` at each entry.
    Source: arXiv 2407.14435, section 3.
    """
    values, latents = _values_and_latents(pre_activations.detach())
    active: Tensor = _Step.apply(values.relu(), threshold, bandwidth, latents)
    return active / pre_activations.shape[0]


class TopK(nn.Module):
    """Activation of TopK: the k largest pre-activations of every row, in training and at inference alike."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre_activations: Float[Tensor, "n m"]) -> SparseActivations:
        """Return codes with k stored entries in every row."""
        return topk_codes(pre_activations, self.k)

    def extra_repr(self) -> str:
        """Return the options that ``print`` shows."""
        return f"k={self.k}"


class _InFloat32(nn.Module):
    """Base of modules with thresholds: they stay in float32 under ``.half()`` or ``.to(bfloat16)`` of the model."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move parameters and buffers with the module, but never below float32."""

        def apply_in_float32(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            dtype = product_dtype(result.dtype)
            return result if result.dtype == dtype else tensor.to(result.device, dtype)

        module: nn.Module = super()._apply(apply_in_float32, recurse)  # type: ignore[no-untyped-call] # torch's, without types
        return module


class BatchTopK(_InFloat32):
    """Activation of BatchTopK: the k n largest of a batch in training; all above one threshold at inference."""

    threshold: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("threshold", torch.full((), torch.nan))

    def forward(self, pre_activations: Float[Tensor, "n m"]) -> SparseActivations:
        """Return codes, any number in a row; in ``eval()`` an error until `calibrate_` has set the threshold."""
        if self.training:
            return batch_topk_codes(pre_activations, self.k)
        codes = threshold_codes(pre_activations, self.threshold)
        if not len(codes.values) and torch.isnan(self.threshold):  # in this order, because a GPU waits to tell
            raise InputError("threshold", "no calibrated value", "calibrate_ on training rows before eval()")
        return codes

    @torch.no_grad()
    def calibrate_(self, parts: Iterable[Float[Tensor, "_ m"]], n_rows: int) -> None:
        """Set the threshold so that k latents a row are active on average over the ``n_rows`` rows of all parts."""
        self.threshold.copy_(batch_topk_threshold(parts, self.k * n_rows))

    def extra_repr(self) -> str:
        """Return the options that ``print`` shows."""
        return f"k={self.k}"


class JumpRelu(_InFloat32):
    """Activation of JumpReLU: all above a threshold, >= 0 and in float32, that each latent learns."""

    def __init__(self, m: int, bandwidth: float, initial_threshold: float) -> None:
        super().__init__()
        self.bandwidth, self.initial_threshold = bandwidth, initial_threshold
        self.threshold = nn.Parameter(torch.full((m,), float(initial_threshold)))

    def forward(self, pre_activations: Activations) -> Activations:
        """Return codes, dense or sparse as the pre-activations, with a gradient to the thresholds."""
        return jump_relu(pre_activations, self.threshold, self.bandwidth)

    @torch.no_grad()
    def stored(self, pre_activations: Float[Tensor, "n m"], most: int, *, near: bool) -> SparseActivations | None:
        """Return the pre-activations above their thresholds, sparse; None if there are more than ``most``.

        With ``near`` also those just below, from which the thresholds have a gradient; their codes are 0. Where a
        threshold is below 0 (an entry of 0 would be active) or NaN, a CPU gets None, a GPU all entries.
        """
        bound = self.threshold.detach()
        valid = (bound >= 0).all()
        if may_branch(bound.device) and not bool(valid):
            return None
        if near:
            lowest = bound - _NEAR * self.bandwidth
            bound = lowest.nextafter(torch.full_like(lowest, -torch.inf)).clamp(min=0.0)
        if not may_branch(bound.device):
            bound = torch.where(valid, bound, -torch.inf)  # else every entry counts as above
        positions = entries_above(pre_activations, bound, most)
        return None if positions is None else _codes_at(pre_activations, positions, pre_activations.shape[1])

    def l0(self, pre_activations: Activations) -> Float[Tensor, ""]:
        """Return the mean number of active latents a row, with a gradient to the thresholds alone."""
        return jump_relu_l0(pre_activations, self.threshold, self.bandwidth)

    def extra_repr(self) -> str:
        """Return the options that ``print`` shows."""
        return f"{self.threshold.shape[0]} thresholds, bandwidth={self.bandwidth}"


class _JumpRelu(torch.autograd.Function):
    """`jump_relu` of dense entries (``latents`` None), or of stored entries with the latent of each."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, latents: Tensor | None) -> Tensor:
        active = pre > _threshold_at(threshold, latents)
        ctx.save_for_backward(pre, threshold, active, latents)
        ctx.bandwidth = bandwidth
        return pre * active

    @staticmethod
    @first_derivatives_only("JumpReLU")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        pre, threshold, active, latents = ctx.saved_tensors
        grad_pre = grad * active if ctx.needs_input_grad[0] else None
        grad_threshold = None
        if ctx.needs_input_grad[1]:
            near = _in_kernel(pre, _threshold_at(threshold, latents), ctx.bandwidth)
            grad_threshold = -threshold / ctx.bandwidth * _sum_of_latents(grad * near, threshold, latents)
        return grad_pre, grad_threshold, None, None


class _Step(torch.autograd.Function):
    """Number of entries above their thresholds; dense (``latents`` None), or stored with the latent of each."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, latents: Tensor | None) -> Tensor:
        ctx.save_for_backward(pre, threshold, latents)
        ctx.bandwidth = bandwidth
        return (pre > _threshold_at(threshold, latents)).sum().to(pre.dtype)

    @staticmethod
    @first_derivatives_only("JumpReLU")
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        pre, threshold, latents = ctx.saved_tensors
        near = _in_kernel(pre, _threshold_at(threshold, latents), ctx.bandwidth)
        return None, -grad / ctx.bandwidth * _sum_of_latents(near, threshold, latents), None, None


def _in_kernel(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return where the rectangle kernel around the threshold is 1: within half a bandwidth.

    Not at entries of 0: no threshold >= 0 makes them active, but so many of them would push a threshold near 0 up.
    """
    return ((pre - threshold).abs() < bandwidth / 2) & (pre > 0)


def _values_and_latents(pre_activations: Activations) -> tuple[Tensor, Tensor | None]:
    """Return the stored values and the latent of each; for dense pre-activations the whole tensor and None."""
    if isinstance(pre_activations, SparseActivations):
        return pre_activations.flat_values, pre_activations.flat_indices
    return pre_activations, None


def _threshold_at(threshold: Tensor, latents: Tensor | None) -> Tensor:
    """Return the threshold of each stored entry; all thresholds where the entries are dense (``latents`` None)."""
    return threshold if latents is None else threshold.index_select(0, latents)


def _sum_of_latents(values: Tensor, threshold: Tensor, latents: Tensor | None) -> Tensor:
    """Sum the values of each latent, in the shape and dtype of ``threshold``."""
    if latents is None:
        return values.sum(0).to(threshold)
    return torch.zeros_like(threshold).index_add_(0, latents, values.to(threshold))


def _codes_at(pre_activations: Tensor, positions: Tensor, m: int) -> SparseActivations:
    """Return sparse codes of the entries at ascending ``positions`` in the flat ``(n, m)`` pre-activations."""
    rows = positions.div(m, rounding_mode="floor")
    offsets = offsets_of_sorted_rows(rows, pre_activations.shape[0])
    values = pre_activations.reshape(-1)[positions]
    return SparseActivations(values, positions - rows * m, m, offsets, check=False)

"""How pre-activations become codes: as functions, and as the modules that hold what they need at inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.errors import InputError
from monoloss.precision import product_dtype
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.activations import offsets_of_sorted_rows
from monoloss.sparse.selection import above_threshold, entries_above, largest_of_batch, largest_of_rows

_NEAR = 0.501  # of a bandwidth below its threshold an entry is stored: half of one, and what rounding may take off


def topk_codes(pre_activations: Float[Tensor, "n m"], k: int) -> SparseActivations:
    """The ``k`` largest pre-activations of every row, negative ones set to 0; differentiable at the stored entries."""
    indices = largest_of_rows(pre_activations.detach(), k)
    values = pre_activations.gather(1, indices)
    return SparseActivations(values.relu(), indices, pre_activations.shape[1], check=False)


def batch_topk_codes(pre_activations: Float[Tensor, "n m"], k: int) -> SparseActivations:
    """The ``k n`` largest of ``relu(pre_activations)`` in the whole batch of ``n`` rows, only those above 0.

    Among equal ones the lowest row, then the lowest latent.
    """
    n, m = pre_activations.shape
    return _codes_at(pre_activations, largest_of_batch(pre_activations.detach(), k * n), m)


def threshold_codes(pre_activations: Float[Tensor, "n m"], threshold: Float[Tensor, ""]) -> SparseActivations:
    """The pre-activations above ``threshold``: a row's code does not depend on the other rows."""
    positions = above_threshold(pre_activations.detach(), threshold)
    return _codes_at(pre_activations, positions, pre_activations.shape[1])


def batch_topk_threshold(parts: Iterable[Float[Tensor, "_ m"]], n_active: int) -> Float[Tensor, ""]:
    """The threshold above which ``n_active`` pre-activations lie, of all rows of all parts together; at least 0.

    Half-way between the last activation that is in and the first that is out. Holds ``n_active`` numbers and one part.
    """
    largest = torch.empty(0)
    for part in parts:
        candidates = torch.cat([largest.to(part), part.detach().relu().reshape(-1)])
        largest = candidates.topk(min(n_active + 1, candidates.shape[0])).values
    if largest.shape[0] <= n_active:
        return largest.new_zeros(())
    return (largest[-2] + largest[-1]) / 2


def positive_entries(pre_activations: Float[Tensor, "n m"], most: int) -> SparseActivations | None:
    """The pre-activations above 0, stored; None where there are more than ``most``."""
    positions = entries_above(pre_activations, pre_activations.new_zeros(()), most)
    return None if positions is None else _codes_at(pre_activations, positions, pre_activations.shape[1])


def jump_relu(pre_activations: Activations, threshold: Float[Tensor, " m"], bandwidth: float) -> Activations:
    """``pre * (pre > theta)`` with ``pre = relu(pre_activations)``, in the layout of ``pre_activations``.

    Of stored pre-activations those that are not stored must be neither above their threshold nor near it.

    Straight through the jump, with the rectangle kernel ``K`` (1 within half a unit of 0): ``d/dtheta = - theta /
    bandwidth * K((pre - theta) / bandwidth)``, also where the value is 0. Source: arXiv 2407.14435, section 3.
    """
    values, latents = _values_and_latents(pre_activations)
    codes: Tensor = _JumpRelu.apply(values.relu(), threshold, bandwidth, latents)
    if isinstance(pre_activations, SparseActivations):
        return pre_activations.with_values(codes.reshape(pre_activations.values.shape))
    return codes


def jump_relu_l0(pre_activations: Activations, threshold: Float[Tensor, " m"], bandwidth: float) -> Float[Tensor, ""]:
    """Mean over rows of the number of latents with ``relu(pre_activations) > theta``; moves ``theta`` alone.

    Stored pre-activations as in `jump_relu`.
    ``d/dtheta = - 1 / bandwidth * K((pre - theta) / bandwidth)`` at each entry. Source: arXiv 2407.14435, section 3.
    """
    values, latents = _values_and_latents(pre_activations.detach())
    active: Tensor = _Step.apply(values.relu(), threshold, bandwidth, latents)
    return active / pre_activations.shape[0]


class TopK(nn.Module):
    """The k largest of every row, in training and at inference alike."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre_activations: Float[Tensor, "n m"]) -> SparseActivations:
        """Codes with k stored entries in every row."""
        return topk_codes(pre_activations, self.k)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"k={self.k}"


class _InFloat32(nn.Module):
    """Thresholds: ``.half()`` or ``.to(bfloat16)`` of a whole model leaves them in float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            dtype = product_dtype(result.dtype)
            return result if result.dtype == dtype else tensor.to(result.device, dtype)

        module: nn.Module = super()._apply(moved, recurse)  # type: ignore[no-untyped-call] # torch's, without types
        return module


class BatchTopK(_InFloat32):
    """The k n largest of a batch in training; all above a calibrated threshold at inference."""

    threshold: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("threshold", torch.full((), torch.nan))

    def forward(self, pre_activations: Float[Tensor, "n m"]) -> SparseActivations:
        """Ragged codes; in ``eval()`` an error as long as the threshold was not calibrated."""
        if self.training:
            return batch_topk_codes(pre_activations, self.k)
        if torch.isnan(self.threshold):
            raise InputError("threshold", "no calibrated value", "calibrate_ on training rows before eval()")
        return threshold_codes(pre_activations, self.threshold)

    @torch.no_grad()
    def calibrate_(self, parts: Iterable[Float[Tensor, "_ m"]], n_rows: int) -> None:
        """Set the threshold so that k latents a row are active on the average of all ``n_rows`` rows of the parts."""
        self.threshold.copy_(batch_topk_threshold(parts, self.k * n_rows))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"k={self.k}"


class JumpRelu(_InFloat32):
    """All above a threshold that each latent learns; the threshold stays in float32 and at 0 or above."""

    def __init__(self, m: int, bandwidth: float, initial_threshold: float) -> None:
        super().__init__()
        self.bandwidth, self.initial_threshold = bandwidth, initial_threshold
        self.threshold = nn.Parameter(torch.full((m,), float(initial_threshold)))

    def forward(self, pre_activations: Activations) -> Activations:
        """Codes in the layout of the pre-activations, with a gradient to the threshold."""
        return jump_relu(pre_activations, self.threshold, self.bandwidth)

    @torch.no_grad()
    def stored(self, pre_activations: Float[Tensor, "n m"], most: int, *, near: bool) -> SparseActivations | None:
        """The pre-activations above their thresholds, stored; None where there are more than ``most``.

        With ``near`` also those from which the thresholds have a gradient: their codes are 0. None where a threshold is
        below 0 or NaN, too: an entry of 0 is above it.
        """
        bound = self.threshold.detach()
        if not bool((bound >= 0).all()):
            return None
        if near:
            lowest = bound - _NEAR * self.bandwidth
            bound = lowest.nextafter(torch.full_like(lowest, -torch.inf)).clamp(min=0.0)
        positions = entries_above(pre_activations, bound, most)
        return None if positions is None else _codes_at(pre_activations, positions, pre_activations.shape[1])

    def l0(self, pre_activations: Activations) -> Float[Tensor, ""]:
        """Mean number of active latents a row, with a gradient to the threshold alone."""
        return jump_relu_l0(pre_activations, self.threshold, self.bandwidth)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.threshold.shape[0]} thresholds, bandwidth={self.bandwidth}"


class _JumpRelu(torch.autograd.Function):
    """Of dense entries, or of some with the latent of each."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, latents: Tensor | None) -> Tensor:
        active = pre > _at(threshold, latents)
        ctx.save_for_backward(pre, threshold, active, latents)
        ctx.bandwidth = bandwidth
        return pre * active

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        pre, threshold, active, latents = ctx.saved_tensors
        of_pre = grad * active if ctx.needs_input_grad[0] else None
        of_threshold = None
        if ctx.needs_input_grad[1]:
            near = _near(pre, _at(threshold, latents), ctx.bandwidth)
            of_threshold = -threshold / ctx.bandwidth * _sum_of_latents(grad * near, threshold, latents)
        return of_pre, of_threshold, None, None


class _Step(torch.autograd.Function):
    """How many entries are above their thresholds: of dense ones, or of some with the latent of each."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, latents: Tensor | None) -> Tensor:
        ctx.save_for_backward(pre, threshold, latents)
        ctx.bandwidth = bandwidth
        return (pre > _at(threshold, latents)).sum().to(pre.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        pre, threshold, latents = ctx.saved_tensors
        near = _near(pre, _at(threshold, latents), ctx.bandwidth)
        return None, -grad / ctx.bandwidth * _sum_of_latents(near, threshold, latents), None, None


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Where the rectangle kernel around the threshold is 1: within half a bandwidth.

    Not at the floor of the ReLU: no threshold >= 0 makes an entry of 0 active, but many such entries would drive one
    near 0 upwards.
    """
    return ((pre - threshold).abs() < bandwidth / 2) & (pre > 0)


def _values_and_latents(pre_activations: Activations) -> tuple[Tensor, Tensor | None]:
    """Stored values with the latent of each; the whole of what is dense, without."""
    if isinstance(pre_activations, SparseActivations):
        return pre_activations.flat_values, pre_activations.flat_indices
    return pre_activations, None


def _at(threshold: Tensor, latents: Tensor | None) -> Tensor:
    return threshold if latents is None else threshold.index_select(0, latents)


def _sum_of_latents(values: Tensor, threshold: Tensor, latents: Tensor | None) -> Tensor:
    if latents is None:
        return values.sum(0).to(threshold)
    return torch.zeros_like(threshold).index_add_(0, latents, values.to(threshold))


def _codes_at(pre_activations: Tensor, positions: Tensor, m: int) -> SparseActivations:
    """Codes of the entries at rising flat positions."""
    rows = positions.div(m, rounding_mode="floor")
    offsets = offsets_of_sorted_rows(rows, pre_activations.shape[0])
    values = pre_activations.reshape(-1)[positions]
    return SparseActivations(values, positions - rows * m, m, offsets, check=False)

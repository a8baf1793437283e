"""How pre-activations become codes: as functions, and as the modules that hold what they need at inference."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.errors import InputError
from monoloss.sparse import SparseActivations, offsets_of_sorted_rows


def topk_codes(pre_activations: Float[Tensor, "n m"], k: int) -> SparseActivations:
    """The ``k`` largest pre-activations of every row, negative ones set to 0; differentiable at the stored entries."""
    values, indices = pre_activations.topk(k, dim=1, sorted=False)
    return SparseActivations(values.relu(), indices, pre_activations.shape[1], check=False)


def batch_topk_codes(pre_activations: Float[Tensor, "n m"], k: int) -> SparseActivations:
    """The ``k n`` largest of ``relu(pre_activations)`` in the whole batch of ``n`` rows, only those above 0."""
    n, m = pre_activations.shape
    flat = pre_activations.reshape(-1)
    largest = flat.detach().topk(min(k * n, flat.shape[0]), sorted=False)
    return _codes_at(pre_activations, largest.indices[largest.values > 0].sort().values, m)


def threshold_codes(pre_activations: Float[Tensor, "n m"], threshold: Float[Tensor, ""]) -> SparseActivations:
    """The pre-activations above ``threshold``: a row's code does not depend on the other rows."""
    positions = (pre_activations.detach().reshape(-1) > threshold).nonzero().squeeze(1)
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


class BatchTopK(nn.Module):
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


def _codes_at(pre_activations: Tensor, positions: Tensor, m: int) -> SparseActivations:
    """Codes of the entries at rising flat positions."""
    rows = positions.div(m, rounding_mode="floor")
    offsets = offsets_of_sorted_rows(rows, pre_activations.shape[0])
    values = pre_activations.reshape(-1)[positions]
    return SparseActivations(values, positions - rows * m, m, offsets, check=False)

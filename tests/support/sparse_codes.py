"""Small sparse activations of every layout, also without entries or rows, and factors to multiply them with."""

from __future__ import annotations

import torch
from torch import Tensor

from monoloss.sparse import SparseActivations
from support.embeddings import every_entry, fixed_k, ragged, some_activations


def integers(*values: object) -> Tensor:
    """An int64 tensor."""
    return torch.tensor(values, dtype=torch.int64)


def empty_ragged(n: int, m: int) -> SparseActivations:
    """Ragged rows without entries."""
    return SparseActivations(torch.zeros(0), integers(), m, torch.zeros(n + 1, dtype=torch.int64))


def with_gaps(dtype: torch.dtype = torch.float64) -> SparseActivations:
    """Ragged rows: the first, the last and one between are empty, and one stored value is 0."""
    values = torch.tensor([1.5, -2.0, 0.0, 4.0, 0.5], dtype=dtype)
    return SparseActivations(values, integers(3, 0, 2, 1, 3), 5, integers(0, 0, 2, 2, 5, 5))


CODES = {
    "ragged": lambda dtype: ragged(some_activations(12, dtype=dtype)),
    "fixed_k": lambda dtype: fixed_k(some_activations(12, dtype=dtype)),
    "every_entry": lambda dtype: every_entry(some_activations(12, dtype=dtype)),
    "gaps": with_gaps,
    "one_row": lambda dtype: fixed_k(some_activations(1, dtype=dtype)),
    "no_entry": lambda dtype: empty_ragged(4, 3).to(dtype),
    "no_entry_of_k": lambda dtype: SparseActivations(torch.zeros(4, 0, dtype=dtype), integers().reshape(4, 0), 3),
    "no_row": lambda dtype: empty_ragged(0, 3).to(dtype),
    "no_row_of_k": lambda dtype: SparseActivations(torch.zeros(0, 2, dtype=dtype), integers().reshape(0, 2), 3),
}


def factors(codes: SparseActivations, d: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Dense ``(n, d)`` and ``(m, d)`` for the products of these codes."""
    generator = torch.Generator().manual_seed(1)
    n, m = codes.shape
    return (
        torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(m, d, generator=generator, dtype=torch.float64).to(dtype),
    )

"""How far two ways to one number may come apart: sums in another order, a product of a batch of another size."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def of_sum(n_terms: int, size: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """Between two sums of the same terms in ``dtype``, whose absolute values add up to ``size``.

    In any order, with or without fused multiplication, each is less than ``n u size`` from the exact sum, ``u`` being
    half of eps. Roundings go both ways, so that long sums stay within ``2 sqrt(n) u size`` (Higham and Mary 2019).
    """
    return min(n_terms, 2.0 * math.sqrt(n_terms)) * torch.finfo(dtype).eps * size


def of_product(left: Tensor, right: Tensor) -> Tensor:
    """Between two ways to each entry of ``left @ right``, in the precision of the two; some more for a bias."""
    size = left.detach().double().abs() @ right.detach().double().abs()
    return torch.as_tensor(of_sum(left.shape[1] + 1, size, left.dtype))


def assert_within(came: Tensor, needed: Tensor, allowed: Tensor | float, name: str = "") -> None:
    """The two differ by at most ``allowed``, a number for all entries or for each."""
    error = (came - needed).abs()
    assert bool((error <= allowed).all()), f"{name}: {error.max()} apart; {torch.as_tensor(allowed).max()} allowed"

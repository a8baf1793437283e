"""How far two ways to one number may come apart: sums in another order, a product of a batch of another size.

Other kernels, shapes, layouts and batch sizes add the same terms up in another order, and each processor has its own.
Equality is asked for only where the same kernels run on the same shapes, or where the arithmetic is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn


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


def assert_within(got: Tensor, expected: Tensor, allowed: Tensor | float, name: str = "") -> None:
    """The two differ by at most ``allowed``, a number for all entries or for each."""
    error = (got - expected).abs()
    assert bool((error <= allowed).all()), f"{name}: {error.max()} apart; {torch.as_tensor(allowed).max()} allowed"


def of_network(model: nn.Module, outputs: Tensor) -> float:
    """Largest difference of the outputs of two ways through a network, from their size.

    A layer that sums up k terms errs by about ``sqrt(k) eps`` of its outputs' size, as roundings go either way; the
    errors of the layers add up. Measured on the networks here, it is 5 to 100 times what other kernels do.
    """
    n_terms = sum(math.sqrt(weight[0].numel()) for weight in model.parameters() if weight.ndim > 1)
    return torch.finfo(outputs.dtype).eps * n_terms * float(outputs.detach().abs().max())


def of_score(n_rows: int, n_eff: float = 2.0) -> float:
    """Largest difference of two scores of the same float32 activations over ``n_rows`` rows, ``n_eff`` of them active.

    ``w`` errs by ``n eps u``, so ``(|w|^2 - v) / (u^2 - v)`` by ``2 n eps u^2 / (u^2 - v)``, where ``u^2 = n_eff v``.
    """
    return 2.0 * torch.finfo(torch.float32).eps * n_rows * n_eff / (n_eff - 1.0)


def close_summary(expected: Mapping[str, float], error: float) -> dict[str, Any]:
    """What equals a summary within a relative error, which is absolute for differences of numbers about 1.

    Those are near 0 where their parts are not: scores, chance, lift, explained variances.
    """

    def absolute(name: str) -> float:
        return error if name.startswith(("score", "chance", "lift", "r2", "explained_variance")) else 0.0

    return {n: pytest.approx(value, rel=error, abs=absolute(n), nan_ok=True) for n, value in expected.items()}

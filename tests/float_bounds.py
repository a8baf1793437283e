"""How far two routes to the same floats may lie apart.

Other kernels, shapes, layouts and batch sizes sum up the same terms in another order, and each processor has its own.
Equality is asked for only where the same kernels run on the same shapes, or where the arithmetic is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def sum_bound(dtype: torch.dtype, n_terms: int, size: float | Tensor = 1.0) -> float:
    """Largest difference of two sums of the same terms, whose absolute values add up to at most ``size``.

    In any order a sum of n rounded terms errs by at most ``n eps / 2`` times ``size``; there are two of them.
    """
    return torch.finfo(dtype).eps * n_terms * float(size)


def product_bound(rows: Tensor, weight: Tensor) -> float:
    """The same for the entries of ``rows @ weight.T``."""
    return sum_bound(rows.dtype, rows.shape[-1], (rows.detach().abs() @ weight.detach().abs().T).max())


def network_bound(model: nn.Module, outputs: Tensor) -> float:
    """Largest difference of the outputs of two ways through a network, from their size.

    A layer that sums up k terms errs by about ``sqrt(k) eps`` of its outputs' size, as roundings go either way; the
    errors of the layers add up. Measured on the networks here, it is 5 to 100 times what other kernels do.
    """
    n_terms = sum(math.sqrt(weight[0].numel()) for weight in model.parameters() if weight.ndim > 1)
    return torch.finfo(outputs.dtype).eps * n_terms * float(outputs.detach().abs().max())


def score_bound(n_rows: int, n_eff: float = 2.0) -> float:
    """Largest difference of two scores of the same float32 activations over ``n_rows`` rows, ``n_eff`` of them active.

    ``w`` errs by ``n eps u``, so ``(|w|^2 - v) / (u^2 - v)`` by ``2 n eps u^2 / (u^2 - v)``, where ``u^2 = n_eff v``.
    """
    return 2 * sum_bound(torch.float32, n_rows, n_eff / (n_eff - 1))


def close_summary(needed: Mapping[str, float], error: float) -> dict[str, Any]:
    """What equals a summary within a relative error, which is absolute for differences of numbers about 1.

    Those are near 0 where their parts are not: scores, chance, lift, explained variances.
    """

    def absolute(name: str) -> float:
        return error if name.startswith(("score", "chance", "lift", "r2", "explained_variance")) else 0.0

    return {n: pytest.approx(value, rel=error, abs=absolute(n), nan_ok=True) for n, value in needed.items()}

"""How often and how much latents are active: which entries count as active, L0, density and L1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monoloss.checks import check_matrix
from monoloss.errors import InputError
from monoloss.precision import product_dtype, sums_device
from monoloss.sparse import Activations, SparseActivations

_BLOCK_ENTRIES = 2**20  # looked at in one go: about 30 MB of row numbers, latents and float64 values


class ActiveEntries(NamedTuple):
    """Some of the entries ``z > 0`` of a batch; float64 values, on the device where sums live."""

    rows: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]


def activation_counts(activations: Activations) -> Int[Tensor, " m"]:
    """How many rows each latent is active on: ``sum_i [z_ij > 0]``.

    Exact. Cost O(n m) dense, O(entries) sparse; memory O(m) beside a mask of the entries. Counts of batches add up.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse; negative ones and stored zeros are not active.

    Returns:
        int64 counts ``(m,)`` from 0 (dead on these rows) to ``n``.

    Raises:
        InputError: activations that are not a floating-point ``(n, m)``; on the CPU, one that is not finite. (On other
            devices the values are not looked at, and NaN is not active.)

    Source:
        The L0 of arXiv 2602.12403; here also for latents of any sign.

    Example:
        >>> activation_counts(torch.tensor([[0.5, -1.0, 0.0], [2.0, 3.0, 0.0]]))
        tensor([2, 1, 0])
    """
    check_activations(activations)
    if activations.device.type == "cpu":
        count_not_finite(activations)
    if isinstance(activations, SparseActivations):
        active = activations.flat_indices[activations.flat_values > 0]
        return torch.bincount(active, minlength=activations.n_latents)
    return (activations > 0).sum(0)


def density(counts: Int[Tensor, " m"], n_rows: int) -> Float[Tensor, " m"]:
    """The share of rows that each latent is active on: ``counts / n_rows``.

    Args:
        counts: rows on which each latent is active, ``(m,)``, as ``activation_counts`` gives them.
        n_rows: number of rows behind the counts, at least 0.

    Returns:
        float64 shares ``(m,)`` in [0, 1]: 0 a dead latent, 1 one that is always on; NaN where there are no rows.

    Raises:
        InputError: a negative number of rows.

    Example:
        >>> density(torch.tensor([2, 1, 0]), n_rows=2)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if n_rows < 0:
        raise InputError("n_rows", n_rows, "at least 0")
    return counts.to(sums_device(counts.device)).double() / n_rows


def l0(counts: Int[Tensor, " m"], n_rows: int) -> Float[Tensor, ""]:
    """The mean over rows of the number of active latents: ``sum_j counts_j / n_rows``.

    Args:
        counts: rows on which each latent is active, ``(m,)``, as ``activation_counts`` gives them.
        n_rows: number of rows behind the counts, at least 0.

    Returns:
        float64 scalar in [0, m]; NaN where there are no rows.

    Raises:
        InputError: a negative number of rows.

    Example:
        >>> l0(torch.tensor([2, 1, 0]), n_rows=2)
        tensor(1.5000, dtype=torch.float64)
    """
    return density(counts.sum().reshape(1), n_rows)[0]


def l1(activations: Activations) -> Float[Tensor, ""]:
    """The mean over rows of the sum of absolute activations: ``sum_ij |z_ij| / n``; differentiable.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse.

    Returns:
        Scalar of at least 0, in float32 at least; NaN where there are no rows.

    Raises:
        InputError: activations that are not a floating-point ``(n, m)``.

    Example:
        >>> l1(torch.tensor([[0.5, -1.0], [2.0, 0.0]]))
        tensor(1.7500)
    """
    check_activations(activations)
    values = activations.values if isinstance(activations, SparseActivations) else activations
    return values.abs().sum(dtype=product_dtype(values.dtype)) / activations.shape[0]


def check_activations(activations: Activations) -> None:
    """Refuse what is not a floating-point ``(n, m)``."""
    if not isinstance(activations, SparseActivations):  # these have checked themselves
        check_matrix("activations", activations)


def count_not_finite(activations: Activations) -> Float[Tensor, ""]:
    """How many activations are NaN or infinite; on the CPU the first one is refused at once (one sum where none is).

    Elsewhere nothing waits for the device: the caller adds the counts up and raises when it reads its results.
    """
    values = activations.flat_values if isinstance(activations, SparseActivations) else activations
    values = values.detach()
    if values.device.type != "cpu":
        return (~torch.isfinite(values)).sum().to(sums_device(values.device)).double()
    if not torch.isfinite(values.sum()):
        refuse_not_finite(activations)
    return torch.zeros((), dtype=torch.float64)


def refuse_not_finite(activations: Activations) -> None:
    """Name the first activation that is not finite; nothing happens where all are."""
    values = (activations.flat_values if isinstance(activations, SparseActivations) else activations).detach()
    bad = (~torch.isfinite(values)).nonzero()
    if not bad.shape[0]:
        return  # the sum overflowed: large, but finite activations
    where = tuple(bad[0].tolist())
    if isinstance(activations, SparseActivations):
        row, latent = int(activations.rows[where]), int(activations.flat_indices[where])
    else:
        row, latent = where
    raise InputError("activations", f"{float(values[where])} (row {row}, latent {latent})", "finite numbers")


def active_entries(
    activations: Activations, above: Callable[[], Float[Tensor, " m"]] | None = None
) -> Iterator[ActiveEntries]:
    """The entries ``z > 0`` in row order, some at a time, so that a dense batch needs no second copy of its size.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse.
        above: a bound >= 0 for each latent, asked for before each part: entries that do not exceed it are left out.
    """
    activations = activations.detach()
    home = sums_device(activations.device)
    if isinstance(activations, SparseActivations):
        parts = (
            part.split(_BLOCK_ENTRIES) for part in (activations.rows, activations.flat_indices, activations.flat_values)
        )
        for rows, latents, values in zip(*parts, strict=True):
            bounds = 0.0 if above is None else _rounded_down(above(), values).index_select(0, latents)
            active = (values > bounds).nonzero().squeeze(1)
            part = (rows, latents, values)
            if len(active) < len(values):
                part = (rows[active], latents[active], values[active])
            yield ActiveEntries(part[0].to(home), part[1].to(home), part[2].to(home).double())
        return
    n_rows = max(1, _BLOCK_ENTRIES // max(1, activations.shape[1]))
    for start in range(0, activations.shape[0], n_rows):
        block = activations[start : start + n_rows].to(home)
        rows, latents = (block > (0.0 if above is None else _rounded_down(above(), block))).nonzero(as_tuple=True)
        yield ActiveEntries(rows + start, latents, block[rows, latents].double())


def _rounded_down(bounds: Tensor, like: Tensor) -> Tensor:
    """Bounds in the dtype of the values they are compared with, several times faster; 0 where rounding raises one."""
    rounded = bounds.to(like)
    return rounded.where(rounded.to(bounds) <= bounds, 0.0)

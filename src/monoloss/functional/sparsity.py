"""Sparsity of activations: the active entries, L0, density and L1, and the check for finite numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from monoloss.checks.tensors import check_matrix
from monoloss.errors import InputError
from monoloss.precision import product_dtype, sums_device
from monoloss.sparse import Activations, SparseActivations
from monoloss.waiting import may_branch, may_check

_BLOCK_ENTRIES = 2**20  # entries in one block: about 30 MB of row numbers, latents and float64 values


class ActiveEntries(NamedTuple):
    """Entries of a batch with ``z > 0``, or 0 for an entry that does not count; float64 values, on ``sums_device``."""

    rows: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]


def activation_counts(activations: Activations) -> Int[Tensor, " m"]:
    """Count the rows that each latent is active on: ``sum_i [z_ij > 0]``.

    Exact. Cost O(n m) dense, O(entries) sparse; memory O(m) beside a mask of the entries. Counts of batches add up.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse; negative ones and stored zeros are not active.

    Returns:
        int64 counts ``(m,)`` from 0 (dead on these rows) to ``n``.

    Raises:
        InputError: activations that are not a floating-point ``(n, m)``; on the CPU, one that is not finite. (On other
            devices values are not checked, and NaN is not active.)

    Source:
        The L0 of arXiv 2602.12403, extended to latents of any sign.
    """
    check_activations(activations)
    if may_check(activations.device):
        count_not_finite(activations)
    if isinstance(activations, SparseActivations):
        counts = torch.zeros(activations.n_latents, dtype=torch.int64, device=activations.device)
        return counts.scatter_add_(0, activations.flat_indices, (activations.flat_values > 0).long())
    return (activations > 0).sum(0)


def density(counts: Int[Tensor, " m"], n_rows: int) -> Float[Tensor, " m"]:
    """Share of rows that each latent is active on: ``counts / n_rows``.

    Args:
        counts: rows on which each latent is active, ``(m,)``, as ``activation_counts`` gives them.
        n_rows: number of rows behind the counts, at least 0.

    Returns:
        float64 shares ``(m,)`` in [0, 1]: 0 for a dead latent, 1 for one that is always active; NaN without rows.

    Raises:
        InputError: a negative number of rows.
    """
    if n_rows < 0:
        raise InputError("n_rows", n_rows, "at least 0")
    return counts.to(sums_device(counts.device)).double() / n_rows


def l0(counts: Int[Tensor, " m"], n_rows: int) -> Float[Tensor, ""]:
    """Mean over rows of the number of active latents: ``sum_j counts_j / n_rows``.

    Args:
        counts: rows on which each latent is active, ``(m,)``, as ``activation_counts`` gives them.
        n_rows: number of rows behind the counts, at least 0.

    Returns:
        float64 scalar in [0, m]; NaN without rows.

    Raises:
        InputError: a negative number of rows.
    """
    return density(counts.sum().reshape(1), n_rows)[0]


def l1(activations: Activations) -> Float[Tensor, ""]:
    """Mean over rows of the sum of absolute activations: ``sum_ij |z_ij| / n``; differentiable.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse.

    Returns:
        Scalar of at least 0, in float32 at least; NaN without rows.

    Raises:
        InputError: activations that are not a floating-point ``(n, m)``.
    """
    check_activations(activations)
    values = activations.values if isinstance(activations, SparseActivations) else activations
    return values.abs().sum(dtype=product_dtype(values.dtype)) / activations.shape[0]


def check_activations(activations: Activations) -> None:
    """Check that activations are a floating-point ``(n, m)``; raise InputError otherwise."""
    if not isinstance(activations, SparseActivations):  # whose constructor has checked them
        check_matrix("activations", activations)


def count_not_finite(activations: Activations) -> Float[Tensor, ""]:
    """Count the activations that are NaN or infinite, a float64 scalar; on the CPU raise InputError for the first one.

    On other devices nothing is waited for: the caller adds the counts up and raises when it reads its results.
    """
    values = activations.flat_values if isinstance(activations, SparseActivations) else activations
    values = values.detach()
    if not may_check(values.device):
        return (~torch.isfinite(values)).sum().to(sums_device(values.device)).double()
    if not torch.isfinite(values.sum()):
        refuse_not_finite(activations)
    return torch.zeros((), dtype=torch.float64)


def refuse_not_finite(activations: Activations) -> None:
    """Raise InputError for the first activation that is not finite, if any."""
    values = (activations.flat_values if isinstance(activations, SparseActivations) else activations).detach()
    bad = (~torch.isfinite(values)).nonzero()
    if not bad.shape[0]:
        return  # activations so large that the caller's sum overflowed
    position = tuple(bad[0].tolist())
    if isinstance(activations, SparseActivations):
        row, latent = int(activations.rows[position]), int(activations.flat_indices[position])
    else:
        row, latent = position
    raise InputError("activations", f"{float(values[position])} (row {row}, latent {latent})", "finite numbers")


class EntryBlock(NamedTuple):
    """A block of activations of any sign: some dense rows ``(rows, m)``, or a list of stored entries.

    Attributes:
        values: activations in the dtype of the batch, ``(rows, m)`` or ``(entries,)``.
        rows: row number in the batch of each value, ``(rows, 1)`` or ``(entries,)``.
        latents: latent of each listed entry, ``(entries,)``; None for dense rows.
    """

    values: Tensor
    rows: Tensor
    latents: Tensor | None

    def of_latents(self, per_latent: Shaped[Tensor, " m"]) -> Tensor:
        """Return the element of ``per_latent`` for the latent of each value; broadcasts against ``values``."""
        per_latent = per_latent.to(self.values.device)
        return per_latent if self.latents is None else per_latent.index_select(0, self.latents)

    def of_rows(self, per_row: Shaped[Tensor, " n"]) -> Tensor:
        """Return the element of ``per_row`` for the row of each value; broadcasts against ``values``."""
        return per_row.to(self.values.device)[self.rows]


def active_entries(
    activations: Activations, chosen: Callable[[EntryBlock], Bool[Tensor, "..."]] | None = None
) -> Iterator[ActiveEntries]:
    """Yield the entries ``z > 0`` in row order, block by block, so that a dense batch is not copied as a whole.

    Of sparse activations where no branch is wanted (`may_branch`): all stored entries at once, with the value 0 where
    they are not chosen.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse.
        chosen: a function that returns the mask of the values to yield from a block, True only where ``> 0``. Called
            for a block after the caller has taken the entries of the block before. None for all active entries.
    """
    activations = activations.detach()
    sums_dev = sums_device(activations.device)
    chosen = chosen or _is_active
    if isinstance(activations, SparseActivations) and not may_branch(activations.device):
        rows, latents, values = activations.rows, activations.flat_indices, activations.flat_values
        yield ActiveEntries(rows, latents, torch.where(chosen(EntryBlock(values, rows, latents)), values, 0.0).double())
        return
    if isinstance(activations, SparseActivations):
        parts = (
            part.split(_BLOCK_ENTRIES) for part in (activations.rows, activations.flat_indices, activations.flat_values)
        )
        for part in zip(*parts, strict=True):
            rows, latents, values = part
            positions = chosen(EntryBlock(values, rows, latents)).nonzero().squeeze(1)
            if len(positions) < len(values):
                rows, latents, values = rows[positions], latents[positions], values[positions]
            yield ActiveEntries(rows.to(sums_dev), latents.to(sums_dev), values.to(sums_dev).double())
        return
    for start, block in dense_blocks(activations):
        numbers = torch.arange(start, start + len(block), device=sums_dev)
        rows, latents = chosen(EntryBlock(block, numbers[:, None], None)).nonzero(as_tuple=True)
        yield ActiveEntries(rows + start, latents, block[rows, latents].double())


def dense_blocks(activations: Float[Tensor, "n m"]) -> Iterator[tuple[int, Float[Tensor, "_ m"]]]:
    """Yield pairs of a first row number and a block of rows from it on, moved to ``sums_device``."""
    n_rows = max(1, _BLOCK_ENTRIES // max(1, activations.shape[1]))
    for start in range(0, activations.shape[0], n_rows):
        yield start, activations[start : start + n_rows].to(sums_device(activations.device))


def _is_active(block: EntryBlock) -> Bool[Tensor, "..."]:
    return block.values > 0

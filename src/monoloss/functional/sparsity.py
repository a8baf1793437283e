"""How often and how much latents are active: which entries count as active, L0, density and L1."""

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


class EntryBlock(NamedTuple):
    """Some activations before it is said which of them count: ``(rows, m)`` dense, or a list of entries.

    Attributes:
        values: in their own dtype, ``(rows, m)`` or ``(entries,)``.
        rows: of the values, ``(rows, 1)`` or ``(entries,)``.
        latents: of listed entries; None where the values have a column for each latent.
    """

    values: Tensor
    rows: Tensor
    latents: Tensor | None

    def of_latents(self, per_latent: Shaped[Tensor, " m"]) -> Tensor:
        """What each value's latent has, in a shape that broadcasts against the values."""
        here = per_latent.to(self.values.device)
        return here if self.latents is None else here.index_select(0, self.latents)

    def of_rows(self, per_row: Shaped[Tensor, " n"]) -> Tensor:
        """What each value's row has, in a shape that broadcasts against the values."""
        return per_row.to(self.values.device)[self.rows]


def active_entries(
    activations: Activations, chosen: Callable[[EntryBlock], Bool[Tensor, "..."]] | None = None
) -> Iterator[ActiveEntries]:
    """The entries ``z > 0`` in row order, some at a time, so that a dense batch needs no second copy of its size.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse.
        chosen: which values of a block are wanted, all of them ``> 0``; asked for each block when its turn has come.
            By default all that are active.
    """
    activations = activations.detach()
    sums_dev = sums_device(activations.device)
    wanted = chosen or _is_active
    if isinstance(activations, SparseActivations):
        parts = (
            part.split(_BLOCK_ENTRIES) for part in (activations.rows, activations.flat_indices, activations.flat_values)
        )
        for part in zip(*parts, strict=True):
            rows, latents, values = part
            kept = wanted(EntryBlock(values, rows, latents)).nonzero().squeeze(1)
            if len(kept) < len(values):
                rows, latents, values = rows[kept], latents[kept], values[kept]
            yield ActiveEntries(rows.to(sums_dev), latents.to(sums_dev), values.to(sums_dev).double())
        return
    for start, block in dense_blocks(activations):
        numbers = torch.arange(start, start + len(block), device=sums_dev)
        rows, latents = wanted(EntryBlock(block, numbers[:, None], None)).nonzero(as_tuple=True)
        yield ActiveEntries(rows + start, latents, block[rows, latents].double())


def dense_blocks(activations: Float[Tensor, "n m"]) -> Iterator[tuple[int, Float[Tensor, "_ m"]]]:
    """Some rows of dense activations at a time, where sums live, each block after the number of its first row."""
    n_rows = max(1, _BLOCK_ENTRIES // max(1, activations.shape[1]))
    for start in range(0, activations.shape[0], n_rows):
        yield start, activations[start : start + n_rows].to(sums_device(activations.device))


def _is_active(block: EntryBlock) -> Bool[Tensor, "..."]:
    return block.values > 0

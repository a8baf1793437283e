"""Sparse activations: rows stored by their few entries that are not zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monoloss.checks import check_number
from monoloss.checks.tensors import check_dense, check_matrix, check_same_device
from monoloss.errors import InputError


class SparseActivations:
    """Activations of ``n`` rows on ``n_latents`` latents, stored as the entries that may differ from zero.

    Two layouts: ``k`` entries in every row (``values`` and ``indices`` of shape ``(n, k)``), or ragged rows
    (``values`` and ``indices`` of shape ``(entries,)``; row ``i`` has ``row_offsets[i]:row_offsets[i + 1]``).
    A stored value may be 0 and still gets a gradient. Memory: O(entries), never ``(n, n_latents)``.

    Args:
        values: activations of the stored entries, any sign, floating point; ``(n, k)`` or ``(entries,)``.
        indices: latent of each entry, int64 in ``[0, n_latents)``, at most once in a row; the shape of ``values``.
        n_latents: number of latents, at least 1.
        row_offsets: int64 ``(n + 1,)``, rising from 0 to the number of entries, for ragged rows only.
        check: check indices and offsets, at the cost of one sort of the entries; the library skips it for its own.

    Raises:
        InputError: a shape or dtype that does not fit, an index out of range or twice in a row.

    Example:
        >>> codes = SparseActivations(torch.tensor([[2.0], [3.0]]), torch.tensor([[0], [2]]), n_latents=3)
        >>> codes.to_dense()
        tensor([[2., 0., 0.],
                [0., 0., 3.]])
    """

    def __init__(
        self,
        values: Float[Tensor, " *entries"],
        indices: Int[Tensor, " *entries"],
        n_latents: int,
        row_offsets: Int[Tensor, " n_plus_1"] | None = None,
        *,
        check: bool = True,
    ) -> None:
        _check_layout(values, indices, n_latents, row_offsets)
        self.values = values
        self.indices = indices
        self.n_latents = n_latents
        self.row_offsets = row_offsets
        self._structure: list[EntriesByLatent] = []  # one list for all codes of the same entries, filled on first use
        if check:
            _check_indices(self)

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "n m"]) -> SparseActivations:
        """Store the non-zero entries of a dense ``(n, m)`` tensor as ragged rows; differentiable in these entries.

        Example:
            >>> SparseActivations.from_dense(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).values
            tensor([2.])
        """
        check_matrix("dense", dense)
        rows, indices = dense.detach().nonzero(as_tuple=True)
        offsets = offsets_of_sorted_rows(rows, dense.shape[0])
        return cls(dense[rows, indices], indices, dense.shape[1], offsets, check=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and latents, ``(n, n_latents)``."""
        n = self.values.shape[0] if self.row_offsets is None else self.row_offsets.shape[0] - 1
        return n, self.n_latents

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of the stored values."""
        return self.values.device

    @property
    def flat_values(self) -> Float[Tensor, " entries"]:
        """Stored values, row after row."""
        return self.values.reshape(-1)

    @property
    def flat_indices(self) -> Int[Tensor, " entries"]:
        """Latent of each stored entry, row after row."""
        return self.indices.reshape(-1)

    @property
    def rows(self) -> Int[Tensor, " entries"]:
        """Row of each stored entry, row after row."""
        n, device = self.shape[0], self.device
        every_row = torch.arange(n, device=device)
        if self.row_offsets is None:
            return every_row.repeat_interleave(self.values.shape[1])
        return every_row.repeat_interleave(self.row_offsets.diff(), output_size=self.values.shape[0])

    @property
    def by_latent(self) -> EntriesByLatent:
        """The entries grouped by latent (the transposed structure); built at the first use, shared by all products."""
        if not self._structure:
            self._structure.append(_group_by_latent(self))
        return self._structure[0]

    def with_values(self, values: Float[Tensor, " *entries"]) -> SparseActivations:
        """Return the same entries with other values; both share ``by_latent``, whichever is used first."""
        if values.shape != self.values.shape:
            raise InputError("values", f"shape {tuple(values.shape)}", f"shape {tuple(self.values.shape)}")
        other = SparseActivations(values, self.indices, self.n_latents, self.row_offsets, check=False)
        other._structure = self._structure
        return other

    def detach(self) -> SparseActivations:
        """Return the same activations with detached values."""
        return self.with_values(self.values.detach())

    def to(self, *args: Any, **kwargs: Any) -> SparseActivations:
        """Move or cast as ``torch.Tensor.to``: a device applies to everything, a dtype to the values alone."""
        values = self.values.to(*args, **kwargs)
        if values.device == self.device:
            return self.with_values(values)
        offsets = None if self.row_offsets is None else self.row_offsets.to(values.device)
        return SparseActivations(values, self.indices.to(values.device), self.n_latents, offsets, check=False)

    def to_dense(self) -> Float[Tensor, "n m"]:
        """Return the dense ``(n, n_latents)`` tensor; differentiable with respect to ``values``."""
        dense = self.values.new_zeros(self.shape)
        return dense.index_put((self.rows, self.flat_indices), self.flat_values)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        n, m = self.shape
        return f"SparseActivations({n} rows, {m} latents, {self.flat_values.shape[0]} entries, {self.dtype})"


Activations: TypeAlias = Float[Tensor, "n m"] | SparseActivations


@dataclass(frozen=True)
class EntriesByLatent:
    """The entries of sparse activations grouped by latent; within a latent in row order.

    Attributes:
        order: position of each grouped entry among the stored ones, ``(entries,)``.
        rows: row of each grouped entry, ``(entries,)``.
        offsets: ``(n_latents + 1,)``; latent ``j`` has the grouped entries ``offsets[j]:offsets[j + 1]``.
    """

    order: Int[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    offsets: Int[Tensor, " m_plus_1"]


def offsets_of_sorted_rows(rows: Int[Tensor, " entries"], n: int) -> Int[Tensor, " n_plus_1"]:
    """Return the offsets ``(n + 1,)`` of ``n`` rows in a sorted list: row ``i`` has ``offsets[i]:offsets[i + 1]``."""
    offsets = rows.new_zeros(n + 1)
    counts = rows.new_zeros(n).scatter_add_(0, rows, torch.ones_like(rows))  # bincount would wait for a GPU
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def _group_by_latent(codes: SparseActivations) -> EntriesByLatent:
    """Sort the stored entries by latent."""
    indices = codes.flat_indices
    order = torch.argsort(indices.to(_narrowest(codes.n_latents)), stable=True)  # short integers sort in half the time
    offsets = offsets_of_sorted_rows(indices, codes.n_latents)
    return EntriesByLatent(order, codes.rows.index_select(0, order), offsets)


def _narrowest(n_latents: int) -> torch.dtype:
    """Return the shortest integer type that holds ``n_latents - 1``."""
    return next(dtype for dtype in (torch.int16, torch.int32, torch.int64) if n_latents - 1 <= torch.iinfo(dtype).max)


def _check_layout(values: Any, indices: Any, n_latents: int, row_offsets: Any) -> None:
    """Refuse values, indices and offsets whose types or shapes do not fit together."""
    _check_entries(values, indices)
    check_number("n_latents", n_latents, at_least=1, integer=True)
    if row_offsets is None:
        if values.ndim != 2:
            raise InputError("values", f"shape {tuple(values.shape)}", "shape (n, k), or 1-D values with row_offsets")
        return
    if values.ndim != 1:
        raise InputError("values", f"shape {tuple(values.shape)}", "shape (entries,) where row_offsets are given")
    if not isinstance(row_offsets, Tensor):
        raise InputError("row_offsets", type(row_offsets).__name__, "a tensor")
    if row_offsets.ndim != 1 or row_offsets.shape[0] < 1 or row_offsets.dtype != torch.int64:
        got = f"shape {tuple(row_offsets.shape)}, dtype {row_offsets.dtype}"
        raise InputError("row_offsets", got, "an int64 tensor of shape (n + 1,)")
    check_same_device("row_offsets", row_offsets.device, "values", values.device)


def _check_entries(values: Any, indices: Any) -> None:
    """Refuse values or indices of a wrong type, dtype or shape."""
    for name, value in (("values", values), ("indices", indices)):
        if not isinstance(value, Tensor):
            raise InputError(name, type(value).__name__, "a tensor")
    check_dense("values", values)
    check_dense("indices", indices)
    if not values.is_floating_point():
        raise InputError("values", f"dtype {values.dtype}", "a floating-point dtype")
    if indices.dtype != torch.int64:
        raise InputError("indices", f"dtype {indices.dtype}", "torch.int64")
    if indices.shape != values.shape:
        raise InputError("indices", f"shape {tuple(indices.shape)}", f"the shape of values, {tuple(values.shape)}")
    check_same_device("indices", indices.device, "values", values.device)


def _check_indices(codes: SparseActivations) -> None:
    """Check that offsets rise, indices are in range, and none is twice in a row."""
    offsets, indices = codes.row_offsets, codes.flat_indices
    if offsets is not None:
        if int(offsets[0]) != 0 or int(offsets[-1]) != indices.shape[0]:
            got = f"offsets from {int(offsets[0])} to {int(offsets[-1])}"
            raise InputError("row_offsets", got, f"offsets from 0 to the number of entries, {indices.shape[0]}")
        falls = (offsets.diff() < 0).nonzero()
        if falls.shape[0]:
            row = int(falls[0])
            got = f"{int(offsets[row])} before {int(offsets[row + 1])} (row {row})"
            raise InputError("row_offsets", got, "offsets that never fall")
    outside = ((indices < 0) | (indices >= codes.n_latents)).nonzero()
    if outside.shape[0]:
        position = int(outside[0])
        got = f"index {int(indices[position])} in row {int(codes.rows[position])}"
        raise InputError("indices", got, f"indices from 0 to {codes.n_latents - 1}")
    grouped = codes.by_latent
    latents = indices[grouped.order]
    repeated = ((latents.diff() == 0) & (grouped.rows.diff() == 0)).nonzero()
    if repeated.shape[0]:
        position = int(repeated[0])
        got = f"index {int(latents[position])} twice in row {int(grouped.rows[position])}"
        raise InputError("indices", got, "each index at most once in a row")

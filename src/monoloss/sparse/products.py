"""Three products of sparse activations and dense matrices: O(entries d), differentiable."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monoloss.checks.gradients import first_derivatives_only
from monoloss.checks.tensors import check_same_device
from monoloss.errors import InputError
from monoloss.precision import autocast_off, product_dtype
from monoloss.sparse.activations import SparseActivations

_HAS_MKL = torch.backends.mkl.is_available()
_BLOCK_ELEMENTS = 2**24  # elements of an (entries, d) block, on devices without sparse kernels: 64 MB in float32


def codes_t_matmul(codes: SparseActivations, dense: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """Compute ``codes^T @ dense``: for each latent the sum of the rows of ``dense``, weighted by its activations.

    O(entries d). Runs in at least float32, under autocast too; differentiable in the stored values and in ``dense``.
    """
    _check_factor("dense", dense, codes, rows=codes.shape[0])
    with autocast_off(codes.device):
        values, dense = _same_dtype(codes.flat_values, dense)
        result: Tensor = _CodesTransposedTimesDense.apply(values, dense, grouped_early(codes))
    return result


def codes_matmul(codes: SparseActivations, dense: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """Compute ``codes @ dense`` (a decoder): for each row the sum of ``activation * dense[latent]`` over its entries.

    O(entries d). Runs in at least float32, under autocast too; differentiable in the stored values and in ``dense``.
    """
    _check_factor("dense", dense, codes, rows=codes.n_latents)
    with autocast_off(codes.device):
        values, dense = _same_dtype(codes.flat_values, dense)
        result: Tensor = _CodesTimesDense.apply(values, dense, grouped_early(codes))
    return result


def sampled_matmul(
    codes: SparseActivations, left: Float[Tensor, "n d"], right: Float[Tensor, "m d"]
) -> Float[Tensor, " entries"]:
    """Compute ``left @ right^T`` at the stored entries only, in their order, row after row.

    O(entries d). Runs in at least float32, under autocast too; differentiable in ``left`` and ``right``.
    """
    _check_factor("left", left, codes, rows=codes.shape[0])
    _check_factor("right", right, codes, rows=codes.n_latents)
    if left.shape[1] != right.shape[1]:
        raise InputError("right", f"width {right.shape[1]}", f"the width of left, {left.shape[1]}")
    with autocast_off(codes.device):
        left, right = _same_dtype(left, right)
        result: Tensor = _SampledProduct.apply(left, right, grouped_early(codes))
    return result


class _CodesTransposedTimesDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, codes: SparseActivations) -> Tensor:
        ctx.save_for_backward(values, dense)
        ctx.codes = codes
        return _transposed_product(codes, values.detach(), dense.detach())

    @staticmethod
    @first_derivatives_only("a sparse product")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, dense = ctx.saved_tensors
        with autocast_off(grad.device):
            values_grad = _sampled(ctx.codes, dense, grad) if ctx.needs_input_grad[0] else None
            dense_grad = _product(ctx.codes, values, grad) if ctx.needs_input_grad[1] else None
        return values_grad, dense_grad, None


class _CodesTimesDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, codes: SparseActivations) -> Tensor:
        ctx.save_for_backward(values, dense)
        ctx.codes = codes
        return _product(codes, values.detach(), dense.detach())  # with a graph embedding_bag is many times slower

    @staticmethod
    @first_derivatives_only("a sparse product")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, dense = ctx.saved_tensors
        with autocast_off(grad.device):
            values_grad = _sampled(ctx.codes, grad, dense) if ctx.needs_input_grad[0] else None
            dense_grad = _transposed_product(ctx.codes, values, grad) if ctx.needs_input_grad[1] else None
        return values_grad, dense_grad, None


class _SampledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, codes: SparseActivations) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.codes = codes
        return _sampled(codes, left, right)

    @staticmethod
    @first_derivatives_only("a sparse product")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right = ctx.saved_tensors
        with autocast_off(grad.device):
            left_grad = _product(ctx.codes, grad, right) if ctx.needs_input_grad[0] else None
            right_grad = _transposed_product(ctx.codes, grad, left) if ctx.needs_input_grad[1] else None
        return left_grad, right_grad, None


def bag_sums(
    rows: Int[Tensor, "*entries"],
    dense: Float[Tensor, "n d"],
    offsets: Int[Tensor, " bags"] | None,
    weights: Float[Tensor, "*entries"],
) -> Float[Tensor, "bags d"]:
    """Sum rows of ``dense``, times ``weights``, over bags of row numbers: ``(bags, d)``.

    ``offsets`` are the starts of the bags in a 1-D ``rows``; None if each row of a 2-D ``rows`` is a bag. For tensors
    without a graph, and at least one entry.
    """
    sums: Tensor = torch.nn.functional.embedding_bag(rows, dense, offsets, mode="sum", per_sample_weights=weights)
    return sums


def grouped_early(codes: SparseActivations) -> SparseActivations:
    """Return ``codes``; in code that torch.compile traces, grouped by latent before a Function would do that inside."""
    if torch.compiler.is_compiling():
        _ = codes.by_latent
    return codes


def has_sparse_kernels(device: torch.device) -> bool:
    """Return whether torch has sparse products for ``device``: a CPU with MKL, or CUDA."""
    return device.type == "cuda" or (device.type == "cpu" and _HAS_MKL)


def _transposed_product(codes: SparseActivations, values: Tensor, dense: Tensor) -> Tensor:
    """Compute ``codes^T @ dense`` with ``values`` instead of the values of ``codes``; not differentiable."""
    if has_sparse_kernels(dense.device):
        entries = codes.by_latent
        grouped = values.index_select(0, entries.order)
        if dense.device.type == "cpu" and dense.dtype == torch.float32 and len(grouped):  # faster than CSR in this case
            return bag_sums(entries.rows, dense, entries.offsets[:-1], grouped)
        product: Tensor = _csr_matmul(entries.offsets, entries.rows, grouped, dense)
        return product
    out = dense.new_zeros(codes.n_latents, dense.shape[1])
    rows, indices = codes.rows, codes.flat_indices
    for part in _blocks(values.shape[0], dense.shape[1]):
        out.index_add_(0, indices[part], values[part, None] * dense[rows[part]])
    return out


def _product(codes: SparseActivations, values: Tensor, dense: Tensor) -> Tensor:
    """Compute ``codes @ dense`` with ``values`` instead of the values of ``codes``; not differentiable."""
    if has_sparse_kernels(dense.device):
        offsets = None if codes.row_offsets is None else codes.row_offsets[:-1]
        indices = codes.indices if offsets is None else codes.flat_indices
        weights = values.reshape(indices.shape)
        if values.shape[0] == 0:  # embedding_bag refuses empty shapes
            return dense.new_zeros(codes.shape[0], dense.shape[1])
        return bag_sums(indices, dense, offsets, weights)
    out = dense.new_zeros(codes.shape[0], dense.shape[1])
    rows, indices = codes.rows, codes.flat_indices
    for part in _blocks(values.shape[0], dense.shape[1]):
        out.index_add_(0, rows[part], values[part, None] * dense[indices[part]])
    return out


def _sampled(codes: SparseActivations, left: Tensor, right: Tensor) -> Tensor:
    """Compute ``left @ right^T`` at the stored entries; not differentiable."""
    out = left.new_empty(codes.flat_indices.shape[0])
    if has_sparse_kernels(left.device):
        entries = codes.by_latent
        return out.scatter_(0, entries.order, _csr_sampled_matmul(entries.offsets, entries.rows, right, left))
    rows, indices = codes.rows, codes.flat_indices
    for part in _blocks(out.shape[0], left.shape[1]):
        out[part] = (left[rows[part]] * right[indices[part]]).sum(1)
    return out


def _blocks(n_entries: int, width: int) -> list[slice]:
    """Return slices of the entries, of at most ``_BLOCK_ELEMENTS`` elements of width ``width`` each."""
    step = max(1, _BLOCK_ELEMENTS // max(1, width))
    return [slice(start, min(start + step, n_entries)) for start in range(0, n_entries, step)]


# Operators of torch.library, because torch.compile and fake tensors know no CSR tensors: to them each is one product


@torch.library.custom_op(
    "monoloss::csr_matmul",
    mutates_args=(),
    schema="(Tensor offsets, Tensor columns, Tensor values, Tensor dense) -> Tensor",
)
def _csr_matmul(offsets: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """Compute ``csr @ dense``, ``(rows, d)``, of a matrix with the rows ``offsets[i]:offsets[i + 1]`` of entries."""
    out = dense.new_empty(offsets.shape[0] - 1, dense.shape[1])
    # torch.sparse.mm gives the same, but fills and copies a result of this size first: three times the time
    return torch.addmm(out, _csr(offsets, columns, values, dense.shape[0]), dense, beta=0.0, out=out)


@_csr_matmul.register_fake
def _(offsets: Tensor, _columns: Tensor, _values: Tensor, dense: Tensor) -> Tensor:
    return dense.new_empty(offsets.shape[0] - 1, dense.shape[1])


@torch.library.custom_op(
    "monoloss::csr_sampled_matmul",
    mutates_args=(),
    schema="(Tensor offsets, Tensor columns, Tensor left, Tensor right) -> Tensor",
)
def _csr_sampled_matmul(offsets: Tensor, columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compute ``left @ right^T`` at the entries of a CSR matrix only, in their order, ``(entries,)``."""
    pattern = _csr(offsets, columns, left.new_zeros(columns.shape[0]), right.shape[0])
    product: Tensor = torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0)
    return product.values()


@_csr_sampled_matmul.register_fake
def _(_offsets: Tensor, columns: Tensor, left: Tensor, _right: Tensor) -> Tensor:
    return left.new_empty(columns.shape[0])


def _csr(offsets: Tensor, columns: Tensor, values: Tensor, n_columns: int) -> Tensor:
    with warnings.catch_warnings():  # of CSR in beta, about which a user of this library can do nothing
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        size = (offsets.shape[0] - 1, n_columns)
        return torch.sparse_csr_tensor(offsets, columns, values, size=size, check_invariants=False)


def _same_dtype(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both factors to the wider of their dtypes, at least float32."""
    dtype = product_dtype(left.dtype, right.dtype)
    return left.to(dtype), right.to(dtype)


def _check_factor(name: str, factor: Tensor, codes: SparseActivations, *, rows: int) -> None:
    """Refuse a dense factor that does not have this many rows or is on another device."""
    if factor.ndim != 2 or factor.shape[0] != rows:
        raise InputError(name, f"shape {tuple(factor.shape)}", f"shape ({rows}, d) to multiply {codes!r}")
    check_same_device(name, factor.device, "the codes", codes.device)

"""The three products of sparse codes that everything else is made of: O(entries d), differentiable."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monoloss.errors import InputError
from monoloss.precision import autocast_off, product_dtype
from monoloss.sparse import SparseActivations
from monoloss.tensor_checks import check_same_device

_BLOCK_ELEMENTS = 2**24  # of a gathered (entries, d) block, where the sparse kernels are missing: 64 MB in float32


def codes_t_matmul(codes: SparseActivations, dense: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """``codes^T @ dense``: for each latent the sum of the rows of ``dense``, weighted by its activations.

    O(entries d). Runs in at least float32, under autocast too; differentiable in the stored values and in ``dense``.
    """
    _check_factor("dense", dense, codes, rows=codes.shape[0])
    with autocast_off(codes.device):
        values, dense = _same_dtype(codes.flat_values, dense)
        result: Tensor = _CodesTransposedTimesDense.apply(values, dense, codes)
    return result


def codes_matmul(codes: SparseActivations, dense: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """``codes @ dense``: for each row the sum of the rows of ``dense`` that belong to its active latents (a decoder).

    O(entries d). Runs in at least float32, under autocast too; differentiable in the stored values and in ``dense``.
    """
    _check_factor("dense", dense, codes, rows=codes.n_latents)
    with autocast_off(codes.device):
        values, dense = _same_dtype(codes.flat_values, dense)
        result: Tensor = _CodesTimesDense.apply(values, dense, codes)
    return result


def sampled_matmul(
    codes: SparseActivations, left: Float[Tensor, "n d"], right: Float[Tensor, "m d"]
) -> Float[Tensor, " entries"]:
    """``left @ right^T`` at the stored entries only, row after row.

    O(entries d). Runs in at least float32, under autocast too; differentiable in ``left`` and ``right``.
    """
    _check_factor("left", left, codes, rows=codes.shape[0])
    _check_factor("right", right, codes, rows=codes.n_latents)
    if left.shape[1] != right.shape[1]:
        raise InputError("right", f"width {right.shape[1]}", f"the width of left, {left.shape[1]}")
    with autocast_off(codes.device):
        left, right = _same_dtype(left, right)
        result: Tensor = _SampledProduct.apply(left, right, codes)
    return result


class _CodesTransposedTimesDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, codes: SparseActivations) -> Tensor:
        ctx.save_for_backward(values, dense)
        ctx.codes = codes
        return _transposed_product(codes, values.detach(), dense.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, dense = ctx.saved_tensors
        with autocast_off(grad.device):
            of_values = _sampled(ctx.codes, dense, grad) if ctx.needs_input_grad[0] else None
            of_dense = _product(ctx.codes, values, grad) if ctx.needs_input_grad[1] else None
        return of_values, of_dense, None


class _CodesTimesDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, codes: SparseActivations) -> Tensor:
        ctx.save_for_backward(values, dense)
        ctx.codes = codes
        return _product(codes, values.detach(), dense.detach())  # with a graph embedding_bag is many times slower

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, dense = ctx.saved_tensors
        with autocast_off(grad.device):
            of_values = _sampled(ctx.codes, grad, dense) if ctx.needs_input_grad[0] else None
            of_dense = _transposed_product(ctx.codes, values, grad) if ctx.needs_input_grad[1] else None
        return of_values, of_dense, None


class _SampledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, codes: SparseActivations) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.codes = codes
        return _sampled(codes, left, right)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right = ctx.saved_tensors
        with autocast_off(grad.device):
            of_left = _product(ctx.codes, grad, right) if ctx.needs_input_grad[0] else None
            of_right = _transposed_product(ctx.codes, grad, left) if ctx.needs_input_grad[1] else None
        return of_left, of_right, None


def bag_sums(
    rows: Int[Tensor, "*entries"],
    dense: Float[Tensor, "n d"],
    offsets: Int[Tensor, " bags"] | None,
    weights: Float[Tensor, "*entries"],
) -> Float[Tensor, "bags d"]:
    """Weighted sums of rows of ``dense``, one a bag; ``offsets`` say where each begins, None: a row of ``rows`` each.

    Without a graph, and for at least one entry.
    """
    sums: Tensor = torch.nn.functional.embedding_bag(rows, dense, offsets, mode="sum", per_sample_weights=weights)
    return sums


@torch.no_grad()
def linear(
    rows: Float[Tensor, "n d"], weight: Float[Tensor, "m d"], bias: Float[Tensor, " m"] | None
) -> Float[Tensor, "n m"]:
    """``rows @ weight^T + bias`` without a graph: a dense product, with the library that is the fastest at it.

    On CPUs with MKL that is oneDNN: it adds the bias as it writes, where ``addmm`` fills the result with it before.
    """
    if _has_onednn(rows) and rows.is_contiguous() and weight.is_contiguous():
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # noqa: SLF001
        return result
    return rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())


def _has_onednn(rows: Tensor) -> bool:
    """Whether torch's own operator for oneDNN, which compiled models call, can take a product of float32 ``rows``."""
    here = rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.numel() > 0
    there = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    wanted = bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")
    return here and there and wanted and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_sparse_kernels(device: torch.device) -> bool:
    """Whether torch's CSR products run on ``device``: a CPU with MKL, or CUDA."""
    return device.type == "cuda" or (device.type == "cpu" and torch.backends.mkl.is_available())


def _transposed_product(codes: SparseActivations, values: Tensor, dense: Tensor) -> Tensor:
    if has_sparse_kernels(dense.device):
        entries = codes.by_latent
        grouped = values.index_select(0, entries.order)
        if dense.device.type == "cpu" and dense.dtype == torch.float32 and len(grouped):  # the faster of the two there
            return bag_sums(entries.rows, dense, entries.offsets[:-1], grouped)
        out = dense.new_empty(codes.n_latents, dense.shape[1])
        # the same as torch.sparse.mm, which fills and copies a result of this size first and takes thrice the time
        return torch.addmm(out, _transposed_csr(codes, grouped), dense, beta=0.0, out=out)
    out = dense.new_zeros(codes.n_latents, dense.shape[1])
    rows, indices = codes.rows, codes.flat_indices
    for part in _blocks(values.shape[0], dense.shape[1]):
        out.index_add_(0, indices[part], values[part, None] * dense[rows[part]])
    return out


def _product(codes: SparseActivations, values: Tensor, dense: Tensor) -> Tensor:
    if has_sparse_kernels(dense.device):
        offsets = None if codes.row_offsets is None else codes.row_offsets[:-1]
        indices = codes.indices if offsets is None else codes.flat_indices
        weights = values.reshape(indices.shape)
        # codes without entries, or without rows: embedding_bag refuses the empty shapes
        if values.shape[0] == 0:
            return dense.new_zeros(codes.shape[0], dense.shape[1])
        return bag_sums(indices, dense, offsets, weights)
    out = dense.new_zeros(codes.shape[0], dense.shape[1])
    rows, indices = codes.rows, codes.flat_indices
    for part in _blocks(values.shape[0], dense.shape[1]):
        out.index_add_(0, rows[part], values[part, None] * dense[indices[part]])
    return out


def _sampled(codes: SparseActivations, left: Tensor, right: Tensor) -> Tensor:
    out = left.new_empty(codes.flat_indices.shape[0])
    if has_sparse_kernels(left.device):
        pattern = _transposed_csr(codes, torch.zeros_like(out))
        product = torch.sparse.sampled_addmm(pattern, right, left.t(), beta=0.0)
        return out.scatter_(0, codes.by_latent.order, product.values())
    rows, indices = codes.rows, codes.flat_indices
    for part in _blocks(out.shape[0], left.shape[1]):
        out[part] = (left[rows[part]] * right[indices[part]]).sum(1)
    return out


def _blocks(n_entries: int, width: int) -> list[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(1, width))
    return [slice(start, min(start + step, n_entries)) for start in range(0, n_entries, step)]


def _transposed_csr(codes: SparseActivations, grouped_values: Tensor) -> Tensor:
    entries = codes.by_latent
    with warnings.catch_warnings():  # torch says once that CSR is in beta; nothing a user of this library can act on
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            entries.offsets,
            entries.rows,
            grouped_values,
            size=(codes.n_latents, codes.shape[0]),
            check_invariants=False,
        )


def _same_dtype(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    dtype = product_dtype(left.dtype, right.dtype)
    return left.to(dtype), right.to(dtype)


def _check_factor(name: str, factor: Tensor, codes: SparseActivations, *, rows: int) -> None:
    if factor.ndim != 2 or factor.shape[0] != rows:
        raise InputError(name, f"shape {tuple(factor.shape)}", f"shape ({rows}, d) to multiply {codes!r}")
    check_same_device(name, factor.device, "the codes", codes.device)

"""Gradient of the encoder's linear part at the stored entries of sparse codes alone."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monoloss.checks.gradients import first_derivatives_only
from monoloss.precision import autocast_off
from monoloss.sparse import SparseActivations
from monoloss.sparse.products import codes_matmul, codes_t_matmul, grouped_early


def stored_linear(
    codes: SparseActivations,
    inputs: Float[Tensor, "n d"],
    shift: Float[Tensor, " d"] | None,
    weight: Float[Tensor, "m d"],
    bias: Float[Tensor, " m"] | None,
) -> SparseActivations:
    """Return ``codes`` with a graph to the inputs and the encoder.

    The values of ``codes`` must be ``relu((inputs - shift) @ weight^T + bias)`` at the stored entries, computed before.
    A ``shift`` or ``bias`` of None counts as 0. Neither pass makes a tensor of shape ``(n, m)``; the backward pass
    costs O(entries d). Entries with the value 0 pass no gradient.
    """
    values: Tensor = _StoredLinear.apply(inputs, shift, weight, bias, grouped_early(codes))
    return codes.with_values(values)


class _StoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor | None, codes: SparseActivations
    ) -> Tensor:
        ctx.save_for_backward(inputs, shift, weight)
        ctx.codes = codes.detach()
        ctx.bias_dtype = None if bias is None else bias.dtype
        return codes.values.detach()

    @staticmethod
    @first_derivatives_only("the encoder of sparse codes")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, shift, weight = ctx.saved_tensors
        codes: SparseActivations = ctx.codes
        with autocast_off(grad.device):
            grad = torch.where(codes.values > 0, grad, 0.0).to(weight.dtype)
            codes = codes.with_values(grad)
            grad_inputs = grad_weight = grad_bias = grad_shift = None
            if ctx.needs_input_grad[0]:
                grad_inputs = codes_matmul(codes, weight).to(inputs.dtype)
            if ctx.needs_input_grad[2]:
                grad_weight = codes_t_matmul(codes, inputs if shift is None else inputs - shift).to(weight.dtype)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
                grad_latents = weight.new_zeros(codes.n_latents).index_add_(0, codes.flat_indices, codes.flat_values)
                grad_shift = None if shift is None else -(grad_latents @ weight).to(shift.dtype)
                grad_bias = None if ctx.bias_dtype is None else grad_latents.to(ctx.bias_dtype)
        return grad_inputs, grad_shift, grad_weight, grad_bias, None

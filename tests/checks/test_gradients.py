"""Second derivatives through a closed-form gradient are refused, in every Function that has one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monoloss import MonoLoss, SparseActivations, mono_loss
from monoloss.checks.gradients import first_derivatives_only
from monoloss.errors import InputError
from monoloss.sae.activations import jump_relu, jump_relu_l0
from monoloss.sae.stored_linear import stored_linear
from monoloss.sparse.products import codes_matmul, codes_t_matmul, sampled_matmul
from support.embeddings import some_activations, some_embeddings

N, D, M, K = 24, 6, 10, 3


def some_codes(values: Tensor) -> SparseActivations:
    indices = torch.rand(N, M, generator=torch.Generator().manual_seed(0)).topk(K).indices
    return SparseActivations(values, indices, M)


def weight() -> Tensor:
    return some_embeddings(M, D)


# Each a function of one tensor that requires a gradient, and that tensor
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]] = {
    "MonoLoss": (lambda z: mono_loss(some_embeddings(N, D), z), some_activations(N)[:, :M].abs),
    "MonoLoss with memory": (
        lambda z: MonoLoss(memory=0.9)(some_embeddings(N, D), some_codes(z)),
        some_activations(N)[:, :K].abs,
    ),
    "MonoLoss of embeddings": (
        lambda h: mono_loss(h, some_activations(N)[:, :M]),
        lambda: some_embeddings(N, D),
    ),
    "codes_matmul": (lambda z: codes_matmul(some_codes(z), weight()).sum(), lambda: some_activations(N)[:, :K]),
    "codes_t_matmul": (
        lambda z: codes_t_matmul(some_codes(z), some_embeddings(N, D)).sum(),
        lambda: some_activations(N)[:, :K],
    ),
    "sampled_matmul": (
        lambda h: sampled_matmul(some_codes(torch.ones(N, K).double()), h, weight()).sum(),
        lambda: some_embeddings(N, D),
    ),
    "stored_linear": (
        lambda x: stored_linear(some_codes(some_activations(N)[:, :K].abs()), x, None, weight(), None).values.sum(),
        lambda: some_embeddings(N, D),
    ),
    "jump_relu": (
        lambda t: jump_relu(some_activations(N)[:, :M], t, 0.5).sum(),
        lambda: torch.full((M,), 0.3).double(),
    ),
    "jump_relu_l0": (
        lambda t: jump_relu_l0(some_activations(N)[:, :M], t, 0.5),
        lambda: torch.full((M,), 0.3).double(),
    ),
}


def second_derivative(name: str) -> Tensor:
    function, start = FUNCTIONS[name]
    x = start().clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x * x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return second


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"create_graph: got True; expected create_graph=False: .* first derivatives"):
        second_derivative(name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_derivatives_are_not(name: str) -> None:
    function, start = FUNCTIONS[name]
    x = start().clone().requires_grad_()
    function(x * x).backward()
    assert x.grad is not None
    assert x.grad.any()


def test_another_term_of_the_loss_may_have_them() -> None:
    """A gradient penalty on the task alone, beside MonoLoss."""
    z = some_activations(N)[:, :M].abs().requires_grad_()
    (slope,) = torch.autograd.grad(z.pow(3).sum(), z, create_graph=True)
    (slope.square().sum() + mono_loss(some_embeddings(N, D), z)).backward()
    assert z.grad is not None


def test_once_differentiable_alone_is_wrong_without_a_word() -> None:
    """The variant that this check replaces: no error, and a second derivative of 0."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.pow(3).sum()

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * 3 * x.square()

    class Refusing(Cube):
        backward = staticmethod(first_derivatives_only("a cube")(Cube.backward))

    x = torch.tensor([2.0], requires_grad=True)
    (first,) = torch.autograd.grad(1.0 - Cube.apply(x), x, create_graph=True)
    assert not first.requires_grad  # so whoever goes on with it takes it for a constant; it is not
    with pytest.raises(InputError, match="a cube has first derivatives only"):
        torch.autograd.grad(1.0 - Refusing.apply(x), x, create_graph=True)

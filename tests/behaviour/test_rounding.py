"""The other rounding of `make test ROUNDING=1`: by how much, of what, and that it shows what it is there to show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monoloss import SparseActivations
from monoloss.sparse import products
from support import rounding
from support.rounding import OtherRounding

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def units_apart(one: Tensor, other: Tensor) -> Tensor:
    """Distance in units in the last place; both of one sign."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return (one.contiguous().view(integers).long() - other.contiguous().view(integers).long()).abs()


X, W = numbers(6, 40), numbers(40, 50, seed=1)
PICTURES, KERNEL = numbers(2, 3, 8, 8), numbers(4, 3, 3, 3, seed=2)
CODES = SparseActivations.from_dense(numbers(6, 40, dtype=torch.float64).relu())
IDS = torch.arange(30).reshape(6, 5)
CALLS = {
    "mm": lambda: X @ W,
    "bmm": lambda: torch.bmm(X.expand(3, -1, -1), W.expand(3, -1, -1)),
    "linear": lambda: F.linear(X, W.t(), W[0]),
    "mv": lambda: X @ W[:, 0],
    "dot": lambda: torch.stack([torch.dot(row, W[:, 0]) for row in X]),
    "sum": lambda: X.sum(1),
    "mean": lambda: X.mean(0),
    "norm": lambda: torch.linalg.vector_norm(X, dim=1),
    "softmax": lambda: X.softmax(1),
    "convolution": lambda: F.conv2d(PICTURES, KERNEL),
    "embedding_bag": lambda: F.embedding_bag(IDS, W, mode="sum", per_sample_weights=X[:, :5]),
    "CSR product": lambda: products.codes_t_matmul(CODES, numbers(6, 50, dtype=torch.float64, seed=4)),
    "sampled_addmm": lambda: products.sampled_matmul(
        CODES, *(numbers(rows, 9, dtype=torch.float64) for rows in (6, 40))
    ),
}


@pytest.fixture(autouse=True)
def alone():
    """Without the mode of the session, which would hide what these calls give without it."""
    with torch.utils._python_dispatch._disable_current_modes():
        yield


@pytest.mark.parametrize("name", CALLS)
def test_results_move_by_one_unit_at_most_and_the_same_way_again(name):
    call = CALLS[name]
    plain = call()
    with OtherRounding():
        moved, again = call(), call()
    apart = units_apart(plain, moved)
    assert set(apart.unique().tolist()) == {0, 1}
    assert torch.equal(moved, again)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype):
    x, w = numbers(20, 30, dtype=dtype), numbers(30, 20, dtype=dtype, seed=1)
    plain = x @ w
    with OtherRounding():
        moved = x @ w
    assert moved.dtype == dtype
    assert set(units_apart(plain, moved).unique().tolist()) == {0, 1}


def test_another_number_of_rows_rounds_otherwise():
    with OtherRounding():
        whole, part = X @ W, X[:3] @ W
    torch.testing.assert_close(whole[:3], part)
    assert not torch.equal(whole[:3], part)  # the fault that the mode is there to show: a route taken for another


def test_in_place_and_out():
    bias, out = torch.ones(6, 50), torch.empty(6, 50)
    plain = torch.addmm(bias, X, W)
    into = bias.clone()
    with OtherRounding():
        assert torch.mm(X, W, out=out) is out
        assert into.addmm_(X, W) is into
        moved = X @ W
    assert torch.equal(out, moved)
    assert set(units_apart(plain, into).unique().tolist()) == {0, 1}


def test_what_is_exact_stays():
    integers, wide = torch.arange(12.0).reshape(3, 4), numbers(5, 1)
    left_alone = {
        "product of integers": lambda: integers @ integers.t(),
        "sum of integers": lambda: integers.sum(0),
        "sums of one element": lambda: wide.sum(1),
        "counts": lambda: (X > 0).sum(0),
        "element-wise": lambda: X.exp() * 3 + 1,
        "cumsum": lambda: X.cumsum(1),
        "index_add": lambda: torch.zeros(3, 40).index_add_(0, torch.tensor([0, 1, 2, 0, 1, 2]), X),
        "infinity and NaN": lambda: (X.index_fill(1, torch.tensor([3]), torch.inf).sum(1), (X * torch.nan).sum(1)),
        "zero": lambda: (X * 0) @ W,
    }
    plain = {name: call() for name, call in left_alone.items()}
    with OtherRounding():
        for name, call in left_alone.items():
            torch.testing.assert_close(call(), plain[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_gradients_move_too():
    def gradient():
        w = W.clone().requires_grad_()
        (X @ w).square().sum().backward()
        return w.grad

    plain = gradient()
    with OtherRounding():
        moved = gradient()
    torch.testing.assert_close(plain, moved)
    assert not torch.equal(plain, moved)


@pytest.mark.parametrize("asked", ["", "1"])
def test_it_starts_where_it_is_asked_for(monkeypatch, asked):
    plain = X @ W
    monkeypatch.setenv("ROUNDING", asked)
    mode = rounding.start_if_asked()
    try:
        assert torch.equal(X @ W, plain) == (asked == "")
    finally:
        if mode is not None:
            mode.__exit__(None, None, None)

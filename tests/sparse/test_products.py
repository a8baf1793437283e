"""The three products of sparse activations against dense ones, with and without torch's sparse kernels."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import monoloss.sparse.products
from monoloss.errors import InputError
from monoloss.sparse import SparseActivations
from monoloss.sparse.products import bag_sums, codes_matmul, codes_t_matmul, has_sparse_kernels, sampled_matmul
from support import bounds
from support.sparse_codes import CODES, factors, integers, with_gaps


@pytest.fixture(params=CODES)
def codes(request: pytest.FixtureRequest) -> SparseActivations:
    return CODES[request.param](torch.float64)


@pytest.fixture(params=["kernels", "gathers", "gathers in small blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same products with torch's sparse kernels and with what replaces them."""
    if request.param == "kernels":
        if not has_sparse_kernels(torch.device("cpu")):
            pytest.skip("torch was built without MKL here")
    else:
        monkeypatch.setattr(monoloss.sparse.products, "has_sparse_kernels", lambda _device: False)
        if "small" in request.param:
            monkeypatch.setattr(monoloss.sparse.products, "_BLOCK_ELEMENTS", 7)
    return request.param


def dense_products(codes: SparseActivations, left: Tensor, right: Tensor) -> list[Tensor]:
    dense = codes.to_dense()
    return [dense.T @ left, dense @ right, (left @ right.T)[codes.rows, codes.flat_indices]]


def sparse_products(codes: SparseActivations, left: Tensor, right: Tensor) -> list[Tensor]:
    return [codes_t_matmul(codes, left), codes_matmul(codes, right), sampled_matmul(codes, left, right)]


def assert_all_close(got: list[Tensor], expected: list[Tensor]) -> None:
    """Equal but for the order of sums of at most 13 terms, some of them 1000 in size."""
    for product, dense_product in zip(got, expected, strict=True):
        assert product.dtype == dense_product.dtype
        allowed = bounds.of_sum(13, 1e4, product.dtype)
        torch.testing.assert_close(product, dense_product, rtol=0, atol=allowed)


def test_products_are_those_of_the_dense_tensor(codes, way):
    left, right = factors(codes)
    assert_all_close(sparse_products(codes, left, right), dense_products(codes, left, right))


def test_products_take_factors_in_any_memory_layout(way):
    codes = CODES["ragged"](torch.float64)
    left, right = factors(codes, d=6)
    strided = [factor.T.contiguous().T[:, ::2] for factor in (left, right)]
    assert_all_close(sparse_products(codes, *strided), dense_products(codes, left[:, ::2], right[:, ::2]))
    broadcast = left[:1].expand_as(left)
    assert_all_close([codes_t_matmul(codes, broadcast)], [codes.to_dense().T @ broadcast])


@pytest.mark.parametrize("name", ["ragged", "fixed_k", "gaps", "no_entry", "no_row"])
def test_gradients_of_products(name, way):
    codes = CODES[name](torch.float64)
    codes = codes if codes.flat_values.shape[0] < 20 else CODES["one_row"](torch.float64)
    left, right = (factor.requires_grad_() for factor in factors(codes, d=2))
    values = codes.values.clone().requires_grad_()
    if values.numel():
        assert torch.autograd.gradcheck(lambda v, x: codes_t_matmul(codes.with_values(v), x), (values, left))
        assert torch.autograd.gradcheck(lambda v, x: codes_matmul(codes.with_values(v), x), (values, right))
        assert torch.autograd.gradcheck(lambda x, y: sampled_matmul(codes, x, y), (left, right))
    else:
        total = sum(product.sum() for product in sparse_products(codes.with_values(values), left, right))
        for gradient in torch.autograd.grad(total, (values, left, right)):
            assert not gradient.any()


@pytest.mark.parametrize("name", ["ragged", "fixed_k", "gaps"])
def test_gradients_are_those_of_the_dense_products(name, way):
    codes = CODES[name](torch.float64)
    left, right = (factor.requires_grad_() for factor in factors(codes))
    values = codes.values.clone().requires_grad_()
    codes = codes.with_values(values)

    def gradient(products: list[Tensor]) -> list[Tensor]:
        total = sum((product * torch.linspace(1, 2, product.numel()).view_as(product)).sum() for product in products)
        return list(torch.autograd.grad(total, (values, left, right)))

    assert_all_close(gradient(sparse_products(codes, left, right)), gradient(dense_products(codes, left, right)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_multiplied_in_float32(dtype, way):
    codes = CODES["fixed_k"](dtype)
    left, right = factors(codes, dtype=dtype)
    lifted = codes.to(torch.float32)
    wide = dense_products(lifted, left.float(), right.float())
    size = dense_products(lifted.with_values(lifted.values.abs()), left.float().abs(), right.float().abs())
    for one, other, largest in zip(sparse_products(codes, left, right), wide, size, strict=True):
        assert one.dtype == torch.float32
        bounds.assert_within(one, other, bounds.of_sum(13, largest, torch.float32))
    values = codes.values.clone().requires_grad_()
    codes_matmul(codes.with_values(values), right).sum().backward()
    assert values.grad.dtype == dtype


def test_autocast_changes_no_bit(way):
    codes = CODES["ragged"](torch.float32)
    left, right = (factor.requires_grad_() for factor in factors(codes, dtype=torch.float32))
    values = codes.values.clone().requires_grad_()
    codes = codes.with_values(values)

    def products_and_gradients() -> list[Tensor]:
        products = sparse_products(codes, left, right)
        return [*products, *torch.autograd.grad(sum(p.square().sum() for p in products), (values, left, right))]

    plain = products_and_gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other in zip(products_and_gradients(), plain, strict=True):
            assert torch.equal(one, other)


def test_sampled_product_ignores_values_that_are_not_finite(way):
    codes = with_gaps()
    left, right = factors(codes)
    bad = codes.with_values(torch.full_like(codes.values, torch.nan))
    assert torch.equal(sampled_matmul(bad, left, right), sampled_matmul(codes, left, right))


def test_no_warning_reaches_the_user():
    program = """
import torch
from monoloss.sparse.products import codes_matmul, codes_t_matmul, sampled_matmul
from monoloss.sparse import SparseActivations
codes = SparseActivations(torch.ones(4, 2, requires_grad=True), torch.tensor([[0, 1]] * 4), 3)
left, right = torch.ones(4, 5, requires_grad=True), torch.ones(3, 5, requires_grad=True)
total = codes_t_matmul(codes, left).sum() + codes_matmul(codes, right).sum() + sampled_matmul(codes, left, right).sum()
total.backward()
print(total.item())
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "120.0\n", "")


@pytest.mark.parametrize("offsets", [integers(0, 0, 2, 3), None], ids=["ragged", "fixed_k"])
def test_bag_sums_are_weighted_sums_of_rows(offsets):
    dense, weights = torch.arange(8.0).reshape(4, 2), torch.tensor([1.0, 2.0, -3.0, 4.0])
    rows = integers(3, 3, 0, 1)
    expected = [[0.0, 0.0], [18.0, 21.0], [0.0, -3.0], [8.0, 12.0]]  # integers: exact in any order
    if offsets is None:
        rows, weights, expected = rows.reshape(2, 2), weights.reshape(2, 2), [[18.0, 21.0], [8.0, 9.0]]
    assert bag_sums(rows, dense, offsets, weights).tolist() == expected


def test_sparse_kernels_are_asked_for_by_device():
    assert has_sparse_kernels(torch.device("cuda"))
    assert not has_sparse_kernels(torch.device("mps"))
    assert has_sparse_kernels(torch.device("cpu")) == torch.backends.mkl.is_available()


@pytest.mark.door
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda c: codes_t_matmul(c, torch.ones(4, 2)), "dense: got shape (4, 2); expected shape (5, d) to multiply"),
        (lambda c: codes_matmul(c, torch.ones(5)), "dense: got shape (5,); expected shape (5, d) to multiply"),
        (lambda c: sampled_matmul(c, torch.ones(4, 2), torch.ones(5, 2)),
         "left: got shape (4, 2); expected shape (5, d)"),
        (lambda c: sampled_matmul(c, torch.ones(5, 2), torch.ones(6, 2)),
         "right: got shape (6, 2); expected shape (5, d)"),
        (lambda c: sampled_matmul(c, torch.ones(5, 2), torch.ones(5, 3)),
         "right: got width 3; expected the width of left, 2"),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_are_refused(call, text):
    with pytest.raises(InputError) as refusal:
        call(with_gaps())
    assert str(refusal.value).startswith(text)

"""SparseActivations and its three products against dense ones, with and without torch's sparse kernels."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import monoloss.sparse
import monoloss.sparse.products
from monoloss.errors import InputError
from monoloss.functional.loss import mono_loss
from monoloss.sparse import SparseActivations
from monoloss.sparse.activations import offsets_of_sorted_rows
from monoloss.sparse.products import codes_matmul, codes_t_matmul, has_sparse_kernels, sampled_matmul
from support import bounds
from support.embeddings import every_entry, fixed_k, ragged, some_activations


def integers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def empty_ragged(n: int, m: int) -> SparseActivations:
    return SparseActivations(torch.zeros(0), integers(), m, torch.zeros(n + 1, dtype=torch.int64))


def with_gaps(dtype: torch.dtype = torch.float64) -> SparseActivations:
    """Ragged rows: the first, the last and one between are empty, and one stored value is 0."""
    values = torch.tensor([1.5, -2.0, 0.0, 4.0, 0.5], dtype=dtype)
    return SparseActivations(values, integers(3, 0, 2, 1, 3), 5, integers(0, 0, 2, 2, 5, 5))


CODES = {
    "ragged": lambda dtype: ragged(some_activations(12, dtype=dtype)),
    "fixed_k": lambda dtype: fixed_k(some_activations(12, dtype=dtype)),
    "every_entry": lambda dtype: every_entry(some_activations(12, dtype=dtype)),
    "gaps": with_gaps,
    "one_row": lambda dtype: fixed_k(some_activations(1, dtype=dtype)),
    "no_entry": lambda dtype: empty_ragged(4, 3).to(dtype),
    "no_entry_of_k": lambda dtype: SparseActivations(torch.zeros(4, 0, dtype=dtype), integers().reshape(4, 0), 3),
    "no_row": lambda dtype: empty_ragged(0, 3).to(dtype),
    "no_row_of_k": lambda dtype: SparseActivations(torch.zeros(0, 2, dtype=dtype), integers().reshape(0, 2), 3),
}


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


def factors(codes: SparseActivations, d: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    n, m = codes.shape
    return (
        torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(m, d, generator=generator, dtype=torch.float64).to(dtype),
    )


def dense_products(codes: SparseActivations, left: Tensor, right: Tensor) -> list[Tensor]:
    dense = codes.to_dense()
    return [dense.T @ left, dense @ right, (left @ right.T)[codes.rows, codes.flat_indices]]


def sparse_products(codes: SparseActivations, left: Tensor, right: Tensor) -> list[Tensor]:
    return [codes_t_matmul(codes, left), codes_matmul(codes, right), sampled_matmul(codes, left, right)]


def assert_all_close(got: list[Tensor], expected: list[Tensor]) -> None:
    """Equal but for the order of sums of at most 13 terms, some of them 1000 in size."""
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=bounds.of_sum(13, 1e4, one.dtype))


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


def test_parts_and_copies():
    codes = with_gaps()
    assert codes.shape == (5, 5)
    assert len(codes) == 5
    assert (codes.dtype, codes.device.type) == (torch.float64, "cpu")
    assert codes.rows.tolist() == [1, 1, 3, 3, 3]
    assert fixed_k(some_activations(3)).rows.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert repr(codes) == "SparseActivations(5 rows, 5 latents, 5 entries, torch.float64)"
    dense = torch.zeros(5, 5, dtype=torch.float64)
    for row, latent, value in zip(codes.rows, codes.flat_indices, codes.flat_values, strict=True):
        dense[row, latent] = value
    for same in (codes, copy.deepcopy(codes), pickle.loads(pickle.dumps(codes)), codes.to("cpu"), codes.detach()):
        assert torch.equal(same.to_dense(), dense)
    assert codes.to(torch.float32).to_dense().dtype == torch.float32
    assert not codes.with_values(codes.values.clone().requires_grad_()).detach().values.requires_grad


@pytest.mark.parametrize("shape", [(6, 13), (1, 4), (0, 4), (3, 1)])
def test_from_dense_and_back(shape):
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    codes = SparseActivations.from_dense(dense)
    assert torch.equal(codes.to_dense(), dense)
    assert bool((codes.values != 0).all())


def test_to_dense_and_from_dense_are_differentiable():
    dense = some_activations(5).requires_grad_()
    weights = torch.linspace(1, 2, dense.numel(), dtype=dense.dtype).view_as(dense)
    (gradient,) = torch.autograd.grad((ragged(dense).to_dense() * weights).sum(), dense)
    assert torch.equal(gradient, torch.where(dense != 0, weights, 0.0))


def test_offsets_of_sorted_rows():
    assert offsets_of_sorted_rows(integers(0, 0, 2), 4).tolist() == [0, 2, 2, 3, 3]


def test_structure_is_built_once_for_all_products_and_copies(monkeypatch):
    calls = []
    build = monoloss.sparse.activations._group_by_latent
    monkeypatch.setattr(monoloss.sparse.activations, "_group_by_latent", lambda codes: calls.append(1) or build(codes))
    dense = some_activations(20, dtype=torch.float32)
    codes = SparseActivations.from_dense(dense)  # as the library's own codes, these are not checked
    left, _ = factors(codes, dtype=torch.float32)
    loss = mono_loss(left, codes.with_values(codes.values.clone().requires_grad_()))
    loss.backward()
    mono_loss(left, codes.to(torch.float64))
    assert len(calls) == 1


REFUSED = [
    ([[1.0]], [[3]], 3, None, "indices: got index 3 in row 0; expected indices from 0 to 2"),
    ([[1.0, 1.0], [1.0, 1.0]], [[0, 1], [1, -1]], 3, None,
     "indices: got index -1 in row 1; expected indices from 0 to 2"),
    ([[1.0, 1.0], [1.0, 2.0]], [[0, 1], [2, 2]], 3, None,
     "indices: got index 2 twice in row 1; expected each index at most once in a row"),
    ([1.0, 1.0, 1.0], [1, 0, 1], 3, [0, 0, 3],
     "indices: got index 1 twice in row 1; expected each index at most once in a row"),
    ([1.0, 1.0], [1, 0], 3, [0, 2, 1, 2], "row_offsets: got 2 before 1 (row 1); expected offsets that never fall"),
    ([1.0, 1.0], [1, 0], 3, [0, 1],
     "row_offsets: got offsets from 0 to 1; expected offsets from 0 to the number of entries, 2"),
    ([1.0, 1.0], [1, 0], 3, [1, 2],
     "row_offsets: got offsets from 1 to 2; expected offsets from 0 to the number of entries, 2"),
    ([1.0, 1.0], [1, 0], 3, [[0, 2]],
     "row_offsets: got shape (1, 2), dtype torch.int64; expected an int64 tensor of shape (n + 1,)"),
    ([1.0, 1.0], [1, 0], 3, [0.0, 2.0],
     "row_offsets: got shape (2,), dtype torch.float32; expected an int64 tensor of shape (n + 1,)"),
    ([1.0], [0], 3, None, "values: got shape (1,); expected shape (n, k), or 1-D values with row_offsets"),
    ([[1.0]], [[0]], 3, [0, 1], "values: got shape (1, 1); expected shape (entries,) where row_offsets are given"),
    ([[1]], [[0]], 3, None, "values: got dtype torch.int64; expected a floating-point dtype"),
    ([[1.0]], [[0.0]], 3, None, "indices: got dtype torch.float32; expected torch.int64"),
    ([[1.0]], [[0, 1]], 3, None, "indices: got shape (1, 2); expected the shape of values, (1, 1)"),
    ([[1.0]], [[0]], 0, None, "n_latents: got 0; expected an integer at least 1"),
]  # fmt: skip


@pytest.mark.door
@pytest.mark.parametrize(("values", "indices", "n_latents", "offsets", "text"), REFUSED)
def test_codes_that_do_not_fit_are_refused(values, indices, n_latents, offsets, text):
    row_offsets = None if offsets is None else torch.tensor(offsets)
    with pytest.raises(InputError) as refusal:
        SparseActivations(torch.tensor(values), torch.tensor(indices), n_latents, row_offsets)
    assert str(refusal.value) == text


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
        (lambda c: c.with_values(torch.ones(4)), "values: got shape (4,); expected shape (5,)"),
        (lambda _: SparseActivations([[1.0]], [[0]], 2), "values: got list; expected a tensor"),
        (lambda c: SparseActivations(c.values, c.indices.to("meta"), 5, c.row_offsets),
         "indices: got device meta; expected the device of values, cpu"),
        (lambda c: SparseActivations(c.values, c.indices, 5, c.row_offsets.to("meta")),
         "row_offsets: got device meta; expected the device of values, cpu"),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_are_refused(call, text):
    with pytest.raises(InputError) as refusal:
        call(with_gaps())
    assert str(refusal.value).startswith(text)

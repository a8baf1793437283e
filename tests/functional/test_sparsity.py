"""Counts of active rows, L0, density and L1 against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from monoloss.errors import InputError
from monoloss.functional import sparsity
from monoloss.functional.sparsity import activation_counts, active_entries, density, l0, l1
from monoloss.sparse import SparseActivations
from support.embeddings import every_entry


def some_activations(seed: int, n: int = 40, m: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, m, generator=generator) * (torch.rand(n, m, generator=generator) < 0.5)
    z[:, 0] = 0.0
    return z


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 40), scale=st.floats(1e-3, 1e3))
def test_counts_match_loops_for_any_order_split_and_scale(seed, cut, scale):
    z = some_activations(seed)
    counts = activation_counts(z)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [sum(1 for value in column if value > 0) for column in z.t().tolist()]
    np.testing.assert_allclose(float(l0(counts, 40)), reference.l0(z), rtol=1e-14)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    first, second = z[order[:cut]], SparseActivations.from_dense(z[order[cut:]])
    assert torch.equal(activation_counts(first) + activation_counts(second), counts)
    assert torch.equal(activation_counts(z * scale), counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype(dtype):
    z = some_activations(1).to(dtype)
    assert torch.equal(activation_counts(z), (z > 0).sum(0))
    assert torch.equal(activation_counts(SparseActivations.from_dense(z)), (z > 0).sum(0))


def test_wrong_variants_are_seen():
    z = some_activations(2)
    right = float(l0(activation_counts(z), 40))
    assert abs((z != 0).sum(1).double().mean() - right) > 0.5  # negative activations taken in
    stored = SparseActivations(z, torch.arange(7).expand(40, 7).contiguous(), 7)  # stored zeros taken in
    assert stored.flat_values.shape[0] / 40 != right
    assert float(l0(activation_counts(stored), 40)) == right


def test_density_and_l0():
    counts = torch.tensor([2, 0, 4])
    assert density(counts, 4).tolist() == [0.5, 0.0, 1.0]
    assert float(l0(counts, 4)) == 1.5
    assert torch.isnan(density(counts, 0)[1])
    assert torch.isnan(l0(torch.zeros(3, dtype=torch.int64), 0))
    assert activation_counts(torch.zeros(0, 3)).tolist() == [0, 0, 0]


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_l1_matches_a_loop_dense_and_sparse(seed, scale):
    z = some_activations(seed).double() * scale
    expected = sum(abs(value) for row in z.tolist() for value in row) / 40
    forms = (z, SparseActivations.from_dense(z), every_entry(z), z.flip(0))
    for form in forms:
        got = l1(form)
        assert got.shape == ()
        assert got.dtype == torch.float64
        assert float(got) == pytest.approx(expected, rel=1e-12)
    for wrong in (expected / 7, expected * 40, float(z.sum()) / 40, float(z.clamp(min=0).sum()) / 40):
        assert abs(wrong / expected - 1) > 1e-3  # a mean over latents, a sum over rows, signs kept, negative ones out


def test_gradient_of_l1_is_the_sign_over_the_rows():
    z = some_activations(4).double()
    for layout in (lambda leaf: leaf, SparseActivations.from_dense, every_entry):
        leaf = z.clone().requires_grad_()
        (2.0 * l1(layout(leaf))).backward()
        torch.testing.assert_close(leaf.grad, 2.0 * z.sign() / 40, rtol=1e-14, atol=0)  # 0 where z is 0


def test_l1_is_summed_in_float32_at_least():
    for dtype in (torch.float16, torch.bfloat16):
        z = torch.full((3, 40_000), 7.0, dtype=dtype)  # in half precision its sum is infinite, or rounded to 3 digits
        for form in (z, every_entry(z[:, :100])):
            assert l1(form).dtype == torch.float32
            assert float(l1(form)) == 7.0 * form.shape[1]


def test_l1_of_nothing():
    assert torch.isnan(l1(torch.zeros(0, 3)))
    assert float(l1(torch.zeros(2, 0))) == 0.0
    assert float(l1(SparseActivations.from_dense(torch.zeros(2, 5)))) == 0.0


def test_active_entries_come_in_row_order(monkeypatch):
    z = some_activations(3)
    monkeypatch.setattr(sparsity, "_BLOCK_ENTRIES", 20)
    for form in (z, SparseActivations.from_dense(z), z.double().requires_grad_()):
        parts = list(active_entries(form))
        assert len(parts) > 3
        rows, latents = (z > 0).nonzero(as_tuple=True)
        assert torch.equal(torch.cat([part.rows for part in parts]), rows)
        assert torch.equal(torch.cat([part.latents for part in parts]), latents)
        assert torch.equal(torch.cat([part.values for part in parts]), z[rows, latents].double())


def test_large_values_are_not_taken_for_infinite():
    assert activation_counts(torch.full((2000, 1), 6e4, dtype=torch.float16)).tolist() == [2000]


@pytest.mark.door
def test_error_texts():
    for call, text in (
        (
            lambda: activation_counts(torch.ones(3)),
            "activations: got shape (3,); expected a floating-point tensor of shape (n, any width)",
        ),
        (
            lambda: activation_counts([[1.0]]),
            "activations: got list; expected a floating-point tensor of shape (n, any width)",
        ),
        (
            lambda: activation_counts(torch.tensor([[1.0], [float("nan")]])),
            "activations: got nan (row 1, latent 0); expected finite numbers",
        ),
        (
            lambda: l1(torch.ones(3)),
            "activations: got shape (3,); expected a floating-point tensor of shape (n, any width)",
        ),
        (
            lambda: l1(torch.ones(2, 3, dtype=torch.int64)),
            "activations: got dtype torch.int64; expected a floating-point tensor of shape (n, any width)",
        ),
        (lambda: density(torch.tensor([1]), -1), "n_rows: got -1; expected at least 0"),
        (lambda: l0(torch.tensor([1]), -1), "n_rows: got -1; expected at least 0"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text

"""JumpReLU and Vanilla on stored entries: the results of dense codes, near and at the switch between the two."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monoloss.losses import MonoLoss
from monoloss.sae.activations import JumpRelu, jump_relu, jump_relu_l0
from monoloss.sae.config import InputScaling
from monoloss.sae.objectives import objective
from monoloss.sparse import SparseActivations, selection
from monoloss.sparse.selection import entries_above
from support.saes import generator_of, some_rows, some_sae
from support.sparse_path_checks import (
    BOTH,
    M,
    N,
    check_a_step_has_the_gradients_of_a_dense_step,
    check_same_gradients,
    check_stored_zeros_are_not_active,
    check_the_switch,
    gradients_of,
    pass_of,
    some_sparse_sae,
)

SCALINGS = [InputScaling(), InputScaling(center=True, standardise=True), InputScaling(unit_norm=False)]
MONO = [None, MonoLoss(), MonoLoss(memory=0.9)]

# Gradients


@pytest.mark.parametrize("mono", MONO, ids=["none", "paper", "memory"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=["plain", "centred and standardised", "raw"])
@pytest.mark.parametrize("variant", BOTH)
def test_a_step_has_the_gradients_of_a_dense_step(variant, scaling, mono):
    check_a_step_has_the_gradients_of_a_dense_step(variant, scaling, mono)


@pytest.mark.parametrize("target", [2.0, 20.0])
def test_with_a_target_l0(target):
    check_a_step_has_the_gradients_of_a_dense_step("jump_relu", mono=MonoLoss(), target_l0=target)


@pytest.mark.parametrize("variant", BOTH)
def test_the_switch(variant):
    check_the_switch(variant)


@pytest.mark.parametrize("variant", BOTH)
def test_rows_that_require_a_gradient_get_it(variant):
    sae, rows = some_sparse_sae(variant, inputs=InputScaling(standardise=True))
    rows.requires_grad_()
    got, expected = (
        torch.autograd.grad(objective(sae, pass_of(sae, rows, sparse=sparse)).total, rows)[0]
        for sparse in (True, False)
    )
    assert (got - expected).norm() <= 1e-10 * expected.norm()


def test_terms_and_pre_activations_are_those_of_dense_codes():
    for variant in BOTH:
        sae, rows = some_sparse_sae(variant)
        stored, dense = (pass_of(sae, rows, sparse=sparse) for sparse in (True, False))
        assert torch.equal(stored.codes.to_dense(), dense.codes)
        assert torch.equal(stored.pre_activations, dense.pre_activations)
        assert not stored.pre_activations.requires_grad
        for name, got, expected in zip(
            objective(sae, stored)._fields, objective(sae, stored), objective(sae, dense), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("variant", BOTH)
def test_autocast_lowers_what_it_lowers_of_dense_codes(variant):
    sae, rows = some_sparse_sae(variant, dtype=torch.float32, inputs=InputScaling(standardise=True))
    whole = gradients_of(sae, sae(rows), rows, MonoLoss())
    with torch.autocast("cpu", torch.bfloat16):
        output = sae(rows)
        got = gradients_of(sae, output, rows, MonoLoss())
        expected = gradients_of(sae, pass_of(sae, rows, sparse=False), rows, MonoLoss())
    assert isinstance(output.codes, SparseActivations)
    lowered = torch.float32 if variant == "jump_relu" else torch.bfloat16
    assert output.pre_activations.dtype == output.codes.dtype == lowered
    assert {gradient.dtype for gradient in got.values()} == {torch.float32}
    check_same_gradients(got, expected, 1e-5 if variant == "jump_relu" else 1e-2)
    if variant == "jump_relu":  # of which nothing at all is lowered
        check_same_gradients(got, whole, 1e-5)


def test_jump_of_stored_entries_has_the_gradients_of_the_dense_one():
    """As functions: to the bit, but for the order of a sum; in both layouts of stored entries."""
    generator = generator_of(0)
    pre = torch.randn(40, 6, generator=generator, dtype=torch.float64) + 0.3
    theta = (0.2 + torch.rand(6, generator=generator, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    every = SparseActivations(pre, torch.arange(6).repeat(40, 1), 6)
    some = JumpRelu(6, 0.5, 1.0).double()
    with torch.no_grad():
        some.threshold.copy_(theta)
    dense = jump_relu(pre, theta, 0.5)
    (expected,) = torch.autograd.grad((dense * weights).sum(), theta)
    count = jump_relu_l0(pre, theta, 0.5)
    (of_count,) = torch.autograd.grad(count, theta)
    for stored in (every, some.stored(pre, 240, near=True)):
        codes = jump_relu(stored, theta, 0.5)
        assert codes.values.shape == stored.values.shape
        assert torch.equal(codes.to_dense(), dense)
        (got,) = torch.autograd.grad((codes.to_dense() * weights).sum(), theta)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(jump_relu_l0(stored, theta, 0.5), count)
        assert torch.equal(torch.autograd.grad(jump_relu_l0(stored, theta, 0.5), theta)[0], of_count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bandwidth", [1e-9, 1e-3, 0.5])
def test_no_entry_within_half_a_bandwidth_is_missed(dtype, bandwidth):
    """Entries a few roundings from the edge, on the threshold, and where a bandwidth is finer than a rounding."""
    for theta in (0.0, 1e-4, 0.3, 1.0, 17.0):
        module = JumpRelu(1, bandwidth, theta).to(dtype)
        exact = module.threshold.detach()
        edges = torch.cat([exact - bandwidth / 2, exact, exact + bandwidth / 2])
        below, above = edges, edges
        entries = [edges]
        for _ in range(4):
            below, above = below.nextafter(edges - 1), above.nextafter(edges + 1)
            entries += [below, above]
        pre = torch.cat(entries)[:, None]
        stored = module.stored(pre, len(pre), near=True)
        dense_count, count = module.l0(pre), module.l0(stored)
        assert torch.equal(count, dense_count)
        expected, got = (torch.autograd.grad(value, module.threshold)[0] for value in (dense_count, count))
        assert torch.equal(got, expected)
        assert theta == 0 or float(expected) < 0


# What is stored


def test_stored_zeros_are_not_active():
    check_stored_zeros_are_not_active()


def test_without_a_graph_only_what_is_active_is_stored():
    sae, rows = some_sparse_sae("jump_relu")
    dense = pass_of(sae, rows, sparse=False).codes.detach()
    assert bool((sae(rows).codes.values == 0).any())
    assert bool((sae.eval()(rows).codes.values == 0).any())  # in eval() too a graph may be asked for
    for mode in (True, False):
        with torch.no_grad():
            for codes in (sae.train(mode)(rows).codes, sae.encode(rows)):
                assert bool((codes.values > 0).all())
                assert torch.equal(codes.to_dense(), dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_active", [300, N * M // 3])
@pytest.mark.parametrize("variant", BOTH)
def test_encode_stores_what_is_not_zero_in_dense_codes(variant, n_active, dtype):
    """To the bit, NaN and infinities too, with and without a graph."""
    sae, rows = some_sparse_sae(variant, n_active, dtype)
    sae.eval()
    for spoilt in ({}, {3: torch.nan, 5: torch.inf, 7: -torch.inf}):
        with torch.no_grad():
            for latent, value in spoilt.items():
                sae.encoder_bias[latent] = value
        expected = SparseActivations.from_dense(sae.activation(sae.pre_activations(sae.scale(rows).scaled))).detach()
        codes = sae.encode(rows)
        assert codes.values.requires_grad
        assert torch.equal(codes.indices, expected.indices)
        assert torch.equal(codes.row_offsets, expected.row_offsets)
        assert codes.values.detach().numpy().tobytes() == expected.values.numpy().tobytes()
        assert bool(expected.values.isnan().any()) == bool(spoilt)


@pytest.mark.parametrize("variant", BOTH)
def test_nan_shows_itself_in_the_loss(variant):
    sae, rows = some_sparse_sae(variant)
    with torch.no_grad():
        sae.encoder_bias[3] = torch.nan
    for sparse in (True, False):
        assert torch.isnan(objective(sae, pass_of(sae, rows, sparse=sparse)).total)


@pytest.mark.parametrize("threshold", [-0.1, torch.nan])
def test_thresholds_that_make_zeros_active_keep_codes_dense(threshold):
    """Below 0 until `constrain_`; NaN when training has diverged."""
    sae, rows = some_sparse_sae("jump_relu")
    with torch.no_grad():
        sae.activation.threshold[4] = threshold
    dense = sae(rows).codes
    assert isinstance(dense, torch.Tensor)
    assert torch.equal(sae.encode(rows).to_dense(), dense)


@pytest.mark.parametrize("variant", BOTH)
def test_dense_codes_at_the_start_of_training(variant):
    """Half of a ReLU's entries are active; what is selected first costs no more than it must."""
    assert isinstance(some_sae(variant)(some_rows()).codes, torch.Tensor)


# Selection


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 9),
    m=st.sampled_from([1, 7, 32, 100]),
    block=st.sampled_from([1, 50, 2**18]),
    data=st.data(),
)
def test_entries_above(seed, n, m, block, data):
    generator = generator_of(seed)
    values = torch.randint(-3, 4, (n, m), generator=generator).float()
    if n > 0 and data.draw(st.booleans()):
        values[seed % n, seed % m] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    bound = torch.randint(-3, 4, () if data.draw(st.booleans()) else (m,), generator=generator).float()
    expected = [
        row * m + column
        for row, entries in enumerate(values.tolist())
        for column, value in enumerate(entries)
        if math.isnan(value) or value > float(bound.expand(m)[column])
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_BLOCK_ELEMENTS", block)
        for most in (len(expected), len(expected) + 1, n * m):
            assert entries_above(values, bound, most).tolist() == expected
        if expected:
            assert entries_above(values, bound, len(expected) - 1) is None
            assert entries_above(values, bound, 0) is None

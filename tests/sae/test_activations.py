"""Top-k, batch top-k and threshold codes against a full sort, with their gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from monoloss.errors import InputError
from monoloss.sae.activations import (
    BatchTopK,
    TopK,
    batch_topk_codes,
    batch_topk_threshold,
    threshold_codes,
    topk_codes,
)
from monoloss.sparse import SparseActivations


def some_pre_activations(seed: int, n: int, m: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=generator, dtype=torch.float64) - 0.3


def with_ties(seed: int, n: int, m: int) -> Tensor:
    """Whole numbers from -2 to 3: ties in every row, also at 0."""
    return torch.randint(-2, 4, (n, m), generator=torch.Generator().manual_seed(seed)).double()


sizes = st.fixed_dictionaries({"seed": st.integers(0, 10**6), "n": st.integers(1, 12), "m": st.integers(1, 9)})


@given(size=sizes, data=st.data())
def test_codes_match_a_full_sort(size, data):
    k = data.draw(st.integers(1, size["m"]))
    pre = some_pre_activations(**size)
    codes = topk_codes(pre, k)
    assert codes.values.shape == codes.indices.shape == (size["n"], k)
    np.testing.assert_array_equal(codes.to_dense(), reference.top_k_codes(pre, k))
    codes = batch_topk_codes(pre, k)
    assert codes.shape == (size["n"], size["m"])
    np.testing.assert_array_equal(codes.to_dense(), reference.batch_top_k_codes(pre, k))


def check_well_formed(codes: SparseActivations) -> None:
    """What the library skips for its own codes: indices in range, once in a row, offsets that rise."""
    SparseActivations(codes.values, codes.indices, codes.n_latents, codes.row_offsets, check=True)


@given(size=sizes, data=st.data())
def test_ties_change_which_but_not_how_many(size, data):
    k = data.draw(st.integers(1, size["m"]))
    pre = with_ties(**size)
    n_positive = int((pre > 0).sum())
    codes = batch_topk_codes(pre, k)
    check_well_formed(codes)
    assert codes.values.shape == (min(k * size["n"], n_positive),)
    assert bool((codes.values > 0).all())
    expected = reference.batch_top_k_codes(pre, k)
    np.testing.assert_array_equal(codes.values.sort().values, np.sort(expected[expected > 0]))
    assert torch.equal(codes.values, pre[codes.rows, codes.indices])
    codes = topk_codes(pre, k)
    check_well_formed(codes)
    expected = np.sort(reference.top_k_codes(pre, k), axis=1)[:, ::-1][:, :k]
    np.testing.assert_array_equal(codes.values.sort(1, descending=True).values, expected)
    assert torch.equal(codes.values, pre.gather(1, codes.indices).relu())


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("choose", [topk_codes, batch_topk_codes, threshold_codes])
def test_gradient_is_that_of_a_dense_mask(choose: Callable[..., SparseActivations], k: int) -> None:
    pre = some_pre_activations(1, 11, 7).requires_grad_()
    weights = some_pre_activations(2, 11, 7)
    how = torch.tensor(0.2, dtype=torch.float64) if choose is threshold_codes else k
    dense = choose(pre, how).to_dense()
    mask = (dense.detach() != 0).double()
    (expected,) = torch.autograd.grad((((pre * mask) ** 2 + pre * mask) * weights).sum(), pre)
    (got,) = torch.autograd.grad(((dense**2 + dense) * weights).sum(), pre)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    assert bool((got[mask == 0] == 0).all())
    assert bool((got[mask == 1] != 0).all())


def test_stored_zeros_of_topk_pass_no_gradient():
    pre = torch.tensor([[2.0, -1.0, -3.0]], requires_grad=True)
    codes = topk_codes(pre, 2)
    assert sorted(codes.values[0].tolist()) == [0.0, 2.0]
    codes.values.sum().backward()
    assert pre.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_a_row_may_hold_more_than_k_of_a_batch_and_another_none():
    pre = torch.tensor([[5.0, 4.0, 3.0, 2.9], [1.0, 0.5, 0.1, 0.2], [-1.0, -2.0, -3.0, -4.0]])
    codes = batch_topk_codes(pre, 2)
    assert codes.row_offsets.tolist() == [0, 4, 6, 6]
    assert codes.to_dense().tolist() == pre.where(pre >= 0.5, torch.zeros(())).tolist()


def test_k_above_all_that_is_positive_takes_just_that():
    pre = some_pre_activations(3, 6, 5)
    codes = batch_topk_codes(pre, 5)
    assert torch.equal(codes.to_dense(), pre.relu())
    assert codes.values.shape == (int((pre > 0).sum()),)
    assert torch.equal(topk_codes(pre, 5).to_dense(), pre.relu())
    assert batch_topk_codes(-pre.abs(), 2).values.shape == (0,)


def test_no_rows():
    for codes in (topk_codes(torch.zeros(0, 4), 2), batch_topk_codes(torch.zeros(0, 4), 2)):
        assert codes.shape == (0, 4)
        assert codes.to_dense().shape == (0, 4)
    assert threshold_codes(torch.zeros(0, 4), torch.tensor(0.0)).shape == (0, 4)


@given(size=sizes, data=st.data())
def test_threshold_leaves_k_active_on_average(size, data):
    k = data.draw(st.integers(1, size["m"]))
    pre = some_pre_activations(**size)
    threshold = batch_topk_threshold(pre.split(3), k * len(pre))
    codes = threshold_codes(pre, threshold)
    np.testing.assert_array_equal(codes.to_dense(), reference.batch_top_k_codes(pre, k))  # also: k n active, or all
    in_order = np.sort(np.maximum(pre.numpy().ravel(), 0.0))[::-1]
    n_active = k * size["n"]
    if n_active < len(in_order):
        assert float(threshold) == pytest.approx((in_order[n_active - 1] + in_order[n_active]) / 2, rel=1e-15)
    else:
        assert float(threshold) == 0.0


def test_threshold_by_hand():
    pre = torch.tensor([[4.0, 1.0, -1.0], [3.0, 2.0, 0.5]])
    assert float(batch_topk_threshold([pre], 2)) == 2.5
    assert float(batch_topk_threshold([pre], 4)) == 0.75
    assert float(batch_topk_threshold([pre], 6)) == 0.0
    assert float(batch_topk_threshold([-pre.abs()], 2)) == 0.0
    assert threshold_codes(torch.tensor([[2.5, 2.6]]), torch.tensor(2.5)).values.tolist() == [pytest.approx(2.6)]


def test_module_topk_is_the_same_in_training_and_at_inference():
    pre, module = some_pre_activations(4, 5, 8), TopK(3)
    expected = reference.top_k_codes(pre, 3)
    for mode in (True, False):
        np.testing.assert_array_equal(module.train(mode)(pre).to_dense(), expected)
    assert repr(module) == "TopK(k=3)"
    assert not module.state_dict()


def test_module_batch_topk_uses_its_threshold_at_inference_only():
    rows, other, module = some_pre_activations(5, 40, 8), some_pre_activations(6, 9, 8), BatchTopK(3).double()
    np.testing.assert_array_equal(module(other).to_dense(), reference.batch_top_k_codes(other, 3))
    module.calibrate_([rows], len(rows))
    np.testing.assert_array_equal(module(other).to_dense(), reference.batch_top_k_codes(other, 3))
    module.eval()
    np.testing.assert_array_equal(module(rows).to_dense(), reference.batch_top_k_codes(rows, 3))
    np.testing.assert_array_equal(module(other).to_dense(), other.where(other > module.threshold, 0.0))
    fresh = BatchTopK(3).double()
    fresh.load_state_dict(module.state_dict())
    np.testing.assert_array_equal(fresh.eval()(other).to_dense(), module(other).to_dense())
    assert repr(module) == "BatchTopK(k=3)"


@pytest.mark.door
def test_no_inference_before_calibration():
    with pytest.raises(InputError) as caught:
        BatchTopK(3).eval()(torch.ones(2, 4))
    assert str(caught.value) == "threshold: got no calibrated value; expected calibrate_ on training rows before eval()"

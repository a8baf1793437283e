"""The sums behind the score: against loops, over batches, merged, re-based, decayed; and what the door refuses."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

import reference
from monoloss.errors import InputError
from monoloss.functional.moments import (
    MonoMoments,
    batch_moments,
    merge,
    minimum,
    rebase,
    stored_in_every_row,
    unit_rows,
)
from monoloss.functional.score import score_of
from monoloss.sparse import SparseActivations
from support.embeddings import LAYOUTS, as_dense, every_entry, ragged, rows_of, some_activations, some_embeddings


def loop_moments(embeddings: Tensor, dense: Tensor, b: Tensor | None = None) -> MonoMoments:
    """The definitions, row by row; about ``b`` where it is given."""
    h = torch.from_numpy(reference.unit_rows(embeddings))
    z = dense.double()
    b = z.min(0).values if b is None else b
    u, v, w = torch.zeros(len(b)).double(), torch.zeros(len(b)).double(), torch.zeros(len(b), h.shape[1]).double()
    for h_row, z_row in zip(h, z, strict=True):
        u, v, w = u + (z_row - b), v + (z_row - b) ** 2, w + torch.outer(z_row - b, h_row)
    return MonoMoments(n=torch.tensor(float(len(h))).double(), h_sum=h.sum(0), b=b, u=u, v=v, w=w)


def assert_same(got: MonoMoments, expected: MonoMoments, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    for field in dataclasses.fields(MonoMoments):
        one, other = getattr(got, field.name), getattr(expected, field.name)
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, check_dtype=field.name != "w", msg=field.name)


def moments_of(embeddings: Tensor, activations: Tensor | SparseActivations) -> MonoMoments:
    return batch_moments(unit_rows(embeddings), activations)


@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_moments_are_the_sums_of_the_definition(layout, offset):
    embeddings = some_embeddings()
    activations = LAYOUTS[layout](some_activations(offset=offset))
    assert_same(moments_of(embeddings, activations), loop_moments(embeddings, as_dense(activations)), 1e-12, 1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_of_float32_are_float64(layout):
    activations = LAYOUTS[layout](some_activations(dtype=torch.float32))
    moments = moments_of(some_embeddings(dtype=torch.float32), activations)
    for name in ("n", "h_sum", "b", "u", "v"):
        assert getattr(moments, name).dtype == torch.float64
    assert moments.w.dtype == torch.float32  # of one batch only
    longer = merge(MonoMoments.zeros(8, activations.shape[1]), moments)
    assert longer.w.dtype == torch.float64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_dtype_of_w_whatever_the_rows(layout):
    """Else two processes with different rows would reduce tensors of different dtypes."""
    dense = some_activations(9000, dtype=torch.float32)[:, 5:9]  # more rows than one product takes; negative
    embeddings = some_embeddings(9000, 3, dtype=torch.float32)
    long = moments_of(embeddings, LAYOUTS[layout](dense))
    short = moments_of(embeddings[:5], LAYOUTS[layout](dense[:5].abs()))
    assert long.w.dtype == short.w.dtype == torch.float32
    exact = moments_of(embeddings.double(), LAYOUTS[layout](dense.double()))
    torch.testing.assert_close(score_of(long), score_of(exact), rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cuts", [[0, 64], [0, 1, 2, 64], [0, 20, 20, 50, 64]])
def test_merged_parts_are_the_whole(layout, cuts):
    embeddings, activations = some_embeddings(), LAYOUTS[layout](some_activations())
    total = MonoMoments.zeros(8, activations.shape[1])
    for start, stop in itertools.pairwise(cuts):
        part = moments_of(embeddings[start:stop], rows_of(activations, slice(start, stop)))
        total = merge(total, part)
    assert_same(total, moments_of(embeddings, activations))
    assert_same(merge(total, MonoMoments.zeros(8, activations.shape[1])), total)


def test_merge_leaves_its_arguments_alone():
    embeddings, activations = some_embeddings(), some_activations()
    left, right = moments_of(embeddings, activations + 1), moments_of(embeddings, activations)
    before = [getattr(part, name).clone() for part in (left, right) for name in ("n", "h_sum", "b", "u", "v", "w")]
    merge(left, right)
    after = [getattr(part, name) for part in (left, right) for name in ("n", "h_sum", "b", "u", "v", "w")]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_rebase_is_exact():
    embeddings, activations = some_embeddings(), some_activations()
    lower = activations.min(0).values - torch.linspace(0, 3, activations.shape[1]).double()
    assert_same(rebase(moments_of(embeddings, activations), lower), loop_moments(embeddings, activations, lower))


def test_rebase_of_no_rows_only_moves_the_minimum():
    moved = rebase(MonoMoments.zeros(2, 3), torch.zeros(3).double())
    assert torch.equal(moved.b, torch.zeros(3).double())
    assert not any(part.any() for part in (moved.u, moved.v, moved.w))


def test_merging_with_fade_lowers_every_sum_of_the_first_and_keeps_the_minimum():
    moments = moments_of(some_embeddings(), some_activations())
    d, m = some_embeddings().shape[1], some_activations().shape[1]
    faded = merge(moments, MonoMoments.zeros(d, m), fade=0.25)
    assert torch.equal(faded.b, moments.b)
    for name in ("n", "h_sum", "u", "v", "w"):
        assert torch.equal(getattr(faded, name), 0.25 * getattr(moments, name))  # a power of two


@pytest.mark.parametrize("layout", LAYOUTS)
def test_minimum(layout):
    activations = LAYOUTS[layout](some_activations())
    assert torch.equal(minimum(activations), as_dense(activations).min(0).values)
    assert torch.equal(minimum(rows_of(activations, slice(0, 0))), torch.full((13,), torch.inf).double())


def test_stored_in_every_row():
    dense = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    assert stored_in_every_row(ragged(dense)).tolist() == [True, False, False]
    assert stored_in_every_row(every_entry(dense)).tolist() == [True, True, True]


def test_unit_rows():
    embeddings, center = some_embeddings(), some_embeddings(1).squeeze(0)
    for mean in (None, center):
        expected = torch.from_numpy(reference.unit_rows(embeddings, mean))
        torch.testing.assert_close(unit_rows(embeddings, mean), expected, rtol=0, atol=1e-14)
    assert unit_rows(embeddings.half()).dtype == torch.float32
    assert torch.autograd.gradcheck(unit_rows, (embeddings[:3].requires_grad_(), center))


def test_default_dtype_changes_nothing():
    embeddings, activations = some_embeddings(1501), ragged(some_activations(1501))
    expected = moments_of(embeddings, activations)
    torch.set_default_dtype(torch.bfloat16)  # counts above 256 are not whole numbers there
    try:
        assert_same(moments_of(embeddings, activations), expected, 0, 0)  # the same call
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_million_rows_of_float32_at_offset_100():
    """In one call and in batches, dense and sparse, against the same formulas in float64."""
    n, d, m = 1_000_000, 4, 3
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(n, d, generator=generator) + 0.3
    z = torch.rand(n, m, generator=generator)
    z[:, 1] = torch.where(z[:, 1] < 0.01, z[:, 1], 0.0)
    z[:, 2] = embeddings[:, 0].clamp(min=0)
    z = z + 100.0
    a, h = z.double() - z.double().amin(0), unit_rows(embeddings.double())
    w, v = a.T @ h, a.square().sum(0)
    expected = (w.square().sum(1) - v) / (a.sum(0).square() - v)
    codes = SparseActivations(z, torch.arange(m).repeat(n, 1), m, check=False)
    for activations, size in ((z, n), (z, 5000), (codes, 8192)):
        total = MonoMoments.zeros(d, m)
        for start in range(0, n, size):
            rows = slice(start, start + size)
            part = activations[rows] if isinstance(activations, Tensor) else rows_of(activations, rows)
            total = merge(total, moments_of(embeddings[rows], part))
        torch.testing.assert_close(score_of(total), expected, rtol=0, atol=1e-5)


BAD_ROWS = [
    ([[1.0, 2.0], [0.0, 0.0]], None, "a row of zeros (row 1)"),
    ([[1.0, 2.0], [3.0, 4.0]], [3.0, 4.0], "a row of zeros after the mean vector was taken off (row 1)"),
    ([[1.0, 2.0], [0.0, torch.nan]], None, "a row of length nan (row 1)"),
    ([[-torch.inf, 2.0], [0.0, 1.0]], None, "a row of length inf (row 0)"),
    ([[3e38, 3e38], [0.0, 1.0]], None, "a row of length inf (row 0)"),  # no float32 is as large as its length
]


@pytest.mark.door
@pytest.mark.parametrize(("rows", "center", "got"), BAD_ROWS)
def test_rows_without_a_direction_are_refused(rows, center, got):
    with pytest.raises(InputError) as refusal:
        unit_rows(torch.tensor(rows), None if center is None else torch.tensor(center))
    assert str(refusal.value) == f"embeddings: got {got}; expected rows of finite numbers, not all zero"


@pytest.mark.door
@pytest.mark.parametrize(("value", "said"), [(torch.nan, "nan"), (torch.inf, "inf"), (-torch.inf, "-inf")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations_that_are_not_finite_are_refused(layout, value, said):
    dense = some_activations(6).abs()
    dense[4, 9] = 1e6  # stored in every layout
    activations = LAYOUTS[layout](dense)
    if isinstance(activations, SparseActivations):
        activations = activations.with_values(torch.where(activations.values == 1e6, value, activations.values))
    else:
        activations[4, 9] = value
    with pytest.raises(InputError) as refusal:
        moments_of(some_embeddings(6), activations)
    assert str(refusal.value) == f"activations: got {said} (row 4, latent 9); expected finite numbers"

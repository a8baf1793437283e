"""Selection against a full sort, above all where values are equal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monoloss.sparse import selection
from monoloss.sparse.selection import above_threshold, entries_above, largest_of_batch, largest_of_rows


def sorted_batch(values: Tensor, count: int) -> list[int]:
    """By value from the highest, among equal ones by position; those above 0; as rising positions."""
    flat = values.reshape(-1).tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    return sorted(i for i in order[:count] if flat[i] > 0)


def some_values(seed: int, n: int, m: int, n_different: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """From -1 to 2, of so many different values; some rows are larger than all others."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, n_different, (n, m), generator=generator).to(dtype) / n_different * 3 - 1
    return whole + torch.randint(0, 8, (n, 1), generator=generator).div(7, rounding_mode="floor") * 5


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    m=st.sampled_from([1, 7, 31, 32, 64, 96, 256]),
    n_different=st.sampled_from([1, 2, 3, 10, 1000]),
    group=st.sampled_from([1, 2, 8, 32]),
    data=st.data(),
)
def test_equals_a_full_sort(seed, n, m, n_different, group, data):
    values = some_values(seed, n, m, n_different)
    k = data.draw(st.integers(1, max(1, m // data.draw(st.sampled_from([1, 4, 16])))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_GROUP", group)
        count = data.draw(st.sampled_from([k * n, n * m, 1, n * m + 3]))
        assert largest_of_batch(values, count).tolist() == sorted_batch(values, count)
        threshold = values.reshape(-1)[data.draw(st.integers(0, n * m - 1))]
        expected = (values.reshape(-1) > threshold).nonzero().squeeze(1)
        assert torch.equal(above_threshold(values, threshold), expected)
        columns = largest_of_rows(values, k)
    assert columns.shape == (n, k)
    assert all(len(set(row)) == k for row in columns.tolist())
    got = values.gather(1, columns).sort(1, descending=True).values
    assert torch.equal(got, values.sort(1, descending=True).values[:, :k])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_large_batches_in_each_precision(dtype):
    values = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert largest_of_batch(values, 64 * 16).tolist() == sorted_batch(values, 64 * 16)  # half types: many ties
    got = values.gather(1, largest_of_rows(values, 16)).sort(1, descending=True).values
    assert torch.equal(got, values.topk(16, dim=1).values)


def test_smallest_numbers_above_zero_are_chosen_and_zeros_are_not():
    values = torch.zeros(4, 64)
    values[2, 5] = torch.finfo(torch.float32).smallest_normal
    values[3, 1] = 1e-45  # subnormal
    values[0, 0] = -0.0
    assert largest_of_batch(values, 100).tolist() == [2 * 64 + 5, 3 * 64 + 1]
    assert largest_of_batch(values, 4).tolist() == [2 * 64 + 5, 3 * 64 + 1]
    assert largest_of_batch(values, 1).tolist() == [2 * 64 + 5]
    assert largest_of_batch(-values.abs(), 3).tolist() == []
    assert largest_of_batch(values[:0], 3).tolist() == []
    assert largest_of_rows(values[:0], 2).shape == (0, 2)


def test_nan_stays_in_the_codes_of_its_row():
    """A model that has diverged shows it, as with `topk`, where NaN counts as the largest."""
    values = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    values[1, 40] = torch.nan
    values[3] = torch.nan
    chosen = values.gather(1, largest_of_rows(values, 2))
    assert chosen.isnan().sum(1).tolist() == [0, 1, 0, 2, 0]


def test_nan_is_chosen_in_training_so_that_the_loss_shows_it():
    values = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    values[0, 5], values[2, 7], values[3, 9] = torch.nan, torch.nan, -torch.inf
    chosen = largest_of_batch(values, 16)
    ranked = values.nan_to_num(nan=torch.inf, neginf=-torch.inf).reshape(-1)
    assert chosen.tolist() == sorted(ranked.argsort(descending=True, stable=True)[:16].tolist())
    assert {5, 2 * 256 + 7} <= set(chosen.tolist())


@pytest.mark.parametrize("m", [250, 256])
def test_minus_infinity_takes_nothing_from_the_others(m):
    values = torch.full((4, m), -torch.inf)
    values[0, 1] = 1.0
    assert largest_of_batch(values, 4).tolist() == [1]
    assert above_threshold(values, torch.tensor(0.0)).tolist() == [1]


def test_nan_takes_nothing_from_its_neighbours_above_a_threshold():
    values = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    values[:, 7] = torch.nan
    values[1, 8] = torch.inf
    expected = (values > 0.3).reshape(-1).nonzero().squeeze(1)
    assert torch.equal(above_threshold(values, torch.tensor(0.3)), expected)


@pytest.mark.parametrize("block", [1, 2**18])
@pytest.mark.parametrize("per_column", [False, True])
def test_entries_above_a_bound_or_none_if_too_many(monkeypatch, per_column, block):
    monkeypatch.setattr(selection, "_BLOCK_ELEMENTS", block)
    values = some_values(0, 9, 31, 10)
    values[2, 3], values[4, 5] = torch.nan, -torch.inf
    bound = torch.linspace(-0.5, 1.5, 31) if per_column else torch.tensor(0.5)
    expected = (values.isnan() | (values > bound)).reshape(-1).nonzero().squeeze(1)
    assert 2 * 31 + 3 in expected
    assert torch.equal(entries_above(values, bound, len(expected)), expected)
    assert entries_above(values, bound, len(expected) - 1) is None
    assert entries_above(values[:0], bound, 0).tolist() == []

"""The most active rows of each latent against a full sort, for any split into batches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mono_samples import LAYOUTS, ragged
from monoloss.evaluation.examples import TopExamples
from monoloss.functional import sparsity


def with_ties(seed: int, n: int, m: int) -> Tensor:
    """Whole numbers from -2 to 3, most of them not above 0; latent 0 is never active."""
    z = torch.randint(-2, 4, (n, m), generator=torch.Generator().manual_seed(seed)).float()
    z[:, 0] = z[:, 0].clamp(max=0)
    return z


def by_full_sort(z: Tensor, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """The highest first, of equal values the earlier row; what is missing is row -1 with value 0."""
    all_rows, all_values = [], []
    for column in z.double().t().tolist():
        active = sorted((-value, row) for row, value in enumerate(column) if value > 0)[:k]
        missing = k - len(active)
        all_rows.append([row for _, row in active] + [-1] * missing)
        all_values.append([-negated for negated, _ in active] + [0.0] * missing)
    return all_rows, all_values


def assert_examples(examples: TopExamples, z: Tensor, k: int) -> None:
    rows, values = by_full_sort(z, k)
    assert examples.rows.dtype == torch.int64
    assert examples.values.dtype == torch.float64
    assert examples.rows.tolist() == rows
    assert examples.values.tolist() == values


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 30), max_size=5), k=st.integers(1, 12))
def test_matches_a_full_sort_for_any_split(seed, cuts, k):
    z = with_ties(seed, 30, 5)
    examples = TopExamples.none(5, k)
    for start, stop in pairwise([0, *sorted(cuts), 30]):
        batch = z[start:stop]
        examples = examples.with_batch(batch if seed % 2 else ragged(batch), start)
    assert_examples(examples, z, k)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_layout_and_dtype(layout, dtype):
    codes = LAYOUTS[layout](with_ties(1, 25, 6).to(dtype))
    dense = codes if isinstance(codes, Tensor) else codes.to_dense()
    assert_examples(TopExamples.none(6, 4).with_batch(codes, 0), dense, 4)


def test_a_batch_that_is_looked_at_in_blocks(monkeypatch):
    z = with_ties(2, 40, 5)
    monkeypatch.setattr(sparsity, "_BLOCK_ENTRIES", 17)
    for form in (z, ragged(z)):
        assert_examples(TopExamples.none(5, 3).with_batch(form, 0), z, 3)


def test_rows_are_numbered_from_the_first_of_the_batch():
    examples = TopExamples.none(1, 3).with_batch(torch.tensor([[1.0], [2.0], [0.0], [2.0]]), 100)
    assert examples.rows.tolist() == [[101, 103, 100]]
    assert examples.values.tolist() == [[2.0, 2.0, 1.0]]


def test_no_rows_and_nothing_active():
    empty = TopExamples.none(3, 2)
    for batch in (torch.zeros(0, 3), torch.zeros(4, 3), -torch.ones(4, 3), ragged(torch.zeros(4, 3))):
        assert_examples(empty.with_batch(batch, 0), torch.zeros(1, 3), 2)


def test_nothing_is_changed_in_place_nor_kept_on_the_graph():
    z = with_ties(3, 10, 3).requires_grad_()
    first = TopExamples.none(3, 2).with_batch(z, 0)
    kept = first.rows.clone(), first.values.clone()
    first.with_batch(z + 1, 10)
    assert torch.equal(first.rows, kept[0])
    assert torch.equal(first.values, kept[1])
    assert not first.values.requires_grad

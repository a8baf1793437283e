"""Counts of correct classifications against loops over the rows."""

from __future__ import annotations

import pytest
import torch

from monoloss.finetune.measures import top_counts
from support.fake_cuda import fake_cuda, waits_of


def test_counts_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert top_counts(logits, torch.tensor([0, 0])).tolist() == [2.0, 1.0, 2.0]  # of three classes all are among five


@pytest.mark.parametrize("n_classes", [2, 5, 6, 40])
def test_counts_are_those_of_sorted_rows(n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    logits = torch.randn(60, n_classes, generator=generator)
    targets = torch.randint(n_classes, (60,), generator=generator)
    n_above = [sum(value > row[target] for value in row) for row, target in zip(logits.tolist(), targets, strict=True)]
    expected = [60, sum(n == 0 for n in n_above), sum(n < 5 for n in n_above)]
    assert expected[1] < expected[2]
    counts = top_counts(logits, targets)
    assert counts.tolist() == expected
    assert counts.dtype == torch.float64  # sums of millions of rows stay exact


def test_no_rows_count_nothing():
    assert top_counts(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).tolist() == [0.0, 0.0, 0.0]


def test_counting_does_not_wait_for_a_gpu():
    with fake_cuda():
        logits, targets = torch.zeros(6, 9), torch.zeros(6, dtype=torch.int64)
        assert waits_of(lambda: top_counts(logits, targets)) == []

"""The most frequent classes of each latent against a sort in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monoloss.evaluation import classes as module
from monoloss.evaluation.classes import TopClasses
from monoloss.functional.purity import class_counts, purity_from_counts
from support.evaluations import assert_classes


@given(
    rows=st.integers(1, 25).flatmap(
        lambda c: st.lists(st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0, 7.0]), min_size=c, max_size=c), min_size=1)
    )
)
def test_matches_a_sort_with_ties(rows):
    counts = torch.tensor(rows, dtype=torch.float64)
    assert_classes(TopClasses.of_counts(counts), counts)


def test_in_blocks_and_with_large_counts(monkeypatch):
    counts = torch.randint(0, 5, (50, 30), generator=torch.Generator().manual_seed(0)).double() * 10**13
    monkeypatch.setattr(module, "_BLOCK_COUNTS", 100)
    assert_classes(TopClasses.of_counts(counts), counts)


def test_the_first_is_the_dominant_class():
    z = torch.randint(-2, 3, (60, 12), generator=torch.Generator().manual_seed(1)).float()
    z[:, 3] = 0.0
    labels = torch.randint(0, 6, (60,), generator=torch.Generator().manual_seed(2))
    counts = class_counts(z, labels, 6)
    found = TopClasses.of_counts(counts.rows)
    assert torch.equal(found.classes[:, 0], purity_from_counts(counts).dominant_class)
    assert found.classes[3].tolist() == [-1] * 6


@pytest.mark.parametrize("wrong", ["the higher class of equal ones", "classes without a row"])
def test_wrong_variants_are_seen(wrong):
    counts = torch.tensor([[2.0, 0.0, 2.0, 5.0]])
    found = TopClasses.of_counts(counts)
    if wrong == "classes without a row":
        found = TopClasses(found.classes.where(found.counts > 0, 1), found.counts)
    else:
        found = TopClasses(found.classes[:, [0, 2, 1, 3]], found.counts)
    with pytest.raises(AssertionError):
        assert_classes(found, counts)

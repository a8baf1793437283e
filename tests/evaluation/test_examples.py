"""Highest, lowest and middle rows of each latent against full sorts in plain Python, for any split into batches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monoloss.evaluation import examples as module
from monoloss.evaluation.examples import Examples, ExtremeRows, SampledRows, splitmix64
from monoloss.functional import sparsity
from support.embeddings import LAYOUTS, as_dense, ragged
from support.evaluations import assert_examples, examples_by_loops, hash_of


def with_ties(seed: int, n: int, m: int) -> Tensor:
    """Whole numbers from -2 to 3, most of them not above 0; latent 0 is never active."""
    z = torch.randint(-2, 4, (n, m), generator=torch.Generator().manual_seed(seed)).float()
    z[:, 0] = z[:, 0].clamp(max=0)
    return z


def collect(batches: list[tuple[int, Any]], m: int, k: int, size: int) -> dict[str, Examples]:
    """All kinds, from batches after the number of their first row."""
    highest, lowest = ExtremeRows(m, k, largest=True), ExtremeRows(m, k, largest=False)
    sampled = SampledRows(m, size)
    for start, batch in batches:
        for collected in (highest, lowest, sampled):
            collected.add(batch, start)
    return {
        "highest": highest.examples(),
        "lowest": lowest.examples(),
        "sample": sampled.sample(),
        "middle": sampled.middle(k),
    }


def batches_of(z: Tensor, cuts: list[int], form: Callable[[Tensor], Any]) -> list[tuple[int, Any]]:
    return [(start, form(z[start:stop])) for start, stop in pairwise([0, *sorted(cuts), len(z)])]


@given(
    seed=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    k=st.integers(1, 12),
    times=st.integers(1, 4),
)
def test_matches_full_sorts_for_any_split(seed, cuts, k, times):
    z = with_ties(seed, 30, 5)
    batches = batches_of(z, cuts, torch.clone if seed % 2 else ragged)
    assert_examples(collect(batches, 5, k, k * times), z, k, k * times)


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 60), max_size=8), size=st.integers(1, 20))
def test_the_sample_depends_on_neither_split_nor_order(seed, cuts, size):
    z = with_ties(seed, 60, 4)
    batches = batches_of(z, cuts, ragged)
    shuffled = [batches[i] for i in torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))]
    one, other = SampledRows(4, size), SampledRows(4, size)
    one.add(z, 0)
    for start, batch in shuffled:
        other.add(batch, start)
    assert one.sample().rows.tolist() == other.sample().rows.tolist() == examples_by_loops("sample", z, 1, size)[0]
    assert torch.equal(one.sample().values, other.sample().values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_layout_and_dtype(layout, dtype):
    codes = LAYOUTS[layout](with_ties(1, 25, 6).to(dtype))
    assert_examples(collect([(0, codes)], 6, 4, 9), as_dense(codes), 4, 9)


def test_a_batch_that_is_looked_at_in_blocks(monkeypatch):
    z = with_ties(2, 40, 5)
    monkeypatch.setattr(sparsity, "_BLOCK_ENTRIES", 17)
    for form in (z, ragged(z)):
        assert_examples(collect([(0, form)], 5, 3, 7), z, 3, 7)


def test_many_batches_of_many_rows():
    z = torch.rand(3000, 6, generator=torch.Generator().manual_seed(5)) - torch.linspace(-0.1, 1, 6)
    for form in (torch.clone, ragged):
        assert_examples(collect(batches_of(z, list(range(100, 3000, 100)), form), 6, 5, 20), z, 5, 20)


def test_rows_are_numbered_from_the_first_of_the_batch():
    found = collect([(100, torch.tensor([[1.0], [2.0], [0.0], [2.0], [0.5]]))], 1, 3, 12)
    assert found["highest"].rows.tolist() == [[101, 103, 100]]
    assert found["highest"].values.tolist() == [[2.0, 2.0, 1.0]]
    assert found["lowest"].rows.tolist() == [[104, 100, 101]]
    assert found["middle"].rows.tolist() == [[101, 103, 100]]
    assert found["sample"].rows.tolist() == [[101, 103, 100, 104] + [-1] * 8]


def test_no_rows_and_nothing_active():
    for batch in (torch.zeros(0, 3), torch.zeros(4, 3), -torch.ones(4, 3), ragged(torch.zeros(4, 3))):
        assert_examples(collect([(0, batch)], 3, 2, 8), torch.zeros(1, 3), 2, 8)
    none = Examples.none(3, 2)
    assert torch.equal(collect([], 3, 2, 8)["lowest"].rows, none.rows)
    assert torch.equal(collect([], 3, 2, 8)["middle"].values, none.values)


def test_nothing_of_the_batch_is_changed_nor_kept_on_the_graph():
    z = with_ties(3, 10, 3).requires_grad_()
    before = z.detach().clone()
    found = collect([(0, z)], 3, 2, 8)
    assert torch.equal(z, before)
    assert not any(examples.values.requires_grad for examples in found.values())


# The hash


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_hash_is_that_of_whole_numbers(number):
    assert splitmix64(torch.tensor([number])).tolist() == [hash_of(number)]


def test_the_hash_is_the_published_one():
    """The first numbers that SplitMix64 draws from the seed 0."""
    drawn = splitmix64(torch.tensor([0, hash_start := 0x9E3779B97F4A7C15 - 2**64])).tolist()
    assert [number % 2**64 for number in drawn] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert hash_start < 0


def check_the_sample_is_spread_evenly() -> None:
    """Of latents that are active on all rows, on each third, in runs: 16 equal parts of the rows, chi-squared."""
    n, size = 40_000, 1600
    rows = torch.arange(n)
    patterns = [torch.ones(n, dtype=torch.bool), rows % 3 == 1, rows // 50 % 2 == 0, rows % 16 == 0]
    sampled = SampledRows(len(patterns), size)
    z = torch.stack(patterns, dim=1).float()
    for start in range(0, n, 5000):
        sampled.add(z[start : start + 5000], start)
    for latent, chosen in enumerate(sampled.sample().rows.numpy()):
        assert patterns[latent][torch.from_numpy(chosen)].all()
        for part in (chosen * 16 // n, (np.searchsorted(np.flatnonzero(patterns[latent]), chosen)) % 16):
            counts = np.bincount(part, minlength=16)
            assert ((counts - size / 16) ** 2 / (size / 16)).sum() < 45  # 15 degrees of freedom: 1 in 10 000


def test_the_sample_is_spread_evenly():
    check_the_sample_is_spread_evenly()


def test_latents_prefer_the_same_rows():
    sampled = SampledRows(50, 20)
    sampled.add(torch.ones(1000, 50), 0)
    assert len(sampled.sample().rows.unique()) == 20


# Wrong variants that the checks above must see


def check_all() -> None:
    z = with_ties(7, 200, 6)
    z[:, 5] = torch.arange(200)
    for form in (torch.clone, ragged):
        assert_examples(collect(batches_of(z, [40, 41, 90], form), 6, 5, 20), z, 5, 20)
    check_the_sample_is_spread_evenly()


def reversed_ties(self: Any, latents: Tensor, keys: Tensor, *payloads: Tensor) -> None:
    ADD(self, latents.flip(0), keys.flip(0), *(payload.flip(0) for payload in payloads))


def no_earlier_batches(self: Any, latents: Tensor, keys: Tensor, *payloads: Tensor) -> None:
    touched = latents.unique()
    self.keys[touched] = module._NO_KEY
    ADD(self, latents, keys, *payloads)


def from_the_median_on(self: SampledRows, k: int) -> Examples:
    sample = self.sample()
    start = int((sample.rows >= 0).sum(1).max()) // 2
    return Examples(sample.rows[:, start : start + k], sample.values[:, start : start + k])


def inactive_rows_too(self: ExtremeRows, activations: Any, first_row: int) -> None:
    for entries in module.active_entries(activations, lambda block: block.values > -torch.inf):
        keys = self._sign * module._bits(entries.values)
        self._smallest.add(entries.latents, keys, entries.rows + first_row)


def multiplied_only(numbers: Tensor) -> Tensor:
    return numbers * (0x9E3779B97F4A7C15 - 2**64)


ADD = module._SmallestKeys.add
WRONG = {
    "of equal values the later row": (module._SmallestKeys, "add", reversed_ties),
    "the last batch only": (module._SmallestKeys, "add", no_earlier_batches),
    "above the median only": (SampledRows, "middle", from_the_median_on),
    "rows where the latent is silent": (ExtremeRows, "add", inactive_rows_too),
    "the first rows as a sample": (module, "splitmix64", lambda numbers: numbers),
    "a hash that is not mixed": (module, "splitmix64", multiplied_only),
}


def test_the_checks_pass_as_they_are():
    check_all()


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_variants_are_seen(monkeypatch, wrong):
    where, name, variant = WRONG[wrong]
    monkeypatch.setattr(where, name, variant)
    with pytest.raises(AssertionError):
        check_all()


@pytest.mark.parametrize("variant", [lambda numbers: numbers, multiplied_only])
def test_a_poor_hash_is_seen_by_the_spread_alone(monkeypatch, variant):
    monkeypatch.setattr(module, "splitmix64", variant)
    with pytest.raises(AssertionError):
        check_the_sample_is_spread_evenly()

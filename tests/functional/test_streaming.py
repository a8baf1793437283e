"""Batches added in place: the moments of all rows, whatever the blocks, the layout and the minima."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from monoloss.errors import InputError
from monoloss.functional import streaming
from monoloss.functional.moments import MonoMoments, batch_moments, merge, unit_rows
from monoloss.functional.score import mono_score, score_of
from monoloss.functional.streaming import add_batch
from monoloss.sparse import SparseActivations
from support import bounds
from support.embeddings import LAYOUTS, as_dense, rows_of, some_activations, some_embeddings

NAMES = [field.name for field in dataclasses.fields(MonoMoments)]


def assert_same(got: MonoMoments, expected: MonoMoments, tolerance: float) -> None:
    for name in NAMES:
        one, other = getattr(got, name), getattr(expected, name)
        assert one.dtype == torch.float64
        scale = float(other[torch.isfinite(other)].abs().max()) if torch.isfinite(other).any() else 1.0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(scale, 1.0), msg=name)


def streamed(
    embeddings: Tensor,
    activations: Tensor | SparseActivations,
    sizes: list[int],
) -> MonoMoments:
    total, start = MonoMoments.zeros(embeddings.shape[1], activations.shape[1]), 0
    for size in sizes:
        rows = slice(start, start + size)
        total, start = add_batch(total, unit_rows(embeddings[rows]), rows_of(activations, rows)), start + size
    return total


def merged(embeddings: Tensor, activations: Tensor | SparseActivations, sizes: list[int]) -> MonoMoments:
    total, start = MonoMoments.zeros(embeddings.shape[1], activations.shape[1]), 0
    for size in sizes:
        rows = slice(start, start + size)
        total = merge(total, batch_moments(unit_rows(embeddings[rows].double()), rows_of(activations, rows)))
        start += size
    return total


@pytest.mark.parametrize("block", [1, 24, 2**19])  # elements of w: one latent, three, all
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_moments_of_merged_batches(layout, offset, dtype, tolerance, block, monkeypatch):
    monkeypatch.setattr(streaming, "_BLOCK_ELEMENTS", block)
    embeddings = some_embeddings(150, dtype=dtype)
    falling = torch.linspace(1.0, 0.0, 150, dtype=dtype)[:, None] * (offset != 0)  # the minimum falls
    activations = LAYOUTS[layout](some_activations(150, dtype=dtype, offset=offset) + falling)
    for sizes in ([150], [1, 0, 99, 50], [30] * 5):
        got = streamed(embeddings, activations, sizes)
        assert_same(got, merged(embeddings, activations.to(torch.float64), sizes), tolerance)


def test_w_is_overwritten_and_nothing_else():
    total = add_batch(MonoMoments.zeros(8, 13), unit_rows(some_embeddings()), some_activations())
    before = {name: getattr(total, name).clone() for name in NAMES}
    longer = add_batch(total, unit_rows(some_embeddings(seed=1)), some_activations(seed=1) - 3)
    assert longer.w is total.w
    assert not torch.equal(total.w, before["w"])
    for name in set(NAMES) - {"w"}:
        assert torch.equal(getattr(total, name), before[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dominating_rows_leave_the_others_their_digits(layout):
    """A row of 10^5 in the first batch and one in a later one: what the rows of 1 add must not be rounded away."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(4000, 3, generator=generator) + 0.5
    dense[torch.rand(4000, 3, generator=generator) < 0.3] = 0.0
    dense[5, 0], dense[2100, 1] = 1e5, 1e5
    embeddings = torch.randn(4000, 16, generator=generator) + 0.5
    activations = LAYOUTS[layout](dense)
    sizes = [250] * 16
    scores = score_of(streamed(embeddings, activations, sizes))
    h = unit_rows(embeddings).double()
    exact = score_of(batch_moments(h, activations.to(torch.float64)))
    torch.testing.assert_close(scores, exact, rtol=1e-5, atol=0)
    if layout != "dense":  # the dominating rows alone are added in float64: closer by far
        torch.testing.assert_close(scores, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["ragged", "every_entry"])
def test_a_latent_has_the_same_sums_whatever_stands_beside_it(layout, monkeypatch):
    embeddings = some_embeddings(150, dtype=torch.float32)
    dense = some_activations(150, dtype=torch.float32)
    whole = streamed(embeddings, LAYOUTS[layout](dense), [50, 100])
    monkeypatch.setattr(streaming, "_BLOCK_ELEMENTS", 24)
    for latents in (slice(0, 13), slice(0, 1), slice(4, 9)):
        part = streamed(embeddings, LAYOUTS[layout](dense[:, latents]), [50, 100])
        for name in ("b", "u", "v"):  # added one entry after the other
            assert torch.equal(getattr(part, name), getattr(whole, name)[latents]), name
        allowed = bounds.of_sum(150, part.u[:, None], torch.float32)
        bounds.assert_within(part.w, whole.w[latents], allowed)


@pytest.mark.door
@pytest.mark.parametrize("layout", LAYOUTS)
def test_refused_activations_change_nothing(layout):
    total = add_batch(MonoMoments.zeros(8, 13), unit_rows(some_embeddings()), some_activations())
    before = total.w.clone()
    bad = some_activations()
    bad[3, 12] = torch.nan
    with pytest.raises(InputError, match=r"activations: got nan \(row 3, latent 12\)"):
        add_batch(total, unit_rows(some_embeddings()), LAYOUTS[layout](bad))
    assert torch.equal(total.w, before)
    assert as_dense(LAYOUTS[layout](bad)).isnan().any()


def equal_rows(n: int) -> tuple[Tensor, SparseActivations]:
    """Rows that are all the same, and a latent that is active by the same amount on nearly all; another on the rest."""
    rows = torch.tensor([[0.3, -0.7]]).expand(n, 2).contiguous()
    values = torch.cat([torch.full((n - 9, 1), 0.83), torch.zeros(9, 1)])
    return rows, SparseActivations(values, (torch.arange(n)[:, None] >= n - 9).long(), 2)


@pytest.mark.parametrize("n", [257, 2048, 8192])
def test_equal_entries_on_equal_rows_do_not_round_the_same_way_again_and_again(n):
    assert float(mono_score(*equal_rows(n))[0]) == pytest.approx(1.0, abs=1e-5)


def test_that_one_long_sum_would(monkeypatch):
    monkeypatch.setattr(streaming, "_LONGEST_SUM", 10**9)
    assert abs(float(mono_score(*equal_rows(8192))[0]) - 1.0) > 1e-5


def test_long_sums_in_parts_are_the_sums(monkeypatch):
    embeddings = unit_rows(some_embeddings(200))
    codes = SparseActivations.from_dense(some_activations(200).relu())
    whole = add_batch(MonoMoments.zeros(8, 13), embeddings, codes)
    monkeypatch.setattr(streaming, "_LONGEST_SUM", 3)
    parts = add_batch(MonoMoments.zeros(8, 13), embeddings, codes)
    assert_same(parts, whole, 1e-12)

"""Histograms of activations against NumPy's search among the edges, to the count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monoloss.errors import InputError
from monoloss.functional import histogram as module
from monoloss.functional import sparsity
from monoloss.functional.histogram import N_BINS, activation_histogram, histogram_edges
from monoloss.functional.sparsity import activation_counts
from support.embeddings import LAYOUTS, as_dense, ragged, rows_of, some_activations
from support.evaluations import histogram_by_loops


def around_the_edges(dtype: torch.dtype) -> Tensor:
    """Every edge as ``dtype`` rounds it, its neighbours, and what lies beyond the ends."""
    edges = histogram_edges().to(dtype)
    edges = edges[torch.isfinite(edges) & (edges > 0)]
    neighbours = [torch.nextafter(edges, torch.full_like(edges, to)) for to in (0.0, torch.inf)]
    info = torch.finfo(dtype)
    ends = torch.tensor([0.0, -1.0, info.tiny, info.smallest_normal / 2, info.max, -info.max], dtype=dtype)
    values = torch.cat([edges, *neighbours, ends])
    return values[torch.isfinite(values)][:, None]


def check_edges(form: Callable[[Tensor], Any]) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        z = around_the_edges(dtype)
        np.testing.assert_array_equal(activation_histogram(form(z)).numpy(), histogram_by_loops(z))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_on_and_beside_each_edge(layout):
    check_edges(LAYOUTS[layout])


def test_edges():
    edges = histogram_edges()
    assert len(edges) == N_BINS + 1
    assert edges[[0, 40, -1]].tolist() == [2.0**-20, 1.0, 2.0**20]
    np.testing.assert_allclose(edges, 2.0 ** (np.arange(-40, 41) / 2), rtol=1e-15)


def test_every_half_precision_number():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        z = bits.view(dtype)
        z = z[torch.isfinite(z)][:, None]
        edges = histogram_edges()
        bins = (torch.bucketize(z[z > 0].double(), edges, right=True) - 1).clamp(0, N_BINS - 1)
        for form in (z, ragged(z)):
            assert torch.equal(activation_histogram(form)[0], torch.bincount(bins, minlength=N_BINS))


@given(values=st.lists(st.floats(0, 1e300, allow_subnormal=True), min_size=1, max_size=20))
def test_any_float64(values):
    z = torch.tensor(values, dtype=torch.float64)[:, None]
    np.testing.assert_array_equal(activation_histogram(z).numpy(), histogram_by_loops(z))
    np.testing.assert_array_equal(activation_histogram(ragged(z)).numpy(), histogram_by_loops(z))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("block", [17, 2**20])
def test_matches_loops_and_adds_up(monkeypatch, layout, dtype, block):
    monkeypatch.setattr(sparsity, "_BLOCK_ENTRIES", block)
    z = LAYOUTS[layout](some_activations(dtype=dtype))
    expected = histogram_by_loops(as_dense(z))
    whole = activation_histogram(z)
    assert whole.dtype == torch.int64
    np.testing.assert_array_equal(whole.numpy(), expected)
    assert torch.equal(whole.sum(1), activation_counts(z))
    parts = activation_histogram(rows_of(z, slice(0, 20)))
    assert activation_histogram(rows_of(z, slice(20, 64)), into=parts) is parts
    assert torch.equal(parts, whole)


def test_no_rows():
    assert torch.equal(activation_histogram(torch.zeros(0, 3)), torch.zeros(3, N_BINS, dtype=torch.int64))


def test_nothing_is_changed_nor_kept_on_the_graph():
    z = some_activations().requires_grad_()
    before = z.detach().clone()
    activation_histogram(z)
    assert torch.equal(z, before)


def last_edge_belongs_below(values: Tensor) -> Tensor:
    return (torch.bucketize(values.double(), histogram_edges(), right=False) - 1).clamp(0, N_BINS - 1)


def rounded_logarithm(values: Tensor) -> Tensor:
    return (2 * values.log2()).floor().nan_to_num(neginf=-40).add(40).clamp(0, N_BINS - 1).long()


def three_halves(values: Tensor) -> Tensor:
    fraction, octave = torch.frexp(values.double())
    return (2 * (octave - 1) + (fraction >= 0.75) + 40).clamp(0, N_BINS - 1).long()


@pytest.mark.parametrize("wrong", [last_edge_belongs_below, rounded_logarithm, three_halves])
def test_wrong_variants_are_seen(monkeypatch, wrong):
    monkeypatch.setattr(module, "_bins", wrong)
    for form in (torch.clone, ragged):
        with pytest.raises(AssertionError):
            check_edges(form)


@pytest.mark.door
def test_error_texts():
    bad = torch.ones(4, 3)
    bad[2, 1] = torch.nan
    for call, text in (
        (lambda: activation_histogram(bad), "activations: got nan (row 2, latent 1); expected finite numbers"),
        (
            lambda: activation_histogram(torch.ones(4, 3), into=torch.zeros(2, N_BINS, dtype=torch.int64)),
            "into: got shape (2, 80), dtype torch.int64; expected int64 counts (3, 80)",
        ),
        (
            lambda: activation_histogram(torch.ones(4)),
            "activations: got shape (4,); expected a floating-point tensor of shape (n, any width)",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text

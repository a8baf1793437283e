"""The metric Reconstruction: over batches the measures of one call over all rows."""

from __future__ import annotations

import math

import pytest
import torch

import reference
from monoloss.errors import InputError
from monoloss.functional.reconstruction import reconstruction_quality
from monoloss.metrics import Reconstruction
from support.embeddings import some_embeddings, some_reconstruction
from support.metrics import D, assert_states, assert_summary, some_quality, states


@pytest.mark.parametrize("measure", ["explained_variance", "r2", "nmse", "mse"])
def test_reconstruction_over_batches_is_that_of_all_rows(measure):
    expected = getattr(reference, {"r2": "r2_uniform"}.get(measure, measure))(some_embeddings(), some_reconstruction())
    for sizes in ([64], [1, 0, 40, 23]):
        metric = some_quality(sizes, measure)
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-11)
        assert metric.compute().dtype == torch.float64
        assert_summary(metric.summary(), reconstruction_quality(some_embeddings(), some_reconstruction()))
        assert metric.higher_is_better == (measure in ("explained_variance", "r2"))


def test_without_rows_measures_are_undefined():
    assert math.isnan(float(Reconstruction(3).summary().mse))


def test_nothing_stays_on_the_graph():
    metric = Reconstruction(D)
    metric.update(some_embeddings().requires_grad_(), some_reconstruction().requires_grad_())
    assert not any(state.requires_grad for state in states(metric).values())


@pytest.mark.door
def test_error_texts():
    x, metric = some_embeddings(), Reconstruction(D)
    zero_row = x.clone()
    zero_row[3] = 0
    before = states(metric)
    for call, text in (
        (lambda: Reconstruction(0), "d: got 0; expected an integer at least 1"),
        (
            lambda: Reconstruction(2, measure="mae"),
            "measure: got 'mae'; expected one of 'explained_variance', 'r2', 'nmse', 'mse'",
        ),
        (
            lambda: metric.update(x[:, :3], x[:, :3]),
            "inputs: got shape (64, 3); expected a floating-point tensor of shape (n, 8)",
        ),
        (
            lambda: metric.update(x, x[:9]),
            "reconstruction: got shape (9, 8); expected a floating-point tensor of shape (64, 8)",
        ),
        (
            lambda: metric.update(zero_row, x),
            "inputs: got a row of zeros (row 3); expected rows of finite numbers, not all zero",
        ),
        (lambda: metric.update([1.0], x), "inputs: got list; expected a floating-point tensor of shape (n, 8)"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text
    assert_states(metric, before)

"""The metric ClassPurity: over batches the purities of one call over all rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from monoloss.errors import InputError
from monoloss.functional.purity import class_purity
from monoloss.metrics import ClassPurity
from support.embeddings import CLASSES, LAYOUTS, N_LATENTS, some_activations, some_labels
from support.metrics import assert_states, assert_summary, some_purity, states


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("multi", [False, True])
def test_purity_over_batches_is_that_of_all_rows(layout, multi):
    codes = LAYOUTS[layout](some_activations())
    expected = class_purity(codes, some_labels(multi=multi), CLASSES)
    for sizes in ([64], [1, 0, 40, 23]):
        assert_summary(some_purity(sizes, layout, multi=multi).summary(), expected)
    dense = codes if isinstance(codes, Tensor) else codes.to_dense()
    per_latent = reference.class_purity(dense, some_labels(multi=multi), CLASSES)
    for weighted in (False, True):
        kind = "weighted" if weighted else "binary"
        for average, key in (("none", kind), ("mean", f"mean_{kind}"), ("mass", f"mass_{kind}")):
            metric = some_purity([30, 34], layout, multi=multi, weighted=weighted, average=average)
            np.testing.assert_allclose(metric.compute(), per_latent[key], rtol=1e-12)
            assert metric.compute().shape == ((N_LATENTS,) if average == "none" else ())
            assert metric.compute().dtype == torch.float64


def test_without_rows_purities_are_undefined():
    assert bool(torch.isnan(ClassPurity(3, 2).summary().binary).all())


def test_nothing_stays_on_the_graph():
    metric = ClassPurity(N_LATENTS, CLASSES)
    metric.update(some_activations().requires_grad_(), some_labels())
    assert not any(state.requires_grad for state in states(metric).values())


@pytest.mark.door
def test_error_texts():
    z, labels = some_activations(), some_labels()
    metric = ClassPurity(N_LATENTS, CLASSES)
    nan_code = z.clone()
    nan_code[5, 2] = torch.nan
    outside = labels.clone()
    outside[9] = CLASSES
    before = states(metric)
    for call, text in (
        (lambda: ClassPurity(0, 2), "m: got 0; expected an integer at least 1"),
        (lambda: ClassPurity(2, 0), "n_classes: got 0; expected an integer at least 1"),
        (lambda: ClassPurity(2, 2, average="median"), "average: got 'median'; expected one of 'none', 'mean', 'mass'"),
        (
            lambda: metric.update([1.0], labels),
            "activations: got list; expected a floating-point tensor of shape (n, any width)",
        ),
        (lambda: metric.update(z[:, :4], labels), "activations: got 4 latents; expected 13 latents"),
        (lambda: metric.update(z, labels[:9]), "labels: got 9 rows; expected as many as activations has, 64"),
        (lambda: metric.update(z, outside), "labels: got 5 (row 9); expected labels from 0 to 4"),
        (lambda: metric.update(nan_code, labels), "activations: got nan (row 5, latent 2); expected finite numbers"),
        (
            lambda: metric.merge_state(ClassPurity(3, CLASSES)),
            "incoming_state['rows']: got (3, 5); expected shape (13, 5)",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text
    assert_states(metric, before)

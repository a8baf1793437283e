"""What the tests of the benchmark's opponents share: scores and losses to compare, right ones and wrong ones."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

import reference
from monoloss import mono_loss
from monoloss.benchmark.dense import dense_scores
from support.embeddings import some_activations, some_embeddings

ACTIVATIONS = {"any sign": some_activations(), "above 3": some_activations(offset=3.0)}
ACTIVATIONS["relu"] = some_activations().clamp(min=0) * (torch.arange(64)[:, None] > 0)  # each at its floor somewhere


def without_the_shift(embeddings, activations):
    """Score activations that are not scaled from their minimum: wrong unless that is 0."""
    h = normalize(embeddings)
    return dense_scores(activations.sum(0), activations.square().sum(0), activations.T @ h)


def check_score(score, offset=0.0):
    """Check scores of embeddings and activations against the pairwise reference."""
    embeddings, activations = some_embeddings(), some_activations(offset=offset)
    expected = reference.mono_score_pairwise(embeddings, activations)
    assert np.isnan(expected).sum() >= 4
    np.testing.assert_allclose(score(embeddings, activations).numpy(), expected, rtol=0, atol=1e-10)


def check_gradient(criterion, activations):
    """Check value and gradient of a loss against :func:`monoloss.mono_loss`."""
    embeddings = some_embeddings()
    found, expected = (activations.clone().requires_grad_() for _ in range(2))
    value, right = criterion(embeddings, found), mono_loss(embeddings, expected)
    torch.testing.assert_close(value, right.to(value.dtype), rtol=0, atol=1e-12)
    value.backward()
    right.backward()
    assert expected.grad.abs().sum() > 0.01
    torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-10)

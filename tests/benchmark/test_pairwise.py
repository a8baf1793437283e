"""The opponents over pairs of rows compute what the paper defines, and their gradients are those of the library."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from monoloss import mono_score
from monoloss.benchmark import pairwise
from monoloss.benchmark.pairwise import loss, pairwise_loss, pairwise_score, pairwise_score_as_product, scaled
from support.embeddings import N_LATENTS, some_activations, some_embeddings
from support.opponents import ACTIVATIONS, check_gradient, check_score, without_the_shift


def with_self_pairs(embeddings, activations):
    h, a = normalize(embeddings), scaled(activations)
    return (a * (h @ h.T @ a)).sum(0) / a.sum(0).square()


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("score", [pairwise_score, pairwise_score_as_product, mono_score])
def test_scores_are_those_of_the_definition(score, offset):
    check_score(score, offset)


def test_scores_with_self_pairs_are_rejected():
    with pytest.raises(AssertionError):
        check_score(with_self_pairs, 3.0)


def test_pairs_in_blocks_of_latents_are_the_same():
    embeddings, activations = some_embeddings(), some_activations()
    whole = pairwise_score(embeddings, activations)
    for n in (1, 5, N_LATENTS):
        parts = pairwise_score(embeddings, activations, n)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-13, equal_nan=True)


def test_threads_are_put_back(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = pairwise_score(some_embeddings(), some_activations(), 3)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(pairwise, "score", lambda *_: pytest.fail("not now"))
        with pytest.raises(pytest.fail.Exception):
            pairwise_score(some_embeddings(), some_activations(), 3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    monkeypatch.undo()
    again = pairwise_score(some_embeddings(), some_activations(), 3)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-13, equal_nan=True)


def product_loss(embeddings, activations):
    return loss(pairwise_score_as_product(embeddings, activations))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("criterion", [pairwise_loss, product_loss])
def test_gradients_are_those_of_mono_loss(criterion, kind):
    check_gradient(criterion, ACTIVATIONS[kind])


def test_a_gradient_that_leaves_out_the_minimum_is_rejected():
    def held(embeddings, activations):
        z = activations - activations.detach().amin(0)
        return loss(without_the_shift(embeddings, z))

    check_gradient(held, ACTIVATIONS["relu"])
    with pytest.raises(AssertionError):
        check_gradient(held, ACTIVATIONS["any sign"])


def test_no_defined_latent_is_a_loss_of_1_without_gradient():
    activations = torch.zeros(5, 3).double().requires_grad_()
    for criterion in (pairwise_loss, product_loss):
        value = criterion(some_embeddings(5), activations)
        value.backward()
        assert value == 1
    assert not activations.grad.any()

"""The dense opponents compute what the paper defines, and do the same work as the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from monoloss import (
    BatchTopKConfig,
    InputError,
    JumpReluConfig,
    MonoLoss,
    SparseAutoencoder,
    TopKConfig,
    VanillaConfig,
    mono_score,
)
from monoloss.benchmark.dense import (
    ADAM_EPS,
    DenseSae,
    DenseTraining,
    TwoPassSums,
    dense_mono_loss,
    dense_scores,
    two_pass_score,
    two_pass_score_of_sae,
)
from monoloss.benchmark.measure import random_rows
from monoloss.benchmark.pairwise import pairwise_loss, scaled
from monoloss.sae.objectives import objective
from monoloss.training.config import SaeTraining
from support.embeddings import N_LATENTS, some_embeddings
from support.opponents import ACTIVATIONS, check_gradient, check_score, without_the_shift

D, M, K, N = 12, 40, 4, 30


def two_passes(embeddings, activations):
    batches, codes = embeddings.split(17), activations.split(17)
    sums = TwoPassSums(embeddings.shape[1], activations.shape[1], embeddings.dtype)
    sums.w.fill_(7.0)  # of an earlier run
    return two_pass_score(batches, lambda i: codes[i], sums)


def with_each_batch_scaled_by_its_own_range(embeddings, activations):
    u, v, w = torch.zeros(N_LATENTS).double(), torch.zeros(N_LATENTS).double(), torch.zeros(N_LATENTS, 8).double()
    for e, z in zip(embeddings.split(17), activations.split(17), strict=True):
        a = scaled(z)
        u, v, w = u + a.sum(0), v + a.square().sum(0), w + a.T @ normalize(e)
    return dense_scores(u, v, w)


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_scores_of_two_passes_are_those_of_the_definition(offset):
    check_score(two_passes, offset)


@pytest.mark.parametrize("score", [with_each_batch_scaled_by_its_own_range, without_the_shift])
def test_wrong_scores_are_rejected(score):
    with pytest.raises(AssertionError):
        check_score(score, 3.0)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gradients_are_those_of_mono_loss(kind):
    check_gradient(dense_mono_loss, ACTIVATIONS[kind])


def test_no_defined_latent_is_a_loss_of_1_without_gradient():
    activations = torch.zeros(5, 3).double().requires_grad_()
    value = dense_mono_loss(some_embeddings(5), activations)
    value.backward()
    assert value == 1
    assert not activations.grad.any()


CONFIGS = {
    "topk": TopKConfig("topk", M, K),
    "batch_topk": BatchTopKConfig("batch_topk", M, K),
    "jump_relu": JumpReluConfig("jump_relu", M, bandwidth=0.2),  # wide, so that entries of 30 rows are within it
    "vanilla": VanillaConfig("vanilla", M, l1_weight=0.01),
}


def some_rows(seed=0, n=N):
    return random_rows(n, D, seed).double()


def some_sae(variant):
    sae = SparseAutoencoder(D, CONFIGS[variant], seed=3).double()
    with torch.no_grad():
        sae.decoder_bias.copy_(torch.linspace(-0.1, 0.1, D))
        if sae.encoder_bias is not None:
            sae.encoder_bias.copy_(torch.linspace(-0.2, 0.2, M))
    return sae


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_dense_pass_is_that_of_the_sae(variant):
    sae, rows = some_sae(variant), some_rows()
    found, expected = DenseSae(sae)(rows), sae(rows)
    assert (found.codes > 0).sum() > 0.5 * K * N
    torch.testing.assert_close(found.codes, expected.codes.to_dense(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.target, expected.target, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lean", [False, True])
def test_two_passes_over_a_sae_score_its_codes(lean):
    sae, rows = some_sae("topk").eval(), some_rows(n=100)
    with torch.no_grad():
        expected = mono_score(rows, sae.encode(rows))
    sums = TwoPassSums(D, M, torch.float64)
    found = two_pass_score_of_sae(DenseSae(sae), rows.split(32), sums, lean=lean)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, equal_nan=True)


def test_figures_of_a_dense_pass():
    sae, rows = some_sae("topk").eval(), some_rows(n=100)
    output = sae(rows)
    codes = output.codes.to_dense()
    expected = [(output.reconstruction - output.target).square().mean(), codes.sum(1).mean(), (codes > 0).sum() / 100]
    found, figures = DenseSae(sae).as_in_training(rows)
    torch.testing.assert_close(figures, torch.stack(expected).to(figures), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.codes, codes, rtol=0, atol=1e-12)


def steps(variant, weight, n_steps):
    """Parameters and losses after some steps of the library, as its training takes them."""
    sae, mono = some_sae(variant), MonoLoss()
    adam = torch.optim.Adam(sae.parameters(), lr=1e-3, eps=ADAM_EPS, fused=True)
    losses = []
    for seed in range(n_steps):
        rows = some_rows(seed)
        output = sae(rows)
        total = objective(sae, output).total
        if weight:
            total = total + weight * mono(normalize(rows), output.codes)
        sae.count_activity_(output.codes)
        adam.zero_grad()
        total.backward()
        sae.project_decoder_gradient_()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        sae.constrain_()
        losses.append(float(total.detach()))
    return sae, losses


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("criterion", [None, dense_mono_loss, pairwise_loss])
def test_training_steps_are_those_of_the_library(variant, criterion):
    weight = 0.3 if criterion else 0.0
    training = DenseTraining(DenseSae(some_sae(variant)), criterion, weight, lr=1e-3)
    losses = [float(training.step(some_rows(seed))) for seed in range(3)]
    sae, expected = steps(variant, weight, 3)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    dense = dict(training.sae.named_parameters())
    start = dict(some_sae(variant).named_parameters())
    for name, parameter in sae.named_parameters():
        moved = (parameter - start[name]).norm()
        assert moved > 1e-3
        assert (parameter - dense[name]).norm() <= 1e-6 * moved, name
    assert torch.equal(training.sae.samples_since_active, sae.samples_since_active)


def test_mono_loss_changes_the_step():
    with_loss, without = (steps("topk", weight, 2)[0].encoder_weight for weight in (0.3, 0.0))
    assert (with_loss - without).norm() > 1e-4


def test_settings_are_those_of_training():
    assert SaeTraining(CONFIGS["topk"]).adam_eps == ADAM_EPS


@pytest.mark.door
def test_a_tied_sae_has_no_dense_opponent():
    with pytest.raises(InputError, match="untied"):
        DenseSae(SparseAutoencoder(D, TopKConfig("topk", M, K, tied=True)))


@pytest.mark.door
def test_a_jump_relu_with_a_target_has_no_dense_opponent():
    with pytest.raises(InputError, match="without target_l0"):
        DenseSae(SparseAutoencoder(D, JumpReluConfig("jump_relu", M, target_l0=4.0)))

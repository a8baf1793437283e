"""The opponents compute what the paper defines, and do the same work as the library; and how time is measured."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import reference
from monoloss import (
    BatchTopKConfig,
    InputError,
    MonoLoss,
    SparseAutoencoder,
    TopKConfig,
    mono_loss,
    mono_score,
)
from monoloss.benchmark import machine, measure, pairwise
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
from monoloss.benchmark.measure import quadratic_fit, random_rows, time_in_turn
from monoloss.benchmark.pairwise import loss, pairwise_loss, pairwise_score, pairwise_score_as_product, scaled
from monoloss.sae.objectives import objective
from monoloss.training.config import SaeTraining
from support.embeddings import N_LATENTS, some_activations, some_embeddings

D, M, K, N = 12, 40, 4, 30


def two_passes(embeddings, activations):
    batches, codes = embeddings.split(17), activations.split(17)
    sums = TwoPassSums(embeddings.shape[1], activations.shape[1], embeddings.dtype)
    sums.w.fill_(7.0)  # of an earlier run
    return two_pass_score(batches, lambda i: codes[i], sums)


def with_self_pairs(embeddings, activations):
    h, a = normalize(embeddings), scaled(activations)
    return (a * (h @ h.T @ a)).sum(0) / a.sum(0).square()


def with_each_batch_scaled_by_its_own_range(embeddings, activations):
    u, v, w = torch.zeros(N_LATENTS).double(), torch.zeros(N_LATENTS).double(), torch.zeros(N_LATENTS, 8).double()
    for e, z in zip(embeddings.split(17), activations.split(17), strict=True):
        a = scaled(z)
        u, v, w = u + a.sum(0), v + a.square().sum(0), w + a.T @ normalize(e)
    return dense_scores(u, v, w)


def without_the_shift(embeddings, activations):
    h = normalize(embeddings)
    return dense_scores(activations.sum(0), activations.square().sum(0), activations.T @ h)


def check_score(score, offset=0.0):
    embeddings, activations = some_embeddings(), some_activations(offset=offset)
    expected = reference.mono_score_pairwise(embeddings, activations)
    assert np.isnan(expected).sum() >= 4
    np.testing.assert_allclose(score(embeddings, activations).numpy(), expected, rtol=0, atol=1e-10)


SCORES = [pairwise_score, pairwise_score_as_product, two_passes]


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("score", [*SCORES, mono_score])
def test_scores_are_those_of_the_definition(score, offset):
    check_score(score, offset)


@pytest.mark.parametrize("score", [with_self_pairs, with_each_batch_scaled_by_its_own_range, without_the_shift])
def test_wrong_scores_are_rejected(score):
    with pytest.raises(AssertionError):
        check_score(score, 3.0)


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


def check_gradient(criterion, activations):
    embeddings = some_embeddings()
    found, expected = (activations.clone().requires_grad_() for _ in range(2))
    value, right = criterion(embeddings, found), mono_loss(embeddings, expected)
    torch.testing.assert_close(value, right.to(value.dtype), rtol=0, atol=1e-12)
    value.backward()
    right.backward()
    assert expected.grad.abs().sum() > 0.01
    torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-10)


ACTIVATIONS = {"any sign": some_activations(), "above 3": some_activations(offset=3.0)}
ACTIVATIONS["relu"] = some_activations().clamp(min=0) * (torch.arange(64)[:, None] > 0)  # each at its floor somewhere


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("criterion", [pairwise_loss, product_loss, dense_mono_loss])
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
    for criterion in (pairwise_loss, product_loss, dense_mono_loss):
        value = criterion(some_embeddings(5), activations)
        value.backward()
        assert value == 1
    assert not activations.grad.any()


CONFIGS = {"topk": TopKConfig("topk", M, K), "batch_topk": BatchTopKConfig("batch_topk", M, K)}


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


def test_opponents_take_turns_and_the_first_round_is_not_timed(monkeypatch):
    ticks, ran, said = itertools.count(), [], []
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: 2.0 ** next(ticks)))
    opponents = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    timings = time_in_turn(opponents, 3, advance=said.append)
    assert "".join(ran) == "".join(said) == "cbaabccbaabc"
    # run number r, from 0, lasts 2^(2 r + 1) - 2^(2 r) = 4^r
    assert timings["a"].seconds == (4.0**3, 4.0**8, 4.0**9)
    assert timings["a"].median == 4.0**8
    assert timings["a"].minimum == 4.0**3
    assert timings["c"].as_dict() == {"median_s": 4.0**6, "minimum_s": 4.0**5, "runs": 3}
    assert [len(timing.seconds) for timing in time_in_turn(opponents, 2, warm=False).values()] == [2, 2, 2]
    assert len(ran) == 12 + 6


def test_quadratic_fit():
    rows = [512, 1024, 2048]
    fit = quadratic_fit(rows, [3e-6 * n * n + 0.002 * n for n in rows])
    assert fit(2**16) == pytest.approx(3e-6 * 2**32 + 0.002 * 2**16)
    superlinear = quadratic_fit(rows, [n**2.2 for n in rows])
    assert superlinear.linear == 0
    assert superlinear(1024) == pytest.approx(1024**2.2, rel=0.3)
    assert quadratic_fit(rows, [n**0.8 for n in rows]).square == 0


def test_random_rows_follow_from_the_seed():
    one, again, other = (random_rows(50, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (50, 8)
    chance = reference.chance_pairwise(one)
    assert 0.05 < chance < 0.9


def test_commit_is_told_only_in_a_clone(monkeypatch):
    answers = {"ls-files": "machine.py", "rev-parse": "abc1234\n", "diff": ""}
    monkeypatch.setattr(machine, "_git", lambda command, *_: answers[command])
    assert machine.machine_metadata()["commit"] == "abc1234"
    answers["diff"] = None
    assert machine.machine_metadata()["commit"] == "abc1234, changed"
    answers["ls-files"] = None
    metadata = machine.machine_metadata()
    assert metadata["commit"] is None
    assert metadata["threads"] == torch.get_num_threads()


def test_no_git_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.machine_metadata()["commit"] is None

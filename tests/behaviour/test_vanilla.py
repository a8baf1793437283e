"""Vanilla: its objective with the L1 term, its gradients, MonoLoss on dense codes of a ReLU."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from monoloss.functional.loss import mono_loss
from monoloss.losses import MonoLoss
from monoloss.sae.config import InputScaling, VanillaConfig
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from sae import reference as sae_reference
from support.embeddings import ragged
from support.mono_checks import pairwise_loss
from support.saes import D, M, dense, reference_pass, some_rows, some_sae

SCALINGS = [InputScaling(*flags) for flags in product((True, False), repeat=3)]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_objective_equals_the_rewrite(scaling):
    sae, rows = some_sae("vanilla", scaling, l1_weight=0.2), some_rows()
    terms, expected = objective(sae, sae(rows)), reference_pass(sae, rows)
    error = sae_reference.error("vanilla", expected.reconstruction, expected.target)
    sparsity = sae_reference.sparsity("vanilla", expected)
    assert float(terms.reconstruction.detach()) == pytest.approx(error, rel=1e-10)
    assert float(terms.sparsity.detach()) == pytest.approx(sparsity, rel=1e-10)
    assert float(terms.aux) == 0.0
    assert float(terms.total.detach()) == pytest.approx(error + 0.2 * sparsity, rel=1e-10)
    wrong = [reference.nmse(expected.target, expected.reconstruction)]
    if scaling.standardise:
        wrong.append(float((((expected.reconstruction - expected.target) / expected.scale) ** 2).mean()))
    assert min(abs(value / error - 1) for value in wrong) > 0.1
    for other in (sparsity / M, sparsity * len(rows), reference.l0(expected.codes)):
        assert abs(other / sparsity - 1) > 0.1  # a mean over latents, a sum over rows, L0


def dense_objective(sae: SparseAutoencoder, rows: Tensor) -> Tensor:
    """The whole objective with dense tensors, for autograd."""
    inputs = sae.scale(rows)
    codes = ((inputs.scaled - sae.decoder_bias) @ sae.encoder_weight + sae.encoder_bias).clamp(min=0)
    decoded = codes @ sae.decoder_weight + sae.decoder_bias
    error = (decoded * inputs.scale + inputs.shift - inputs.target).square().mean()
    return error + sae.config.l1_weight * codes.sum(1).mean()


@pytest.mark.parametrize("scaling", [InputScaling(), InputScaling(unit_norm=False, standardise=True)], ids=str)
def test_every_gradient_of_the_objective(scaling):
    sae, rows = some_sae("vanilla", scaling, l1_weight=0.2), some_rows(40)
    parameters = dict(sae.named_parameters())
    got = torch.autograd.grad(objective(sae, sae(rows)).total, list(parameters.values()))
    expected = torch.autograd.grad(dense_objective(sae, rows), list(parameters.values()))
    for name, ours, theirs in zip(parameters, got, expected, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13, msg=name)


def test_more_l1_makes_codes_smaller():
    def sum_after_training(weight: float) -> float:
        sae = SparseAutoencoder(D, VanillaConfig("vanilla", M, l1_weight=weight))
        adam, rows = torch.optim.Adam(sae.parameters(), lr=1e-2), some_rows(128).float()
        for _ in range(60):
            adam.zero_grad()
            objective(sae, sae(rows)).total.backward()
            adam.step()
            sae.constrain_()
        return sae_reference.l1(dense(sae(rows).codes).detach().numpy())

    sums = [sum_after_training(weight) for weight in (0.0, 1e-3, 1e-1)]
    assert sums[0] > sums[1] > 2 * sums[2]


def test_mono_loss_moves_encoder_and_bias_as_its_definition_does():
    sae, rows, embeddings = some_sae("vanilla", seed=1), some_rows(60), some_rows(60, d=7, seed=5)
    got = torch.autograd.grad(mono_loss(embeddings, sae(rows).codes), [sae.encoder_weight, sae.encoder_bias])
    codes = torch.from_numpy(reference_pass(sae, rows).codes).requires_grad_()
    of_codes: Tensor = torch.autograd.grad(pairwise_loss(embeddings, codes), codes)[0]
    of_pre = of_codes * (codes.detach() > 0)
    inputs = sae.scale(rows).scaled - sae.decoder_bias.detach()
    for gradient, expected in zip(got, (inputs.t() @ of_pre, of_pre.sum(0)), strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)


def test_mono_loss_with_memory_on_dense_codes():
    """Value against loops over all batches; a ReLU's zeros pass no gradient, so the active entries are enough."""
    saes = [some_sae("vanilla"), some_sae("vanilla")]
    criteria = [MonoLoss(memory=0.8), MonoLoss(memory=0.8)]
    seen = []
    for step in range(4):
        rows, embeddings = some_rows(30, seed=step), some_rows(30, d=7, seed=50 + step)
        for sae, criterion, layout in zip(saes, criteria, (lambda codes: codes, ragged), strict=True):
            codes = sae(rows).codes
            loss = criterion(embeddings, layout(codes))
            loss.backward()
        seen.append((embeddings, codes))
        assert float(loss.detach()) == pytest.approx(1 - np.nanmean(reference.memory_scores(seen, 0.8)), rel=1e-10)
    for name in ("encoder_weight", "encoder_bias"):
        one, other = (getattr(sae, name).grad for sae in saes)
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13, msg=name)


def test_dead_after_so_many_rows():
    sae = some_sae("vanilla", dead_after_samples=10)
    sae.samples_since_active.copy_(torch.arange(M))
    assert sae.dead.tolist() == [count >= 10 for count in range(M)]

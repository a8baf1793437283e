"""Training losses against a rewrite in NumPy; whom the aux-k loss reaches."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from monoloss.sae.config import AuxLoss, InputScaling
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from sae import reference as sae_reference
from support.sae_checks import check_aux_is_zero_without_dead_latents
from support.saes import VARIANTS_WITH_AUX, M, kind_of, reference_pass, some_rows, some_sae, weights_of

SCALINGS = [InputScaling(*flags) for flags in product((True, False), repeat=3)]
AUX = AuxLoss(k=4, weight=0.25, dead_after_samples=100)


def sae_with_dead(variant: str, n_dead: int, scaling: InputScaling | None = None) -> tuple[SparseAutoencoder, Tensor]:
    """A SAE, `n_dead` of whose latents have been silent for long."""
    sae = some_sae(variant, scaling, AUX)
    sae.samples_since_active.fill_(99)
    sae.samples_since_active[torch.randperm(M, generator=torch.Generator().manual_seed(1))[:n_dead]] = 100
    return sae, sae.samples_since_active == 100


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS_WITH_AUX)
@pytest.mark.parametrize("n_dead", [0, 2, 9, M])
def test_equals_the_rewrite(variant, scaling, n_dead):
    sae, dead = sae_with_dead(variant, n_dead, scaling)
    rows = some_rows()
    terms, expected = objective(sae, sae(rows)), reference_pass(sae, rows)
    loss = sae_reference.error(kind_of(variant), expected.reconstruction, expected.target)
    aux = sae_reference.aux_loss(kind_of(variant), expected, weights_of(sae), dead.numpy(), AUX.k)
    assert float(terms.reconstruction.detach()) == pytest.approx(loss, rel=1e-10)
    assert float(terms.aux.detach()) == pytest.approx(aux, rel=1e-10)
    assert float(terms.total.detach()) == pytest.approx(loss + 0.25 * aux, rel=1e-10)
    assert (aux > 0) == (n_dead > 0)
    # the two kinds of error are not each other, nor is BatchTopK's taken in the space that the encoder sees
    other = "batch_topk" if kind_of(variant) == "topk" else "topk"
    wrong = [sae_reference.error(other, expected.reconstruction, expected.target)]
    if scaling.standardise and variant == "batch_topk":
        wrong.append(float((((expected.reconstruction - expected.target) / expected.scale) ** 2).mean()))
    assert min(abs(value / loss - 1) for value in wrong) > 0.1


def dense_aux_loss(sae: SparseAutoencoder, rows: Tensor, dead: Tensor) -> Tensor:
    """The aux-k loss with dense tensors, for autograd; which latents take part comes from the rewrite."""
    done, weights = reference_pass(sae, rows), weights_of(sae)
    mask = torch.from_numpy(sae_reference.aux_codes(done, dead.numpy(), AUX.k) > 0).double()
    scaled = sae.scale(rows)
    pre = (scaled.scaled - sae.decoder_bias) @ sae.encoder_weight
    pre = pre if sae.encoder_bias is None else pre + sae.encoder_bias
    left_over = torch.from_numpy(done.target - done.reconstruction)
    decoder = sae.encoder_weight.t() if weights.w_dec is None else sae.decoder_weight
    squared = ((pre * mask) @ decoder * scaled.scale - left_over) ** 2
    if sae.config.variant == "topk":
        return (squared.sum(1) / (left_over**2).sum(1)).mean()
    return squared.mean()


@pytest.mark.parametrize("n_dead", [2, 9])
@pytest.mark.parametrize("variant", VARIANTS_WITH_AUX)
def test_aux_gradient_reaches_dead_latents_only(variant, n_dead):
    sae, dead = sae_with_dead(variant, n_dead, InputScaling(standardise=True))
    rows = some_rows()
    parameters = dict(sae.named_parameters())
    got = torch.autograd.grad(objective(sae, sae(rows)).aux, list(parameters.values()))
    expected = torch.autograd.grad(dense_aux_loss(sae, rows, dead), list(parameters.values()))
    for name, ours, theirs in zip(parameters, got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13, msg=name)
    grads = dict(zip(parameters, got, strict=True))
    columns = grads["encoder_weight"]
    assert not columns[:, ~dead].any()
    assert bool((columns[:, dead] != 0).any(0).all()) or n_dead > AUX.k
    assert columns[:, dead].abs().max() > 1e-3
    for name in {"encoder_bias", "decoder_weight"} & set(grads):
        assert not grads[name][~dead].any()
        assert grads[name][dead].any()


def test_aux_is_exactly_zero_without_dead_latents():
    check_aux_is_zero_without_dead_latents()


@pytest.mark.parametrize("variant", VARIANTS_WITH_AUX)
def test_aux_of_weight_zero_is_off(variant):
    sae = some_sae(variant, aux=AuxLoss(k=4, weight=0.0, dead_after_samples=1))
    sae.samples_since_active.fill_(5)
    terms = objective(sae, sae(some_rows()))
    assert float(terms.aux) == 0.0
    assert torch.equal(terms.total, terms.reconstruction)


def test_losses_of_tiny_float32_rows_are_finite():
    sae, _ = sae_with_dead("topk", 9, InputScaling(unit_norm=False))
    terms = objective(sae.float(), sae(some_rows(dtype=torch.float32) * 1e-18))
    assert bool(torch.isfinite(terms.total))


def test_aux_is_bounded_where_nothing_is_left_over():
    sae, _ = sae_with_dead("topk", 3)
    output = sae(some_rows())
    output = output._replace(reconstruction=output.target.clone())
    aux = objective(sae, output).aux
    assert 0 < aux <= 100 / torch.finfo(aux.dtype).eps
    aux.backward()
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in sae.parameters())

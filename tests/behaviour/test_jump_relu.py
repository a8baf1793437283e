"""JumpReLU: its gradients, its objective, where it starts, and what holds of its thresholds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from monoloss.functional.loss import mono_loss
from monoloss.losses import MonoLoss
from monoloss.sae.activations import JumpRelu, jump_relu, jump_relu_l0
from monoloss.sae.config import InputScaling, JumpReluConfig
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.sparse import SparseActivations
from sae import reference as sae_reference
from support.embeddings import every_entry
from support.jump_relu_checks import (
    check_mono_loss_through_the_jump,
    check_theta_follows_the_jump_itself,
    check_theta_follows_the_smoothed_jump,
    smoothed_step,
    smoothed_value,
)
from support.saes import D, M, generator_of, reference_pass, some_config, some_rows, some_sae

SCALINGS = [InputScaling(*flags) for flags in product((True, False), repeat=3)]

# The functions


def test_by_hand():
    """Above, on and below the threshold, within half a bandwidth or not, and negative."""
    pre = torch.tensor([[1.0], [0.55], [0.5], [0.45], [0.2], [-0.5]], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    codes = jump_relu(pre, theta, 0.2)
    assert codes.tolist() == [[1.0], [0.55], [0.0], [0.0], [0.0], [0.0]]
    of_pre, of_theta = torch.autograd.grad(codes.sum(), [pre, theta])
    assert of_pre.tolist() == [[1.0], [1.0], [0.0], [0.0], [0.0], [0.0]]
    assert of_theta.tolist() == [pytest.approx(-0.5 / 0.2 * 3)]
    count = jump_relu_l0(pre, theta, 0.2)
    assert float(count.detach()) == pytest.approx(2 / 6)
    assert torch.autograd.grad(count, theta)[0].tolist() == [pytest.approx(-3 / 0.2 / 6)]
    assert torch.autograd.grad(jump_relu_l0(pre, theta, 0.2), pre, allow_unused=True) == (None,)


def test_the_edge_of_the_kernel_lies_outside():
    pre, theta = torch.tensor([[0.75], [0.25], [0.749]]), torch.tensor([0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(jump_relu_l0(pre, theta, 0.5), theta)
    assert gradient.tolist() == [pytest.approx(-1 / 0.5 / 3)]


def test_theta_follows_the_smoothed_jump():
    check_theta_follows_the_smoothed_jump()


def test_theta_follows_the_jump_itself():
    check_theta_follows_the_jump_itself()


def test_the_smoothed_jump_has_the_papers_derivative():
    """What the check above rests on, entry by entry; and far from the threshold it is the jump."""
    pre, theta, bandwidth = np.linspace(0.2, 3, 4001)[:, None], np.array([0.3, 1.0, 2.0]), 0.2
    near = np.abs(pre - theta) < bandwidth / 2
    away = np.abs(np.abs(pre - theta) - bandwidth / 2) > 1e-4
    for function, paper in (
        (smoothed_value, -theta / bandwidth * near),
        (smoothed_step, np.broadcast_to(-1 / bandwidth * near, near.shape)),
    ):
        slope = (function(pre, theta + 1e-6, bandwidth) - function(pre, theta - 1e-6, bandwidth)) / 2e-6
        np.testing.assert_allclose(slope[away], paper[away], atol=1e-7)
    far = np.abs(pre - theta) > bandwidth / 2
    jump = np.where(pre > theta, pre, 0.0)
    np.testing.assert_allclose(smoothed_value(pre, theta, bandwidth)[far], jump[far], rtol=0, atol=1e-14)


def test_gradients_equal_the_loops():
    generator = generator_of(3)
    pre = (torch.randn(50, 6, generator=generator, dtype=torch.float64) + 0.3).requires_grad_()
    theta = (0.1 + torch.rand(6, generator=generator, dtype=torch.float64)).requires_grad_()
    of_codes = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    codes = jump_relu(pre, theta, 0.3)
    arrays = pre.detach().numpy(), theta.detach().numpy()
    np.testing.assert_array_equal(codes.detach(), sae_reference.jump_relu_codes(*arrays))
    of_pre, of_theta = torch.autograd.grad(codes, [pre, theta], of_codes)
    np.testing.assert_array_equal(of_pre, of_codes * (codes > 0))
    expected = sae_reference.theta_gradient_of_codes(*arrays, 0.3, of_codes.numpy())
    np.testing.assert_allclose(of_theta, expected, rtol=1e-12, atol=1e-13)  # sums of either sign
    count = jump_relu_l0(pre, theta, 0.3)
    assert float(count.detach()) == pytest.approx(sae_reference.l0_of_pre_activations(*arrays), rel=1e-14)
    expected = 3.5 * sae_reference.theta_gradient_of_l0(*arrays, 0.3)
    np.testing.assert_allclose(torch.autograd.grad(3.5 * count, theta)[0], expected, rtol=1e-12)


def test_only_the_gradients_asked_for():
    pre, theta = torch.rand(9, 2, requires_grad=True), torch.tensor([0.4, 0.5], requires_grad=True)
    of_pre = torch.autograd.grad(jump_relu(pre, theta.detach(), 0.5).sum(), pre)[0]
    of_theta = torch.autograd.grad(jump_relu(pre.detach(), theta, 0.5).sum(), theta)[0]
    both = torch.autograd.grad(jump_relu(pre, theta, 0.5).sum(), [pre, theta])
    assert torch.equal(of_pre, both[0])
    assert torch.equal(of_theta, both[1])


# The objective


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("target", [None, 2.5])
def test_objective_equals_the_rewrite(scaling, target):
    sae, rows = some_sae("jump_relu", scaling, target_l0=target, l0_weight=0.3), some_rows()
    terms, expected = objective(sae, sae(rows)), reference_pass(sae, rows)
    theta = sae.activation.threshold.detach().numpy()
    error = sae_reference.error("jump_relu", expected.reconstruction, expected.target)
    sparsity = sae_reference.sparsity("jump_relu", expected, theta, target)
    assert float(terms.reconstruction.detach()) == pytest.approx(error, rel=1e-10)
    assert float(terms.sparsity.detach()) == pytest.approx(sparsity, rel=1e-10)
    assert float(terms.aux) == 0.0
    assert float(terms.total.detach()) == pytest.approx(error + 0.3 * sparsity, rel=1e-10)
    assert sparsity > 1e-2
    if target is None:
        assert sparsity == pytest.approx(reference.l0(expected.codes))  # the same number, with another gradient
    # an error relative to each row, or in the space that the encoder sees, is another one
    wrong = [reference.nmse(expected.target, expected.reconstruction)]
    if scaling.standardise:
        wrong.append(float((((expected.reconstruction - expected.target) / expected.scale) ** 2).mean()))
    assert min(abs(value / error - 1) for value in wrong) > 0.1


def dense_objective(sae: SparseAutoencoder, rows: Tensor) -> Tensor:
    """The whole objective with dense tensors, for autograd: a jump is its value plus the paper's slope in theta."""
    inputs, theta, eps = sae.scale(rows), sae.activation.threshold, sae.config.bandwidth
    pre = (inputs.scaled @ sae.encoder_weight + sae.encoder_bias).clamp(min=0)
    active = (pre > theta).double()
    near = (((pre - theta).abs() / eps < 0.5) & (pre > 0)).double()
    moved = theta - theta.detach()  # 0, with a derivative of 1
    codes = pre * active - theta.detach() / eps * near * moved
    decoded = codes @ sae.decoder_weight + sae.decoder_bias
    error = (decoded * inputs.scale + inputs.shift - inputs.target).square().mean()
    count = (active - near / eps * moved).sum(1).mean()
    target = sae.config.target_l0
    return error + sae.config.l0_weight * (count if target is None else (count / target - 1) ** 2)


@pytest.mark.parametrize("scaling", [InputScaling(), InputScaling(unit_norm=False, standardise=True)], ids=str)
@pytest.mark.parametrize("target", [None, 2.5, 20.0])
def test_every_gradient_of_the_objective(scaling, target):
    sae, rows = some_sae("jump_relu", scaling, target_l0=target, l0_weight=0.3), some_rows(40)
    parameters = dict(sae.named_parameters())
    assert "activation.threshold" in parameters
    got = torch.autograd.grad(objective(sae, sae(rows)).total, list(parameters.values()))
    expected = torch.autograd.grad(dense_objective(sae, rows), list(parameters.values()))
    for name, ours, theirs in zip(parameters, got, expected, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13, msg=name)


@pytest.mark.parametrize("target", [3.0, 10.0])
def test_l0_goes_to_its_target_from_both_sides(target):
    sae = SparseAutoencoder(D, some_config("jump_relu", target_l0=target, l0_weight=1.0))
    adam = torch.optim.Adam(sae.parameters(), lr=1e-2)
    rows = some_rows(256).float()
    start = sae.activation.threshold.detach().clone()
    assert 3.3 < reference.l0(sae(rows).codes) < 9.0
    for _ in range(150):
        adam.zero_grad()
        objective(sae, sae(rows)).total.backward()
        adam.step()
        sae.constrain_()
    assert reference.l0(sae(rows).codes) == pytest.approx(target, rel=0.1)
    moved = sae.activation.threshold.detach() - start
    assert float(moved.abs().mean()) > 1e-2


# MonoLoss


def test_mono_loss_through_the_jump():
    check_mono_loss_through_the_jump()


def test_mono_loss_with_memory_on_dense_codes():
    """Value against loops over all batches; gradients as with every entry stored, the zeros too."""
    saes = [some_sae("jump_relu"), some_sae("jump_relu")]
    criteria = [MonoLoss(memory=0.8), MonoLoss(memory=0.8)]
    seen = []
    for step in range(4):
        rows, embeddings = some_rows(30, seed=step), some_rows(30, d=7, seed=50 + step)
        losses = []
        for sae, criterion, layout in zip(saes, criteria, (lambda codes: codes, every_entry), strict=True):
            codes = sae(rows).codes
            losses.append(criterion(embeddings, layout(codes)))
            losses[-1].backward()
        seen.append((embeddings, codes))
        scores = reference.memory_scores(seen, 0.8)
        assert float(losses[0].detach()) == pytest.approx(1 - np.nanmean(scores), rel=1e-10)
        assert float(losses[1].detach()) == pytest.approx(1 - np.nanmean(scores), rel=1e-10)
    for (name, one), other in zip(saes[0].named_parameters(), saes[1].parameters(), strict=True):
        if not name.startswith("decoder"):
            assert one.grad.abs().max() > 1e-3
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-13, msg=name)


# The model


def test_start():
    sae = SparseAutoencoder(D, JumpReluConfig("jump_relu", M))
    assert torch.equal(sae.activation.threshold, torch.ones(M))
    assert not sae.encoder_bias.any()
    assert torch.equal(
        SparseAutoencoder(D, JumpReluConfig("jump_relu", M, initial_threshold=0.25)).activation.threshold,
        torch.full((M,), 0.25),
    )
    assert repr(sae.activation) == f"JumpRelu({M} thresholds, bandwidth=0.001)"


def test_thresholds_stay_at_0_or_above():
    sae = some_sae("jump_relu")
    before = sae.activation.threshold.detach().clone()
    with torch.no_grad():
        sae.activation.threshold[[1, 4]] = -0.3
    sae.constrain_()
    assert sae.activation.threshold[[1, 4]].tolist() == [0.0, 0.0]
    kept = torch.ones(M, dtype=torch.bool).index_fill_(0, torch.tensor([1, 4]), False)
    assert torch.equal(sae.activation.threshold[kept], before[kept])


def test_the_decoders_bias_stays_on_the_inputs():
    """Unlike the other variants: a large bias moves the reconstruction, not the codes."""
    sae, rows = some_sae("jump_relu"), some_rows()
    before = sae(rows)
    with torch.no_grad():
        sae.decoder_bias += 5.0
    assert torch.equal(sae(rows).codes, before.codes)
    assert not torch.equal(sae(rows).reconstruction, before.reconstruction)


def test_dead_after_so_many_rows():
    sae = some_sae("jump_relu", dead_after_samples=10)
    sae.samples_since_active.copy_(torch.arange(M))
    assert sae.dead.tolist() == [count >= 10 for count in range(M)]


@pytest.mark.parametrize("target", [None, 2.0])
def test_gradients_are_finite_where_nothing_is_active(target):
    sae, rows = SparseAutoencoder(D, some_config("jump_relu", initial_threshold=50.0, target_l0=target)), some_rows(30)
    output = sae(rows.float())
    assert isinstance(output.codes, SparseActivations)
    assert len(output.codes.values) == 0
    (objective(sae, output).total + mono_loss(rows.float(), output.codes)).backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
        assert bool(parameter.grad.any()) == (name == "decoder_bias"), name


def test_a_wild_entry_spoils_no_other_latent():
    """An infinite pre-activation is above its threshold, not near it."""
    pre = torch.tensor([[torch.inf, 1.0], [0.3, 0.3]])
    module = JumpRelu(2, 1.0, 0.5)
    codes = module(pre)
    assert codes.tolist() == [[torch.inf, 1.0], [0.0, 0.0]]
    codes[1].sum().backward()
    assert bool(torch.isfinite(module.threshold.grad).all())


def test_entries_at_the_floor_of_the_relu_do_not_push_a_threshold_near_it():
    pre = torch.tensor([[-1.0, 0.01], [-0.2, 0.3], [0.0, 0.02]])
    threshold = torch.full((2,), 0.01, requires_grad=True)
    jump_relu_l0(pre, threshold, 0.1).backward()
    assert threshold.grad.tolist() == pytest.approx([0.0, -2 / 0.1 / 3])

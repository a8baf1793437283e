"""Checks of JumpReLU's gradients against references that share no code with the library.

The tests call them on the library as it is; ``behaviour/test_wrong_saes.py`` calls the same ones on
the library with one fault put in, and sees each raise AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from monoloss.functional.loss import mono_loss
from monoloss.sae.activations import JumpRelu
from reference import Array
from sae import reference as sae_reference
from support.mono_checks import pairwise_loss
from support.saes import generator_of, reference_pass, some_rows, some_sae

THETAS = np.array([0.3, 1.0, 2.0])  # a factor theta too many or too few is seen at the first and the last


def jump_relu_at(theta: Array, bandwidth: float) -> JumpRelu:
    """The module in float64 with these thresholds."""
    module = JumpRelu(len(theta), bandwidth, 1.0).double()
    with torch.no_grad():
        module.threshold.copy_(torch.from_numpy(theta))
    return module


def smoothed_value(pre: Array, theta: Array, bandwidth: float) -> Array:
    """The jump spread over a bandwidth: from `pre` down to 0 while theta passes it.

    `pre - integral of (t / eps) K((pre - t) / eps)` over `t < theta`, so its derivative is the paper's, everywhere.
    """
    passed = np.clip(theta, pre - bandwidth / 2, pre + bandwidth / 2)
    return pre - (passed**2 - (pre - bandwidth / 2) ** 2) / (2 * bandwidth)


def smoothed_step(pre: Array, theta: Array, bandwidth: float) -> Array:
    """1 where `pre` is above theta by more than half a bandwidth, 0 below by as much, a slope between."""
    return np.clip((pre - theta) / bandwidth + 0.5, 0.0, 1.0)


def slopes(function: Callable[[Array], Array], theta: Array, step: float) -> Array:
    """Central differences; `function` gives one sum for each latent, which hangs on its own threshold only."""
    return (function(theta + step) - function(theta - step)) / (2 * step)


def check_theta_follows_the_smoothed_jump() -> None:
    """Entry by entry: the gradients of a weighted sum of values, and of L0, are slopes of the smoothed ones."""
    n, bandwidth, step = 3000, 0.2, 1e-5
    generator = generator_of(1)
    pre = torch.randn(n, 3, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    theta = torch.from_numpy(THETAS)
    at_the_edge = ((pre - theta).abs() - bandwidth / 2).abs() < 10 * step  # where the smoothed ones have a kink
    pre = torch.where(at_the_edge, theta, pre)
    weights = 1 + 0.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    module = jump_relu_at(THETAS, bandwidth)
    (of_values,) = torch.autograd.grad((module(pre) * weights).sum(), module.threshold)
    (of_l0,) = torch.autograd.grad(module.l0(pre), module.threshold)
    active = pre.clamp(min=0).numpy()
    expected = slopes(lambda t: (smoothed_value(active, t, bandwidth) * weights.numpy()).sum(0), THETAS, step)
    np.testing.assert_allclose(of_values, expected, rtol=1e-7)
    np.testing.assert_allclose(of_l0, slopes(lambda t: smoothed_step(active, t, bandwidth).mean(0), THETAS, step), 1e-7)


def check_theta_follows_the_jump_itself() -> None:
    """Over many rows of a smooth density: the slopes of a squared error and of L0 with no smoothing at all.

    Half of the entries near the threshold are above it and half below; for a squared error the mean of the two
    derivatives is exactly the height of its jump.
    """
    n, bandwidth = 1_000_001, 0.004
    quantiles = torch.linspace(0.5 / n, 1 - 0.5 / n, n, dtype=torch.float64)
    pre = (torch.special.ndtri(quantiles) * 1.2 + 0.4)[:, None].repeat(1, 3)
    wanted = torch.tensor([-0.5, -0.3, -0.4], dtype=torch.float64)
    module = jump_relu_at(THETAS, bandwidth)
    (of_error,) = torch.autograd.grad((module(pre) - wanted).square().sum() / n, module.threshold)
    (of_l0,) = torch.autograd.grad(module.l0(pre), module.threshold)
    active = pre.clamp(min=0).numpy()

    def errors(theta: Array) -> Array:
        return ((np.where(active > theta, active, 0.0) - wanted.numpy()) ** 2).mean(0)

    np.testing.assert_allclose(of_error, slopes(errors, THETAS, bandwidth / 2), rtol=2e-3)
    np.testing.assert_allclose(of_l0, slopes(lambda t: (active > t).mean(0), THETAS, bandwidth / 2), rtol=1e-9)


def check_mono_loss_through_the_jump() -> None:
    """MonoLoss moves encoder, bias and thresholds as its definition over pairs does; near entries of value 0 too."""
    sae, rows, embeddings = some_sae("jump_relu", seed=1), some_rows(60), some_rows(60, d=7, seed=5)
    parameters = [sae.encoder_weight, sae.encoder_bias, sae.activation.threshold]
    got = torch.autograd.grad(mono_loss(embeddings, sae(rows).codes), parameters)
    done, scaled, theta = reference_pass(sae, rows), sae.scale(rows).scaled, sae.activation.threshold.detach().numpy()
    codes = torch.from_numpy(done.codes).requires_grad_()
    of_codes: Tensor = torch.autograd.grad(pairwise_loss(embeddings, codes), codes)[0]
    of_pre = of_codes * (codes.detach() > 0)
    args = (done.pre_activations, theta, sae.config.bandwidth)
    of_theta = sae_reference.theta_gradient_of_codes(*args, of_codes.numpy())
    for gradient, by_hand in zip(got, (scaled.t() @ of_pre, of_pre.sum(0), of_theta), strict=True):
        expected = np.asarray(by_hand)
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-13)
        assert np.abs(expected).max() > 1e-3
    below = sae_reference.theta_gradient_of_codes(*args, of_codes.where(codes == 0, 0.0).detach().numpy())
    assert np.abs(below).sum() > 0.1 * np.abs(of_theta).sum()

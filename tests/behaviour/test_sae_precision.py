"""Models in other precisions than float32, and under autocast: what may be lowered and what may not."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from monoloss.losses import MonoLoss
from monoloss.sae.activations import BatchTopK, JumpRelu
from monoloss.sae.config import InputScaling
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.sparse import SparseActivations
from support import bounds
from support.saes import VARIANTS, D, bits_of, dense, generator_of, some_config, some_rows, some_sae

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_in_one_precision_suit_weights_in_another(variant):
    rows = some_rows(d=32)
    sae = SparseAutoencoder(32, some_config(variant, 64, 4, inputs=InputScaling(unit_norm=False)))
    expected = sae(rows.float())
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        output = sae(rows.to(dtype))
        assert output.reconstruction.dtype == output.target.dtype == torch.float32
        loose = torch.finfo(dtype).bits == 16
        torch.testing.assert_close(output.target, expected.target, rtol=1e-2 if loose else 1e-6, atol=1e-5)
    assert sae.double()(rows.float()).reconstruction.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_weights_encode_and_decode(variant, dtype):
    sae, rows = some_sae(variant, seed=2).float(), some_rows(80).float()
    sae.calibrate_([rows])
    whole, half = sae.eval()(rows), sae.to(dtype).eval()(rows)
    assert half.reconstruction.dtype == torch.float32
    assert (whole.reconstruction - half.reconstruction).square().mean() < 0.05 * whole.target.square().mean()


# Thresholds


def with_thresholds() -> list[nn.Module]:
    """Both modules that hold thresholds, at values that no half type can hold."""
    batch_topk, jump_relu = BatchTopK(3), JumpRelu(5, 0.1, 1.0)
    with torch.no_grad():
        batch_topk.threshold.fill_(1.0001)
        jump_relu.threshold.copy_(1 + torch.arange(5) * 1e-4)
    return [batch_topk, jump_relu]


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.bfloat16)])
def test_half_types_leave_thresholds_in_float32(convert):
    for module in with_thresholds():
        whole = nn.Sequential(module, nn.Linear(5, 2))
        before = module.threshold.detach().clone()
        convert(whole)
        assert whole[1].weight.dtype in HALVES
        assert module.threshold.dtype == torch.float32
        assert torch.equal(module.threshold, before)
        convert(whole.double())
        assert module.threshold.dtype == torch.float32
        assert torch.equal(module.threshold, before)


def test_float64_and_devices_are_followed():
    for module in with_thresholds():
        before = module.threshold.detach().clone()
        assert module.double().threshold.dtype == torch.float64
        assert torch.equal(module.threshold, before.double())
        assert module.float().threshold.dtype == torch.float32
        moved = module.to("meta", torch.float16)
        assert moved is module
        assert moved.threshold.device.type == "meta"
        assert moved.threshold.dtype == torch.float32
        assert moved.to_empty(device="cpu").threshold.shape == before.shape


def test_the_parameter_stays_the_one_that_the_optimiser_holds():
    module = JumpRelu(4, 1.0, 0.5)
    parameter = module.threshold
    module(torch.rand(6, 4)).sum().backward()
    gradient = parameter.grad.clone()
    module.half()
    assert module.threshold is parameter
    assert list(module.parameters()) == [parameter]
    assert parameter.grad.dtype == torch.float32
    assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("dtype", HALVES)
def test_thresholds_of_a_whole_model(dtype):
    for variant in ("batch_topk", "jump_relu"):
        sae = some_sae(variant).float()
        sae.calibrate_([some_rows(60).float()])
        before = sae.activation.threshold.detach().clone()
        sae.to(dtype)
        assert sae.encoder_weight.dtype == dtype
        assert torch.equal(sae.activation.threshold, before)
        assert dense(sae.eval()(some_rows().float()).codes).dtype == torch.float32


# Autocast


def one_step(variant: str, precision: torch.dtype | None) -> tuple[SparseAutoencoder, dict[str, torch.Tensor]]:
    """A step of training as a loop takes it, with MonoLoss; the model after it and the gradients of it."""
    sae = SparseAutoencoder(D, some_config(variant), seed=1)
    adam, criterion = torch.optim.Adam(sae.parameters(), lr=1e-2), MonoLoss(memory=0.5)
    rows, embeddings = some_rows(80).float(), some_rows(80, d=6, seed=9).float()
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        output = sae(rows)
        loss = objective(sae, output).total + 0.1 * criterion(embeddings, output.codes)
        sae.count_activity_(output.codes)
    assert loss.dtype == output.reconstruction.dtype == output.target.dtype == torch.float32
    lowered = precision is not None and variant != "jump_relu"
    assert output.pre_activations.dtype == (precision if lowered else torch.float32)
    loss.backward()
    sae.project_decoder_gradient_()
    adam.step()
    sae.constrain_()
    return sae, {name: parameter.grad for name, parameter in sae.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_under_autocast(variant):
    start = bits_of(SparseAutoencoder(D, some_config(variant), seed=1))
    sae, gradients = one_step(variant, torch.bfloat16)
    _, expected = one_step(variant, None)
    for name, parameter in sae.named_parameters():
        assert parameter.dtype == gradients[name].dtype == torch.float32
        assert bits_of(sae)[name] != start[name], name
        error = (gradients[name] - expected[name]).norm() / expected[name].norm()
        assert error < (1e-5 if variant == "jump_relu" else 0.2), name  # of JumpReLU nothing at all is lowered


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_encode_is_sparse_and_decode_whole_under_autocast(variant, training):
    sae, rows = some_sae(variant).float(), some_rows(70).float()
    sae.calibrate_([rows])
    whole = deepcopy(sae).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        codes = sae.train(training).encode(rows)
        assert isinstance(codes, SparseActivations)
        got, of_dense = sae.decode(codes), sae.decode(codes.to_dense())
    assert got.dtype == of_dense.dtype == torch.float32
    bounds.assert_within(got, of_dense, bounds.of_product(codes.to_dense(), sae.decoder_rows))
    if variant == "jump_relu":  # of which nothing is lowered: the same call
        assert torch.equal(codes.to_dense(), whole.encode(rows).to_dense())


@pytest.mark.parametrize("variant", VARIANTS)
def test_decode_takes_dense_and_sparse_codes(variant):
    """Equal values, and equal gradients of the active entries."""
    sae, rows = some_sae(variant), some_rows(20)
    sae.calibrate_([rows])
    codes = sae.encode(rows).detach()
    values = codes.values.requires_grad_()
    whole = codes.to_dense().detach().requires_grad_()
    weights = torch.randn(20, D, generator=generator_of(4), dtype=torch.float64)
    results = [sae.decode(codes), sae.decode(whole)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)
    (of_values,), (of_whole,) = (
        torch.autograd.grad((result * weights).sum(), leaf)
        for result, leaf in zip(results, (values, whole), strict=True)
    )
    at_entries = of_whole[codes.rows, codes.flat_indices]
    torch.testing.assert_close(of_values.reshape(-1), at_entries, rtol=1e-12, atol=1e-13)

"""The encoder's gradient through stored entries against the dense one, and whole steps against dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monoloss.functional.moments import unit_rows
from monoloss.losses import MonoLoss
from monoloss.sae.activations import batch_topk_codes, topk_codes
from monoloss.sae.config import AuxLoss, InputScaling
from monoloss.sae.model import SaeOutput, SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.sae.stored_linear import stored_linear
from support.saes import VARIANTS, VARIANTS_WITH_AUX, some_config, some_rows
from support.sparse_path_checks import BOTH, make_sparse_

SCALINGS = [InputScaling(), InputScaling(center=True, standardise=True), InputScaling(unit_norm=False)]
MONO = [None, MonoLoss(), MonoLoss(memory=0.9)]


@pytest.mark.parametrize("choose", [topk_codes, batch_topk_codes])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_shift", [True, False])
def test_gradcheck(choose, with_bias, with_shift):
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = {"inputs": leaf(6, 4), "weight": leaf(9, 4)}
    leaves |= ({"shift": leaf(4)} if with_shift else {}) | ({"bias": leaf(9)} if with_bias else {})

    def values(*tensors: Tensor) -> Tensor:
        of = dict(zip(leaves, tensors, strict=True))
        with torch.no_grad():
            codes = choose((of["inputs"] - of.get("shift", 0.0)) @ of["weight"].t() + of.get("bias", 0.0), 3)
        return stored_linear(codes, of["inputs"], of.get("shift"), of["weight"], of.get("bias")).values

    assert torch.autograd.gradcheck(values, list(leaves.values()))


def dense_step(sae: SparseAutoencoder, rows: Tensor) -> SaeOutput:
    """The model with dense tensors and autograd throughout; which entries are active comes from the model."""
    scaled, target, shift, scale = sae.scale(rows)
    active = sae.encode(rows).detach().to_dense() > 0
    pre = (scaled - sae.decoder_bias) @ sae.encoder_weight
    pre = pre if sae.encoder_bias is None else pre + sae.encoder_bias
    codes = pre * active
    return SaeOutput(codes, (codes @ sae.decoder_rows + sae.decoder_bias) * scale + shift, target, pre, scale, scaled)


@pytest.mark.parametrize("mono", MONO, ids=["none", "paper", "memory"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=["plain", "centred and standardised", "raw"])
@pytest.mark.parametrize("n_dead", [0, 5, 40])
@pytest.mark.parametrize("variant", VARIANTS_WITH_AUX)
def test_a_step_has_the_gradients_of_a_dense_step(variant, n_dead, scaling, mono):
    for dtype, allowed in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        aux = AuxLoss(k=8, weight=0.25, dead_after_samples=100)
        config = some_config(variant, 96, 4, inputs=scaling, aux=aux)
        mean = torch.full((24,), 0.01) if scaling.center else None
        sae = SparseAutoencoder(24, config, input_mean=mean).to(dtype)
        sae.samples_since_active[:n_dead] = 100
        rows, gradients = some_rows(150, d=24).to(dtype), []
        for output in (sae(rows), dense_step(sae, rows)):
            loss = objective(sae, output).total
            if mono is not None:
                mono.reset()
                center = mean if scaling.center else None
                loss = loss + 0.1 * mono(unit_rows(rows, center), output.codes)
            gradients.append(torch.autograd.grad(loss, list(sae.parameters())))
        for (name, _), got, expected in zip(sae.named_parameters(), *gradients, strict=True):
            assert (got - expected).norm() <= allowed * expected.norm(), name
            assert expected.norm() > 0


@pytest.mark.parametrize("variant", VARIANTS_WITH_AUX)
def test_rows_that_require_a_gradient_get_it(variant):
    sae = SparseAutoencoder(24, some_config(variant, 96, 4)).double()
    rows = some_rows(30, d=24).requires_grad_()
    got, expected = (
        torch.autograd.grad(objective(sae, output).total, rows)[0] for output in (sae(rows), dense_step(sae, rows))
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_tensor_of_rows_times_latents_but_the_encoders_output(variant):
    n, m = 40, 1000
    sae, rows = SparseAutoencoder(24, some_config(variant, m, 4)), some_rows(n, d=24).float()
    if variant in BOTH:
        make_sparse_(sae, rows, n * m // 50)
    mono, seen = MonoLoss(memory=0.5), []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.layout == torch.strided and result.is_floating_point():
                seen.extend([str(func)] if result.numel() >= n * m else [])
            return result

    with Sizes():
        output = sae(rows)
        (objective(sae, output).total + mono(rows, output.codes)).backward()
        sae.count_activity_(output.codes)
    products = [name for name in seen if name.startswith(("aten.addmm", "aten.mm", "mkldnn._linear"))]
    views = ("view", "_unsafe_view", "reshape", "detach", "alias", "t", "expand", "slice")
    assert len(products) == 1
    assert not [name for name in seen if name not in products and name.split(".")[1] not in views], seen

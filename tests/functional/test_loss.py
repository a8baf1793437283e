"""MonoLoss as a function: value against the pairwise loop, gradients against autograd and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

import monoloss.sparse.products
from monoloss.errors import InputError
from monoloss.functional.loss import batch_scores, mono_loss
from monoloss.functional.score import mono_score
from monoloss.sparse import SparseActivations
from support.embeddings import (
    DEAD,
    HIGH_CONSTANT,
    LAYOUTS,
    LOW_CONSTANT,
    SINGLE,
    every_entry,
    fixed_k,
    ragged,
    some_activations,
    some_embeddings,
)
from support.mono_checks import (
    check_gradient,
    check_gradient_above_a_floor,
    check_gradient_of_floors_beside_moving_minima,
    check_gradient_where_the_minimum_moves,
    check_loss_value,
    gradients,
    pairwise_loss,
)

UNDEFINED = [DEAD, LOW_CONSTANT, HIGH_CONSTANT, SINGLE]


def loss_of_values(embeddings: Tensor, activations: Tensor | SparseActivations, values: Tensor, **kwargs) -> Tensor:
    """The loss as a function of the dense tensor or of the stored values."""
    if isinstance(activations, SparseActivations):
        return mono_loss(embeddings, activations.with_values(values), **kwargs)
    return mono_loss(embeddings, values, **kwargs)


def values_of(activations: Tensor | SparseActivations) -> Tensor:
    return activations.values if isinstance(activations, SparseActivations) else activations


@pytest.mark.parametrize("offset", [0.0, 100.0, -0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_is_one_minus_the_mean_score(layout, offset):
    check_loss_value(LAYOUTS[layout](some_activations(offset=offset)))
    check_loss_value(LAYOUTS[layout](some_activations(offset=offset)), center=some_embeddings().mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_value_of_other_dtypes(dtype):
    activations = some_activations(dtype=dtype)
    check_loss_value(activations, atol=1e-5)
    assert mono_loss(some_embeddings(dtype=dtype), activations).dtype == torch.float32
    assert mono_loss(some_embeddings(dtype=dtype), activations.double()).dtype == torch.float64


def test_gradient_where_the_minimum_moves():
    check_gradient_where_the_minimum_moves()


def test_gradient_above_a_floor():
    check_gradient_above_a_floor()


def test_gradient_of_floors_beside_moving_minima():
    check_gradient_of_floors_beside_moving_minima()


@pytest.mark.parametrize("with_center", [False, True])
@pytest.mark.parametrize("offset", [0.0, 100.0, -0.7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_is_that_of_autograd_through_the_pairs(layout, offset, with_center):
    """At offset 100 every latent of a ragged code is stored in every row, at -0.7 most minima are negative."""
    activations = LAYOUTS[layout](some_activations(40, offset=offset))
    center = some_embeddings(40).mean(0) if with_center else None
    check_gradient(activations, center, rtol=1e-7 if offset == 100 else 1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ties_at_the_minimum_share_its_gradient(layout):
    dense = some_activations(30, offset=0.25)[:, 8:]  # where the ReLU was at 0 there are many rows at 0.25
    assert int((dense == dense.amin(0)).sum(0).max()) > 10
    check_gradient(LAYOUTS[layout](dense))
    check_gradient(LAYOUTS[layout](dense - 0.5))


def test_ties_of_different_sizes_in_closed_form():
    """Two equal rows at the minimum against three above: by symmetry both get half of what the minimum gets."""
    embeddings = some_embeddings(5)
    embeddings[1] = embeddings[0]
    activations = torch.tensor([[-1.0], [-1.0], [0.5], [1.0], [2.0]]).double()
    (gradient,) = gradients(lambda z: mono_loss(embeddings, z), activations)
    assert gradient.abs().min() > 1e-3
    torch.testing.assert_close(gradient[0], gradient[1], rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient.sum(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-14)  # shifts


@pytest.mark.parametrize("layout", ["dense", "every_entry", "ragged", "fixed_k"])
@pytest.mark.parametrize("with_center", [False, True])
def test_gradcheck(layout, with_center):
    generator = torch.Generator().manual_seed(5)
    dense = torch.randn(7, 4, generator=generator, dtype=torch.float64)  # no ties, minima below 0
    if layout == "ragged":
        dense = torch.where(dense > 0.1, dense, 0.0)
    activations = fixed_k(dense.abs() + 0.1, 2) if layout == "fixed_k" else LAYOUTS[layout](dense)
    embeddings = some_embeddings(7, 3)
    center = embeddings.mean(0) if with_center else None
    values = values_of(activations).clone().requires_grad_()
    assert gradcheck(
        lambda e, v: loss_of_values(e, activations, v, center=center), (embeddings.requires_grad_(), values)
    )


def test_gradcheck_of_sparse_values_below_zero_and_latents_of_every_row():
    dense = some_activations(9, seed=2)[:, [5, 6, 7, 8]]
    dense[dense == 0] = 0.0
    dense[:, 3] = torch.linspace(0.3, 2.0, 9)
    activations = ragged(dense)
    assert bool((activations.by_latent.offsets.diff() == 9).any())
    assert float(activations.values.min()) < 0
    embeddings = some_embeddings(9, 3).requires_grad_()
    values = activations.values.clone().requires_grad_()
    assert gradcheck(lambda e, v: loss_of_values(e, activations, v), (embeddings, values))


def test_stored_zeros_get_the_gradient_of_the_dense_tensor():
    dense = some_activations(20)[:, 9:]
    codes, embeddings = every_entry(dense), some_embeddings(20)
    (of_dense,) = gradients(lambda z: mono_loss(embeddings, z), dense)
    (of_values,) = gradients(lambda v: loss_of_values(embeddings, codes, v), codes.values)
    torch.testing.assert_close(of_values, of_dense.gather(1, codes.indices), rtol=1e-12, atol=1e-14)
    assert of_values[codes.values == 0].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_undefined_latents_get_a_gradient_of_exactly_zero(layout, dtype):
    activations = LAYOUTS[layout](some_activations(dtype=dtype))
    embeddings = some_embeddings(dtype=dtype)
    of_embeddings, of_values = gradients(
        lambda e, v: loss_of_values(e, activations, v), embeddings, values_of(activations)
    )
    assert bool(of_embeddings.isfinite().all())
    assert bool(of_values.isfinite().all())
    latents = (
        activations.indices if isinstance(activations, SparseActivations) else torch.arange(13).expand_as(activations)
    )
    undefined = torch.isnan(mono_score(embeddings, activations))[latents]
    assert {LOW_CONSTANT, HIGH_CONSTANT, SINGLE} <= set(latents[undefined].tolist())  # DEAD may be stored nowhere
    assert not of_values[undefined].any()
    assert bool(of_values[~undefined].any())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [0, 1, 64])
def test_without_a_defined_latent_the_loss_is_one_and_its_gradient_zero(layout, n):
    activations = LAYOUTS[layout](some_activations()[:n][:, UNDEFINED])
    embeddings = some_embeddings(n).requires_grad_()
    values = values_of(activations).clone().requires_grad_()
    loss = loss_of_values(embeddings, activations, values)
    assert float(loss.detach()) == 1.0
    for gradient in torch.autograd.grad(loss, (embeddings, values)):
        assert not gradient.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autocast_changes_no_bit_of_value_and_gradient(layout):
    activations = LAYOUTS[layout](some_activations(dtype=torch.float32, offset=-0.4))
    embeddings = some_embeddings(dtype=torch.float32).requires_grad_()
    values = values_of(activations).clone().requires_grad_()

    def loss_now() -> Tensor:
        return loss_of_values(embeddings, activations, values)

    def gradients_of(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, (embeddings, values)))

    plain = [(loss := loss_now()).detach(), *gradients_of(loss)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [(loss := loss_now()).detach(), *gradients_of(loss)]
        outside = loss_now()
    for got in (inside, [outside.detach(), *gradients_of(outside)]):
        assert all(torch.equal(one, other) for one, other in zip(got, plain, strict=True))


@pytest.mark.parametrize("layout", ["ragged", "every_entry", "fixed_k"])
def test_gradient_without_sparse_kernels(layout, monkeypatch):
    monkeypatch.setattr(monoloss.sparse.products, "has_sparse_kernels", lambda _device: False)
    monkeypatch.setattr(monoloss.sparse.products, "_BLOCK_ELEMENTS", 100)
    check_gradient(LAYOUTS[layout](some_activations(40, offset=-0.7)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_float32_is_that_of_float64(layout):
    for offset in (0.0, 100.0, -0.7):
        activations = LAYOUTS[layout](some_activations(dtype=torch.float32, offset=offset))
        embeddings, values = some_embeddings(dtype=torch.float32), values_of(activations)
        got = gradients(lambda e, v, z=activations: loss_of_values(e, z, v), embeddings, values)
        wide = activations.to(torch.float64)
        expected = gradients(lambda e, v, z=wide: loss_of_values(e, z, v), embeddings.double(), values.double())
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_embeddings_without_gradient_get_none():
    embeddings, values = some_embeddings(), some_activations().requires_grad_()
    mono_loss(embeddings, values).backward()
    assert embeddings.grad is None
    assert values.grad.abs().sum() > 0
    frozen = some_embeddings().requires_grad_()
    mono_loss(frozen, values.detach()).backward()
    assert frozen.grad.abs().sum() > 0
    assert not mono_loss(embeddings, values.detach()).requires_grad


def test_gradient_is_scaled_by_what_comes_after():
    embeddings, activations = some_embeddings(), some_activations()
    (once,) = gradients(lambda z: mono_loss(embeddings, z), activations)
    (weighted,) = gradients(lambda z: 3e-4 * mono_loss(embeddings, z) + z.sum(), activations)
    torch.testing.assert_close(weighted, 1.0 + 3e-4 * once, rtol=1e-13, atol=0)


def test_gradients_keep_the_dtype_and_memory_layout_is_free():
    embeddings, activations = some_embeddings(d=16), some_activations()
    wide = [tensor.T.contiguous().T.requires_grad_() for tensor in (embeddings, activations)]
    got = torch.autograd.grad(mono_loss(*(tensor[::2, ::2] for tensor in wide)), wide)
    expected = gradients(mono_loss, embeddings[::2, ::2].contiguous(), activations[::2, ::2].contiguous())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one[::2, ::2], other, rtol=1e-12, atol=1e-13)
    halves = gradients(mono_loss, embeddings.bfloat16(), activations.half())
    assert [gradient.dtype for gradient in halves] == [torch.bfloat16, torch.float16]


def test_batch_scores_are_the_scores():
    embeddings, activations = some_embeddings(), some_activations()
    scores, defined = batch_scores(embeddings, activations)
    expected = mono_score(embeddings, activations, undefined="zero")
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-13)
    assert torch.equal(defined, ~torch.isnan(mono_score(embeddings, activations)))


@given(seed=st.integers(0, 2**16), n=st.integers(3, 24), layout=st.sampled_from(sorted(LAYOUTS)))
@settings(max_examples=30)
def test_gradient_of_any_batch(seed, n, layout):
    dense = some_activations(n, seed=seed, offset=-0.3)
    activations, embeddings = LAYOUTS[layout](dense), some_embeddings(n, seed=seed)
    values = values_of(activations)
    if torch.isnan(mono_score(embeddings, activations)).all():
        return
    if isinstance(activations, SparseActivations):
        (expected,) = gradients(lambda v: pairwise_loss(embeddings, activations.with_values(v).to_dense()), values)
    else:
        (expected,) = gradients(lambda v: pairwise_loss(embeddings, v), values)
    (got,) = gradients(lambda v: loss_of_values(embeddings, activations, v), values)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-10)


REFUSED = [
    (lambda e, z: mono_loss(e, z[:5]), "activations: got 5 rows; expected as many as embeddings has, 6"),
    (lambda e, z: mono_loss(e, z.long()),
     "activations: got dtype torch.int64; expected a floating-point tensor of shape (n, any width)"),
    (lambda e, z: mono_loss(e.index_fill(0, torch.tensor(3), 0.0), z),
     "embeddings: got a row of zeros (row 3); expected rows of finite numbers, not all zero"),
    (lambda e, z: mono_loss(e, ragged(z.index_fill(0, torch.tensor([2]), torch.nan))),
     "activations: got nan (row 2, latent 0); expected finite numbers"),
    (lambda e, z: mono_loss(e, z, center=e[0, :2]),
     "center: got shape (2,), dtype torch.float64; expected a floating-point tensor of shape (8,)"),
]  # fmt: skip


@pytest.mark.door
@pytest.mark.parametrize(("call", "text"), REFUSED)
def test_input_that_does_not_fit_is_refused(call, text):
    with pytest.raises(InputError) as refusal:
        call(some_embeddings(6), some_activations(6))
    assert str(refusal.value) == text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-12, 1e12, 1e30])
def test_float32_gradient_at_any_scale_of_a_latent(scale, layout):
    embeddings = some_embeddings(20).float()
    plain = some_activations(20).relu().float()
    grads = []
    for factor in (1.0, scale):
        leaf = embeddings.clone().requires_grad_()
        dense = (plain * factor).requires_grad_()
        mono_loss(leaf, LAYOUTS[layout](dense)).backward()
        grads.append((leaf.grad, dense.grad * factor))
    for one, other in zip(*grads, strict=True):
        assert torch.isfinite(other).all()
        if scale > torch.finfo(torch.float32).tiny:  # smaller numbers hold too few digits to compare
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))

"""The model against a rewrite in NumPy; where it starts; what inference and training loops may rely on."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from monoloss.errors import InputError
from monoloss.sae.config import AuxLoss, BatchTopKConfig, InputScaling, TopKConfig
from monoloss.sae.model import SparseAutoencoder
from monoloss.sparse import SparseActivations
from sae import reference as sae_reference
from support.sae_checks import check_codes_do_not_depend_on_other_rows, check_small_batches_encode_as_large_ones
from support.saes import VARIANTS, D, K, M, bits_of, dense, reference_pass, some_config, some_rows, some_sae

SCALINGS = [InputScaling(*flags) for flags in product((True, False), repeat=3)]


def assert_same(got: torch.Tensor, expected: object, name: str) -> None:
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-10, atol=1e-12, err_msg=name)


def assert_pass(sae: SparseAutoencoder, rows: torch.Tensor, expected: sae_reference.Pass) -> None:
    output = sae(rows)
    assert_same(output.target, expected.target, "target")
    assert_same(output.pre_activations, expected.pre_activations, "pre_activations")
    assert_same(dense(output.codes), expected.codes, "codes")
    assert_same(output.reconstruction, expected.reconstruction, "reconstruction")
    assert_same(output.scale.expand(len(rows), 1), expected.scale, "scale")
    codes = sae.encode(rows)
    assert isinstance(codes, SparseActivations)
    assert_same(codes.to_dense(), expected.codes, "encode")
    assert_same(sae.decode(codes.to_dense()), sae.decode(codes).detach(), "decode of dense codes")
    shift = expected.reconstruction - (expected.codes @ np.asarray(sae.decoder_rows.detach())) * expected.scale
    bias = sae.decoder_bias.detach().numpy() * expected.scale
    assert_same(sae.decode(codes) * output.scale + torch.from_numpy(shift - bias), expected.reconstruction, "decode")


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_rewrite(variant, scaling):
    sae, rows = some_sae(variant, scaling), some_rows()
    assert_pass(sae, rows, reference_pass(sae, rows))
    sae.calibrate_([some_rows(50, seed=1), some_rows(7, seed=2)])
    sae.eval()
    threshold = float(sae.activation.threshold) if variant == "batch_topk" else None
    assert_pass(sae, rows, reference_pass(sae, rows, threshold))


def test_a_perfect_code_brings_the_rows_back_in_their_own_space():
    """Every latent a coordinate and every sign there: what is standardised away comes back."""
    config = TopKConfig("topk", 2 * D, 2 * D, inputs=InputScaling(unit_norm=False, center=True, standardise=True))
    sae = SparseAutoencoder(D, config, input_mean=torch.linspace(-1, 1, D)).double()
    both = torch.cat([torch.eye(D), -torch.eye(D)], dim=1).double()
    with torch.no_grad():
        sae.encoder_weight.copy_(both)
        sae.decoder_weight.copy_(both.t())
    output = sae(some_rows())
    assert torch.equal(output.target, some_rows())
    torch.testing.assert_close(output.reconstruction, some_rows(), rtol=0, atol=1e-12)


# Where it starts


@pytest.mark.parametrize("variant", VARIANTS)
def test_start(variant):
    m, d = 96, 20
    sae = SparseAutoencoder(d, some_config(variant, m, 4), seed=1)
    bound = math.sqrt(6 / m)
    assert sae.encoder_weight.shape == (d, m)
    largest = float(sae.encoder_weight.detach().abs().max())
    assert 0.99 * bound < largest <= bound
    assert float(sae.encoder_weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    columns = sae.encoder_weight.detach().double().t()
    if variant == "topk_tied":
        assert torch.equal(sae.decoder_rows, sae.encoder_weight.t())
    else:
        expected = columns / columns.norm(dim=1, keepdim=True)
        torch.testing.assert_close(sae.decoder_rows.double(), expected, rtol=0, atol=5e-7)  # eps is 1.2e-7
        assert sae.decoder_rows.data_ptr() != sae.encoder_weight.data_ptr()
    assert not sae.decoder_bias.any()
    assert sae.encoder_bias is None or not sae.encoder_bias.any()
    assert (sae.encoder_bias is None) == (variant == "batch_topk")
    assert sae.samples_since_active.tolist() == [0] * m


@pytest.mark.parametrize("variant", VARIANTS)
def test_start_follows_from_the_seed_alone(variant):
    config = some_config(variant)
    torch.manual_seed(0)
    first = bits_of(SparseAutoencoder(D, config, seed=5))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    SparseAutoencoder(D, config, seed=6)
    assert bits_of(SparseAutoencoder(D, config, seed=5)) == first
    assert torch.equal(torch.get_rng_state(), state)  # and it draws nothing from the generator of others
    assert bits_of(SparseAutoencoder(D, config, seed=6))["encoder_weight"] != first["encoder_weight"]


def test_parameters_of_each_variant():
    names = {variant: [name for name, _ in some_sae(variant).named_parameters()] for variant in VARIANTS}
    assert names == {
        "topk": ["encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias"],
        "topk_tied": ["encoder_weight", "encoder_bias", "decoder_bias"],
        "batch_topk": ["encoder_weight", "decoder_weight", "decoder_bias"],
        "jump_relu": ["encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias", "activation.threshold"],
        "vanilla": ["encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias"],
    }


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_state_loads_into_a_fresh_model(variant, center):
    sae = some_sae(variant, InputScaling(center=center, standardise=True))
    sae.calibrate_([some_rows(60)])
    sae.count_activity_(sae.encode(some_rows()))
    mean = torch.zeros(D) if center else None
    fresh = SparseAutoencoder(D, sae.config, input_mean=mean, seed=9).double()
    fresh.load_state_dict({name: tensor.clone() for name, tensor in sae.state_dict().items()}, strict=True)
    assert bits_of(fresh) == bits_of(sae)
    output, expected = fresh.eval()(some_rows(seed=3)), sae.eval()(some_rows(seed=3))
    assert torch.equal(output.reconstruction, expected.reconstruction)
    assert torch.equal(dense(output.codes), dense(expected.codes))


# Inference


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_do_not_depend_on_other_rows(variant):
    check_codes_do_not_depend_on_other_rows(variant)


def test_products_of_small_batches_have_64_rows_in_eval(monkeypatch):
    """Products of few rows sum in another order on some processors, so that other codes come out alone."""
    sae, n_rows, linear = some_sae("topk"), [], torch.nn.functional.linear

    def counted(rows: torch.Tensor, *more: torch.Tensor | None) -> torch.Tensor:
        n_rows.append(len(rows))
        return linear(rows, *more)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    for n in (1, 63, 64, 65):
        sae.train().pre_activations(some_rows(n))
        sae.eval().pre_activations(some_rows(n))
    assert n_rows == [1, 64, 63, 64, 64, 64, 65, 65]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rows(variant):
    sae = some_sae(variant)
    sae.calibrate_([some_rows(60)])
    for mode in (True, False):
        output = sae.train(mode)(some_rows(0))
        assert output.codes.shape == (0, M)
        assert output.reconstruction.shape == (0, D)


def test_calibration_takes_batches_as_one():
    rows = some_rows(60, seed=4)
    whole, parts = some_sae("batch_topk"), some_sae("batch_topk")
    whole.calibrate_([rows])
    parts.calibrate_(rows.split(7))
    torch.testing.assert_close(parts.activation.threshold, whole.activation.threshold, rtol=1e-12, atol=0)
    assert whole.training
    active = whole.eval().encode(rows).values.shape[0]
    assert active == K * 60
    topk = some_sae("topk")
    before = bits_of(topk)
    topk.calibrate_([])
    assert bits_of(topk) == before


# What training loops call


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_count_activity_touches_the_counters(variant):
    sae = some_sae(variant)
    sae.calibrate_([some_rows(60)])
    for mode in (True, False):
        sae.train(mode)(some_rows()).reconstruction.sum().backward()
        sae.encode(some_rows())
        assert not sae.samples_since_active.any()
    active = np.zeros(M, dtype=bool)
    expected = np.zeros(M, dtype=np.int64)
    for seed, n in ((0, 2), (1, 5), (2, 1)):
        codes = sae.train()(some_rows(n, seed=seed)).codes
        sae.count_activity_(codes)
        active = (dense(codes).detach().numpy() > 0).any(0)
        expected = np.where(active, 0, expected + n)
        np.testing.assert_array_equal(sae.samples_since_active, expected)
    assert active.any()
    assert expected.max() == 8
    assert sae.samples_since_active.dtype == torch.int64
    assert "samples_since_active" in sae.state_dict()


def test_a_latent_stored_with_value_zero_was_silent():
    sae = some_sae("topk")
    codes = SparseActivations(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0, 1], [1, 2]]), M)
    sae.count_activity_(codes)
    assert sae.samples_since_active.tolist() == [0, 2, 0] + [2] * (M - 3)


def test_dead_after_so_many_rows():
    sae = some_sae("topk", aux=AuxLoss(k=2, dead_after_samples=10))
    sae.samples_since_active.copy_(torch.arange(M))
    assert sae.dead.tolist() == [count >= 10 for count in range(M)]
    assert TopKConfig("topk", M, K).aux == AuxLoss(k=64, weight=1 / 32, dead_after_samples=10_000_000)
    assert BatchTopKConfig("batch_topk", M, K).aux == AuxLoss(k=512, weight=1 / 32, dead_after_samples=10_000_000)
    assert TopKConfig("topk", M, K).inputs == InputScaling(unit_norm=True, center=False, standardise=True)
    assert BatchTopKConfig("batch_topk", M, K).inputs == InputScaling(unit_norm=True, center=False, standardise=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_decoders_gradient_leaves_its_rows(variant):
    sae = some_sae(variant)
    sae.project_decoder_gradient_()  # before any gradient is there: nothing to do
    sae(some_rows()).reconstruction.square().sum().backward()
    grads = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.project_decoder_gradient_()
    for name, parameter in sae.named_parameters():
        if name != "decoder_weight":
            assert torch.equal(parameter.grad, grads[name])
    if variant != "topk_tied":
        rows, grad = sae.decoder_weight.detach().numpy(), sae.decoder_weight.grad.numpy()
        assert np.abs((grad * rows).sum(1)).max() < 1e-12
        taken = grads["decoder_weight"].numpy() - grad
        np.testing.assert_allclose(
            taken, (taken * rows).sum(1, keepdims=True) * rows, atol=1e-12
        )  # along the rows only
        assert np.abs(taken).max() > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_normalising_the_decoder(variant):
    sae = some_sae(variant)
    before = bits_of(sae)
    with torch.no_grad():
        if sae.decoder_weight is not None:
            sae.decoder_weight *= torch.linspace(0.1, 7, M)[:, None]
    directions = sae.decoder_rows.detach() / sae.decoder_rows.detach().norm(dim=1, keepdim=True)
    sae.constrain_()
    if variant == "topk_tied":
        assert bits_of(sae) == before
    else:
        torch.testing.assert_close(sae.decoder_rows, directions, rtol=0, atol=1e-14)


@pytest.mark.parametrize("variant", VARIANTS)
def test_redraw_changes_the_given_latents_only(variant):
    sae = some_sae(variant)
    sae.samples_since_active.fill_(50)
    chosen = torch.zeros(M, dtype=torch.bool)
    chosen[[2, 7, 23]] = True
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.redraw_(chosen, seed=11)
    after = sae.state_dict()
    start = SparseAutoencoder(D, sae.config, seed=11).double()
    latents_along = {"encoder_weight": 1, "encoder_bias": 0, "decoder_weight": 0, "samples_since_active": 0}
    if variant == "jump_relu":
        latents_along["activation.threshold"] = 0
    for name, tensor in after.items():
        if name not in latents_along:
            np.testing.assert_array_equal(tensor, before[name], err_msg=name)
            continue
        old, new, drawn = (
            state.movedim(latents_along[name], 0) for state in (before[name], tensor, dict(start.state_dict())[name])
        )
        assert torch.equal(new[~chosen], old[~chosen])
        torch.testing.assert_close(new[chosen], drawn[chosen], rtol=0, atol=5e-7, msg=name)  # as at the start
        assert not torch.equal(new[chosen], old[chosen])


# The door


@pytest.mark.door
def test_error_texts():
    standardised = TopKConfig("topk", 8, 2)
    plain = BatchTopKConfig("batch_topk", 8, 2)
    centred = BatchTopKConfig("batch_topk", 8, 2, inputs=InputScaling(center=True))
    sae = SparseAutoencoder(4, plain)
    rows = torch.ones(3, 4)
    bad_row = rows.clone()
    bad_row[1] = 0
    for call, text in (
        (lambda: SparseAutoencoder(0, plain), "d_in: got 0; expected an integer at least 1"),
        (lambda: SparseAutoencoder(1, standardised), "d_in: got 1; expected an integer at least 2"),
        (lambda: SparseAutoencoder(4, centred), "input_mean: got None; expected a mean vector"),
        (
            lambda: SparseAutoencoder(4, plain, input_mean=torch.ones(4)),
            "input_mean: got a mean vector; expected none, because config.inputs.center is off",
        ),
        (
            lambda: SparseAutoencoder(4, centred, input_mean=torch.ones(5)),
            "input_mean: got shape (5,), dtype torch.float32; expected a floating-point tensor of shape (4,)",
        ),
        (
            lambda: sae.encode(torch.ones(3, 5)),
            "inputs: got shape (3, 5); expected a floating-point tensor of shape (n, 4)",
        ),
        (lambda: sae(torch.ones(4)), "inputs: got shape (4,); expected a floating-point tensor of shape (n, 4)"),
        (
            lambda: sae(rows.long()),
            "inputs: got dtype torch.int64; expected a floating-point tensor of shape (n, 4)",
        ),
        (lambda: sae(rows.numpy()), "inputs: got ndarray; expected a floating-point tensor of shape (n, 4)"),
        (lambda: sae(rows.to("meta")), "inputs: got device meta; expected the device of the model, cpu"),
        (lambda: sae(bad_row), "inputs: got a row of zeros (row 1); expected rows of finite numbers, not all zero"),
        (
            lambda: SparseAutoencoder(4, plain).eval().encode(rows),
            "threshold: got no calibrated value; expected calibrate_ on training rows before eval()",
        ),
        (
            lambda: sae.calibrate_([]),
            "inputs: got no rows; expected training rows, at least 4096 or all there are",
        ),
        (
            lambda: SparseAutoencoder(D, "vanilla"),
            "config: got a str; expected a TopKConfig, BatchTopKConfig, JumpReluConfig or VanillaConfig",
        ),
        (
            lambda: some_sae("jump_relu").decode(torch.ones(2, M + 1)),
            f"codes: got shape (2, {M + 1}); expected a floating-point tensor of shape (n, {M})",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text


@pytest.mark.parametrize("width", [768, 2048])
def test_small_batches_encode_as_large_ones(width):
    check_small_batches_encode_as_large_ones(width)


@pytest.mark.door
def test_rows_that_are_not_finite_are_refused_without_unit_norm_too():
    sae, rows = some_sae("topk", InputScaling(unit_norm=False)), some_rows()
    rows[4, 2] = torch.nan
    with pytest.raises(InputError, match=r"inputs: got NaN or infinity \(row 4\); expected finite numbers"):
        sae.encode(rows)

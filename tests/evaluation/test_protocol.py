"""The kinds of models that an evaluation takes: what is encoded, what is decoded, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monoloss.errors import InputError
from monoloss.evaluation.protocol import check_models, device_of, encode_batch, latents_of, training_modes
from monoloss.sae.model import SparseAutoencoder
from monoloss.sparse import SparseActivations
from support import bounds
from support.evaluated_models import MODELS, ROWS, D, M, N, Returning
from support.saes import dense, some_config


class Positions:
    """Activations by row number: the row's number on latent 0, one more on latent 1."""

    description = "numbers of rows"
    device = torch.device("cpu")

    def rows(self, start: int, stop: int) -> Tensor:
        return torch.stack([torch.arange(start, stop), torch.arange(start, stop) + 1], dim=1).float()

    def __len__(self) -> int:
        return N


def test_rows_by_position_are_those_of_the_batch():
    activations, reconstruction, target = encode_batch("a", Positions(), ROWS[7:10], 7)
    assert activations.tolist() == [[7, 8], [8, 9], [9, 10]]
    assert reconstruction is None
    assert torch.equal(target, ROWS[7:10])


@pytest.mark.parametrize(("name", "decodes"), [("dense", False), ("dense_with_decoder", True), ("sparse", True)])
def test_a_model_with_a_decoder_reconstructs_its_inputs(name: str, decodes: bool):
    model = MODELS[name]
    encoded = encode_batch(name, model, ROWS[:9], 0)
    assert torch.equal(dense(encoded.activations), dense(model.encode(ROWS[:9])))
    assert torch.equal(encoded.target, ROWS[:9])
    assert (encoded.reconstruction is not None) == decodes
    if decodes:
        assert encoded.reconstruction.shape == (9, D)
    assert encode_batch(name, model, ROWS[:9], 0, decode=False).reconstruction is None


@torch.no_grad()
def test_a_sae_is_compared_with_its_unit_inputs():
    sae, unit = MODELS["topk"], nn.functional.normalize(ROWS)
    assert sae.config.inputs.unit_norm
    encoded = encode_batch("topk", sae, ROWS, 0)
    torch.testing.assert_close(encoded.target, unit, rtol=0, atol=float(bounds.of_sum(D, 1.0, torch.float32)))
    assert encoded.reconstruction.shape == (N, D)
    again = encode_batch("topk", sae, ROWS, 0, decode=False)
    assert again.reconstruction is None
    allowed = bounds.of_product(sae.scale(ROWS).scaled - sae.decoder_bias, sae.encoder_weight)
    bounds.assert_within(dense(again.activations), dense(encoded.activations), allowed)


def test_latents_of():
    dense = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, -4.0]])
    for form in (SparseActivations.from_dense(dense), SparseActivations(dense, torch.arange(3).repeat(3, 1), 3)):
        assert latents_of(form, 0, 3) is form
        for first, stop in ((0, 1), (1, 2), (1, 3)):
            part = latents_of(form, first, stop)
            assert part.shape == (3, stop - first)
            assert torch.equal(part.to_dense(), dense[:, first:stop])
    assert torch.equal(latents_of(dense, 1, 3), dense[:, 1:])


class Module(nn.Sequential):
    """A module that encodes."""

    def encode(self, inputs: Tensor) -> Tensor:
        return self(inputs)


def test_training_modes_are_those_of_all_parts():
    root = Module(nn.Linear(2, 2).eval(), nn.Dropout())
    modes = training_modes({"a": root, "b": MODELS["dense"]})
    assert modes == [(root, True), (root[0], False), (root[1], True)]


def test_the_device_is_that_of_parameters_or_positions():
    meta, cpu = torch.device("meta"), torch.device("cpu")
    assert device_of(Module(nn.Linear(2, 2)), meta) == device_of(Positions(), meta) == cpu
    assert device_of(Module(nn.Linear(2, 2, device="meta")), cpu) == meta
    assert device_of(Module(nn.Dropout()), meta) == device_of(MODELS["dense"], meta) == meta


@pytest.mark.door
def test_models_that_cannot_be_evaluated():
    topk, expected = MODELS["topk"], "expected a dict from names to models with encode(inputs)"
    narrow = SparseAutoencoder(D - 1, some_config("topk", M, 4))
    cases: list[tuple[Any, str]] = [
        (topk, f"models: got SparseAutoencoder; {expected}"),
        ([topk], f"models: got list; {expected}"),
        ({}, f"models: got an empty dict; {expected}"),
        (
            {"a": "codes.npy"},
            (
                "models['a']: got the text 'codes.npy'; expected a model with encode(inputs); "
                "StoredActivations(path) reads activations from a file"
            ),
        ),
        ({"a": nn.Linear(2, 2)}, "models['a']: got Linear; expected a model with encode(inputs)"),
        (
            {"a": topk, "narrow": narrow},
            "store: got rows of width 32 for models['narrow']; expected the SAE's width, 31",
        ),
    ]
    for models, text in cases:
        with pytest.raises(InputError) as caught:
            check_models(models, N, D)
        assert str(caught.value) == text
    with pytest.raises(InputError) as caught:
        check_models({"a": Positions()}, N + 1, D)
    assert (
        str(caught.value) == "models['a']: got 160 rows in numbers of rows; expected one for each row of the store, 161"
    )
    check_models({"a": topk, "b": Positions(), "c": MODELS["dense"]}, N, D)


@pytest.mark.door
def test_activations_that_do_not_fit_the_rows():
    width = "expected a floating-point tensor of shape (160, any width)"
    for codes, text in (
        ([1.0], f"got list; {width}"),
        (torch.ones(5, 3), f"got shape (5, 3); {width}"),
        (SparseActivations.from_dense(torch.ones(5, 3)), "got 5 rows; expected 160 rows"),
    ):
        with pytest.raises(InputError) as caught:
            encode_batch("a", Returning(codes), ROWS, 0)
        assert str(caught.value) == f"models['a'].encode(inputs): {text}"

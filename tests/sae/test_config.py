"""The configurations: their defaults, which are those of the papers, and what they refuse."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from monoloss.errors import InputError
from monoloss.sae.config import (
    AuxLoss,
    BatchTopKConfig,
    InputScaling,
    JumpReluConfig,
    SaeConfig,
    TopKConfig,
    VanillaConfig,
)

M = 24
PLAIN = InputScaling(unit_norm=True, center=False, standardise=False)
STANDARDISED = InputScaling(unit_norm=True, center=False, standardise=True)
TOPK = TopKConfig("topk", M, 3)
EACH: list[SaeConfig] = [TOPK, BatchTopKConfig("batch_topk", M, 3), JumpReluConfig("jump_relu", M)]
EACH.append(VanillaConfig("vanilla", M))


def test_defaults_of_topk():
    assert TOPK.tied is False
    assert TOPK.inputs == STANDARDISED
    assert TOPK.aux == AuxLoss(k=64, weight=1 / 32, dead_after_samples=10_000_000)


def test_defaults_of_batch_topk():
    config = BatchTopKConfig("batch_topk", M, 3)
    assert config.inputs == PLAIN
    assert config.aux == AuxLoss(k=512, weight=1 / 32, dead_after_samples=10_000_000)


def test_defaults_of_jump_relu():
    config = JumpReluConfig("jump_relu", M)
    assert (config.l0_weight, config.bandwidth, config.target_l0) == (1e-3, 1e-3, None)
    assert (config.initial_threshold, config.dead_after_samples) == (1.0, 10_000_000)
    assert config.inputs == STANDARDISED


def test_defaults_of_vanilla():
    config = VanillaConfig("vanilla", M)
    assert (config.l1_weight, config.dead_after_samples) == (1e-4, 10_000_000)
    assert config.inputs == PLAIN


@pytest.mark.parametrize("config", EACH, ids=lambda config: config.variant)
def test_limits_are_allowed_and_no_field_changes(config):
    assert replace(config, n_latents=M + 1).n_latents == M + 1
    if isinstance(config, TopKConfig | BatchTopKConfig):
        assert replace(config, k=M).k == M
    if isinstance(config, JumpReluConfig):
        assert replace(config, target_l0=float(M), initial_threshold=0.0, l0_weight=0.0).target_l0 == M
    with pytest.raises(FrozenInstanceError):
        config.n_latents = 3


@pytest.mark.door
@pytest.mark.parametrize("config", EACH, ids=lambda config: config.variant)
def test_what_every_variant_refuses(config):
    other = "vanilla" if config.variant != "vanilla" else "topk"
    for options, text in (
        ({"variant": other}, f"variant: got {other!r}; expected one of {config.variant!r}"),
        ({"variant": "TopK"}, f"variant: got 'TopK'; expected one of {config.variant!r}"),
        ({"n_latents": 0}, "n_latents: got 0; expected an integer at least 1"),
        ({"n_latents": 2.0}, "n_latents: got 2.0; expected an integer at least 1"),
        ({"inputs": None}, "inputs: got a NoneType; expected an InputScaling"),
    ):
        with pytest.raises(InputError) as caught:
            replace(config, **options)
        assert str(caught.value) == text


@pytest.mark.door
@pytest.mark.parametrize("config", EACH[:2], ids=lambda config: config.variant)
def test_what_topk_and_batch_topk_refuse(config):
    for options, text in (
        ({"k": M + 1}, f"k: got {M + 1}; expected at most n_latents, {M}"),
        ({"k": 0}, "k: got 0; expected an integer at least 1"),
        ({"aux": None}, "aux: got a NoneType; expected an AuxLoss"),
    ):
        with pytest.raises(InputError) as caught:
            replace(config, **options)
        assert str(caught.value) == text


@pytest.mark.door
def test_what_jump_relu_refuses():
    for options, text in (
        ({"l0_weight": -1.0}, "l0_weight: got -1.0; expected a number at least 0.0"),
        ({"target_l0": 0.0}, "target_l0: got 0.0; expected a number above 0.0"),
        ({"target_l0": 25.0}, "target_l0: got 25.0; expected at most n_latents, 24"),
        ({"bandwidth": 0.0}, "bandwidth: got 0.0; expected a number above 0.0"),
        ({"initial_threshold": -0.1}, "initial_threshold: got -0.1; expected a number at least 0.0"),
        ({"dead_after_samples": 0}, "dead_after_samples: got 0; expected an integer at least 1"),
    ):
        with pytest.raises(InputError) as caught:
            JumpReluConfig("jump_relu", M, **options)
        assert str(caught.value) == text


@pytest.mark.door
def test_what_vanilla_and_the_parts_refuse():
    for call, text in (
        (lambda: VanillaConfig("vanilla", M, l1_weight=-1.0), "l1_weight: got -1.0; expected a number at least 0.0"),
        (
            lambda: VanillaConfig("vanilla", M, dead_after_samples=0),
            "dead_after_samples: got 0; expected an integer at least 1",
        ),
        (lambda: replace(TOPK, tied="no"), "tied: got a str; expected True or False"),
        (lambda: InputScaling(center=1), "inputs.center: got a int; expected True or False"),
        (lambda: AuxLoss(k=0), "aux.k: got 0; expected an integer at least 1"),
        (lambda: AuxLoss(k=1, weight=-1.0), "aux.weight: got -1.0; expected a number at least 0.0"),
        (
            lambda: AuxLoss(k=1, dead_after_samples=0.5),
            "aux.dead_after_samples: got 0.5; expected an integer at least 1",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text

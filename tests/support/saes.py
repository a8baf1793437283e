"""SAEs, rows with structure, and stores of them, for the tests of models, training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.sae.config import (
    AuxLoss,
    BatchTopKConfig,
    InputScaling,
    JumpReluConfig,
    SaeConfig,
    TopKConfig,
    VanillaConfig,
)
from monoloss.sae.model import SparseAutoencoder
from monoloss.sparse import Activations, SparseActivations
from sae import reference as sae_reference

VARIANTS_WITH_AUX = ("topk", "topk_tied", "batch_topk")
VARIANTS = (*VARIANTS_WITH_AUX, "jump_relu", "vanilla")
D, M, K = 10, 24, 3


def some_config(variant: str, m: int = M, k: int = K, **options: Any) -> SaeConfig:
    """A configuration by the name of its variant; `options` are its other fields. Not all have a `k`.

    JumpReLU's kernel is wide and its thresholds low: a few rows have entries near them and above them.
    """
    if variant == "batch_topk":
        return BatchTopKConfig("batch_topk", m, k, **options)
    if variant == "jump_relu":
        return JumpReluConfig("jump_relu", m, **({"bandwidth": 0.2, "initial_threshold": 0.5} | options))
    if variant == "vanilla":
        return VanillaConfig("vanilla", m, **options)
    return TopKConfig("topk", m, k, tied=variant == "topk_tied", **options)


def kind_of(variant: str) -> str:
    return variant.removesuffix("_tied")


def dense(codes: Activations) -> Tensor:
    """Codes as an (n, m) tensor, whichever way the variant gives them."""
    return codes.to_dense() if isinstance(codes, SparseActivations) else codes


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_sae(
    variant: str, scaling: InputScaling | None = None, aux: AuxLoss | None = None, seed: int = 0, **options: Any
) -> SparseAutoencoder:
    """In float64, with every parameter away from where it starts; thresholds above 0."""
    options |= {name: value for name, value in (("inputs", scaling), ("aux", aux)) if value is not None}
    config = some_config(variant, **options)
    generator = generator_of(seed)
    mean = torch.randn(D, generator=generator) * 0.1 if config.inputs.center else None
    sae = SparseAutoencoder(D, config, input_mean=mean, seed=seed).double()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
        if variant == "jump_relu":
            drawn = torch.rand(M, generator=generator, dtype=torch.float64)
            sae.activation.threshold.copy_(0.05 + 0.4 * drawn)
        sae.constrain_()
    return sae


def some_rows(n: int = 13, d: int = D, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of any length."""
    generator = generator_of(seed + 100)
    lengths = 0.3 + 4 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) * lengths + 0.2).to(dtype)


def weights_of(sae: SparseAutoencoder) -> sae_reference.Weights:
    """The weights as the reference takes them."""

    def array(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.detach().double().numpy().copy()

    return sae_reference.Weights(
        w_enc=array(sae.encoder_weight),
        b_enc=array(sae.encoder_bias),
        w_dec=array(sae.decoder_weight),
        b_dec=array(sae.decoder_bias),
        mean=array(sae.input_mean),
        theta=array(sae.activation.threshold) if sae.config.variant == "jump_relu" else None,
    )


def reference_pass(sae: SparseAutoencoder, inputs: Tensor, threshold: float | None = None) -> sae_reference.Pass:
    """What the reference makes of these rows."""
    return sae_reference.forward(
        inputs.double().numpy(),
        weights_of(sae),
        sae.config.variant,
        getattr(sae.config, "k", None),
        unit_norm=sae.config.inputs.unit_norm,
        standardise=sae.config.inputs.standardise,
        threshold=threshold,
    )


def structured_rows(n: int, d: int = 32, n_concepts: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sums of three of some directions on a common mean, with noise; labels: the strongest of the three."""
    directions = torch.randn(n_concepts, d, generator=generator_of(999))
    generator = generator_of(seed)
    chosen = torch.rand(n, n_concepts, generator=generator).argsort(1)[:, :3]
    strengths = torch.rand(n, 3, generator=generator).sort(1, descending=True).values + 0.3
    rows = (directions[chosen] * strengths[:, :, None]).sum(1) + 0.1 * torch.randn(n, d, generator=generator)
    return rows + 0.5, chosen[:, 0]


def structured_store(folder: Path, n: int, seed: int = 0, **options: Any) -> FeatureStore:
    """A store of such rows with their labels."""
    rows, labels = structured_rows(n, seed=seed)
    return FeatureStore.create(folder, rows, labels, **options)


def bits_of(module: torch.nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer, to compare bit by bit (NaN equals NaN here)."""
    return {name: tensor.detach().numpy().tobytes() for name, tensor in module.state_dict().items()}

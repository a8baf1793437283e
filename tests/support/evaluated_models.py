"""Models of every kind that an evaluation takes, and the rows that they encode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monoloss.sae.config import InputScaling
from monoloss.sae.model import SparseAutoencoder
from monoloss.sparse import SparseActivations
from support.saes import generator_of, some_config, structured_rows

D, M, N = 32, 40, 160


class Dense:
    """A user's own encoder: dense codes of any sign, never active on latent 0, once on latent 1."""

    def __init__(self) -> None:
        self.weight = torch.randn(D, M, generator=generator_of(2)) / 5

    def encode(self, inputs: Tensor) -> Tensor:
        z = inputs @ self.weight - 0.4
        z[:, 0] = 0.0
        z[:, 1] = torch.where(inputs[:, 0] == ROWS[7, 0], 3.0, 0.0)
        return z


class DenseWithDecoder(Dense):
    """The same with a way back."""

    def decode(self, codes: Tensor) -> Tensor:
        return (codes.relu() @ self.weight.t()) * 0.3 + 0.4


class Sparse(Dense):
    """The same, stored as the entries that are not 0, with a decoder that takes just those."""

    def encode(self, inputs: Tensor) -> SparseActivations:
        return SparseActivations.from_dense(super().encode(inputs).relu())

    def decode(self, codes: SparseActivations) -> Tensor:
        return (codes.to_dense() @ self.weight.t()) * 0.3 + 0.4


class Returning:
    """An encoder that gives back what it was made with."""

    def __init__(self, codes: Any, reconstruction: Any = None) -> None:
        self.codes = codes
        if reconstruction is not None:
            self.decode = lambda _: reconstruction

    def encode(self, inputs: Tensor) -> Any:
        return self.codes


ROWS, LABELS = structured_rows(N, seed=3)


def multi_labels() -> Tensor:
    """Two classes on some rows, none on others."""
    table = torch.zeros(N, 5, dtype=torch.bool)
    table[torch.arange(N), LABELS % 5] = torch.arange(N) % 4 != 0
    table[torch.arange(N), (LABELS * 3) % 5] |= torch.arange(N) % 3 == 0
    return table


def some_trained_sae(variant: str) -> SparseAutoencoder:
    """Codes and reconstructions that are neither perfect nor pointless; standardised and centred for TopK."""
    scaling = InputScaling(center=variant == "topk", standardise=variant != "batch_topk")
    mean = torch.nn.functional.normalize(ROWS).mean(0) if scaling.center else None
    sae = SparseAutoencoder(D, some_config(variant, M, 4, inputs=scaling), input_mean=mean, seed=4)
    with torch.no_grad():
        sae.decoder_bias.add_(0.05)
    sae.calibrate_([ROWS])
    return sae.eval()


MODELS: dict[str, Any] = {
    "topk": some_trained_sae("topk"),
    "topk_tied": some_trained_sae("topk_tied"),
    "batch_topk": some_trained_sae("batch_topk"),
    "jump_relu": some_trained_sae("jump_relu"),
    "vanilla": some_trained_sae("vanilla"),
    "dense": Dense(),
    "dense_with_decoder": DenseWithDecoder(),
    "sparse": Sparse(),
}

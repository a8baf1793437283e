"""Embeddings and activations for the tests of score and loss: every kind of latent, dense and in each sparse layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from monoloss.sparse import SparseActivations

CONSTANTS = (0.1, 100.1)  # 0.1 + 0.1 + 0.1 is not 0.3: constant latents must be caught all the same
DEAD, LOW_CONSTANT, HIGH_CONSTANT, SINGLE, DOMINATED, NEGATIVE, SIGNED, SPARSE_SIGNED, EVERY_ROW = range(9)
N_LATENTS = 13


def some_embeddings(n: int = 64, d: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of any length that lean the same way, so that chance is well above 0."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.5
    return (rows * (0.1 + 5 * torch.rand(n, 1, generator=generator, dtype=torch.float64))).to(dtype)


def some_activations(n: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64, offset: float = 0.0) -> Tensor:
    """``(n, N_LATENTS)``: one latent of each kind named above, the others as a ReLU leaves them, down to few rows."""
    generator = torch.Generator().manual_seed(seed + 1000)
    z = torch.randn(n, N_LATENTS, generator=generator, dtype=torch.float64)
    share = torch.linspace(0.02, 0.6, N_LATENTS, dtype=torch.float64)
    relu = torch.where(torch.rand(n, N_LATENTS, generator=generator) < share, z.abs(), 0.0)
    columns = relu.unbind(1)
    columns[DEAD].zero_()
    columns[LOW_CONSTANT].fill_(CONSTANTS[0])
    columns[HIGH_CONSTANT].fill_(CONSTANTS[1])
    columns[SINGLE].zero_()[n // 2 : n // 2 + 1] = 0.7
    columns[DOMINATED].copy_(z[:, DOMINATED].abs())[:1] = 10.0 * n  # n_eff about 1.2
    columns[NEGATIVE].copy_(-relu[:, NEGATIVE])
    columns[SIGNED].copy_(z[:, SIGNED])
    columns[SPARSE_SIGNED].copy_(torch.where(relu[:, SPARSE_SIGNED] > 0, z[:, SPARSE_SIGNED], 0.0))
    columns[EVERY_ROW].copy_(0.3 + z[:, EVERY_ROW].abs())
    return (relu + offset).to(dtype)


def some_batches(n_steps: int, dtype: torch.dtype = torch.float64, n: int = 40) -> list[tuple[Tensor, Tensor]]:
    """Embeddings and activations >= 0 of batches of unequal sizes."""
    return [
        (
            some_embeddings(n + 3 * step, seed=step, dtype=dtype),
            some_activations(n + 3 * step, step, dtype).clamp(min=0),
        )
        for step in range(n_steps)
    ]


def ragged(dense: Tensor) -> SparseActivations:
    """The non-zero entries only."""
    return SparseActivations.from_dense(dense)


def every_entry(dense: Tensor) -> SparseActivations:
    """Each entry stored, the zeros too, in another order in every row."""
    n, m = dense.shape
    generator = torch.Generator().manual_seed(n)
    indices = torch.rand(n, m, generator=generator).argsort(1)
    return SparseActivations(dense.gather(1, indices), indices, m)


def fixed_k(dense: Tensor, k: int = 4) -> SparseActivations:
    """The ``k`` entries of each row with the largest absolute value; their dense form is ``.to_dense()``."""
    indices = dense.abs().topk(min(k, dense.shape[1]), dim=1).indices
    return SparseActivations(dense.gather(1, indices), indices, dense.shape[1])


LAYOUTS: dict[str, Callable[[Tensor], Tensor | SparseActivations]] = {
    "dense": lambda dense: dense,
    "ragged": ragged,
    "every_entry": every_entry,
    "fixed_k": fixed_k,
}


def as_dense(activations: Tensor | SparseActivations) -> Tensor:
    return activations.to_dense() if isinstance(activations, SparseActivations) else activations


def rows_of(activations: Tensor | SparseActivations, rows: Tensor | slice) -> Tensor | SparseActivations:
    """Some rows of activations, in the same layout."""
    if not isinstance(activations, SparseActivations):
        return activations[rows]
    if activations.row_offsets is None:
        return SparseActivations(activations.values[rows], activations.indices[rows], activations.n_latents)
    chosen = torch.arange(activations.shape[0])[rows].tolist()
    bounds = activations.row_offsets.tolist()
    parts = [torch.arange(bounds[row], bounds[row + 1]) for row in chosen]
    entries = torch.cat([*parts, torch.zeros(0, dtype=torch.int64)])
    offsets = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    return SparseActivations(activations.values[entries], activations.indices[entries], activations.n_latents, offsets)


CLASSES = 5


def some_labels(*, multi: bool = False, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if multi:
        return torch.rand(64, CLASSES, generator=generator) < 0.3  # some rows have several classes, some none
    return torch.randint(0, CLASSES, (64,), generator=generator)


def some_reconstruction() -> Tensor:
    noise = torch.randn(64, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return some_embeddings() * 0.9 + 0.3 * noise

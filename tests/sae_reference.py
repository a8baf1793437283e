"""The sparse autoencoders once more from their papers: NumPy, float64; nothing of the library is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import reference
from reference import Array


@dataclass
class Weights:
    """What a SAE is made of; `b_enc` and `w_dec` are None where it has none."""

    w_enc: Array
    b_enc: Array | None
    w_dec: Array | None
    b_dec: Array
    mean: Array | None

    @property
    def decoder(self) -> Array:
        return self.w_enc.T if self.w_dec is None else self.w_dec


@dataclass
class Pass:
    """One pass over some rows, everything dense."""

    target: Array
    scale: Array
    pre_activations: Array
    codes: Array
    reconstruction: Array


def forward(
    inputs: Any,
    weights: Weights,
    kind: str,
    k: int,
    *,
    unit_norm: bool,
    standardise: bool,
    threshold: float | None = None,
) -> Pass:
    """Scale, encode, choose, decode, scale back, a row at a time; `kind` is "topk" or "batch_topk"."""
    target = reference.unit_rows(inputs) if unit_norm else np.asarray(inputs, dtype=np.float64)
    n, d = target.shape
    shift, scale, pre = np.zeros((n, d)), np.ones((n, 1)), np.zeros((n, weights.w_enc.shape[1]))
    for i in range(n):
        row = target[i].copy()
        if weights.mean is not None:
            row -= weights.mean
            shift[i] += weights.mean
        if standardise:
            mean = row.sum() / d
            std = np.sqrt(((row - mean) ** 2).sum() / (d - 1))
            shift[i] += mean
            scale[i] = std + 1e-5
            row = (row - mean) / scale[i]
        pre[i] = (row - weights.b_dec) @ weights.w_enc + (0.0 if weights.b_enc is None else weights.b_enc)
    if kind == "topk":
        codes = reference.top_k_codes(pre, k)
    elif threshold is None:
        codes = reference.batch_top_k_codes(pre, k)
    else:
        codes = np.where(pre > threshold, pre, 0.0)
    decoded = codes @ weights.decoder + weights.b_dec
    return Pass(target, scale, pre, codes, decoded * scale + shift)


def error(kind: str, reconstruction: Array, target: Array) -> float:
    """TopK: mean over rows of |x' - x|^2 / |x|^2; BatchTopK: mean over rows and dimensions of (x' - x)^2."""
    return reference.nmse(target, reconstruction) if kind == "topk" else reference.mse(target, reconstruction)


def aux_codes(done: Pass, dead: Array, k: int) -> Array:
    """The `k` largest dead latents of each row, or all of them where they are fewer, through a ReLU."""
    of_dead = np.where(dead[None, :], done.pre_activations, -np.inf)
    return reference.top_k_codes(of_dead, min(k, int(dead.sum())))


def aux_loss(kind: str, done: Pass, weights: Weights, dead: Array, k: int) -> float:
    """How far dead latents are from what the reconstruction leaves over (Gao et al., 2.4); 0 if none is dead."""
    if not dead.any():
        return 0.0
    rebuilt = aux_codes(done, dead, k) @ weights.decoder * done.scale
    return error(kind, rebuilt, done.target - done.reconstruction)

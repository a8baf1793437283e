"""The sparse autoencoders once more from their papers: NumPy, float64; nothing of the library is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import reference
from reference import Array


@dataclass
class Weights:
    """What a SAE is made of; None where it has none. `theta` are JumpReLU's thresholds, one a latent."""

    w_enc: Array
    b_enc: Array | None
    w_dec: Array | None
    b_dec: Array
    mean: Array | None
    theta: Array | None = None

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
    k: int | None = None,
    *,
    unit_norm: bool,
    standardise: bool,
    threshold: float | None = None,
) -> Pass:
    """Scale, encode, choose, decode, scale back, a row at a time; `kind` is the name of the variant.

    `threshold` is that of BatchTopK at inference.
    """
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
        if kind != "jump_relu":
            row -= weights.b_dec
        pre[i] = row @ weights.w_enc + (0.0 if weights.b_enc is None else weights.b_enc)
    if kind == "topk":
        codes = reference.top_k_codes(pre, k)
    elif kind == "jump_relu":
        codes = jump_relu_codes(pre, weights.theta)
    elif kind == "vanilla":
        codes = np.where(pre > 0, pre, 0.0)
    elif threshold is None:
        codes = reference.batch_top_k_codes(pre, k)
    else:
        codes = np.where(pre > threshold, pre, 0.0)
    decoded = codes @ weights.decoder + weights.b_dec
    return Pass(target, scale, pre, codes, decoded * scale + shift)


def error(kind: str, reconstruction: Array, target: Array) -> float:
    """TopK: mean over rows of |x' - x|^2 / |x|^2; others: mean over rows and dimensions of (x' - x)^2."""
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


# JumpReLU and Vanilla


def jump_relu_codes(pre: Array, theta: Array) -> Array:
    """`relu(pre)` where it is above the latent's threshold, 0 elsewhere."""
    codes = np.zeros_like(pre)
    for i, j in np.ndindex(*pre.shape):
        value = max(pre[i, j], 0.0)
        codes[i, j] = value if value > theta[j] else 0.0
    return codes


def l0_of_pre_activations(pre: Array, theta: Array) -> float:
    """Mean over rows of the number of latents with `relu(pre) > theta`."""
    return sum(max(pre[i, j], 0.0) > theta[j] for i, j in np.ndindex(*pre.shape)) / len(pre)


def l1(codes: Array) -> float:
    """Mean over rows of the sum of |z|."""
    return sum(abs(codes[i, j]) for i, j in np.ndindex(*codes.shape)) / len(codes)


def sparsity(kind: str, done: Pass, theta: Array | None = None, target: float | None = None) -> float:
    """What is added to the error, without its weight: L0, or `(L0 / target - 1)^2`; L1; nothing for the others."""
    if kind == "vanilla":
        return l1(done.codes)
    if kind != "jump_relu":
        return 0.0
    count = l0_of_pre_activations(done.pre_activations, theta)
    return count if target is None else (count / target - 1.0) ** 2


def kernel(x: float) -> float:
    """The rectangle: 1 for |x| < 1/2, 0 elsewhere."""
    return 1.0 if abs(x) < 0.5 else 0.0


def theta_gradient_of_codes(pre: Array, theta: Array, bandwidth: float, of_codes: Array) -> Array:
    """`sum_i dL/dz_ij dz_ij/dtheta_j`; `dz/dtheta = - theta / eps K((pre - theta) / eps)` where pre > 0."""
    total = np.zeros(len(theta))
    for i, j in np.ndindex(*pre.shape):
        near = kernel((pre[i, j] - theta[j]) / bandwidth) if pre[i, j] > 0 else 0.0
        total[j] += of_codes[i, j] * (-theta[j] / bandwidth) * near
    return total


def theta_gradient_of_l0(pre: Array, theta: Array, bandwidth: float) -> Array:
    """Of the mean over rows: `- 1 / (n eps) sum_i K((pre_ij - theta_j) / eps)` over pre > 0 (arXiv 2407.14435)."""
    total = np.zeros(len(theta))
    for i, j in np.ndindex(*pre.shape):
        near = kernel((pre[i, j] - theta[j]) / bandwidth) if pre[i, j] > 0 else 0.0
        total[j] -= near / bandwidth / len(pre)
    return total

"""SAEs of all kinds on random rows, their training steps, and rows whose codes do not hang on a rounding error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from step import Training
from torch import Tensor, nn

from gpu_parts.bench import Bench, Case, Line
from gpu_parts.sizes import Sizes
from monoloss import (
    BatchTopKConfig,
    JumpReluConfig,
    MonoLoss,
    SparseActivations,
    SparseAutoencoder,
    TopKConfig,
    VanillaConfig,
)
from monoloss.benchmark.dense import DenseSae, DenseTraining, dense_mono_loss
from monoloss.benchmark.measure import random_rows
from monoloss.functional.moments import unit_rows
from monoloss.sae.objectives import objective

KINDS = ("topk", "batch_topk", "jump_relu", "vanilla", "vanilla, sparse")
WEIGHTS = dict(zip(KINDS, (0.09, 3e-4, 5e-4, 1e-4, 1e-4), strict=True))  # the paper's, on ImageNet with CLIP
MEMORY, LR = 0.9, 1e-4
_CLEAR = 1e-5  # distance to the bound of a selection, in deviations of the pre-activations: 30 rounding errors
_PREFIXES = 32  # numbers of rows that are tried for BatchTopK


def step_cases(bench: Bench, step: Callable[..., Line]) -> dict[str, Case]:
    """Return the cases of `step`, by name: all kinds at each batch size, then TopK with more latents."""
    sizes = bench.sizes
    found: dict[str, Case] = {}
    for n in sizes.step_batches:
        for kind in KINDS:
            found[f"{kind}, batch {n}"] = partial(step, bench, kind, n, sizes.n_latents)
    n = sizes.step_batches[0]
    for m in sizes.wide_latents:
        found[f"topk, {m} latents, batch {n}"] = partial(step, bench, "topk", n, m)
    return found


def make_sae(kind: str, sizes: Sizes, n_latents: int | None = None) -> SparseAutoencoder:
    """Return an untrained SAE on the CPU with about k active latents a row; "vanilla" has half of them active."""
    m, k = n_latents or sizes.n_latents, sizes.k
    match kind:
        case "topk":
            return SparseAutoencoder(sizes.width, TopKConfig("topk", m, k))
        case "batch_topk":
            return SparseAutoencoder(sizes.width, BatchTopKConfig("batch_topk", m, k))
        case "jump_relu":
            sae = SparseAutoencoder(sizes.width, JumpReluConfig("jump_relu", m, bandwidth=sizes.bandwidth))
        case _:
            sae = SparseAutoencoder(sizes.width, VanillaConfig("vanilla", m))
    if kind != "vanilla":
        _make_sparse(sae, random_rows(128, sizes.width, 1), k)
    return sae


@torch.no_grad()
def _make_sparse(sae: SparseAutoencoder, rows: Tensor, k: int) -> None:
    """Set the thresholds, of Vanilla the bias, so that k latents of a row are active on average."""
    lowest = pre_activations(sae, rows).flatten().topk(k * len(rows)).values.amin()
    if isinstance(sae.config, JumpReluConfig):
        sae.activation.threshold.copy_(lowest)
    else:
        assert sae.encoder_bias is not None
        sae.encoder_bias.sub_(lowest)


def pre_activations(sae: SparseAutoencoder, rows: Tensor) -> Tensor:
    """Return the pre-activations ``(n, m)`` of rows."""
    return sae.pre_activations(sae.scale(rows).scaled)


def trainings(kind: str, sae: SparseAutoencoder) -> dict[str, Callable[[], Training | DenseTraining]]:
    """Return functions that make the training steps, ours and dense, each on a copy of `sae` and its device."""
    weight = WEIGHTS[kind]

    def ours(mono: MonoLoss | None) -> Training:
        """Return our training."""
        device = sae.encoder_weight.device
        return Training(copy.deepcopy(sae), None if mono is None else mono.to(device), weight)

    return {
        "ours": lambda: ours(None),
        "ours + MonoLoss": lambda: ours(MonoLoss()),
        "ours + MonoLoss, memory": lambda: ours(MonoLoss(memory=MEMORY)),
        "dense": lambda: DenseTraining(DenseSae(sae), None, weight, LR),
        "dense + MonoLoss": lambda: DenseTraining(DenseSae(sae), dense_mono_loss, weight, LR),
    }


def loss_and_gradients(
    sae: SparseAutoencoder, rows: Tensor, weight: float, *, autocast: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the training loss with MonoLoss, and its gradient for each parameter; forward in bfloat16 autocast."""
    sae.zero_grad()
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=autocast):
        output = sae(rows)
        total = objective(sae, output).total + weight * MonoLoss()(unit_rows(rows), output.codes)
    total.backward()
    return total.detach(), gradients(sae)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of each parameter's gradient, by the parameter's name."""
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return {name: grad.clone() for name, grad in named if grad is not None}


@torch.no_grad()
def clear_rows(sae: SparseAutoencoder, rows: Tensor) -> Tensor:
    """Return those of `rows` whose codes, and entries within a kernel, do not change by rounding.

    For Vanilla only the half whose pre-activations are farthest from 0: with a value near 0 in one of a latent's two
    active rows, the gradient of its score is mostly rounding error. For BatchTopK in training, whose bound depends on
    all rows, the first rows, as many as make its bound clearest.
    """
    pre = pre_activations(sae, rows)
    config = sae.config
    if isinstance(config, BatchTopKConfig) and sae.training:
        numbers = range(len(rows), max(1, len(rows) - _PREFIXES), -1)
        return rows[: max(numbers, key=lambda n: float(_gap(pre[:n].reshape(1, -1), config.k * n)))]
    least = _CLEAR * pre.std()
    match config:
        case TopKConfig():
            distance = _gap(pre, config.k)
        case BatchTopKConfig():
            distance = (pre - sae.activation.threshold).abs().amin(1)
        case JumpReluConfig():
            from_threshold = (pre - sae.activation.threshold).abs()
            from_kernel = (from_threshold - config.bandwidth / 2).abs()
            distance = torch.minimum(from_threshold, from_kernel).amin(1)
        case VanillaConfig():
            distance = pre.abs().amin(1)
            least = least.maximum(distance.median())
    clear = rows[distance > least]
    assert len(clear) >= len(rows) // 3, f"only {len(clear)} of {len(rows)} rows have codes that rounding cannot change"
    return clear


def _gap(values: Tensor, count: int) -> Tensor:
    """Return the distance between the `count`-th largest entry of each row and the next."""
    largest = values.topk(count + 1, dim=1).values
    return largest[:, -2] - largest[:, -1]


def random_codes(n: int, n_latents: int, k: int, device: torch.device) -> SparseActivations:
    """Return codes with k entries a row, one at random in each k-th part of the latents."""
    part = n_latents // k
    indices = torch.arange(k, device=device) * part + torch.randint(part, (n, k), device=device)
    return SparseActivations(torch.rand(n, k, device=device), indices, n_latents, check=False)

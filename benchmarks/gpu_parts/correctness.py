"""Part "correctness": score, loss, products, and encode and training step of each SAE, on the GPU against the CPU.

A difference is the norm of the difference over the norm of what the CPU gives, unless its name says otherwise. Where a
bound is exceeded, the line has the key "error". In a rehearsal both sides run on the CPU, one on the path of GPUs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial

import torch
from step import Training
from torch import Tensor

from gpu_parts.bench import Bench, Case, Line
from gpu_parts.models import KINDS, LR, MEMORY, WEIGHTS, clear_rows, loss_and_gradients, make_sae
from monoloss import MonoLoss, MonoScore, SparseActivations, SparseAutoencoder, mono_loss
from monoloss.benchmark.measure import random_rows
from monoloss.functional.score import n_eff
from monoloss.sparse import Activations
from monoloss.sparse.products import codes_matmul, codes_t_matmul, sampled_matmul

SCORE, VALUE, GRADIENT = 1e-5, 1e-5, 1e-4  # bounds of differences in float32
NEAR_ZERO = 1e-3  # of gradients of Vanilla, whose codes may be near 0: see `clear_rows`
MOVEMENT = 0.05  # Adam's first step has the length of the rate, also for a gradient that is all rounding error
MIN_N_EFF = 1.1  # scores of fewer effective rows are mostly rounding error and not compared
Differences = dict[str, tuple[float, float]]  # name: difference, bound


def cases(bench: Bench) -> dict[str, Case]:
    """Return the cases of this part by name."""
    checks: dict[str, Callable[[Bench], Differences]] = {
        "score": check_scores,
        "loss": check_losses,
        "loss with memory": check_memory,
        "products": check_products,
    }
    for kind in KINDS:
        checks[f"{kind}: encode"] = partial(check_encode, kind=kind)
        checks[f"{kind}: step"] = partial(check_step, kind=kind)
    return {name: partial(_judged, bench, check) for name, check in checks.items()}


def _judged(bench: Bench, check: Callable[[Bench], Differences], _deadline: float) -> Line:
    """Return each difference of a check with its bound, with an error if one is exceeded."""
    differences = check(bench)
    exceeded = [name for name, (is_off, bound) in differences.items() if not is_off <= bound]
    line: Line = {"difference_and_bound": {name: [_short(each) for each in pair] for name, pair in differences.items()}}
    return line | ({"error": f"a difference above its bound: {', '.join(exceeded)}"} if exceeded else {})


def _short(number: float) -> float | str:
    """Return a number with three digits; as text where JSON has no word for it."""
    return float(f"{number:.3g}") if math.isfinite(number) else str(number)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return ``|found - expected| / |expected|``, in float64 on the CPU."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())  # NaN, above any bound, where there is nothing to compare


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def check_scores(bench: Bench) -> Differences:
    """Compare scores of equal activations, over two batches; autocast may not change them."""
    sizes, found = bench.sizes, Differences()
    rows = random_rows(2 * sizes.checked_rows, sizes.width, 0)
    codes = _encoded(rows, bench)
    kinds: dict[str, Activations] = {
        "codes": codes,
        "codes in bfloat16": codes.to(torch.bfloat16),
        "dense codes": codes.to_dense(),
        "dense, any sign": torch.randn(len(rows), sizes.n_latents) + 0.5,
    }
    for kind, activations in kinds.items():
        expected = _metric(rows, activations)
        compared, scores = n_eff(expected.sums) >= MIN_N_EFF, expected.compute()
        for suffix, context in (("", nullcontext()), (", autocast", _autocast(bench.device))):
            with bench.like_a_gpu(), context:
                other = _metric(rows.to(bench.device), activations.to(bench.device)).compute().cpu()
            is_off = (other - scores).abs()[compared & ~scores.isnan()]
            found[f"{kind}{suffix}, largest"] = float(is_off.max()), SCORE
            found[f"{kind}{suffix}, defined"] = float((other.isnan() != scores.isnan()).sum()), 0
    return found


def _encoded(rows: Tensor, bench: Bench) -> SparseActivations:
    """Return TopK codes of rows, made on the CPU."""
    with torch.no_grad():
        return make_sae("topk", bench.sizes).eval().encode(rows)


def _metric(rows: Tensor, activations: Activations) -> MonoScore:
    """Return the metric after an update with each half of the rows."""
    metric = MonoScore(rows.shape[1], activations.shape[1]).to(rows.device)
    half = len(rows) // 2
    for part in (slice(0, half), slice(half, None)):
        metric.update(rows[part], _rows_of(activations, part))
    return metric


def _rows_of(activations: Activations, rows: slice) -> Activations:
    """Return some rows of activations, with k stored entries each if sparse."""
    if isinstance(activations, SparseActivations):
        values, indices = activations.values[rows], activations.indices[rows]
        return SparseActivations(values, indices, activations.n_latents, check=False)
    return activations[rows]


def check_losses(bench: Bench) -> Differences:
    """Compare the loss and its gradients for activations and embeddings; autocast may not change them."""
    sizes, found = bench.sizes, Differences()
    rows = random_rows(sizes.checked_rows, sizes.width, 0)
    codes = _encoded(rows, bench)
    kinds: dict[str, Activations] = {
        "codes": codes,
        "dense codes": codes.to_dense(),
        "dense, any sign": torch.randn(len(rows), sizes.n_latents) + 0.5,
    }
    for kind, activations in kinds.items():
        expected = _loss(mono_loss, rows, activations)
        for suffix, context in (("", nullcontext()), (", autocast", _autocast(bench.device))):
            with bench.like_a_gpu(), context:
                other = _loss(mono_loss, rows.to(bench.device), activations.to(bench.device))
            for name, one, right in zip(("loss", "gradient", "of embeddings"), other, expected, strict=True):
                found[f"{kind}{suffix}, {name}"] = difference(one, right), VALUE if name == "loss" else GRADIENT
    return found


def _loss(criterion: Callable[..., Tensor], rows: Tensor, activations: Activations) -> tuple[Tensor, Tensor, Tensor]:
    """Return a loss, its gradient for the (stored) activations, and that for the embeddings."""
    rows = rows.clone().requires_grad_()
    if isinstance(activations, SparseActivations):
        values = activations.values.clone().requires_grad_()
        loss = criterion(rows, activations.with_values(values))
    else:
        values = activations.clone().requires_grad_()
        loss = criterion(rows, values)
    loss.backward()
    assert values.grad is not None
    assert rows.grad is not None
    return loss.detach(), values.grad, rows.grad


def check_memory(bench: Bench) -> Differences:
    """Compare three steps of MonoLoss with memory and a centre: last loss and gradient, and the sums."""
    sizes = bench.sizes
    rows = random_rows(3 * sizes.checked_rows, sizes.width, 0)
    codes = _encoded(rows, bench)

    def after_steps(device: torch.device) -> dict[str, Tensor]:
        """Return what is compared, computed on a device."""
        mono = MonoLoss(center=rows.mean(0), memory=MEMORY).to(device)
        for start in range(0, len(rows), sizes.checked_rows):
            part = slice(start, start + sizes.checked_rows)
            results = _loss(mono, rows[part].to(device), _rows_of(codes, part).to(device))
        names = ("loss", "gradient", "of embeddings")
        return dict(zip(names, results, strict=True)) | dict(mono.named_buffers())

    expected = after_steps(torch.device("cpu"))
    with bench.like_a_gpu():
        found = after_steps(bench.device)
    gradients = ("gradient", "of embeddings")
    return {name: (difference(found[name], expected[name]), GRADIENT if name in gradients else VALUE) for name in found}


def check_products(bench: Bench) -> Differences:
    """Compare the three sparse products with dense ones in float64, with equal and with ragged rows."""
    sizes, found = bench.sizes, Differences()
    rows = random_rows(sizes.checked_rows, sizes.width, 0)
    codes = _encoded(rows, bench)
    weight = make_sae("topk", sizes).decoder_rows.detach()
    for kind, each in {"equal rows": codes, "ragged rows": SparseActivations.from_dense(codes.to_dense())}.items():
        dense, left, right = each.to_dense().double(), rows.double(), weight.double()
        expected = {
            "codes @ dense": dense @ right,
            "codes^T @ dense": dense.t() @ left,
            "sampled": (left @ right.t())[each.rows, each.flat_indices],
        }
        moved, left, right = each.to(bench.device), rows.to(bench.device), weight.to(bench.device)
        with bench.like_a_gpu():
            other = {
                "codes @ dense": codes_matmul(moved, right),
                "codes^T @ dense": codes_t_matmul(moved, left),
                "sampled": sampled_matmul(moved, left, right),
            }
        found |= {f"{kind}, {name}": (difference(other[name], expected[name]), VALUE) for name in expected}
    return found


def check_encode(bench: Bench, kind: str) -> Differences:
    """Compare codes in ``eval()``: in float32 of rows that rounding cannot change, then in autocast."""
    sizes = bench.sizes
    rows = random_rows(sizes.checked_rows, sizes.width, 0)
    sae = make_sae(kind, sizes)
    sae.calibrate_([rows])
    sae.eval()

    @torch.no_grad()
    def codes(rows: Tensor, *, autocast: bool) -> Tensor:
        """Return dense codes on the CPU, computed on the device of the rows."""
        model = copy.deepcopy(sae).to(rows.device)
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=autocast):
            return model.encode(rows).to_dense().float().cpu()

    clear = clear_rows(sae, rows)
    expected = codes(clear, autocast=False)
    with bench.like_a_gpu():
        found = codes(clear.to(bench.device), autocast=False)
        lowered = codes(clear.to(bench.device), autocast=True)
    by_cpu = difference(codes(clear, autocast=True), expected)
    return {
        "codes": (difference(found, expected), VALUE),
        "active on one device only": (float(((found > 0) != (expected > 0)).sum()), 0),
        "autocast, from float32": (difference(lowered, expected), _autocast_bound(by_cpu)),
    }


def check_step(bench: Bench, kind: str) -> Differences:
    """Compare a training step with MonoLoss: loss, gradients, movement and counters; then loss and gradients in bf16.

    The gradients of the step are projected and clipped.
    """
    sizes = bench.sizes
    sae = make_sae(kind, sizes)
    rows = clear_rows(sae, random_rows(sizes.checked_rows, sizes.width, 0))

    def stepped(rows: Tensor) -> tuple[Tensor, SparseAutoencoder]:
        """Return the loss of one step on the device of the rows, and the SAE after it."""
        model = copy.deepcopy(sae).to(rows.device)
        loss = Training(model, MonoLoss().to(rows.device), WEIGHTS[kind]).step(rows)
        return loss, model

    expected_loss, expected = stepped(rows)
    with bench.like_a_gpu():
        loss, model = stepped(rows.to(bench.device))
    found: Differences = {"loss": (difference(loss, expected_loss), VALUE)}
    bound = NEAR_ZERO if kind.startswith("vanilla") else GRADIENT
    start, right = dict(sae.named_parameters()), dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        (grad, expected_grad), moved = (parameter.grad, right[name].grad), right[name] - start[name]
        assert grad is not None
        assert expected_grad is not None
        found[f"gradient of {name}"] = difference(grad, expected_grad), bound
        found[f"movement of {name}, at rate {LR:g}"] = difference(parameter.cpu() - start[name], moved), MOVEMENT
    counted = model.samples_since_active.cpu() != expected.samples_since_active
    found["latents counted as active on one device only"] = float(counted.sum()), 0
    return found | _lowered_step(bench, kind, sae, rows)


def _lowered_step(bench: Bench, kind: str, sae: SparseAutoencoder, rows: Tensor) -> Differences:
    """Compare loss and gradients in autocast with float32 on the CPU."""
    weight, found = WEIGHTS[kind], Differences()
    loss, gradients = loss_and_gradients(copy.deepcopy(sae), rows, weight)
    exact: Mapping[str, Tensor] = {"loss": loss, **gradients}
    loss, gradients = loss_and_gradients(copy.deepcopy(sae), rows, weight, autocast=True)
    by_cpu = {"loss": loss, **gradients}
    with bench.like_a_gpu():
        model = copy.deepcopy(sae).to(bench.device)
        loss, gradients = loss_and_gradients(model, rows.to(bench.device), weight, autocast=True)
    for name, other in {"loss": loss, **gradients}.items():
        bound = _autocast_bound(difference(by_cpu[name], exact[name]))
        found[f"autocast, {name}, from float32"] = difference(other, exact[name]), bound
    return found


def _autocast_bound(of_cpu: float) -> float:
    """Return how far autocast on the device may be from float32, given how far it is on the CPU."""
    return 3 * of_cpu + 5e-3

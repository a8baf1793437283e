"""Part "step": a training step of each SAE, ours and dense, without and with MonoLoss; and MonoLoss alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpu_parts.bench import Bench, Case, Line, ratio
from gpu_parts.models import clear_rows, gradients, make_sae, step_cases, trainings
from monoloss import MonoLoss, SparseActivations, SparseAutoencoder
from monoloss.benchmark.dense import dense_mono_loss
from monoloss.benchmark.measure import random_rows
from monoloss.benchmark.pairwise import loss as loss_of
from monoloss.benchmark.pairwise import pairwise_score, pairwise_score_as_product

OURS, OURS_MONO, OURS_MEMORY = "ours", "ours + MonoLoss", "ours + MonoLoss, memory"
DENSE, DENSE_MONO = "dense", "dense + MonoLoss"
LOSS, GRADIENT = 1e-5, 1e-3  # bounds of relative differences between ours and dense
_N_BATCHES = 3


def cases(bench: Bench) -> dict[str, Case]:
    """Return the cases of this part by name."""
    n = bench.sizes.step_batches[0]
    return {f"MonoLoss alone, batch {n}": partial(_alone, bench, n)} | step_cases(bench, _step)


def _step(bench: Bench, kind: str, n: int, n_latents: int, deadline: float) -> Line:
    """Assert that a step agrees, then time each training, each step on the next batch."""
    sizes = bench.sizes
    sae = make_sae(kind, sizes, n_latents).to(bench.device)
    rows = random_rows(_N_BATCHES * n, sizes.width, 0).to(bench.device)
    found: Line = {"relative_differences": assert_equal_steps(kind, sae, rows[: min(n, sizes.checked_rows)])}
    with torch.no_grad():
        codes = sae(rows[:n]).codes
    found["codes"] = "sparse" if isinstance(codes, SparseActivations) else "dense"
    values = codes.values if isinstance(codes, SparseActivations) else codes
    found["l0"] = float((values > 0).sum()) / n
    del codes, values
    batches = rows.split(n)
    runs: dict[str, Callable[[], object]] = {}
    for name, make in trainings(kind, sae).items():
        runs[name] = partial(_next_step, make().step, batches, [0])
    times = bench.times(runs, deadline)
    found["times"] = times
    for name in (OURS_MONO, OURS_MEMORY):
        more = ratio(times, name, OURS)
        found[f"{name} adds_percent"] = None if more is None else 100 * (more - 1)
    more = ratio(times, DENSE_MONO, DENSE)
    found[f"{DENSE_MONO} adds_percent"] = None if more is None else 100 * (more - 1)
    found["dense_over_ours"] = ratio(times, DENSE, OURS)
    found["dense_over_ours_with_mono_loss"] = ratio(times, DENSE_MONO, OURS_MONO)
    return found


def _next_step(step: Callable[[Tensor], Tensor], batches: tuple[Tensor, ...], taken: list[int]) -> None:
    """Take a step on the batch after the last one; `taken` has the number of steps."""
    step(batches[taken[0] % len(batches)])
    taken[0] += 1


def assert_equal_steps(kind: str, sae: SparseAutoencoder, rows: Tensor) -> dict[str, float]:
    """Assert that our step with MonoLoss and the dense one give the same loss and gradients; return the differences."""
    rows = clear_rows(sae, rows)
    ours, dense = (trainings(kind, sae)[name]() for name in (OURS_MONO, DENSE_MONO))
    losses = float(ours.step(rows)), float(dense.step(rows))
    found = {"loss": abs(losses[0] / losses[1] - 1)}
    assert found["loss"] <= LOSS, f"losses {losses[0]} and {losses[1]}"
    expected = gradients(dense.sae)
    for name, grad in gradients(ours.sae).items():
        found[name] = float((grad - expected[name]).norm() / expected[name].norm())
        assert found[name] <= GRADIENT, f"gradients of {name} differ by {found[name]:.1e}"
    return found


def _alone(bench: Bench, n: int, deadline: float) -> Line:
    """Time MonoLoss of one batch of TopK codes, forward and backward: ours, dense, over pairs."""
    sizes = bench.sizes
    rows = random_rows(n, sizes.width, 0).to(bench.device)
    with torch.no_grad():
        codes = make_sae("topk", sizes).to(bench.device).encode(rows)
    values, dense = codes.values.clone().requires_grad_(), codes.to_dense().requires_grad_()
    mono = MonoLoss()

    def ours() -> None:
        """Compute loss and gradient of the stored entries; their order by latent too."""
        values.grad = None
        mono(rows, SparseActivations(values, codes.indices, codes.n_latents, check=False)).backward()

    def opponent(criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Compute loss and gradient of all entries."""
        dense.grad = None
        criterion(rows, dense).backward()

    def over_pairs(embeddings: Tensor, activations: Tensor) -> Tensor:
        """Compute the loss pair by pair, on a GPU for all latents at a time."""
        block = sizes.n_latents if bench.is_gpu else min(256, sizes.n_latents)
        return loss_of(pairwise_score(embeddings, activations, block))

    def as_product(embeddings: Tensor, activations: Tensor) -> Tensor:
        """Compute the loss over pairs by matrix products."""
        return loss_of(pairwise_score_as_product(embeddings, activations))

    runs: dict[str, Callable[[], object]] = {"ours": ours}
    criteria = {"dense": dense_mono_loss, "pairs as product": as_product, "pairs": over_pairs}
    runs |= {name: partial(opponent, criterion) for name, criterion in criteria.items()}
    ours()
    assert values.grad is not None
    expected, found = values.grad.clone(), {}
    for name in criteria:
        runs[name]()
        assert dense.grad is not None
        found[name] = float((dense.grad.gather(1, codes.indices) - expected).norm() / expected.norm())
        assert found[name] <= GRADIENT, f"gradients of {name} differ by {found[name]:.1e}"
    times = bench.times(runs, deadline)
    line: Line = {"relative_differences": found, "times": times}
    return line | {"pairs_over_ours": ratio(times, "pairs", "ours"), "paper_pairs_over_linear": 159}

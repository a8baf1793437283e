"""MonoScore by its definition, over all pairs of rows: opponents of the linear form."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

LATENTS_PER_BLOCK = 256  # the fastest of those measured: with 2048 rows, 2 MB of pair weights at a time


def scaled(activations: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Scale each latent to 0 to 1, ``a = (z - min) / (max - min)``; a constant latent becomes all 0.

    The range ``max - min`` gets no gradient, because it cancels in every score. A minimum of 0, the floor of a ReLU,
    gets none either; rows that share another minimum share its gradient.
    """
    low, high = activations.detach().amin(0), activations.detach().amax(0)
    spread = (high - low).clamp(min=torch.finfo(high.dtype).tiny)
    if activations.requires_grad and low.any():
        low = torch.where(low == 0, 0.0, activations.amin(0))
    return (activations - low) / spread


def score(similarity: Float[Tensor, " m"], weight: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Divide the weighted sum of cosines by the sum of weights; NaN, without a gradient, where that is 0."""
    defined = weight > 0
    return torch.where(defined, similarity / torch.where(defined, weight, 1.0), torch.nan)


def loss(scores: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Return one minus the mean of the defined scores; 1 where none is defined."""
    defined = ~scores.isnan()
    return 1.0 - torch.where(defined, scores, 0.0).sum() / defined.sum().clamp(min=1)


def pairwise_score(
    embeddings: Float[Tensor, "n d"], activations: Float[Tensor, "n m"], latents_per_block: int = LATENTS_PER_BLOCK
) -> Float[Tensor, " m"]:
    """Compute each latent's mean cosine over all pairs of rows ``i < l``, weighted by ``a_i a_l``, pair by pair.

    Time O(n^2 (d + m)); memory ``n^2``, and ``n latents_per_block`` for each thread. Each pair is taken once, a row
    with all later rows at a time. The gradient with respect to the activations goes over the pairs again.

    Args:
        embeddings: ``(n, d)``, rows of any length but 0; no gradient.
        activations: ``(n, m)``, dense.
        latents_per_block: latents whose weights a thread holds in memory at a time.

    Returns:
        Scores ``(m,)`` in the dtype of the activations, NaN where undefined.
    """
    h = normalize(embeddings.detach())
    cosines = h @ h.t()
    scores: Tensor = _Pairs.apply(cosines, scaled(activations), latents_per_block)
    return scores


def pairwise_score_as_product(
    embeddings: Float[Tensor, "n d"], activations: Float[Tensor, "n m"]
) -> Float[Tensor, " m"]:
    """Compute :func:`pairwise_score` by matrix products, ``diag(A^T (H H^T) A)`` without pairs of a row with itself.

    Time O(n^2 (d + m)) too, but mostly in matrix products, so this is the fastest form of the pairwise score. Arguments
    and result are those of :func:`pairwise_score`.
    """
    h = normalize(embeddings.detach())
    cosines, a = (h @ h.t()).fill_diagonal_(0.0), scaled(activations)
    weight = a.sum(0).square() - a.square().sum(0)
    residue = 8 * torch.finfo(a.dtype).eps * a.detach().sum(0).square()  # rounding error where one row is active
    return score((a * (cosines @ a)).sum(0), torch.where(weight > residue, weight, 0.0))


def pairwise_loss(embeddings: Float[Tensor, "n d"], activations: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Compute MonoLoss of a batch, one minus the mean of :func:`pairwise_score`."""
    return loss(pairwise_score(embeddings, activations))


class _Pairs(torch.autograd.Function):
    """Weighted mean cosine over all pairs of rows and its derivative, both pair by pair in blocks of latents."""

    @staticmethod
    def forward(ctx: Any, cosines: Tensor, a: Tensor, latents_per_block: int) -> Tensor:
        scores, weight = a.new_zeros(a.shape[1]), a.new_zeros(a.shape[1])

        def add_up(latents: slice) -> None:
            part = a[:, latents].contiguous()
            similarity, total = part.new_zeros(part.shape[1]), part.new_zeros(part.shape[1])
            for i in range(len(part) - 1):
                weights = part[i] * part[i + 1 :]
                similarity += cosines[i, i + 1 :] @ weights
                total += weights.sum(0)
            scores[latents], weight[latents] = score(similarity, total), total

        _run_on_threads(add_up, a.shape[1], latents_per_block)
        ctx.save_for_backward(cosines, a, scores, weight)
        ctx.latents_per_block = latents_per_block
        return scores

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[None, Tensor, None]:
        cosines, a, scores, weight = ctx.saved_tensors
        defined = weight > 0
        mean = torch.where(defined, scores, 0.0)
        factor = torch.where(defined, grad_scores / torch.where(defined, weight, 1.0), 0.0)
        grad = torch.empty_like(a)

        def add_up(latents: slice) -> None:
            part, grad_part = a[:, latents].contiguous(), torch.zeros_like(a[:, latents])
            for i in range(len(part) - 1):
                grad_weights = (cosines[i, i + 1 :, None] - mean[latents]) * factor[latents]
                grad_part[i + 1 :] += grad_weights * part[i]
                grad_part[i] += (grad_weights * part[i + 1 :]).sum(0)
            grad[:, latents] = grad_part

        _run_on_threads(add_up, a.shape[1], ctx.latents_per_block)
        return None, grad, None


def _run_on_threads(run: Callable[[slice], None], m: int, latents_per_block: int) -> None:
    """Call `run` on all blocks of latents, one in each of torch's threads at a time.

    Each of the many small products runs on one thread, so that no thread waits for others.
    """
    blocks = [slice(first, first + latents_per_block) for first in range(0, m, latents_per_block)]
    n_threads = torch.get_num_threads()

    def run_on_one_thread(latents: slice) -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            run(latents)

    try:
        with ThreadPoolExecutor(n_threads) as workers:
            list(workers.map(run_on_one_thread, blocks))
    finally:
        torch.set_num_threads(n_threads)

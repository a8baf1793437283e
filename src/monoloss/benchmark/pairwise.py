"""MonoScore as it is defined, over all pairs of rows: what the linear form is compared with."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

LATENTS_PER_BLOCK = 256  # of 2048 rows' pair weights, 2 MB at a time: measured the fastest


def scaled(activations: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Each latent from 0 to 1, ``a = (z - min) / (max - min)``; all 0 where it is constant.

    The range takes no part in the gradient, because it cancels in every score. A minimum of 0 is the floor of a ReLU
    and takes none either; rows that share another minimum share its gradient.
    """
    low, high = activations.detach().amin(0), activations.detach().amax(0)
    spread = (high - low).clamp(min=torch.finfo(high.dtype).tiny)
    if activations.requires_grad and low.any():
        low = torch.where(low == 0, 0.0, activations.amin(0))
    return (activations - low) / spread


def score(similarity: Float[Tensor, " m"], weight: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Similarity over weight; NaN where there is no weight, and no gradient there."""
    defined = weight > 0
    return torch.where(defined, similarity / torch.where(defined, weight, 1.0), torch.nan)


def loss(scores: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """One minus the mean over the latents that have a score; 1 where none has."""
    defined = ~scores.isnan()
    return 1.0 - torch.where(defined, scores, 0.0).sum() / defined.sum().clamp(min=1)


def pairwise_score(
    embeddings: Float[Tensor, "n d"], activations: Float[Tensor, "n m"], latents_per_block: int = LATENTS_PER_BLOCK
) -> Float[Tensor, " m"]:
    """The mean cosine over all pairs ``i < l``, weighted by ``a_i a_l``: each weight of each latent is formed.

    O(n^2 (d + m)) time; memory ``n^2``, and ``n latents_per_block`` for each thread. Each pair is taken once, a
    row with all its partners at a time. The gradient with respect to the activations goes over the pairs again.

    Args:
        embeddings: ``(n, d)``, rows of any length but 0; no gradient.
        activations: ``(n, m)``, dense.
        latents_per_block: latents whose weights are there at a time.

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
    """The same sum over pairs as matrix products, ``diag(A^T (H H^T) A)`` without self-pairs.

    O(n^2 (d + m)) too, but in the form that computers are fastest at: the kindest form of the pairwise score. Takes and
    gives what :func:`pairwise_score` does.
    """
    h = normalize(embeddings.detach())
    cosines, a = (h @ h.t()).fill_diagonal_(0.0), scaled(activations)
    weight = a.sum(0).square() - a.square().sum(0)
    residue = 8 * torch.finfo(a.dtype).eps * a.detach().sum(0).square()  # what rounding leaves of a single row
    return score((a * (cosines @ a)).sum(0), torch.where(weight > residue, weight, 0.0))


def pairwise_loss(embeddings: Float[Tensor, "n d"], activations: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """MonoLoss of a batch from :func:`pairwise_score`: one minus the mean score."""
    return loss(pairwise_score(embeddings, activations))


class _Pairs(torch.autograd.Function):
    """Weighted mean over all pairs of rows, with its derivative, both pair by pair, some latents at a time."""

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

        _each_on_a_core(add_up, a.shape[1], latents_per_block)
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
            part, of_part = a[:, latents].contiguous(), torch.zeros_like(a[:, latents])
            for i in range(len(part) - 1):
                of_weights = (cosines[i, i + 1 :, None] - mean[latents]) * factor[latents]
                of_part[i + 1 :] += of_weights * part[i]
                of_part[i] += (of_weights * part[i + 1 :]).sum(0)
            grad[:, latents] = of_part

        _each_on_a_core(add_up, a.shape[1], ctx.latents_per_block)
        return None, grad, None


def _each_on_a_core(run: Callable[[slice], None], m: int, latents_per_block: int) -> None:
    """Blocks of latents, as many at a time as torch has threads, each on one: its many small steps wait for nobody."""
    blocks = [slice(first, first + latents_per_block) for first in range(0, m, latents_per_block)]
    n_threads = torch.get_num_threads()

    def alone(latents: slice) -> None:
        torch.set_num_threads(1)  # of this worker
        with torch.no_grad():
            run(latents)

    try:
        with ThreadPoolExecutor(n_threads) as workers:
            list(workers.map(alone, blocks))
    finally:
        torch.set_num_threads(n_threads)

"""MonoScore, chance, lift and n_eff, all from the same moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monoloss.checks import check_choice
from monoloss.checks.tensors import check_rows
from monoloss.functional.moments import MonoMoments, unit_rows
from monoloss.functional.streaming import add_batch
from monoloss.precision import row_norms, sums_device
from monoloss.sparse import Activations

Undefined = Literal["nan", "zero"]

_NO_ROOM = 1e-6  # the float32 rounding of 1 - chance if all rows point the same way
_RELATIVE_RESIDUE = 1e-12  # the rounding of (u^2 - v) / u^2 if a single row has weight


def mono_score(
    embeddings: Float[Tensor, "n d"],
    activations: Activations,
    *,
    center: Float[Tensor, " d"] | None = None,
    undefined: Undefined = "nan",
) -> Float[Tensor, " m"]:
    """MonoScore of each latent: the mean cosine of all pairs of rows, weighted by the latent's activations on both.

    ``s_j = sum_{i<l} a_ij a_lj cos(e_i, e_l) / sum_{i<l} a_ij a_lj`` with ``a`` the activation above the latent's
    minimum, computed as ``(|w|^2 - v) / (u^2 - v)`` in one pass, O(n m d) dense and O(entries d) sparse, instead of
    over O(n^2) pairs. Exact: about 1e-15 from the pairwise sum in float64, 1e-6 in float32. For data in several
    batches or processes, use :class:`monoloss.MonoScore`.

    Args:
        embeddings: what "similar" means, ``(n, d)``; any floating dtype, rows of any length but 0.
        activations: ``(n, m)``, any sign, dense or :class:`monoloss.SparseActivations`.
        center: mean vector ``(d,)`` taken off the embeddings before their length is set to 1; usually the mean of
            the same kind of rows. None leaves them as they are.
        undefined: the score of a latent without a pair of weight > 0: "nan", or "zero" as in the authors' averages.

    Returns:
        ``(m,)`` float64 in [-1, 1], up to rounding: 1 where all active rows point the same way, 0 where they are
        orthogonal, the mean cosine of the data (``chance`` of :meth:`monoloss.MonoScore.summary`) for a latent that is
        active at random; NaN where undefined.

    Raises:
        InputError: shapes that do not fit; on the CPU also a zero or non-finite row, a non-finite activation.

    Source:
        arXiv 2602.12403, the linear-time form of the score of arXiv 2504.02821; here without the division by the range,
        which cancels, and in one pass instead of two.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> activations = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 5.0]])
        >>> mono_score(embeddings, activations).round(decimals=6)
        tensor([1., 0., nan], dtype=torch.float64)
    """
    check_choice("undefined", undefined, ("nan", "zero"))
    check_rows(embeddings, activations, center)
    h = unit_rows(embeddings.detach(), center)
    empty = MonoMoments.zeros(h.shape[1], activations.shape[1], sums_device(h.device))
    return score_of(add_batch(empty, h, activations), undefined=undefined)


def score_of(
    moments: MonoMoments, *, undefined: Undefined = "nan", w_squared: Float[Tensor, " m"] | None = None
) -> Float[Tensor, " m"]:
    """Compute the MonoScore of each latent from moments: ``(|w|^2 - v) / (u^2 - v)``, ``(m,)`` float64.

    ``undefined`` as in ``mono_score``. ``w_squared`` is ``|w|^2`` in float64; None to compute it from ``moments.w``.
    """
    defined, pairs = is_defined(moments), pair_weight(moments)
    w_squared = row_norms(moments.w).square() if w_squared is None else w_squared
    score = (w_squared - moments.v) / torch.where(defined, pairs, 1.0)
    return torch.where(defined, score, torch.nan if undefined == "nan" else 0.0)


def pair_weight(moments: MonoMoments) -> Float[Tensor, " m"]:
    """Return the total weight of the ordered pairs of different rows, ``u^2 - v``, ``(m,)``: the score's divisor."""
    return moments.u.square() - moments.v


def is_defined(moments: MonoMoments) -> Bool[Tensor, " m"]:
    """Return a mask ``(m,)`` of the latents with at least two rows of weight > 0: ``u^2 - v > 1e-12 u^2``."""
    return pair_weight(moments) > _RELATIVE_RESIDUE * moments.u.square()


def chance(moments: MonoMoments) -> Float[Tensor, ""]:
    """Mean cosine of all pairs of rows, ``(|H|^2 - n) / (n (n - 1))``: the score of a latent that is active at random.

    Returns:
        A float64 scalar in [-1, 1]; NaN for fewer than two rows.
    """
    n = moments.n
    mean_cosine = (moments.h_sum.square().sum() - n) / torch.where(n > 1, n * (n - 1), 1.0)
    return torch.where(n > 1, mean_cosine, torch.nan)


def lift(score: Float[Tensor, " m"], chance: Float[Tensor, ""]) -> Float[Tensor, " m"]:
    """Scores above chance, ``(s - chance) / (1 - chance)``: 0 for a score at chance, 1 for the score 1; NaN stays.

    If all rows point the same way (chance 1), no score can be above chance: NaN.
    """
    room = 1.0 - chance
    return torch.where(room > _NO_ROOM, (score - chance) / torch.where(room > 0, room, 1.0), torch.nan)


def n_eff(moments: MonoMoments) -> Float[Tensor, " m"]:
    """Effective number of rows behind each latent, ``u^2 / v``: k for k equally active rows; 0 without active rows.

    A score with a small ``n_eff`` rests on few pairs: it is noise.
    """
    return moments.u.square() / torch.where(moments.v > 0, moments.v, 1.0)


@dataclass(frozen=True)
class ScoreSummary:
    """Summary of MonoScore over all latents; means, median and p90 over defined latents, NaN if all are undefined.

    Attributes:
        n_rows: number of rows.
        n_latents: number of latents.
        n_defined: number of latents with at least two rows of weight > 0.
        mean: mean score, in [-1, 1].
        median: median score.
        p90: 90th percentile of the score.
        mean_zero_filled: mean over ALL latents with 0 for undefined ones, as the authors average.
        chance: mean cosine of the data, the score of a latent that is active at random.
        lift: mean of ``(s - chance) / (1 - chance)``.
        n_eff: median effective number of rows behind a latent.
    """

    n_rows: int
    n_latents: int
    n_defined: int
    mean: float
    median: float
    p90: float
    mean_zero_filled: float
    chance: float
    lift: float
    n_eff: float


def summarise(moments: MonoMoments) -> ScoreSummary:
    """Compute the summary over all latents from the moments of their rows."""
    return summary_of_latents(int(moments.n), chance(moments), score_of(moments), n_eff(moments))


def summary_of_latents(
    n_rows: int, by_chance: Float[Tensor, ""], scores: Float[Tensor, " m"], effective_rows: Float[Tensor, " m"]
) -> ScoreSummary:
    """Compute the summary from the measures of each latent.

    Args:
        n_rows: number of rows.
        by_chance: ``chance`` of these rows.
        scores: ``score_of``, ``(m,)``, NaN where undefined.
        effective_rows: ``n_eff``, ``(m,)``.
    """
    has_score = ~torch.isnan(scores)
    defined = scores[has_score]
    quantiles = defined.quantile(defined.new_tensor([0.5, 0.9])) if len(defined) else defined.new_full((2,), torch.nan)
    return ScoreSummary(
        n_rows=n_rows,
        n_latents=len(scores),
        n_defined=len(defined),
        mean=float(defined.mean()),
        median=float(quantiles[0]),
        p90=float(quantiles[1]),
        mean_zero_filled=float(defined.sum() / max(len(scores), 1)),
        chance=float(by_chance),
        lift=float(lift(defined, by_chance).mean()),
        n_eff=float(effective_rows[has_score].quantile(0.5)) if len(defined) else float("nan"),
    )

"""Latents with similar decoder directions, within one evaluation and between two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from monoloss.checks import check_number, check_type
from monoloss.errors import InputError
from monoloss.evaluation.record import EvaluationRecord

_BLOCK_COSINES = 2**22  # cosines in memory at a time: 16 MB


class SimilarLatents(NamedTuple):
    """Latents with the largest cosines between decoder directions, the largest first.

    Attributes:
        latents: numbers of the similar latents, ``(m, k)`` or ``(m,)`` int64; -1 where fewer than k exist.
        cosines: cosines of the angles between the directions, float32 in [-1, 1]; NaN where the latent is -1.
    """

    latents: Int[Tensor, "..."]
    cosines: Float[Tensor, "..."]


@torch.no_grad()
def similar_latents(
    evaluation: EvaluationRecord, k: int = 8, latents: Int[Tensor, " l"] | None = None
) -> SimilarLatents:
    """Return for each latent the ``k`` others with the largest cosine between decoder directions, ``(m, k)``.

    Latents that are active on no evaluated row are left out of the results: they have nothing to show. Of equal cosines
    the lower number is first. Cost O(m^2 d), in blocks: memory O(m (d + k)) and 2^22 numbers.

    Args:
        evaluation: evaluation of a SAE.
        k: number of similar latents, at least 1.
        latents: numbers ``(l,)`` of the latents to compare with all others; the result is then ``(l, k)``. None: all.

    Raises:
        InputError: an evaluation without decoder directions.
    """
    check_number("k", k, at_least=1, integer=True)
    directions = _directions("evaluation", evaluation)
    latents = torch.arange(len(directions)) if latents is None else latents
    latents = latents.to(directions.device)
    parts = []
    for first, cosines in _cosine_blocks(directions[latents], directions, _is_active(evaluation)):
        row = torch.arange(len(cosines), device=cosines.device)
        cosines[row, latents[first + row]] = -torch.inf
        parts.append(_nearest(cosines, k))
    return _joined(parts)


@torch.no_grad()
def closest_matches(evaluation: EvaluationRecord, other: EvaluationRecord) -> SimilarLatents:
    """Return for each latent the latent of another evaluation with the largest cosine of decoder directions, ``(m,)``.

    As in :func:`similar_latents`, latents of ``other`` that are active on no evaluated row are left out. The two SAEs
    may have different numbers of latents.

    Args:
        evaluation: evaluation of a SAE.
        other: evaluation of a SAE on rows of the same width.

    Raises:
        InputError: an evaluation without decoder directions, or with those of another width.
    """
    directions, candidates = _directions("evaluation", evaluation), _directions("other", other)
    if directions.shape[1] != candidates.shape[1]:
        got = f"directions of width {candidates.shape[1]}"
        raise InputError("other", got, f"the width of the first evaluation, {directions.shape[1]}")
    blocks = _cosine_blocks(directions, candidates.to(directions.device), _is_active(other).to(directions.device))
    matches = _joined([_nearest(cosines, 1) for _, cosines in blocks])
    return SimilarLatents(matches.latents[:, 0], matches.cosines[:, 0])


def _directions(argument: str, evaluation: EvaluationRecord) -> Tensor:
    """Return the decoder directions of an evaluation in float32 at length 1; errors name ``argument``."""
    check_type(argument, evaluation, EvaluationRecord, "an Evaluation")
    if evaluation.decoder_directions is None:
        expected = "the evaluation of a SAE; if an earlier version wrote it, evaluate again"
        raise InputError(argument, f"{evaluation.name!r}, which has no decoder directions", expected)
    return nn.functional.normalize(evaluation.decoder_directions.float(), dim=1)  # float16 has rounded the lengths


def _is_active(evaluation: EvaluationRecord) -> Tensor:
    """Mark the latents that are active on at least one evaluated row, ``(m,)``."""
    assert evaluation.decoder_directions is not None  # noqa: S101 - _directions has checked it
    return (evaluation.latents["density"] > 0).to(evaluation.decoder_directions.device)


def _cosine_blocks(directions: Tensor, candidates: Tensor, allowed: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of ``directions``: number of the first, cosines with all candidates (-inf unless ``allowed``)."""
    n_rows = max(1, _BLOCK_COSINES // max(1, len(candidates)))
    for first in range(0, len(directions), n_rows):
        cosines = (directions[first : first + n_rows] @ candidates.t()).clamp_(-1.0, 1.0)
        yield first, cosines.masked_fill_(~allowed, -torch.inf)


def _nearest(cosines: Tensor, k: int) -> SimilarLatents:
    """Return the ``k`` columns with the largest cosines of each row; of equal cosines the lower column first."""
    n_columns = min(k, cosines.shape[1])
    largest, latents = cosines.topk(n_columns, dim=1)
    by_number = latents.argsort(dim=1)
    largest, latents = largest.gather(1, by_number), latents.gather(1, by_number)
    order = largest.argsort(dim=1, descending=True, stable=True)
    largest, latents = largest.gather(1, order), latents.gather(1, order)
    is_allowed = largest > -torch.inf
    missing = (0, k - n_columns)
    return SimilarLatents(
        nn.functional.pad(latents.where(is_allowed, -1), missing, value=-1),
        nn.functional.pad(largest.where(is_allowed, torch.nan), missing, value=torch.nan),
    )


def _joined(parts: list[SimilarLatents]) -> SimilarLatents:
    return SimilarLatents(torch.cat([part.latents for part in parts]), torch.cat([part.cosines for part in parts]))

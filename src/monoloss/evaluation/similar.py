"""Which latents resemble each other by their decoders: within one evaluation, and from one to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from monoloss.checks import check_number, check_type
from monoloss.errors import InputError
from monoloss.evaluation.record import EvaluationRecord

_BLOCK_COSINES = 2**22  # of the (m, m) that are there at once: 16 MB


class SimilarLatents(NamedTuple):
    """Latents whose decoder directions point most nearly the same way, the nearest first.

    Attributes:
        latents: their numbers, ``(m, k)`` int64, or ``(m,)``; -1 where there are fewer.
        cosines: of the angle between the directions, float32 in [-1, 1]; NaN where there is none.
    """

    latents: Int[Tensor, "..."]
    cosines: Float[Tensor, "..."]


@torch.no_grad()
def similar_latents(
    evaluation: EvaluationRecord, k: int = 8, latents: Int[Tensor, " l"] | None = None
) -> SimilarLatents:
    """The ``k`` other latents whose decoder directions have the largest cosine with each latent's, ``(m, k)``.

    Only latents that are active on some evaluated row are found: others have nothing to show. Of equal cosines the
    lower number comes first. Cost O(m^2 d), in blocks: memory O(m (d + k)) and 2^22 numbers.

    Args:
        evaluation: of a SAE.
        k: how many, at least 1.
        latents: numbers of those to find others for, ``(l,)``; all by default. Then the result is ``(l, k)``.

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
    """The latent of another evaluation whose decoder direction has the largest cosine with each latent's, ``(m,)``.

    As in :func:`similar_latents`, only latents of ``other`` that are active on some evaluated row are found. The two
    may have different numbers of latents.

    Args:
        evaluation: of a SAE.
        other: of a SAE on rows of the same width.

    Raises:
        InputError: an evaluation without decoder directions, or with those of another width.
    """
    directions, candidates = _directions("evaluation", evaluation), _directions("other", other)
    if directions.shape[1] != candidates.shape[1]:
        got = f"directions of width {candidates.shape[1]}"
        raise InputError("other", got, f"those of the other evaluation, {directions.shape[1]}")
    blocks = _cosine_blocks(directions, candidates.to(directions.device), _is_active(other).to(directions.device))
    found = _joined([_nearest(cosines, 1) for _, cosines in blocks])
    return SimilarLatents(found.latents[:, 0], found.cosines[:, 0])


def _directions(argument: str, evaluation: EvaluationRecord) -> Tensor:
    check_type(argument, evaluation, EvaluationRecord, "an Evaluation")
    if evaluation.decoder_directions is None:
        expected = "that of a SAE; files that an earlier version wrote lack them: evaluate again"
        raise InputError(argument, f"{evaluation.name!r}, which has no decoder directions", expected)
    return nn.functional.normalize(evaluation.decoder_directions.float(), dim=1)  # float16 has made them uneven


def _is_active(evaluation: EvaluationRecord) -> Tensor:
    assert evaluation.decoder_directions is not None  # noqa: S101 - was looked at before
    return (evaluation.latents["density"] > 0).to(evaluation.decoder_directions.device)


def _cosine_blocks(directions: Tensor, candidates: Tensor, allowed: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Cosines of some directions with all candidates at a time, after the number of the first; -inf if not allowed."""
    n_rows = max(1, _BLOCK_COSINES // max(1, len(candidates)))
    for first in range(0, len(directions), n_rows):
        cosines = (directions[first : first + n_rows] @ candidates.t()).clamp_(-1.0, 1.0)
        yield first, cosines.masked_fill_(~allowed, -torch.inf)


def _nearest(cosines: Tensor, k: int) -> SimilarLatents:
    n_found = min(k, cosines.shape[1])
    found, latents = cosines.topk(n_found, dim=1)
    by_number = latents.argsort(dim=1)
    found, latents = found.gather(1, by_number), latents.gather(1, by_number)
    order = found.argsort(dim=1, descending=True, stable=True)
    found, latents = found.gather(1, order), latents.gather(1, order)
    there = found > -torch.inf
    missing = (0, k - n_found)
    return SimilarLatents(
        nn.functional.pad(latents.where(there, -1), missing, value=-1),
        nn.functional.pad(found.where(there, torch.nan), missing, value=torch.nan),
    )


def _joined(parts: list[SimilarLatents]) -> SimilarLatents:
    return SimilarLatents(torch.cat([part.latents for part in parts]), torch.cat([part.cosines for part in parts]))

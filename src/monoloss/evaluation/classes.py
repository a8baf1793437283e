"""The most frequent classes among the active rows of each latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_CLASSES = 10
_BLOCK_COUNTS = 2**22  # counts ranked at a time: 32 MB


@dataclass(frozen=True)
class TopClasses:
    """The most frequent classes of each latent's active rows, at most ten; of equal counts the lower class first.

    Attributes:
        classes: ``(m, k)`` int64, the dominant class first; -1 where a latent is active on fewer than k classes.
        counts: number of active rows that carry the class, ``(m, k)`` int64; 0 where the class is -1.
    """

    classes: Int[Tensor, "m k"]
    counts: Int[Tensor, "m k"]

    @classmethod
    def of_counts(cls, rows: Float[Tensor, "m c"]) -> TopClasses:
        """Rank the classes of each latent by its number of active rows in each class, ``PurityCounts.rows``.

        Exact. Cost O(m c), some latents at a time.
        """
        n_classes = rows.shape[1]
        from_last = torch.arange(n_classes, device=rows.device).flip(0)
        parts = []
        for block in rows.split(max(1, _BLOCK_COUNTS // n_classes)):
            ranked = (block.long() * n_classes + from_last).topk(min(N_CLASSES, n_classes), dim=1).values
            parts.append((ranked // n_classes, n_classes - 1 - ranked % n_classes))
        counts, classes = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(torch.where(counts > 0, classes, -1), counts)

    @classmethod
    def join_latents(cls, parts: Sequence[TopClasses]) -> TopClasses:
        """Concatenate several blocks of latents."""
        return cls(torch.cat([part.classes for part in parts]), torch.cat([part.counts for part in parts]))

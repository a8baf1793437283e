"""The classes that a latent is active on most often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_CLASSES = 10
_BLOCK_COUNTS = 2**22  # ranked in one go: 32 MB


@dataclass(frozen=True)
class TopClasses:
    """The most frequent classes of each latent's active rows, at most ten: of equal counts the lower class first.

    Attributes:
        classes: ``(m, k)`` int64, the first the dominant class; -1 where a latent is active on fewer classes.
        counts: how many active rows carry the class, ``(m, k)`` int64; 0 where there is none.
    """

    classes: Int[Tensor, "m k"]
    counts: Int[Tensor, "m k"]

    @classmethod
    def of_counts(cls, rows: Float[Tensor, "m c"]) -> TopClasses:
        """From the active rows of each class, as :class:`monoloss.functional.purity.PurityCounts` sums them up.

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
        """The classes of the latents of several parts, one part after the other."""
        return cls(torch.cat([part.classes for part in parts]), torch.cat([part.counts for part in parts]))

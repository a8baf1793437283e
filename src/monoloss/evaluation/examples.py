"""The rows that show what a latent means, collected while a store is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monoloss.functional.sparsity import ActiveEntries, active_entries
from monoloss.sparse import Activations, offsets_of_sorted_rows


@dataclass(frozen=True)
class TopExamples:
    """The most active rows of each latent, the highest first; of equal values the earlier row.

    Attributes:
        rows: row numbers in the store, ``(m, k)`` int64; -1 where a latent has fewer active rows.
        values: their activations, ``(m, k)`` float64 > 0; 0 where there is no row.
    """

    rows: Int[Tensor, "m k"]
    values: Float[Tensor, "m k"]

    @classmethod
    def none(cls, m: int, k: int, device: torch.device | None = None) -> TopExamples:
        """No rows yet."""
        rows = torch.full((m, k), -1, dtype=torch.int64, device=device)
        return cls(rows, torch.zeros(m, k, dtype=torch.float64, device=device))

    @classmethod
    def join_latents(cls, parts: Sequence[TopExamples]) -> TopExamples:
        """The examples of the latents of several parts, one part after the other."""
        return cls(torch.cat([part.rows for part in parts]), torch.cat([part.values for part in parts]))

    @torch.no_grad()
    def with_batch(self, activations: Activations, first_row: int) -> TopExamples:
        """The best of these and of a batch whose first row has the given number; O(entries).

        Only entries that exceed the last of a latent's best so far are sorted: after some batches, few.
        """
        best = self

        def last_best() -> Tensor:
            return best.values[:, -1]

        for entries in active_entries(activations, above=last_best):
            if len(entries.rows):
                best = best._with(entries, first_row)
        return best

    def _with(self, entries: ActiveEntries, first_row: int) -> TopExamples:
        """The best of these and of some later entries in row order; of equal values those of this one."""
        m, k = self.rows.shape
        by_value = _falling(entries.values)
        order = by_value[entries.latents[by_value].argsort(stable=True)]
        latents = entries.latents[order]
        offsets = offsets_of_sorted_rows(latents, m)
        rank = torch.arange(len(order), device=order.device) - offsets[latents]
        counts = offsets.diff()
        touched = counts.nonzero().squeeze(1)
        width = min(k, int(counts.max()))
        place = torch.empty_like(counts)
        place[touched] = torch.arange(len(touched), device=place.device)
        best = (rank < k).nonzero().squeeze(1)
        order, cells = order[best], (place[latents[best]], k + rank[best])
        values, rows = self.values.new_zeros(len(touched), k + width), self.rows.new_full((len(touched), k + width), -1)
        values[:, :k], rows[:, :k] = self.values[touched], self.rows[touched]
        values[cells], rows[cells] = entries.values[order], entries.rows[order] + first_row
        highest = values.argsort(dim=1, descending=True, stable=True)[:, :k]
        return TopExamples(
            self.rows.index_copy(0, touched, rows.gather(1, highest)),
            self.values.index_copy(0, touched, values.gather(1, highest)),
        )


def _falling(values: Tensor) -> Tensor:
    """The order of positive float64 values from the highest down, stable: that of their bits, which sort faster."""
    return (torch.iinfo(torch.int64).max - values.view(torch.int64)).argsort(stable=True)

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
                best = best.merged(best._of(entries, first_row))
        return best

    def merged(self, later: TopExamples) -> TopExamples:
        """The best of both; of equal values those of this one."""
        values, rows = torch.cat([self.values, later.values], 1), torch.cat([self.rows, later.rows], 1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, : self.rows.shape[1]]
        return TopExamples(rows.gather(1, order), values.gather(1, order))

    def _of(self, entries: ActiveEntries, first_row: int) -> TopExamples:
        """The best among some entries in row order, as many as here."""
        m, k = self.rows.shape
        by_value = entries.values.argsort(descending=True, stable=True)
        order = by_value[entries.latents[by_value].argsort(stable=True)]
        latents = entries.latents[order]
        rank = torch.arange(len(order), device=order.device) - offsets_of_sorted_rows(latents, m)[latents]
        order, cells = order[rank < k], (latents[rank < k], rank[rank < k])
        found = TopExamples.none(m, k, self.rows.device)
        found.rows[cells] = entries.rows[order] + first_row
        found.values[cells] = entries.values[order]
        return found

"""The rows that show what a latent means, collected while a store is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monoloss.functional.sparsity import EntryBlock, active_entries
from monoloss.sparse import Activations
from monoloss.sparse.activations import offsets_of_sorted_rows

_NO_KEY = torch.iinfo(torch.int64).max  # of a place that is not taken


@dataclass(frozen=True)
class Examples:
    """Some active rows of each latent.

    Attributes:
        rows: row numbers in the store, ``(m, k)`` int64; -1, at the end, where a latent has fewer active rows.
        values: their activations, ``(m, k)`` float64 > 0; 0 where there is no row.
    """

    rows: Int[Tensor, "m k"]
    values: Float[Tensor, "m k"]

    @classmethod
    def none(cls, m: int, k: int, device: torch.device | None = None) -> Examples:
        """No rows."""
        rows = torch.full((m, k), -1, dtype=torch.int64, device=device)
        return cls(rows, torch.zeros(m, k, dtype=torch.float64, device=device))

    @classmethod
    def join_latents(cls, parts: Sequence[Examples]) -> Examples:
        """The examples of the latents of several parts, one part after the other."""
        return cls(torch.cat([part.rows for part in parts]), torch.cat([part.values for part in parts]))


class ExtremeRows:
    """Collects the ``k`` most or least active rows of each latent, of those it is active on.

    The most extreme comes first, of equal values the earlier row. Batches come in the order of their rows. Cost
    O(entries) a batch; only entries beyond the last of a latent's ``k`` so far are sorted: after some batches, few.

    Args:
        m: latents.
        k: rows of each.
        device: of what is collected.
        largest: the most active rows; False: the least active.
    """

    def __init__(self, m: int, k: int, device: torch.device | None = None, *, largest: bool) -> None:
        self.largest, self._sign = largest, -1 if largest else 1
        self._kept = _SmallestKeys(m, k, device)

    def add(self, activations: Activations, first_row: int) -> None:
        """Add a batch whose first row has the given number."""
        for entries in active_entries(activations, self._may_enter):
            self._kept.add(entries.latents, self._sign * _bits(entries.values), entries.rows + first_row)

    def examples(self) -> Examples:
        """The rows found so far."""
        taken = self._kept.taken
        values = _values(torch.where(taken, self._sign * self._kept.keys, 0))
        return Examples(torch.where(taken, self._kept.payloads[0], -1), values)

    def _may_enter(self, block: EntryBlock) -> Bool[Tensor, "..."]:
        last = self._kept.last
        is_full = last < _NO_KEY
        bounds = _values(torch.where(is_full, self._sign * last, 0))
        rounded = bounds.to(block.values)  # compared in that dtype, several times faster
        if self.largest:
            return block.values > block.of_latents(rounded.where(rounded.to(bounds) <= bounds, 0.0))
        highest = rounded.where(is_full & (rounded.to(bounds) >= bounds), torch.inf)
        return (block.values > 0) & (block.values < block.of_latents(highest))


class SampledRows:
    """Collects a sample of at most ``size`` of each latent's active rows; all of them where there are no more.

    The rows whose numbers have the smallest hash: as good as drawn at random, and the same for any split into batches
    and any order of them. Latents prefer the same rows, so that the samples of all of them have few rows between them.
    """

    def __init__(self, m: int, size: int, device: torch.device | None = None) -> None:
        self._kept = _SmallestKeys(m, size, device, n_payloads=2)  # value and row

    def add(self, activations: Activations, first_row: int) -> None:
        """Add a batch whose first row has the given number."""
        numbers = torch.arange(first_row, first_row + activations.shape[0], device=self._kept.keys.device)
        keys = mixed(numbers)
        upper = (keys >> 32).int()  # compared by these first: half the time

        def may_be_drawn(block: EntryBlock) -> Bool[Tensor, "..."]:
            last = (self._kept.last >> 32).int()
            return (block.values > 0) & (block.of_rows(upper) <= block.of_latents(last))

        for entries in active_entries(activations, may_be_drawn):
            self._kept.add(entries.latents, keys[entries.rows], _bits(entries.values), entries.rows + first_row)

    def sample(self) -> Examples:
        """The sample of each latent, ``(m, size)``: the highest first, of equal values the earlier row."""
        taken = self._kept.taken
        bits, rows = self._kept.payloads
        values, rows = _values(torch.where(taken, bits, 0)), torch.where(taken, rows, -1)
        by_row = rows.argsort(dim=1)
        rows, values = rows.gather(1, by_row), values.gather(1, by_row)
        by_value = (-_bits(values)).argsort(dim=1, stable=True)
        return Examples(rows.gather(1, by_value), values.gather(1, by_value))

    def middle(self, k: int) -> Examples:
        """The ``k`` rows around the median rank of each latent's sample, ``(m, k)``: the highest first.

        Of a sample of ``s`` rows those of rank ``floor((s - k) / 2)`` (from 0) on; all of them where ``s <= k``.
        """
        sample = self.sample()
        n_sampled = (sample.rows >= 0).sum(1, keepdim=True)
        places = torch.arange(k, device=n_sampled.device)
        ranks = ((n_sampled - k) // 2).clamp(min=0) + places
        there = places < n_sampled
        ranks = ranks.clamp(max=sample.rows.shape[1] - 1)
        return Examples(
            sample.rows.gather(1, ranks).where(there, -1),
            sample.values.gather(1, ranks).where(there, 0.0),
        )


def mixed(numbers: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A hash of numbers that no two share: SplitMix64, over all int64.

    Source:
        Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    x = numbers + _signed(0x9E3779B97F4A7C15)  # without it row 0 would have the hash 0
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift to the right, with zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    """The int64 of the same 64 bits."""
    return bits - (bits >> 63 << 64)


class _SmallestKeys:
    """Of each latent the ``k`` entries with the smallest keys, in their order; of equal keys those that came first.

    Attributes:
        keys: ``(m, k)`` int64.
        payloads: what comes with each key, each ``(m, k)`` int64.
    """

    def __init__(self, m: int, k: int, device: torch.device | None, n_payloads: int = 1) -> None:
        self.keys = torch.full((m, k), _NO_KEY, dtype=torch.int64, device=device)
        self.payloads = [torch.zeros_like(self.keys) for _ in range(n_payloads)]

    @property
    def taken(self) -> Bool[Tensor, "m k"]:
        """Where there is an entry."""
        return self.keys < _NO_KEY

    @property
    def last(self) -> Int[Tensor, " m"]:
        """The keys that a further entry of each latent has to stay below."""
        return self.keys[:, -1].contiguous()

    def add(self, latents: Int[Tensor, " _"], keys: Int[Tensor, " _"], *payloads: Int[Tensor, " _"]) -> None:
        """Take further entries in, in place; best only those whose keys are below ``last``."""
        if not len(keys):
            return
        m, k = self.keys.shape
        by_key = keys.argsort(stable=True)
        order = by_key[latents[by_key].argsort(stable=True)]
        latents = latents[order]
        offsets = offsets_of_sorted_rows(latents, m)
        rank = torch.arange(len(order), device=order.device) - offsets[latents]
        counts = offsets.diff()
        touched = counts.nonzero().squeeze(1)
        place = torch.empty_like(counts)
        place[touched] = torch.arange(len(touched), device=place.device)
        best = (rank < k).nonzero().squeeze(1)
        order, cells = order[best], (place[latents[best]], k + rank[best])
        shape = (len(touched), k + min(k, int(counts.max())))
        all_keys = self.keys.new_full(shape, _NO_KEY)
        all_keys[:, :k], all_keys[cells] = self.keys[touched], keys[order]
        all_keys, ranked = all_keys.sort(dim=1, stable=True)
        self.keys.index_copy_(0, touched, all_keys[:, :k])
        for kept, added in zip(self.payloads, payloads, strict=True):
            both = kept.new_zeros(shape)
            both[:, :k], both[cells] = kept[touched], added[order]
            kept.index_copy_(0, touched, both.gather(1, ranked[:, :k]))


def _bits(values: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Positive float64 values as integers that are ordered alike."""
    return values.view(torch.int64)


def _values(bits: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Back from their bits."""
    return bits.view(torch.float64)

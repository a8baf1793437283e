"""Example rows of each latent (highest, lowest, around the median), collected in one pass over a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monoloss.functional.sparsity import EntryBlock, active_entries
from monoloss.sparse import Activations
from monoloss.sparse.activations import offsets_of_sorted_rows
from monoloss.waiting import may_branch

_NO_KEY = torch.iinfo(torch.int64).max  # marks an empty place


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
        """Return the examples of ``m`` latents that are active on no row."""
        rows = torch.full((m, k), -1, dtype=torch.int64, device=device)
        return cls(rows, torch.zeros(m, k, dtype=torch.float64, device=device))

    @classmethod
    def join_latents(cls, parts: Sequence[Examples]) -> Examples:
        """Concatenate several blocks of latents."""
        return cls(torch.cat([part.rows for part in parts]), torch.cat([part.values for part in parts]))


class ExtremeRows:
    """Collects the ``k`` most or least active rows of each latent, among the rows it is active on.

    The most extreme row is first, of equal values the earlier row. Batches must be added in the order of their rows.
    Cost O(entries) a batch; only entries more extreme than a latent's ``k`` rows so far are sorted, soon only a few.

    Args:
        m: number of latents.
        k: number of rows of each latent.
        device: device of the collected rows.
        largest: collect the most active rows; False: the least active.
    """

    def __init__(self, m: int, k: int, device: torch.device | None = None, *, largest: bool) -> None:
        self.largest, self._sign = largest, -1 if largest else 1  # the key of an activation is sign * bits
        self._smallest = _SmallestKeys(m, k, device)

    def add(self, activations: Activations, first_row: int) -> None:
        """Add a batch whose first row has the given number."""
        for entries in active_entries(activations, self._may_enter):
            keys = _keys_of_active(entries.values, self._sign * _bits(entries.values))
            self._smallest.add(entries.latents, keys, entries.rows + first_row)

    def examples(self) -> Examples:
        """Return the rows collected so far, ``(m, k)``."""
        taken = self._smallest.taken
        values = _values(torch.where(taken, self._sign * self._smallest.keys, 0))
        return Examples(torch.where(taken, self._smallest.payloads[0], -1), values)

    def _may_enter(self, block: EntryBlock) -> Bool[Tensor, "..."]:
        """Mark the active entries that may be more extreme than the last of their latent's ``k`` rows so far."""
        last = self._smallest.last
        is_full = last < _NO_KEY
        bounds = _values(torch.where(is_full, self._sign * last, 0))
        rounded = bounds.to(block.values)  # a comparison in the dtype of the block is several times faster
        if self.largest:
            return block.values > block.of_latents(rounded.where(rounded.to(bounds) <= bounds, 0.0))
        highest = rounded.where(is_full & (rounded.to(bounds) >= bounds), torch.inf)
        return (block.values > 0) & (block.values < block.of_latents(highest))


class SampledRows:
    """Collects a sample of ``size`` of each latent's active rows; all of them if there are no more.

    The sample holds the rows whose numbers have the smallest hashes. It is as good as random, and depends neither on
    the split into batches nor on their order. As all latents use the same hashes, their samples share many rows.
    """

    def __init__(self, m: int, size: int, device: torch.device | None = None) -> None:
        self._smallest = _SmallestKeys(m, size, device, n_payloads=2)  # value and row

    def add(self, activations: Activations, first_row: int) -> None:
        """Add a batch whose first row has the given number."""
        numbers = torch.arange(first_row, first_row + activations.shape[0], device=self._smallest.keys.device)
        keys = splitmix64(numbers)
        upper = (keys >> 32).int()  # comparing these halves first takes half the time

        def may_be_drawn(block: EntryBlock) -> Bool[Tensor, "..."]:
            last = (self._smallest.last >> 32).int()
            return (block.values > 0) & (block.of_rows(upper) <= block.of_latents(last))

        for entries in active_entries(activations, may_be_drawn):
            drawn = _keys_of_active(entries.values, keys[entries.rows])
            self._smallest.add(entries.latents, drawn, _bits(entries.values), entries.rows + first_row)

    def sample(self) -> Examples:
        """Return the sample of each latent, ``(m, size)``: the highest first, of equal values the earlier row."""
        taken = self._smallest.taken
        bits, rows = self._smallest.payloads
        values, rows = _values(torch.where(taken, bits, 0)), torch.where(taken, rows, -1)
        by_row = rows.argsort(dim=1)
        rows, values = rows.gather(1, by_row), values.gather(1, by_row)
        by_value = (-_bits(values)).argsort(dim=1, stable=True)
        return Examples(rows.gather(1, by_value), values.gather(1, by_value))

    def middle(self, k: int) -> Examples:
        """Return the ``k`` rows around the median rank of each latent's sample, ``(m, k)``: the highest first.

        Of a sample of ``s`` rows these have the ranks from ``floor((s - k) / 2)`` on (from 0); all if ``s <= k``.
        """
        sample = self.sample()
        n_sampled = (sample.rows >= 0).sum(1, keepdim=True)
        places = torch.arange(k, device=n_sampled.device)
        ranks = ((n_sampled - k) // 2).clamp(min=0) + places
        is_row = places < n_sampled
        ranks = ranks.clamp(max=sample.rows.shape[1] - 1)
        return Examples(
            sample.rows.gather(1, ranks).where(is_row, -1),
            sample.values.gather(1, ranks).where(is_row, 0.0),
        )


def splitmix64(numbers: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Hash int64 numbers to int64 by SplitMix64; different numbers have different hashes.

    Source:
        Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    x = numbers + _signed(0x9E3779B97F4A7C15)  # without this sum row 0 would have the hash 0
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift to the right by ``by`` bits, filling with zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    """Return the signed integer with the 64 bits of an unsigned one."""
    return bits - (bits >> 63 << 64)


class _SmallestKeys:
    """The ``k`` entries of each latent with the smallest keys, sorted by key; of equal keys the ones added first.

    Attributes:
        keys: ``(m, k)`` int64.
        payloads: the values that were added with the keys, each ``(m, k)`` int64.
    """

    def __init__(self, m: int, k: int, device: torch.device | None, n_payloads: int = 1) -> None:
        self.keys = torch.full((m, k), _NO_KEY, dtype=torch.int64, device=device)
        self.payloads = [torch.zeros_like(self.keys) for _ in range(n_payloads)]

    @property
    def taken(self) -> Bool[Tensor, "m k"]:
        """Mask of the places that hold an entry."""
        return self.keys < _NO_KEY

    @property
    def last(self) -> Int[Tensor, " m"]:
        """The last key of each latent: a further entry enters only if its key is smaller."""
        return self.keys[:, -1].contiguous()

    def add(self, latents: Int[Tensor, " _"], keys: Int[Tensor, " _"], *payloads: Int[Tensor, " _"]) -> None:
        """Add entries in place; it is fastest to pass only entries whose keys are below ``last``.

        An entry with the key ``_NO_KEY`` counts for nothing.
        """
        if not len(keys):
            return
        m, k = self.keys.shape
        by_key = keys.argsort(stable=True)
        order = by_key[latents[by_key].argsort(stable=True)]  # by latent, and by key within a latent
        latents = latents[order]
        offsets = offsets_of_sorted_rows(latents, m)
        rank = torch.arange(len(order), device=order.device) - offsets[latents]
        if not may_branch(keys.device):
            self._merge_fixed(latents, rank, keys[order], [payload[order] for payload in payloads])
            return
        counts = offsets.diff()
        touched = counts.nonzero().squeeze(1)
        row_of_latent = torch.empty_like(counts)
        row_of_latent[touched] = torch.arange(len(touched), device=row_of_latent.device)
        best = (rank < k).nonzero().squeeze(1)
        order, cells = order[best], (row_of_latent[latents[best]], k + rank[best])
        shape = (len(touched), k + min(k, int(counts.max())))
        merged_keys = self.keys.new_full(shape, _NO_KEY)
        merged_keys[:, :k], merged_keys[cells] = self.keys[touched], keys[order]
        merged_keys, ranked = merged_keys.sort(dim=1, stable=True)
        self.keys.index_copy_(0, touched, merged_keys[:, :k])
        for payload, added in zip(self.payloads, payloads, strict=True):
            merged = payload.new_zeros(shape)
            merged[:, :k], merged[cells] = payload[touched], added[order]
            payload.index_copy_(0, touched, merged.gather(1, ranked[:, :k]))

    def _merge_fixed(self, latents: Tensor, rank: Tensor, keys: Tensor, payloads: list[Tensor]) -> None:
        """Merge entries sorted by latent and key, each with its rank in its latent, by tensors of fixed size alone."""
        m, k = self.keys.shape
        cells = (latents, k + rank.clamp(max=k))  # what cannot be among the k smallest falls into the last column
        merged_keys = torch.cat([self.keys, self.keys.new_full((m, k + 1), _NO_KEY)], 1)
        merged_keys[cells] = keys
        merged_keys[:, -1].fill_(_NO_KEY)
        merged_keys, ranked = merged_keys.sort(dim=1, stable=True)
        self.keys.copy_(merged_keys[:, :k])
        for payload, added in zip(self.payloads, payloads, strict=True):
            merged = torch.cat([payload, payload.new_zeros(m, k + 1)], 1)
            merged[cells] = added
            payload.copy_(merged.gather(1, ranked[:, :k]))


def _keys_of_active(values: Float[Tensor, " _"], keys: Int[Tensor, " _"]) -> Int[Tensor, " _"]:
    """Return the keys; ``_NO_KEY`` for the values that are not above 0."""
    return torch.where(values > 0, keys, _NO_KEY)


def _bits(values: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Reinterpret positive float64 values as int64; the order of the numbers is the same."""
    return values.view(torch.int64)


def _values(bits: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Undo ``_bits``: reinterpret int64 as float64."""
    return bits.view(torch.float64)

"""Which entries are the largest, of each row or of a whole batch: exact, without sorting what cannot be among them.

Neighbours in a row form groups, and the largest of each group are compared first. Where ``c`` groups have a maximum of
at least ``t``, there are ``c`` entries of at least ``t``: so the ``c`` largest entries are all at least as large as the
``c``-th largest maximum, and lie in groups whose maximum is. Only these are looked through.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monoloss.sparse.activations import offsets_of_sorted_rows

_GROUP = 32  # neighbours in a group
_FEWEST_GROUPS = 2  # for each entry that is looked for: with fewer, little is spared
_MOST_CANDIDATES = 4  # of a row, one in so many of its entries: with more (ties), little is spared
_BLOCK_ELEMENTS = 2**18  # compared in one go: they and what comes of them stay in the cache


def largest_of_rows(values: Float[Tensor, "n m"], k: int) -> Int[Tensor, "n k"]:
    """The columns of the ``k`` largest entries of every row, in no order."""
    n, m = values.shape
    size = _group_size(m, k)
    if values.device.type == "cpu" and size > 1 and n > 0:
        grouped = values.reshape(-1, size)
        maxima = grouped.amax(1)
        least = maxima.reshape(n, -1).topk(k, dim=1, sorted=False).values.amin(1)
        positions, candidates = _entries(grouped, maxima, least.repeat_interleave(m // size), torch.ge)
        rows = positions.div(m, rounding_mode="floor")
        offsets = offsets_of_sorted_rows(rows, n)
        fewest, most = (int(count) for count in offsets.diff().aminmax())
        if fewest >= k and most * _MOST_CANDIDATES <= m:  # fewer only where something is NaN
            padded = values.new_full((n, most), -torch.inf)
            padded[rows, torch.arange(len(rows)) - offsets[rows]] = candidates
            return positions[offsets[:-1, None] + padded.topk(k, dim=1, sorted=False).indices] % m
    return values.topk(k, dim=1, sorted=False).indices


def largest_of_batch(values: Float[Tensor, "n m"], count: int) -> Int[Tensor, " entries"]:
    """Flat positions, rising, of the ``count`` largest entries among those above 0: exactly ``min(count, positive)``.

    Among equal entries the lowest row, then the lowest column. A row may hold any number of them. NaN counts as the
    largest, so that a loss shows it.
    """
    flat = values.reshape(-1)
    count = min(count, flat.shape[0])
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=values.device)
    grouped = flat.reshape(-1, _group_size(flat.shape[0], count))
    maxima = grouped.amax(1)
    least = _nth_largest(maxima, count)
    if torch.isnan(least):  # NaN is the largest maximum: there is one
        return largest_of_batch(values.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf), count)
    bound = (least, torch.ge) if least > 0 else (torch.zeros_like(least), torch.gt)
    positions, candidates = _entries(grouped, maxima, *bound)
    if len(candidates) <= count:
        return positions
    least = _nth_largest(candidates, count)
    above, equal = candidates > least, candidates == least
    first = equal & (equal.cumsum(0) <= count - above.sum())
    return positions[above | first]


def above_threshold(values: Float[Tensor, "n m"], threshold: Float[Tensor, ""]) -> Int[Tensor, " entries"]:
    """Flat positions, rising, of the entries above ``threshold``; NaN is not."""
    grouped = values.reshape(-1, _group_size(values.numel(), 1))
    maxima = grouped.amax(1)
    if torch.isnan(maxima.sum()):  # or infinities of both signs: then this is slower and no worse
        maxima = grouped.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(1)
    return _entries(grouped, maxima, threshold, torch.gt)[0]


def entries_above(
    values: Float[Tensor, "n m"], bound: Float[Tensor, "*m"], most: int
) -> Int[Tensor, " entries"] | None:
    """Flat positions, rising, of the entries above ``bound``, one number or one a column; None if more than ``most``.

    NaN counts as above, so that a loss shows it. One pass, which ends where there are too many.
    """
    n, m = values.shape
    step = max(1, _BLOCK_ELEMENTS // m) if values.device.type == "cpu" else max(1, n)
    found, n_found = [torch.zeros(0, dtype=torch.int64, device=values.device)], 0
    for start in range(0, n, step):
        above = torch.le(values[start : start + step], bound).logical_not_()
        found.append(above.reshape(-1).nonzero().squeeze(1).add_(start * m))
        n_found += len(found[-1])
        if n_found > most:
            return None
    return torch.cat(found)


def _nth_largest(values: Tensor, n: int) -> Tensor:
    return values.topk(n, sorted=False).values.amin()


def _entries(
    grouped: Tensor, maxima: Tensor, bound: Tensor, compare: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Flat positions, rising, and values of the entries that ``compare`` with the bound of all groups, or of each."""
    size = grouped.shape[1]
    groups = compare(maxima, bound).nonzero().squeeze(1)
    inside = grouped.index_select(0, groups)
    of_each = bound if bound.ndim == 0 else bound.index_select(0, groups)[:, None]
    chosen = compare(inside, of_each).reshape(-1).nonzero().squeeze(1)
    positions = groups.index_select(0, chosen.div(size, rounding_mode="floor")) * size + chosen % size
    return positions, inside.reshape(-1).index_select(0, chosen)


def _group_size(n_values: int, n_wanted: int) -> int:
    """How many neighbours make a group: 1 where groups would spare nothing, or do not fit."""
    fits = n_values % _GROUP == 0 and n_values // _GROUP >= _FEWEST_GROUPS * n_wanted
    return _GROUP if fits else 1

"""Exact selection of the largest entries of each row or of a whole batch, without a sort of all entries.

Neighbours in a row form groups, and the maxima of the groups are compared first. If ``c`` groups have a maximum of at
least ``t``, at least ``c`` entries are >= ``t``. So the ``c`` largest entries are all >= the ``c``-th largest maximum,
and lie in groups whose maximum is. Only the entries of these groups are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monoloss.sparse.activations import offsets_of_sorted_rows
from monoloss.waiting import may_branch

_GROUP = 32  # neighbours in a group
_FEWEST_GROUPS = 2  # groups per entry to select; with fewer, groups save little time
_MOST_CANDIDATES = 4  # at most one entry in 4 of a row may be a candidate; with more (ties), groups save little time
_BLOCK_ELEMENTS = 2**18  # entries compared at a time, which stay in the cache with their mask


def largest_of_rows(values: Float[Tensor, "n m"], k: int) -> Int[Tensor, "n k"]:
    """Return the columns of the ``k`` largest entries of every row, in no particular order."""
    n, m = values.shape
    size = _group_size(m, k)
    if values.device.type == "cpu" and may_branch(values.device) and size > 1 and n > 0:
        grouped = values.reshape(-1, size)
        maxima = grouped.amax(1)
        least = maxima.reshape(n, -1).topk(k, dim=1, sorted=False).values.amin(1)
        positions, candidates = _entries(grouped, maxima, least.repeat_interleave(m // size), torch.ge)
        rows = positions.div(m, rounding_mode="floor")
        offsets = offsets_of_sorted_rows(rows, n)
        fewest, most = (int(count) for count in offsets.diff().aminmax())
        if fewest >= k and most * _MOST_CANDIDATES <= m:  # fewer than k only if the row has NaN
            padded = values.new_full((n, most), -torch.inf)
            padded[rows, torch.arange(len(rows)) - offsets[rows]] = candidates
            return positions[offsets[:-1, None] + padded.topk(k, dim=1, sorted=False).indices] % m
    return values.topk(k, dim=1, sorted=False).indices


def largest_of_batch(values: Float[Tensor, "n m"], count: int) -> Int[Tensor, " entries"]:
    """Return the flat positions, rising, of the ``count`` largest entries > 0; fewer if there are fewer entries > 0.

    Among equal entries those of the lowest row, then of the lowest column, are taken. A row may hold any number of the
    entries. NaN counts as the largest number, so that it reaches the loss. Without branches (`may_branch`) always
    ``count`` positions, of which some may have entries <= 0; among equal entries any are taken.
    """
    flat = values.reshape(-1)
    count = min(count, flat.shape[0])
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=values.device)
    if not may_branch(values.device):
        return flat.topk(count, sorted=False).indices.sort().values
    grouped = flat.reshape(-1, _group_size(flat.shape[0], count))
    maxima = grouped.amax(1)
    least = _nth_largest(maxima, count)
    if torch.isnan(least):  # amax and amin pass NaN on: an entry is NaN
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
    """Return the flat positions, rising, of the entries above ``threshold``; NaN does not count as above."""
    if not may_branch(values.device):
        return (values > threshold).reshape(-1).nonzero().squeeze(1)  # the only wait for a GPU
    grouped = values.reshape(-1, _group_size(values.numel(), 1))
    maxima = grouped.amax(1)
    if torch.isnan(maxima.sum()):  # NaN, or infinities of both signs, for which this changes nothing
        maxima = grouped.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(1)
    return _entries(grouped, maxima, threshold, torch.gt)[0]


def entries_above(
    values: Float[Tensor, "n m"], bound: Float[Tensor, "*m"], most: int
) -> Int[Tensor, " entries"] | None:
    """Return the flat positions, rising, of the entries above ``bound``; None if there are more than ``most``.

    ``bound`` is one number or one for each column. NaN counts as above, so that it reaches the loss. One pass, which
    ends as soon as there are more than ``most``.
    """
    n, m = values.shape
    step = max(1, _BLOCK_ELEMENTS // m) if values.device.type == "cpu" else max(1, n)
    positions, n_positions = [torch.zeros(0, dtype=torch.int64, device=values.device)], 0
    for start in range(0, n, step):
        above = torch.le(values[start : start + step], bound).logical_not_()
        positions.append(above.reshape(-1).nonzero().squeeze(1).add_(start * m))
        n_positions += len(positions[-1])
        if n_positions > most:
            return None
    return torch.cat(positions)


def _nth_largest(values: Tensor, n: int) -> Tensor:
    return values.topk(n, sorted=False).values.amin()


def _entries(
    grouped: Tensor, maxima: Tensor, bound: Tensor, compare: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return flat positions, rising, and values of the entries with ``compare(entry, bound)``.

    ``grouped``: entries ``(groups, size)``; ``maxima``: of the groups; ``bound``: a number, or one for each group.
    """
    size = grouped.shape[1]
    groups = compare(maxima, bound).nonzero().squeeze(1)
    candidates = grouped.index_select(0, groups)
    bounds = bound if bound.ndim == 0 else bound.index_select(0, groups)[:, None]
    chosen = compare(candidates, bounds).reshape(-1).nonzero().squeeze(1)
    positions = groups.index_select(0, chosen.div(size, rounding_mode="floor")) * size + chosen % size
    return positions, candidates.reshape(-1).index_select(0, chosen)


def _group_size(n_values: int, n_selected: int) -> int:
    """Return the number of neighbours in a group: 1 if groups would save no time, or do not divide the entries."""
    fits = n_values % _GROUP == 0 and n_values // _GROUP >= _FEWEST_GROUPS * n_selected
    return _GROUP if fits else 1

"""Random orders of rows, determined by (seed, epoch) alone."""

from __future__ import annotations

import random

import torch
from torch import Tensor

_BLOCK_ROWS, _BLOCKS_PER_WINDOW = 256, 256


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of ``n`` rows, ``(n,)`` int64, determined by the seed and the epoch alone."""
    return torch.randperm(n, generator=_generator(seed, epoch))


def block_shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of ``n`` rows, ``(n,)`` int64, that suits a disk, from the seed and the epoch alone.

    Blocks of 256 consecutive rows are shuffled, then the rows within each 256 successive blocks. So 65536 rows from all
    over the data mix, and each block is read about once. Up to 65536 rows the order is that of ``shuffled``.
    """
    if n <= _BLOCK_ROWS * _BLOCKS_PER_WINDOW:
        return shuffled(n, seed, epoch)
    generator = _generator(seed, epoch)
    blocks = torch.arange(n).split(_BLOCK_ROWS)
    windows = torch.randperm(len(blocks), generator=generator).split(_BLOCKS_PER_WINDOW)
    parts = [torch.cat([blocks[number] for number in window.tolist()]) for window in windows]
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for rows in parts])


def _generator(seed: int, epoch: int) -> torch.Generator:
    mixed = random.Random(f"{seed}/{epoch}").getrandbits(63)  # noqa: S311 - an order, not a secret
    return torch.Generator().manual_seed(mixed)

"""How long the most idle latent has been idle, known to the host, so that no GPU is asked whether a latent is dead."""

from __future__ import annotations

import torch
from torch import Tensor


class LongestIdle:
    """An upper bound of the largest number in a SAE's ``samples_since_active``; None where nothing is known.

    The counts of a new SAE are 0, and those of a batch add its rows at most. Whoever else changes or replaces the
    tensor (a loaded state, ``.to(device)``) makes the bound unknown, until it is read from the tensor again.
    """

    def __init__(self, counts: Tensor) -> None:
        self._most = 0
        self._seen = _version(counts)

    def bound(self, counts: Tensor) -> int | None:
        """Return a number that no count is above, without reading the counts; None if unknown."""
        return self._most if self._seen is not None and self._seen == _version(counts) else None

    def add(self, counts: Tensor, n_rows: int, before: int | None) -> None:
        """Note that ``n_rows`` were added to ``counts``, of which ``before`` was the bound."""
        self._seen = None if before is None else _version(counts)
        self._most = (before or 0) + n_rows

    def read(self, counts: Tensor) -> None:
        """Read the largest count from the tensor. Waits for a GPU."""
        self._most, self._seen = int(counts.max()), _version(counts)


def _version(counts: Tensor) -> tuple[int, int] | None:
    """Return what changes when a tensor is replaced or changed in place; None where torch does not tell."""
    if torch.compiler.is_compiling() or counts.is_inference():
        return None
    return id(counts), counts._version  # noqa: SLF001 - torch's own, documented

"""How long the most idle latent has been idle, known to the host, so that no GPU is asked whether a latent is dead."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor


class LongestIdle:
    """An upper bound of the largest number in a SAE's ``samples_since_active``; None where nothing is known.

    The counts of a new SAE are 0, and those of a batch add its rows at most. Whoever else changes or replaces the
    tensor (a loaded state, ``.to(device)``) makes the bound unknown, until it is read from the tensor again. Two things
    are not noticed: changes through ``.data``, and those of a captured CUDA graph when it is replayed.
    """

    def __init__(self, counts: Tensor) -> None:
        self._most = 0
        self._note(counts)

    def bound(self, counts: Tensor) -> int | None:
        """Return a number that no count is above, without reading the counts; None if unknown."""
        if torch.compiler.is_compiling():  # before anything that changes from step to step, which would be guarded
            return None
        known = self._counts is not None and self._counts() is counts and self._version == _version(counts)
        return self._most if known else None

    def add(self, counts: Tensor, n_rows: int, before: int | None) -> None:
        """Note that ``n_rows`` were added to ``counts``, of which ``before`` was the bound."""
        if torch.compiler.is_compiling():
            return
        self._most = (before or 0) + n_rows
        self._note(None if before is None else counts)

    def read(self, counts: Tensor) -> None:
        """Read the largest count from the tensor. Waits for a GPU."""
        self._most = int(counts.max())
        self._note(counts)

    def _note(self, counts: Tensor | None) -> None:
        """Note the tensor as it is now; None, or one whose changes torch does not count, makes the bound unknown."""
        is_known = counts is not None and not counts.is_inference()
        self._counts = weakref.ref(counts) if is_known else None
        self._version = None if counts is None else _version(counts)

    def __getstate__(self) -> dict[str, object]:
        """Return what is copied and saved: a copy knows nothing, because its tensor is another one."""
        return {"_most": 0, "_counts": None, "_version": None}


def _version(counts: Tensor) -> int | None:
    """Return the number of changes in place of a tensor; None where torch does not count them."""
    return None if counts.is_inference() else counts._version  # noqa: SLF001 - torch's own, documented

"""Whether code may branch on values: free on the CPU, while on a GPU the process waits for all queued work to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_branch_free_everywhere = False  # a plain global, which torch.compile guards; set by `branch_free` alone


def may_branch(device: torch.device) -> bool:
    """Return whether code may branch on values on ``device``; where not, it takes fixed shapes, masks and float64.

    True on the CPU, and on MPS, whose float64 sums are on the CPU anyway; but not in code that torch.compile traces,
    nor within `branch_free`.
    """
    return device.type in ("cpu", "mps") and not _branch_free_everywhere and not torch.compiler.is_compiling()


def may_check(device: torch.device) -> bool:
    """Return whether bad values on ``device`` are refused at once: on the CPU, but not in traced code."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


@contextmanager
def branch_free() -> Iterator[None]:
    """Take the path of GPUs on the CPU too, for tests of its exactness; applies to all threads."""
    global _branch_free_everywhere  # noqa: PLW0603 - the switch itself
    before, _branch_free_everywhere = _branch_free_everywhere, True
    try:
        yield
    finally:
        _branch_free_everywhere = before

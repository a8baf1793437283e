"""Whether code may branch on values: free on the CPU, while on a GPU the process waits for all queued work to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_branch_free_everywhere = False  # a plain global, which torch.compile guards; set by `branch_free` alone


def may_branch(device: torch.device) -> bool:
    """Return whether reading values on ``device`` is free: True on the CPU, except within `branch_free`.

    Where False, code does without: fixed shapes, masks, ``torch.where``, float64; and values are not checked.
    """
    return device.type == "cpu" and not _branch_free_everywhere


@contextmanager
def branch_free() -> Iterator[None]:
    """Take the path of GPUs on the CPU too, for tests of its exactness; applies to all threads."""
    global _branch_free_everywhere  # noqa: PLW0603 - the switch itself
    before, _branch_free_everywhere = _branch_free_everywhere, True
    try:
        yield
    finally:
        _branch_free_everywhere = before

"""Small blocks for ``block_shuffled``, so that few rows fill several windows."""

from __future__ import annotations

import pytest

from monoloss.runs import shuffling


def shrink_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 rows, windows of 3 blocks, so that 23 rows are more than a window."""
    monkeypatch.setattr(shuffling, "_BLOCK_ROWS", 2)
    monkeypatch.setattr(shuffling, "_BLOCKS_PER_WINDOW", 3)

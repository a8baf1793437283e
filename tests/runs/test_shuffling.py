"""Orders of rows: permutations determined by seed and epoch, in blocks where the rows are many."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch

from monoloss.runs.shuffling import block_shuffled, shuffled
from support.small_blocks import shrink_blocks


def test_shuffled_is_a_permutation_with_nothing_shared_between_seeds_and_epochs():
    orders = {tuple(shuffled(50, seed, epoch).tolist()) for seed in range(-1, 5) for epoch in range(-1, 5)}
    assert len(orders) == 36
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert shuffled(1, 0, 0).tolist() == [0]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_blocks(monkeypatch)


@pytest.mark.usefixtures("small_blocks")
def test_block_shuffled_mixes_blocks_within_windows():
    orders = [block_shuffled(23, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert orders == [block_shuffled(23, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    moved = torn = 0
    for order in orders:
        assert sorted(order) == list(range(23))
        windows = [order[:6], order[6:12], order[12:18], order[18:]]
        if 22 in order[:18]:  # the block of one row
            short = next(number for number in range(3) if 22 in windows[number])
            bounds = [0, *(6 * (number + 1) - (number >= short) for number in range(3)), 23]
            windows = [order[start:stop] for start, stop in itertools.pairwise(bounds)]
        for window in windows:
            assert {row ^ 1 for row in window if row != 22} <= {*window, 23}  # whole blocks
        moved += windows[0] != sorted(windows[0]) and max(windows[0]) > 5
        torn += any(abs(left - right) > 1 for left, right in itertools.pairwise(windows[0]))
    assert moved
    assert torn
    assert block_shuffled(6, 1, 0).tolist() == shuffled(6, 1, 0).tolist()


def test_blocks_begin_above_65536_rows():
    assert torch.equal(block_shuffled(65536, 3, 1), shuffled(65536, 3, 1))
    assert not torch.equal(block_shuffled(65537, 3, 1), shuffled(65537, 3, 1))


def test_orders_are_those_of_earlier_versions():
    """A run that an earlier version stopped resumes in the same order; 150 000 rows are three windows of blocks."""

    def digest(order: torch.Tensor) -> str:
        return hashlib.sha256(order.numpy().tobytes()).hexdigest()[:16]

    assert (digest(shuffled(1000, 3, 1)), digest(block_shuffled(150_000, 3, 1))) == (
        "fb359e62da02a4d6",
        "96d9a033059cfe1e",
    )

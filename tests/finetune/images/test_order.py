"""Which rows go together."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoloss.errors import InputError
from monoloss.finetune.images.order import StoredOrder, TrainingOrder


def rows_of(order: TrainingOrder, epoch: int, first: int = 0) -> list[list[int]]:
    return [batch.rows for batch in order.batches(epoch, first)]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return [row for part in parts for row in part]


def test_each_row_once_an_epoch_in_a_new_order() -> None:
    order = TrainingOrder(20, 5, seed=0)
    epochs = [flat(rows_of(order, epoch)) for epoch in range(2)]
    assert len(order) == 4
    for rows in epochs:
        assert sorted(rows) == list(range(20))
    assert epochs[0] != epochs[1]
    assert epochs[0] == flat(rows_of(TrainingOrder(20, 5, seed=0), 0))
    assert epochs[0] != flat(rows_of(TrainingOrder(20, 5, seed=1), 0))


def test_begun_anywhere() -> None:
    order = TrainingOrder(20, 3, seed=0)
    assert rows_of(order, 2, 4) == rows_of(order, 2)[4:]
    assert [batch.number for batch in order.batches(2, 4)] == [2 * 6 + 4, 2 * 6 + 5]


def test_what_does_not_fill_a_step_is_left_out() -> None:
    assert [len(rows) for rows in rows_of(TrainingOrder(23, 4, seed=0), 0)] == [4] * 5
    order = TrainingOrder(23, 4, seed=0, accumulate=2)
    assert len(order) == len(rows_of(order, 0)) == 4
    left_out = [set(range(23)) - set(flat(rows_of(order, epoch))) for epoch in (0, 1)]
    assert left_out[0] != left_out[1]


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_processes_share_a_batch(repeats: int) -> None:
    alone = TrainingOrder(50, 8, seed=3, repeats=repeats)
    for epoch in (0, 1):
        shares = [list(TrainingOrder(50, 8, 3, 1, repeats, rank, 4).batches(epoch)) for rank in range(4)]
        for number, batch in enumerate(alone.batches(epoch)):
            parts = [share[number] for share in shares]
            assert flat(part.rows for part in parts) == batch.rows
            assert flat(part.copies for part in parts) == batch.copies
            assert [len(part.rows) for part in parts] == [2] * 4
            assert {part.number for part in parts} == {batch.number}


def test_repeated_augmentation() -> None:
    order = TrainingOrder(24, 8, seed=0, repeats=4)
    assert len(order) == 3
    seen: list[int] = []
    for batch in order.batches(0):
        assert sorted(set(zip(batch.rows, batch.copies, strict=True))) == [
            (row, copy) for row in sorted(set(batch.rows)) for copy in range(4)
        ]
        assert all(one != other for one, other in zip(batch.rows, batch.rows[1:], strict=False))
        seen += set(batch.rows)
    assert len(seen) == len(set(seen)) == 6  # two new images a batch
    shares = [next(TrainingOrder(24, 8, 0, 1, 4, rank, 4).batches(0)).rows for rank in range(4)]
    assert all(len(set(rows)) == 2 for rows in shares)  # copies are in different processes


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5))
def test_held_out_rows_are_counted_once(n_rows: int, batch_size: int, world_size: int) -> None:
    if n_rows < world_size:
        return
    orders = [StoredOrder(n_rows, batch_size, rank, world_size) for rank in range(world_size)]
    shares = [[batch.rows for batch in order.batches()] for order in orders]
    assert {len(share) for share in shares} == {len(orders[0])}  # none waits for another
    assert sorted(row for share in shares for rows in share for row in rows) == list(range(n_rows))
    sizes = [len(rows) for share in shares for rows in share]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    if batch_size >= 2 * world_size:
        assert max(sizes) <= -(-batch_size // world_size)


def test_held_out_rows_in_stored_order() -> None:
    rows = [batch.rows for batch in StoredOrder(10, 4).batches()]
    assert flat(rows) == list(range(10))


@pytest.mark.door
def test_refused() -> None:
    with pytest.raises(InputError, match="batch_size: got 8; expected at most the images to train on, 7"):
        TrainingOrder(7, 8, seed=0)
    with pytest.raises(InputError, match="accumulate_batches: got 3 of 4 images; expected batches that hold no more"):
        TrainingOrder(8, 4, seed=0, accumulate=3)
    with pytest.raises(InputError, match="processes: got 3; expected a divisor of batch_size, 8"):
        TrainingOrder(9, 8, seed=0, world_size=3)
    with pytest.raises(InputError, match=r"augmentation\.repeats: got 3; expected a divisor of batch_size, 8"):
        TrainingOrder(9, 8, seed=0, repeats=3)
    with pytest.raises(InputError, match="processes: got 3; expected at most the held-out images, 2"):
        StoredOrder(2, 8, 0, 3)

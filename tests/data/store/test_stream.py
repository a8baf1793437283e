"""Whole stores from rows that are read a shard at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.data.store.stream import RowColumns, ShardRows, usual_dtype, write_rows, write_shards
from monoloss.errors import InputError
from support.stores import everything_in, rows_of, stop_at_call


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_in_the_second_shard_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    stop_at_call(monkeypatch, 2, error)
    with pytest.raises(error):
        FeatureStore.create(tmp_path / "s", rows_of(10), rows_per_shard=3)
    assert everything_in(tmp_path) == []


def test_rows_are_read_once_and_a_shard_at_a_time(tmp_path: Path) -> None:
    rows, spans, advanced = rows_of(10), [], []

    def read(start: int, stop: int) -> Tensor:
        spans.append((start, stop))
        return rows[start:stop]

    columns = RowColumns(torch.arange(10) % 4, [f"image {i}" for i in range(10)], [None, *"abcdefghi"])
    write_rows(tmp_path / "s", rows.shape, read, columns, advanced.append, rows_per_shard=4)
    store = FeatureStore(tmp_path / "s")
    assert spans == [(0, 4), (4, 8), (8, 10)]
    assert advanced == [4, 4, 2]
    assert torch.equal(store.embeddings(), rows)
    assert (store.labels().tolist(), store.ids, store.paths) == ([i % 4 for i in range(10)], columns.ids, columns.paths)


def test_shards_of_an_unknown_number_of_rows(tmp_path: Path) -> None:
    rows, sizes = rows_of(5), []

    def shards(rows_per_shard: int) -> Iterator[ShardRows]:
        sizes.append(rows_per_shard)
        for start in range(0, 5, rows_per_shard):
            yield ShardRows(rows[start : start + rows_per_shard], RowColumns())

    write_shards(tmp_path / "s", shards, rows_per_shard=2)
    store = FeatureStore(tmp_path / "s")
    assert sizes == [2]
    assert (store.ids, store.shard_offsets) == (["0", "1", "2", "3", "4"], [0, 2, 4, 5])
    assert torch.equal(store.embeddings(), rows)


@pytest.mark.door
def test_what_is_wrong_with_all_rows_is_said_before_one_is_read(tmp_path: Path) -> None:
    def read(start: int, stop: int) -> Tensor:
        pytest.fail(f"read rows {start} to {stop}")

    for shape, columns, message in [
        ((3,), RowColumns(), r"embeddings: got shape \(3,\); expected \(rows, width\), each at least 1"),
        ((0, 2), RowColumns(), r"embeddings: got shape \(0, 2\); expected"),
        ((3, 2), RowColumns(paths=["a"]), "paths: got 1 rows; expected as many as embeddings has, 3"),
        ((3, 2), RowColumns(ids=["a", "b", "a"]), r"ids: got 'a' twice \(rows 0 and 2\); expected an id of its own"),
    ]:
        with pytest.raises(InputError, match=message):
            write_rows(tmp_path / "s", shape, read, columns)
    assert everything_in(tmp_path) == []


def test_a_part_of_the_columns() -> None:
    columns = RowColumns(torch.arange(4), list("abcd"))
    labels, ids, paths, thumbnails = columns.part(1, 3)
    assert (labels.tolist(), ids, paths, thumbnails) == ([1, 2], ["b", "c"], None, None)


def test_the_usual_stored_type() -> None:
    given = ("float16", "bfloat16", "uint8", "float32", "float64", "int64")
    assert [usual_dtype(name) for name in given] == ["float16", "bfloat16", "uint8", "float32", "float32", "float32"]

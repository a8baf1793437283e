"""Rows that come a shard at a time -> a store that appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Unpack

from monoloss.data.array_files import AnyArray
from monoloss.data.store.rows import check_ids, check_same_rows
from monoloss.data.store.writer import FeatureStoreWriter, StoreOptions
from monoloss.errors import InputError
from monoloss.files.atomic import atomic_folder, check_new_folder


class RowColumns(NamedTuple):
    """What stands beside the embeddings, for the same rows in the same order."""

    labels: AnyArray | None = None  # `(n,)` integers or `(n, n_classes)` bool
    ids: Sequence[str] | None = None  # of the rows, each its own; None: the row numbers
    paths: Sequence[str | None] | None = None  # of the rows, relative to the image root
    thumbnails: AnyArray | None = None  # `(n, h, w, c)` bytes

    def part(self, start: int, stop: int) -> RowColumns:
        """Slice the columns: rows `start` to `stop` (exclusive)."""
        columns: list[Any] = [None if column is None else column[start:stop] for column in self]
        return RowColumns(*columns)


class ShardRows(NamedTuple):
    """The rows of one shard."""

    embeddings: AnyArray
    columns: RowColumns


def usual_dtype(name: str) -> str:
    """The stored type of rows of a type, where none is asked for: their own if it can be stored, else float32."""
    return name if name in {"float16", "bfloat16", "uint8"} else "float32"


def write_rows(
    folder: str | os.PathLike[str],
    shape: Sequence[int],
    read: Callable[[int, int], AnyArray],
    columns: RowColumns,
    advance: Callable[[int], object] | None = None,
    **options: Unpack[StoreOptions],
) -> None:
    """Write rows that can be asked for by number; only those of one shard are asked for at a time.

    Args:
        folder: the store; it does not exist yet or is empty.
        shape: `(n, d)` of all rows.
        read: gives rows `start` to `stop` (exclusive), `(stop - start, d)`.
        columns: for all rows.
        advance: called with the number of rows that have been written.
        **options: see `StoreOptions`.

    Raises:
        InputError: as `FeatureStoreWriter` and its `write_shard` do; no folder appears then.
    """
    check_new_folder(folder)
    if len(shape) != 2 or 0 in shape:
        raise InputError("embeddings", f"shape {tuple(shape)}", "(rows, width), each at least 1")
    n_rows = shape[0]
    check_same_rows(n_rows, **columns._asdict())
    check_ids(columns.ids or (), 0)

    def shards(rows_per_shard: int) -> Iterator[ShardRows]:
        for start in range(0, n_rows, rows_per_shard):
            stop = min(start + rows_per_shard, n_rows)
            yield ShardRows(read(start, stop), columns.part(start, stop))

    write_shards(folder, shards, advance, **options)


def write_shards(
    folder: str | os.PathLike[str],
    shards: Callable[[int], Iterable[ShardRows]],
    advance: Callable[[int], object] | None = None,
    **options: Unpack[StoreOptions],
) -> None:
    """Write rows that come in their own time; how many there are need not be known.

    Args:
        folder: the store; it does not exist yet or is empty.
        shards: given the number of rows of a shard, gives the rows shard by shard; only the last one may be short.
        advance: called with the number of rows that have been written.
        **options: see `StoreOptions`.

    Raises:
        InputError: as `FeatureStoreWriter` and its `write_shard` do; no folder appears then.
    """
    with atomic_folder(folder) as temporary:
        writer = FeatureStoreWriter(temporary, **options)
        for index, (embeddings, columns) in enumerate(shards(writer.rows_per_shard)):
            labels, ids, paths, thumbnails = columns
            first = index * writer.rows_per_shard
            ids = [str(row) for row in range(first, first + len(embeddings))] if ids is None else ids
            writer.write_shard(index, embeddings, ids, labels, paths=paths, thumbnails=thumbnails)
            if advance is not None:
                advance(len(embeddings))
        writer.finish()

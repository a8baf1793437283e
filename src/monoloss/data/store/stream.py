"""Writing a whole store from rows that are read a shard at a time: the folder appears whole or not at all."""

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
    """Labels, ids, paths and thumbnails of the rows of some embeddings, in the same order."""

    labels: AnyArray | None = None  # `(n,)` integers or `(n, n_classes)` bool
    ids: Sequence[str] | None = None  # one for each row, all different; None: the row numbers
    paths: Sequence[str | None] | None = None  # one for each row, relative to the image root
    thumbnails: AnyArray | None = None  # `(n, h, w, c)` bytes

    def part(self, start: int, stop: int) -> RowColumns:
        """Return the columns of the rows `start` to `stop` (exclusive)."""
        columns: list[Any] = [None if column is None else column[start:stop] for column in self]
        return RowColumns(*columns)


class ShardRows(NamedTuple):
    """The rows of one shard."""

    embeddings: AnyArray
    columns: RowColumns


def usual_dtype(name: str) -> str:
    """Return the default stored dtype of rows of dtype `name`: `name` if it can be stored, else "float32"."""
    return name if name in {"float16", "bfloat16", "uint8"} else "float32"


def write_rows(
    folder: str | os.PathLike[str],
    shape: Sequence[int],
    read: Callable[[int, int], AnyArray],
    columns: RowColumns,
    advance: Callable[[int], object] | None = None,
    **options: Unpack[StoreOptions],
) -> None:
    """Write a store of rows that `read` gives by number; they are read one shard at a time.

    Args:
        folder: the store; it does not exist yet or is empty.
        shape: `(n, d)` of all rows.
        read: `read(start, stop)` returns the rows `start` to `stop` (exclusive), `(stop - start, d)`.
        columns: the other columns of all rows.
        advance: called after each shard with its number of rows.
        **options: see `StoreOptions`.

    Raises:
        InputError: as `FeatureStoreWriter` and its `write_shard` do; no folder is made.
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
    """Write a store of rows that an iterator gives shard by shard; their number need not be known.

    Args:
        folder: the store; it does not exist yet or is empty.
        shards: `shards(n)` yields shards of n rows each; only the last one may be shorter.
        advance: called after each shard with its number of rows.
        **options: see `StoreOptions`.

    Raises:
        InputError: as `FeatureStoreWriter` and its `write_shard` do; no folder is made.
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

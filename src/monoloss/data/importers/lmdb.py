"""Import of LMDB files of features in the layout of the MonoLoss authors.

The layout: key `0`, `1`, ... (decimal, ASCII) holds a row as raw little-endian float32; `__len__` the number of rows in
decimal; `__shape__` the shape of a row as Python writes a tuple. The file has no labels, ids or paths.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Unpack

import lmdb
import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from monoloss.data.importers import options as importing
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError

if TYPE_CHECKING:
    Reading: TypeAlias = lmdb.Transaction[memoryview]
else:
    Reading: TypeAlias = lmdb.Transaction  # takes no type argument when it runs

_COUNT = re.compile(rb"[0-9]{1,18}")
_SHAPE = re.compile(rb"\(([0-9, ]{1,99})\)|\[([0-9, ]{1,99})\]")
_ROW_DTYPE = np.dtype("<f4")


def import_lmdb(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], **options: Unpack[importing.ImportOptions]
) -> FeatureStore:
    """Write the features of an LMDB file in the layout of the MonoLoss authors as a store, and open it.

    Rows are read in the order of their numbers, a shard at a time. Nothing in the file is evaluated or unpickled, and
    other keys are ignored. LMDB maps the file into memory and trusts its page numbers: a truncated file is refused, but
    one with damaged pages can end the process (then no store is made).

    Args:
        path: the LMDB folder, or its data file.
        folder: the store; it does not exist yet or is empty.
        **options: see `ImportOptions` (labels, ids and paths are read from other files; by default the ids are the row
            numbers) and `StoreOptions`. Rows are float32; `dtype="uint8"` with a `scale` rounds them.

    Raises:
        InputError: the file is no LMDB file or is truncated; `__len__` or `__shape__` is missing or not made of plain
            decimal integers; a row is missing or of another size. The error names file and key; no folder is made.

    Example:
        >>> import tempfile
        >>> rows = {b"0": np.float32([0, 2]).tobytes(), b"__len__": b"1", b"__shape__": b"(2,)"}
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with lmdb.open(parent + "/features") as file, file.begin(write=True) as transaction:
        ...         _ = [transaction.put(key, value) for key, value in rows.items()]
        ...     import_lmdb(parent + "/features", parent + "/store").embeddings().tolist()
        [[0.0, 2.0]]
    """
    files = importing.ColumnFiles.read(options)
    with _opened(path) as transaction:
        n_rows, width = _read_sizes(transaction, path)

        def read(start: int, stop: int) -> Float32[ndarray, "n d"]:
            return _read_rows(transaction, path, range(start, stop), width)

        return importing.write_store(folder, (n_rows, width), "float32", read, files.beside(), options)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Reading]:
    """Open a read transaction on an LMDB file; `InputError` if the file is missing, truncated or no LMDB file."""
    file = Path(path)
    expected = "an LMDB folder with data.mdb in it, or such a file, as it was written"
    if not file.exists():
        raise InputError(str(path), "no such file or folder", expected)
    try:
        with lmdb.open(str(file), readonly=True, lock=False, subdir=file.is_dir()) as environment:
            _check_whole(environment, file / "data.mdb" if file.is_dir() else file)
            with environment.begin(buffers=True) as transaction:
                yield transaction
    except lmdb.Error as error:
        raise InputError(str(path), f"data that cannot be read as LMDB ({error})", expected) from error


def _check_whole(environment: lmdb.Environment, file: Path) -> None:
    """Raise `InputError` if the file ends before its last page: reading the missing part would end the process."""
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if (got := file.stat().st_size) < expected:
        raise InputError(str(file), f"a file that is cut off at {got} bytes", f"the {expected} bytes it had")


def _read_sizes(transaction: Reading, path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the number and width of the rows from `__len__` and `__shape__`, checked against the entries."""
    count, shape = _metadata(transaction, path, "__len__"), _metadata(transaction, path, "__shape__")
    if not _COUNT.fullmatch(count) or int(count) == 0:
        raise InputError(f"{path}, key __len__", _shown(count), "the number of rows in decimal, at least 1")
    n_rows, axes = int(count), _axes(shape)
    if axes is None or 0 in axes:
        expected = "a tuple of positive integers in decimal, such as (768,); it is not evaluated"
        raise InputError(f"{path}, key __shape__", _shown(shape), expected)
    width = math.prod(axes)
    if width != max(axes):
        raise InputError(f"{path}, key __shape__", _shown(shape), "one vector for each row, such as (768,)")
    if n_rows > (entries := transaction.stat()["entries"]) - 2:
        raise InputError(f"{path}, key __len__", f"{n_rows} rows", f"at most {entries - 2}: it has {entries} entries")
    if transaction.get(str(n_rows).encode()) is not None:
        raise InputError(f"{path}, key {n_rows}", "a row", f"none after the {n_rows} rows that __len__ promises")
    return n_rows, width


def _axes(shape: bytes) -> list[int] | None:
    """Return the integers of a tuple or list written in Python; None for any other text, such as `(5)`, no tuple."""
    match = _SHAPE.fullmatch(shape.strip(b" "))
    if match is None or (match[1] is not None and b"," not in match[1]):
        return None
    axes = [axis.strip(b" ") for axis in (match[1] or match[2]).strip(b" ").removesuffix(b",").split(b",")]
    return [int(axis) for axis in axes] if all(_COUNT.fullmatch(axis) for axis in axes) else None


def _metadata(transaction: Reading, path: str | os.PathLike[str], key: str) -> bytes:
    """Return the value of a key that is no row; `InputError` if the file lacks the key."""
    value = transaction.get(key.encode())
    if value is None:
        raise InputError(str(path), f"no key {key}", "the keys __len__ and __shape__ beside the rows 0, 1, ...")
    return bytes(value)


def _read_rows(
    transaction: Reading, path: str | os.PathLike[str], numbers: range, width: int
) -> Float32[ndarray, "n d"]:
    """Read the rows with these numbers; `InputError` if a row is missing or has another width."""
    n_bytes = width * _ROW_DTYPE.itemsize
    rows: ndarray | None = None
    for place, number in enumerate(numbers):
        value = transaction.get(str(number).encode())
        if value is None or len(value) != n_bytes:
            got = "no such key" if value is None else f"{len(value)} bytes"
            expected = f"a row of {n_bytes} bytes: {width} float32 values, as __shape__ says"
            raise InputError(f"{path}, key {number}", got, expected)
        if rows is None:  # only once a row has the width that `__shape__` claims: a false one could fill the memory
            rows = np.empty((len(numbers), width), dtype=np.float32)
        rows[place] = np.frombuffer(value, dtype=_ROW_DTYPE)
    return np.empty((0, width), dtype=np.float32) if rows is None else rows


def _shown(value: bytes) -> str:
    """Return the `repr` of at most 60 bytes of a value."""
    return repr(value[:60]) + "..." * (len(value) > 60)

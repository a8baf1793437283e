"""Columns of Arrow tables as what a store takes; whatever is wrong with one names the column and the row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped
from numpy import ndarray

from monoloss.errors import InputError


def value_dtype(kind: pa.DataType, name: str) -> str:
    """The type of the numbers of a column of embeddings, as NumPy calls it.

    Raises:
        InputError: it is no column of lists of numbers.
    """
    if not _is_list(kind) or not _is_number(kind.value_type):
        raise InputError(name, f"a column of {kind}", "a column of lists of numbers, all of one length")
    return "float16" if str(kind.value_type) == "halffloat" else str(np.dtype(kind.value_type.to_pandas_dtype()))


def matrix(column: pa.ChunkedArray, name: str, first_row: int) -> Shaped[ndarray, "n d"]:
    """A column of lists of one length as `(n, d)`."""
    rows = _whole(column)
    _refuse_nulls(rows, name, first_row)
    lengths = rows.value_lengths().to_numpy(zero_copy_only=False)
    width = int(lengths[0])
    if (odd := lengths != width).any():
        row = int(odd.argmax())
        raise InputError(
            name, f"{lengths[row]} values (row {first_row + row})", f"{width} in every row, as in the first"
        )
    values = rows.flatten()
    if values.null_count:
        row = values.is_null().to_numpy(zero_copy_only=False).argmax() // max(width, 1)
        raise InputError(name, f"a missing value (row {first_row + int(row)})", "a number in every place")
    numbers: ndarray = values.to_numpy(zero_copy_only=False)
    return numbers.reshape(len(rows), width)


def label_array(
    column: pa.ChunkedArray, name: str, class_names: Sequence[str] | None, first_row: int
) -> Shaped[ndarray, "n *c"]:
    """A column of labels as `(n,)` integers, or `(n, n_classes)` bool for several labels a row."""
    labels = _whole(column)
    kind = labels.type
    of_several = kind.value_type if _is_list(kind) else None
    if of_several is not None and pa.types.is_boolean(of_several):
        return matrix(column, name, first_row)
    _refuse_nulls(labels, name, first_row)
    if pa.types.is_integer(kind):
        numbers: ndarray = labels.to_numpy(zero_copy_only=False)
        return numbers
    if of_several is None or not pa.types.is_integer(of_several):
        expected = "integers (a ClassLabel is), or for several labels a row lists of integers or of bool"
        raise InputError(name, f"a column of {kind}", expected)
    if class_names is None:
        raise InputError(
            name, "lists of integers without class names", "class_names, which say how many classes there are"
        )
    values = labels.flatten()
    _refuse_nulls(values, name, first_row)
    classes = values.to_numpy(zero_copy_only=False)
    lengths = labels.value_lengths().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(labels)), lengths)
    if (wrong := (classes < 0) | (classes >= len(class_names))).any():
        at = int(wrong.argmax())
        expected = f"labels from 0 to {len(class_names) - 1}, one for each class name"
        raise InputError(name, f"{classes[at]} (row {first_row + int(rows[at])})", expected)
    several = np.zeros((len(labels), len(class_names)), dtype=bool)
    several[rows, classes] = True
    return several


def string_list(column: pa.ChunkedArray, name: str, first_row: int) -> list[str]:
    """A column of strings or integers as strings, one in every row."""
    _refuse_nulls(column, name, first_row)
    return [text for text in optional_strings(column, name) if text is not None]


def optional_strings(column: pa.ChunkedArray, name: str) -> list[str | None]:
    """A column of strings or integers as strings, None where it holds nothing."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not is_text and not pa.types.is_integer(kind):
        raise InputError(name, f"a column of {kind}", "strings or integers")
    return [None if value is None else str(value) for value in column.to_pylist()]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The chunks as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _refuse_nulls(values: pa.Array | pa.ChunkedArray, name: str, first_row: int) -> None:
    if values.null_count:
        row = first_row + int(values.is_null().to_numpy(zero_copy_only=False).argmax())
        raise InputError(name, f"nothing in row {row}", "a value in every row")

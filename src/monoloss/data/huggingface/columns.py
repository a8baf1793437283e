"""Conversion of columns of Arrow tables to arrays and lists of strings; errors name the column and the row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped
from numpy import ndarray

from monoloss.errors import InputError


def value_dtype(kind: pa.DataType, name: str) -> str:
    """Return the name, as NumPy spells it, of the dtype of the numbers in a column of embeddings of type `kind`.

    Raises:
        InputError: `kind` is no type of lists of numbers; the error calls the column `name`.
    """
    if not _is_list(kind) or not _is_number(kind.value_type):
        raise InputError(name, f"a column of {kind}", "a column of lists of numbers, all of one length")
    return "float16" if str(kind.value_type) == "halffloat" else str(np.dtype(kind.value_type.to_pandas_dtype()))


def matrix(column: pa.ChunkedArray, name: str, first_row: int) -> Shaped[ndarray, "n d"]:
    """Return a column of lists, all of one length, as `(n, d)`; its first row is number `first_row` in errors."""
    rows = _whole(column)
    _refuse_nulls(rows, name, first_row)
    lengths = rows.value_lengths().to_numpy(zero_copy_only=False)
    width = int(lengths[0])
    if (differs := lengths != width).any():
        row = int(differs.argmax())
        got = f"{lengths[row]} values (row {first_row + row})"
        raise InputError(name, got, f"{width} in every row, as in the first")
    values = rows.flatten()
    if values.null_count:
        row = values.is_null().to_numpy(zero_copy_only=False).argmax() // max(width, 1)
        raise InputError(name, f"a missing value (row {first_row + int(row)})", "a number in every place")
    numbers: ndarray = values.to_numpy(zero_copy_only=False)
    return numbers.reshape(len(rows), width)


def label_array(
    column: pa.ChunkedArray, name: str, class_names: Sequence[str] | None, first_row: int
) -> Shaped[ndarray, "n *c"]:
    """Return a column of labels as `(n,)` integers, or as `(n, n_classes)` bool if it holds lists of labels."""
    labels = _whole(column)
    kind = labels.type
    item_kind = kind.value_type if _is_list(kind) else None
    if item_kind is not None and pa.types.is_boolean(item_kind):
        return matrix(column, name, first_row)
    _refuse_nulls(labels, name, first_row)
    if pa.types.is_integer(kind):
        numbers: ndarray = labels.to_numpy(zero_copy_only=False)
        return numbers
    if item_kind is None or not pa.types.is_integer(item_kind):
        expected = "integers (a ClassLabel is), or for several labels a row lists of integers or of bool"
        raise InputError(name, f"a column of {kind}", expected)
    if class_names is None:
        got = "lists of integers without class names"
        raise InputError(name, got, "class_names, which give the number of classes")
    values = labels.flatten()
    _refuse_nulls(values, name, first_row)
    classes = values.to_numpy(zero_copy_only=False)
    lengths = labels.value_lengths().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(labels)), lengths)
    if (wrong := (classes < 0) | (classes >= len(class_names))).any():
        place = int(wrong.argmax())
        expected = f"labels from 0 to {len(class_names) - 1}, one for each class name"
        raise InputError(name, f"{classes[place]} (row {first_row + int(rows[place])})", expected)
    has_class = np.zeros((len(labels), len(class_names)), dtype=bool)
    has_class[rows, classes] = True
    return has_class


def string_list(column: pa.ChunkedArray, name: str, first_row: int) -> list[str]:
    """Return a column of strings or integers as strings; `InputError` if a row is null."""
    _refuse_nulls(column, name, first_row)
    return [text for text in optional_strings(column, name) if text is not None]


def optional_strings(column: pa.ChunkedArray, name: str) -> list[str | None]:
    """Return a column of strings or integers as strings, None for a null."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not is_text and not pa.types.is_integer(kind):
        raise InputError(name, f"a column of {kind}", "strings or integers")
    return [None if value is None else str(value) for value in column.to_pylist()]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return the chunks of a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _refuse_nulls(values: pa.Array | pa.ChunkedArray, name: str, first_row: int) -> None:
    """Raise `InputError`, naming the first null row of the column, if there is one; rows count from `first_row`."""
    if values.null_count:
        row = first_row + int(values.is_null().to_numpy(zero_copy_only=False).argmax())
        raise InputError(name, f"nothing in row {row}", "a value in every row")

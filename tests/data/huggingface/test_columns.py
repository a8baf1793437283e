"""Columns of Arrow tables as arrays and strings; what is wrong is named with its row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from monoloss.data.huggingface.columns import label_array, matrix, optional_strings, string_list, value_dtype
from monoloss.errors import InputError


def chunks(*parts: list[Any], kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(part, kind) for part in parts], kind)


LISTS = [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)]


@pytest.mark.parametrize("list_of", LISTS)
def test_lists_of_one_length_are_a_matrix(list_of: Any) -> None:
    for parts in ([[[1, 2], [3, 4], [5, 6]]], [[[1, 2]], [], [[3, 4], [5, 6]]]):
        column = chunks(*parts, kind=list_of(pa.float32()))
        rows = matrix(column, "x", 0)
        assert (rows.dtype, rows.tolist()) == (np.float32, [[1, 2], [3, 4], [5, 6]])
        assert matrix(column.slice(1, 2), "x", 1).tolist() == [[3, 4], [5, 6]]


@pytest.mark.parametrize("list_of", LISTS)
def test_types_of_embeddings(list_of: Any) -> None:
    kinds = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(), "uint8": pa.uint8()}
    for name, kind in kinds.items():
        assert value_dtype(list_of(kind), "x") == name


def test_integer_labels_keep_their_type() -> None:
    labels = label_array(chunks([2, 0], [1], kind=pa.int16()), "x", None, 0)
    assert (labels.dtype, labels.tolist()) == (np.int16, [2, 0, 1])


def test_lists_of_labels_are_bool_for_each_class() -> None:
    expected = [[False, True, True], [False, False, False], [True, False, False]]
    classes = chunks([[2, 1], []], [[0]], kind=pa.list_(pa.int64()))
    assert label_array(classes, "x", ["a", "b", "c"], 0).tolist() == expected
    assert label_array(classes.slice(1), "x", ["a", "b", "c"], 1).tolist() == expected[1:]
    flags = chunks(expected, kind=pa.list_(pa.bool_()))
    assert label_array(flags, "x", None, 0).tolist() == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_may_be_missing_where_that_is_allowed(kind: pa.DataType) -> None:
    assert optional_strings(chunks(["a"], [None, "é"], kind=kind), "x") == ["a", None, "é"]
    assert string_list(chunks(["a"], ["é"], kind=kind), "x", 0) == ["a", "é"]


def test_numbers_as_strings() -> None:
    assert string_list(chunks([3, -1], kind=pa.int8()), "x", 0) == ["3", "-1"]
    assert optional_strings(chunks([3, None], kind=pa.int64()), "x") == ["3", None]


@pytest.mark.door
def test_wrong_embeddings_are_named() -> None:
    for kind in (pa.float32(), pa.list_(pa.string()), pa.list_(pa.bool_())):
        with pytest.raises(InputError, match=r"x: got a column of .*; expected a column of lists of numbers"):
            value_dtype(kind, "x")
    numbers = pa.list_(pa.float32())
    for parts, message in [
        ([[[1, 2]], [[3]]], r"x: got 1 values \(row 11\); expected 2 in every row, as in the first"),
        ([[[1, 2]], [None]], "x: got nothing in row 11; expected a value in every row"),
        ([[[1, 2], [3, 4]], [[5, None]]], r"x: got a missing value \(row 12\); expected a number in every place"),
    ]:
        with pytest.raises(InputError, match=message):
            matrix(chunks(*parts, kind=numbers), "x", 10)


@pytest.mark.door
def test_wrong_labels_and_strings_are_named() -> None:
    lists = pa.list_(pa.int64())
    for column, names, message in [
        (chunks([0], [None], kind=pa.int64()), None, "x: got nothing in row 11; expected a value in every row"),
        (chunks([0.0], kind=pa.float32()), None, r"x: got a column of float; expected integers \(a ClassLabel is\)"),
        (chunks([["a"]], kind=pa.list_(pa.string())), ["a"], "x: got a column of list.*; expected integers"),
        (chunks([[0]], kind=lists), None, "x: got lists of integers without class names; expected class_names, which"),
        (chunks([[0]], [[], [1, 2]], kind=lists), ["a", "b"], r"x: got 2 \(row 12\); expected labels from 0 to 1, one"),
        (chunks([[0], [-1]], kind=lists), ["a", "b"], r"x: got -1 \(row 11\); expected labels from 0 to 1"),
    ]:
        with pytest.raises(InputError, match=message):
            label_array(column, "x", names, 10)
    with pytest.raises(InputError, match="x: got nothing in row 11; expected a value in every row"):
        string_list(chunks(["a", None], kind=pa.string()), "x", 10)
    with pytest.raises(InputError, match="x: got a column of double; expected strings or integers"):
        optional_strings(chunks([1.0], kind=pa.float64()), "x")

"""Checks of the rows, labels, ids and thumbnails given to a feature store, and their conversion to stored tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float64, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from monoloss.data.array_files import AnyArray, to_tensor
from monoloss.data.store.format import DTYPES, decode
from monoloss.errors import InputError

RowName: TypeAlias = Callable[[int], str]  # the name of row i of a shard in errors
MAX_CLASSES = 2**24  # a larger label is an id or a mistake, and the counts of its classes would fill the memory
_NOT_FINITE, _OUTSIDE, _ZEROS = "NaN or inf", "a value outside", "only zeros once stored as"
_BLOCK = 8192  # rows converted to float64 at a time


def check_same_rows(n_rows: int, **others: Sequence[object] | AnyArray | None) -> None:
    """Raise `InputError`, naming the argument, unless all of `others` that are not None have `n_rows` rows."""
    for name, other in others.items():
        if other is not None and len(other) != n_rows:
            raise InputError(name, f"{len(other)} rows", f"as many as embeddings has, {n_rows}")


def check_ids(ids: Sequence[str], first_row: int) -> None:
    """Raise `InputError` unless all ids are strings and differ; errors number the rows from `first_row`."""
    row_of_id: dict[str, int] = {}
    for row, name in enumerate(ids, first_row):
        if not isinstance(name, str):
            raise InputError("ids", f"{name!r} (row {row})", "strings")
        if row_of_id.setdefault(name, row) != row:
            got = f"{name!r} twice (rows {row_of_id[name]} and {row})"
            raise InputError("ids", got, "an id of its own for every row")


def encode_rows(
    embeddings: Shaped[Tensor, "n d"], dtype: str, scale: float | None, row_name: RowName
) -> tuple[Shaped[Tensor, "n d"], Float64[Tensor, " d"], list[float] | None]:
    """Convert rows to the stored dtype, and measure the stored rows.

    Args:
        embeddings: `(n, d)`, floating point, or bytes for dtype "uint8".
        dtype: name of the stored dtype.
        scale: value = scale * byte, for dtype "uint8"; else None.
        row_name: names row i in errors.

    Returns:
        The stored rows `(n, d)`; the sum `(d,)` of the stored rows, each divided by its norm, in float64; and
        [smallest, largest] norm of a stored row, None without rows.

    Raises:
        InputError: a row is zero or not finite, before or after the conversion; or the embeddings have a dtype that
            cannot be converted.
    """
    if not embeddings.is_floating_point() and not (embeddings.dtype == torch.uint8 and dtype == "uint8"):
        expected = "floating-point rows, or uint8 rows with dtype 'uint8' and a scale"
        raise InputError("embeddings", f"{embeddings.dtype} rows to store as {dtype}", expected)
    stored = torch.empty(embeddings.shape, dtype=DTYPES[dtype])
    unit_sum = torch.zeros(embeddings.shape[1], dtype=torch.float64)
    extremes: list[float] = []
    for start in range(0, len(embeddings), _BLOCK):
        block, stored_block = embeddings[start : start + _BLOCK], stored[start : start + _BLOCK]
        rows, norms, outside = _store(block, stored_block, scale)
        if outside.any():
            _refuse(~block.isfinite().all(dim=1), start, row_name, _NOT_FINITE, "finite rows")
            _refuse(outside, start, row_name, f"{_OUTSIDE} {dtype}", _range_text(dtype, scale))
        _refuse(norms == 0, start, row_name, f"{_ZEROS} {dtype}", "rows with a norm above 0")
        unit_sum += (rows / norms[:, None]).sum(dim=0)
        extremes += [norms.min().item(), norms.max().item()]
    return stored, unit_sum, [min(extremes), max(extremes)] if extremes else None


def row_faults(embeddings: Shaped[Tensor, "n d"], dtype: str, scale: float | None) -> list[str | None]:
    """Return for each row the reason why `encode_rows` would refuse it, or None if it can be stored."""
    stored = torch.empty(embeddings.shape, dtype=DTYPES[dtype])
    _, norms, outside = _store(embeddings, stored, scale)
    if not outside.any() and norms.all():
        return [None] * len(embeddings)
    finite = embeddings.isfinite().all(dim=1)
    reasons: list[str | None] = []
    for is_finite, is_outside, norm in zip(finite.tolist(), outside.tolist(), norms.tolist(), strict=True):
        fault = f"{_OUTSIDE} {dtype}" if is_outside else f"{_ZEROS} {dtype}" if norm == 0 else None
        reasons.append(fault if is_finite else _NOT_FINITE)
    return reasons


def _store(
    embeddings: Shaped[Tensor, "n d"], stored: Shaped[Tensor, "n d"], scale: float | None
) -> tuple[Float64[Tensor, "n d"], Float64[Tensor, " n"], Bool[Tensor, " n"]]:
    """Write rows into `stored`; return the stored rows in float64, their norms, and whether each was out of range."""
    outside = torch.zeros(len(embeddings), dtype=torch.bool)
    if scale is not None and embeddings.is_floating_point():
        embeddings = (embeddings.double() / scale).round()
        outside = ~((embeddings >= 0) & (embeddings <= 255)).all(dim=1)
    stored.copy_(embeddings)
    rows = decode(stored, scale).double()
    norms = rows.norm(dim=1)
    return rows, norms, outside | ~norms.isfinite()


def encode_labels(
    labels: AnyArray | None, class_names: Sequence[str] | None, row_name: RowName
) -> tuple[str | None, int, dict[str, Tensor]]:
    """Return the kind of the labels (None, "single" or "multi"), the number of classes, and the tensors to store.

    Raises:
        InputError: labels of a wrong shape or dtype; a label that is negative, too large, or without a class name.
    """
    if labels is None:
        if class_names is not None:
            raise InputError("class_names", "names without labels", "labels, or class_names=None")
        return None, 0, {}
    labels = to_tensor("labels", labels)
    if labels.ndim == 2 and labels.dtype == torch.bool and labels.shape[1] > 0:
        return "multi", *_encode_multi_labels(labels, class_names)
    if labels.ndim != 1 or labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        expected = "integers of shape (rows,), or bool of shape (rows, n_classes) for several labels a row"
        raise InputError("labels", _type_text(labels), expected)
    labels = labels.to(torch.int64)
    n_classes = int(labels.max()) + 1 if class_names is None and len(labels) else len(class_names or ())
    wrong = (labels < 0) | (labels >= min(n_classes, MAX_CLASSES))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        expected = f"labels from 0 to {min(n_classes, MAX_CLASSES) - 1}, one for each class name"
        if class_names is None:
            expected = f"labels from 0, below {MAX_CLASSES}"
        raise InputError("labels", f"{int(labels[row])} ({row_name(row)})", expected)
    return "single", n_classes, {"labels": labels.contiguous()}


def encode_thumbnails(thumbnails: UInt8[Tensor, "n h w c"] | UInt8[ndarray, "n h w c"]) -> UInt8[Tensor, "n h w c"]:
    """Return thumbnails as a contiguous tensor; `InputError` unless they are bytes with 1 or 3 channels."""
    pictures = to_tensor("thumbnails", thumbnails)
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[3] not in {1, 3}:
        raise InputError("thumbnails", _type_text(pictures), "uint8 of shape (rows, height, width, 1 or 3)")
    return pictures.contiguous()


def _encode_multi_labels(
    labels: Bool[Tensor, "n c"], class_names: Sequence[str] | None
) -> tuple[int, dict[str, Tensor]]:
    """Return the number of classes, and the labels as `label_offsets` and `label_values`."""
    n_classes = labels.shape[1]
    if class_names is not None and len(class_names) != n_classes:
        raise InputError("labels", f"{n_classes} columns", f"one for each of the {len(class_names)} class names")
    offsets = torch.zeros(len(labels) + 1, dtype=torch.int64)
    offsets[1:] = labels.sum(dim=1).cumsum(dim=0)
    return n_classes, {"label_offsets": offsets, "label_values": labels.nonzero()[:, 1].contiguous()}


def _refuse(bad: Bool[Tensor, " n"], start: int, row_name: RowName, got: str, expected: str) -> None:
    """Raise `InputError`, naming the first bad row of a block that begins at row `start`, if any row is bad."""
    if bad.any():
        raise InputError("embeddings", f"{got} ({row_name(start + int(bad.nonzero()[0]))})", expected)


def _range_text(dtype: str, scale: float | None) -> str:
    """Return the range of values that the stored dtype can hold, in words."""
    largest = torch.finfo(DTYPES[dtype]).max if scale is None else 255 * scale
    return f"values from {0 if scale is not None else -largest:.6g} to {largest:.6g}"


def _type_text(values: Tensor) -> str:
    """Return the dtype and shape of a tensor of rows in words, without the number of rows."""
    return f"{values.dtype} of shape ({', '.join(['rows', *map(str, values.shape[1:])])})"

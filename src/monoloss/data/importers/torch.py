"""Import of files of torch.save; nothing but tensors and plain containers is unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from jaxtyping import Shaped
from torch import Tensor

from monoloss.data.array_files import EMBEDDING_KEYS, dtype_name, open_pt, plain_tensor
from monoloss.data.importers import options as importing
from monoloss.data.store import FeatureStore
from monoloss.data.store.stream import RowColumns
from monoloss.errors import InputError


def import_pt(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    embeddings_key: str | None = None,
    labels_key: str | None = None,
    ids_key: str | None = None,
    paths_key: str | None = None,
    **options: Unpack[importing.ImportOptions],
) -> FeatureStore:
    """Write a .pt file, which holds a dict of columns, a dict from path to row or a tensor, as a store, and open it.

    - `{"features" or "embeddings": (n, d), "paths", "ids", "labels": ...}`: columns are chosen as by `import_npz`.
    - `{path: (d,) or (1, d), ...}`: a row for each path, in the order of the dict; the paths become the ids. Numbers
      instead of paths become ids only.
    - a tensor `(n, d)`.

    The file is memory-mapped if it has the format of torch 1.6 or later, and read with `weights_only=True`: a pickle
    with anything but tensors, strings, numbers and containers is refused, and nothing in it is executed.

    Args:
        path: the .pt file.
        folder: the store; it does not exist yet or is empty.
        embeddings_key: key of the rows, `(n, d)`. Keys are given only for a dict of columns.
        labels_key: key of the labels: a tensor or list, `(n,)` integers or `(n, n_classes)` bool.
        ids_key: key of the ids: a list of strings or integers, or a tensor of integers.
        paths_key: key of the paths relative to the image root: a list of strings.
        **options: see `ImportOptions` and `StoreOptions`; rows of bytes need `scale`.

    Raises:
        InputError: the file cannot be read or has none of these forms, or the rows cannot be stored; no folder is made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     torch.save({"a.png": torch.tensor([3.0, 4.0]), "b.png": torch.tensor([[1.0, 0.0]])}, parent + "/x.pt")
        ...     store = import_pt(parent + "/x.pt", parent + "/store")
        ...     store.paths, store.embeddings().tolist()
        (['a.png', 'b.png'], [[3.0, 4.0], [1.0, 0.0]])
    """
    keys = {"embeddings_key": embeddings_key, "labels_key": labels_key, "ids_key": ids_key, "paths_key": paths_key}
    files, content = importing.ColumnFiles.read(options, keys), open_pt(path)
    if isinstance(content, Mapping) and (embeddings_key or any(key in content for key in EMBEDDING_KEYS)):
        return importing.write_array(folder, *_columns(path, content, keys, files), options)
    given = next((name for name, key in keys.items() if key is not None and name != "embeddings_key"), None)
    if isinstance(content, Tensor):
        if given:
            raise InputError(given, repr(keys[given]), f"no key: {path} holds a single tensor")
        return importing.write_array(folder, plain_tensor(path, content), files.beside(), options)
    if not _is_row_mapping(content):
        if isinstance(content, Mapping):
            raise importing.no_embeddings(path, [str(key) for key in content])
        raise InputError(str(path), f"a {type(content).__name__}", "a dict of columns, path -> row, or a tensor")
    if given:
        raise InputError(given, repr(keys[given]), f"no key: {path} holds a row for each path")
    names, tensors = list(content), list(content.values())
    width, dtype = _row_shape(path, names, tensors)

    def read(start: int, stop: int) -> Shaped[Tensor, "n d"]:
        return torch.stack([row.reshape(-1) for row in tensors[start:stop]])

    paths = None if any(isinstance(name, int) for name in names) else names
    columns = files.beside(None, [str(name) for name in names], paths)
    return importing.write_store(folder, (len(names), width), dtype, read, columns, options)


def _columns(
    path: str | os.PathLike[str], content: Mapping[Any, Any], keys: importing.Keys, files: importing.ColumnFiles
) -> tuple[Shaped[Tensor, "..."], RowColumns]:
    """Return the rows and the other columns of a dict of columns."""
    values = {str(key): value for key, value in content.items()}
    key, *others = files.choose_keys(keys, values, path)
    rows = values[key]
    if not isinstance(rows, Tensor):
        raise InputError(f"{path}, embeddings", f"a {type(rows).__name__}", "a tensor of shape (rows, width)")
    labels, ids, paths = (None if key is None else values[key] for key in others)
    columns = files.beside(
        None if labels is None else _label_tensor(path, labels),
        None if ids is None else _string_list(path, "ids", ids),
        None if paths is None else _string_list(path, "paths", paths),
    )
    return plain_tensor(path, rows), columns


def _label_tensor(path: str | os.PathLike[str], labels: Any) -> Shaped[Tensor, "..."]:
    """Return labels, a tensor or nested lists, as a tensor; `InputError` if that fails."""
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"a {type(labels).__name__} that is no tensor ({error})"
        raise InputError(f"{path}, labels", got, "integers, or bool of shape (rows, n_classes)") from error


def _string_list(path: str | os.PathLike[str], name: str, values: Any) -> list[str]:
    """Return the column `name` as a list of strings; `InputError` unless it holds strings or integers."""
    if isinstance(values, Tensor):
        return importing.strings(values.numpy(), name)
    if not isinstance(values, list | tuple) or not all(type(value) in {str, int} for value in values):
        raise InputError(f"{path}, {name}", f"a {type(values).__name__}", "a list of strings or integers")
    return [str(value) for value in values]


def _is_row_mapping(content: Any) -> bool:
    """Return whether the content of a file is a dict from path or number to row, with at least one row."""
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(type(key) in {str, int} and isinstance(value, Tensor) for key, value in content.items())
    )


def _row_shape(path: str | os.PathLike[str], names: list[Any], rows: list[Tensor]) -> tuple[int, str]:
    """Return the width and dtype of the rows; `InputError` unless all rows have the same."""
    first = rows[0]
    expected = f"a row of shape ({first.shape[-1] if first.ndim else 'd'},) or (1, d), like the others"
    for name, row in zip(names, rows, strict=True):
        fits = row.ndim in {1, 2} and row.shape[-1] == first.shape[-1] and row.numel() == row.shape[-1]
        if not fits or row.dtype != first.dtype:
            raise InputError(f"{path}, {name!r}", f"{row.dtype} of shape {tuple(row.shape)}", expected)
        plain_tensor(path, row)
    return first.shape[-1], dtype_name(first)

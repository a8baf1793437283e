"""Files of torch.save -> FeatureStore. Nothing but tensors and plain containers is unpickled."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Shaped
from torch import Tensor

from monoloss.data.importers.options import (
    EMBEDDING_KEYS,
    ID_KEYS,
    LABEL_KEYS,
    PATH_KEYS,
    ColumnFiles,
    ImportOptions,
    choose_key,
    columns_of,
    import_progress,
    no_embeddings,
    store_options,
    strings,
)
from monoloss.data.store import FeatureStore
from monoloss.data.store.rows import AnyArray
from monoloss.data.store.stream import RowColumns, usual_dtype, write_rows
from monoloss.errors import InputError

_ZIP_START = b"PK\x03\x04"  # what torch has written since 1.6; only such files can be memory-mapped


def import_pt(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    embeddings_key: str | None = None,
    labels_key: str | None = None,
    ids_key: str | None = None,
    paths_key: str | None = None,
    **options: Unpack[ImportOptions],
) -> FeatureStore:
    """Write a .pt file as a store: a dict of columns, a dict from path to row, or a single tensor of rows.

    - `{"features" or "embeddings": (n, d), "paths", "ids", "labels": ...}`: columns are found as by `import_npz`.
    - `{path: (d,) or (1, d), ...}`: a row for each path, in the order of the dict; the paths are the ids as well.
      Integers instead of paths become ids.
    - a tensor `(n, d)`.

    The file is memory-mapped where its format allows it, and read with `weights_only=True`: a pickle that holds
    anything but tensors, strings, numbers and containers is refused, and nothing in it is executed.

    Args:
        path: the .pt file.
        folder: the store; it does not exist yet or is empty.
        embeddings_key: of the rows, `(n, d)`. This and the following are for a dict of columns.
        labels_key: of the labels: a tensor or list, `(n,)` integers or `(n, n_classes)` bool.
        ids_key: of the ids: a list of strings or integers, or a tensor of integers.
        paths_key: of the paths relative to the image root: a list of strings.
        **options: see `ImportOptions` and `StoreOptions`; rows of bytes need `scale`.

    Returns:
        The store, open.

    Raises:
        InputError: the file cannot be read, holds other objects, or is none of the three; or the rows cannot be
            stored. No folder appears then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     torch.save({"a.png": torch.tensor([3.0, 4.0]), "b.png": torch.tensor([[1.0, 0.0]])}, parent + "/x.pt")
        ...     store = import_pt(parent + "/x.pt", parent + "/store")
        ...     store.paths, store.embeddings().tolist()
        (['a.png', 'b.png'], [[3.0, 4.0], [1.0, 0.0]])
    """
    keys = {"labels_key": labels_key, "ids_key": ids_key, "paths_key": paths_key}
    files, content = ColumnFiles.read(options, **keys), _load(path)
    keys = {"embeddings_key": embeddings_key, **keys}
    named = isinstance(content, Mapping) and (embeddings_key or any(key in content for key in EMBEDDING_KEYS))
    if named:
        rows, columns = _columns(path, content, keys, files)
        return _write(folder, tuple(rows.shape), lambda start, stop: rows[start:stop], rows.dtype, columns, options)
    given = next((name for name, key in keys.items() if key is not None), None)
    if isinstance(content, Tensor):
        if given:
            raise InputError(given, repr(keys[given]), f"no key: {path} holds a single tensor")
        rows = _strided(path, content)
        columns = columns_of(*files)
        return _write(folder, tuple(rows.shape), lambda start, stop: rows[start:stop], rows.dtype, columns, options)
    if not _is_row_mapping(content):
        if isinstance(content, Mapping):
            raise no_embeddings(path, [str(key) for key in content], EMBEDDING_KEYS)
        raise InputError(str(path), f"a {type(content).__name__}", "a dict of columns, path -> row, or a tensor")
    if given:
        raise InputError(given, repr(keys[given]), f"no key: {path} holds a row for each path")
    names, tensors = list(content), list(content.values())
    width, dtype = _row_shape(path, names, tensors)

    def read(start: int, stop: int) -> Shaped[Tensor, "n d"]:
        return torch.stack([row.reshape(-1) for row in tensors[start:stop]])

    paths = None if any(isinstance(name, int) for name in names) else names
    columns = columns_of(files.labels, files.ids or [str(name) for name in names], files.paths or paths)
    return _write(folder, (len(names), width), read, dtype, columns, options)


def _write(
    folder: str | os.PathLike[str],
    shape: tuple[int, ...],
    read: Callable[[int, int], Shaped[Tensor, "n d"]],
    dtype: torch.dtype,
    columns: RowColumns,
    options: ImportOptions,
) -> FeatureStore:
    with import_progress(options, shape[0] if shape else None) as advance:
        own = usual_dtype(str(dtype).removeprefix("torch."))
        write_rows(folder, shape, read, columns, advance, **store_options(options, own))
    return FeatureStore(folder)


def _load(path: str | os.PathLike[str]) -> Any:
    needed = "a file of torch.save with nothing but tensors, strings, numbers, lists and dicts"
    try:
        with Path(path).open("rb") as file:
            is_zip = file.read(len(_ZIP_START)) == _ZIP_START
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what torch has to say about other formats it then refuses
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", needed) from error
    except Exception as error:  # a broken pickle can raise anything
        foreign = re.search(r"(?i)unsupported global:? (?:GLOBAL )?([\w.]+)", str(error))
        came = f"a pickle with {foreign[1]} in it" if foreign else "an unreadable file"  # torch advises to execute it
        raise InputError(str(path), f"{came}; nothing of it was executed", needed) from error


def _columns(
    path: str | os.PathLike[str], content: Mapping[Any, Any], keys: Mapping[str, str | None], files: ColumnFiles
) -> tuple[Shaped[Tensor, "..."], RowColumns]:
    """The rows and what stands beside them in a dict of columns."""
    there = [str(key) for key in content]

    def column(argument: str, usual: Sequence[str]) -> Any:
        key = choose_key(argument, keys[argument], usual, there, path)
        return None if key is None else content.get(key)

    rows = column("embeddings_key", EMBEDDING_KEYS)
    if not isinstance(rows, Tensor):
        raise InputError(f"{path}, embeddings", f"a {type(rows).__name__}", "a tensor of shape (rows, width)")
    labels: AnyArray | None
    labels, ids, paths = files
    if labels is None and (came := column("labels_key", LABEL_KEYS)) is not None:
        labels = _label_tensor(path, came)
    if ids is None and (came := column("ids_key", ID_KEYS)) is not None:
        ids = _string_list(path, "ids", came)
    if paths is None and (came := column("paths_key", PATH_KEYS)) is not None:
        paths = _string_list(path, "paths", came)
    return _strided(path, rows), columns_of(labels, ids, paths)


def _label_tensor(path: str | os.PathLike[str], labels: Any) -> Shaped[Tensor, "..."]:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        came = f"a {type(labels).__name__} that is no tensor ({error})"
        raise InputError(f"{path}, labels", came, "integers, or bool of shape (rows, n_classes)") from error


def _string_list(path: str | os.PathLike[str], name: str, values: Any) -> list[str]:
    if isinstance(values, Tensor):
        return strings(values.numpy(), name)
    if not isinstance(values, list | tuple) or not all(type(value) in {str, int} for value in values):
        raise InputError(f"{path}, {name}", f"a {type(values).__name__}", "a list of strings or integers")
    return [str(value) for value in values]


def _is_row_mapping(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(type(key) in {str, int} and isinstance(value, Tensor) for key, value in content.items())
    )


def _row_shape(path: str | os.PathLike[str], names: list[Any], rows: list[Tensor]) -> tuple[int, torch.dtype]:
    """Width and dtype of rows that are all alike."""
    first = rows[0]
    needed = f"a row of shape ({first.shape[-1] if first.ndim else 'd'},) or (1, d), like the others"
    for name, row in zip(names, rows, strict=True):
        fits = row.ndim in {1, 2} and row.shape[-1] == first.shape[-1] and row.numel() == row.shape[-1]
        if not fits or row.dtype != first.dtype:
            raise InputError(f"{path}, {name!r}", f"{row.dtype} of shape {tuple(row.shape)}", needed)
        _strided(path, row)
    return first.shape[-1], first.dtype


def _strided(path: str | os.PathLike[str], rows: Tensor) -> Tensor:
    if rows.layout != torch.strided or rows.is_quantized or rows.device.type != "cpu":
        kind = "quantized" if rows.is_quantized else f"{rows.layout}, {rows.device}"
        raise InputError(str(path), f"a tensor that is {kind}", "plain tensors")
    return rows.detach()
